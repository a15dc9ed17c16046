"""Random weights with which a detector finds about as much as a trained one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from ..engine.errors import ToolError
from .peers import randomise

CANDIDATES = 400


def make_weights(runner: Runner, device: str = 'cpu') -> dict[str, Tensor]:
    """Random weights for a detector, of which it is as sure as a trained one on its first image.

    Raises:
        ToolError: It has no classifier to scale.
    """
    init_default_scope('mmdet')
    model = copy.deepcopy(runner.model).to(device).eval()
    head = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    if not isinstance(getattr(head, 'fc_cls', None), nn.Linear):
        raise ToolError('the model must be a Faster or Mask R-CNN: its roi_head.bbox_head.fc_cls')
    randomise(model)
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gain = (0.2 if name.endswith('fc_reg') else 2) / module.in_features**0.5
            values = torch.randn(module.weight.shape, generator=generator) * gain
            module.weight.data.copy_(values)
        elif name.endswith('rpn_reg'):
            module.weight.data *= 0.2
        elif isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    logits: list[Tensor] = []
    head.fc_cls.register_forward_hook(lambda module, inputs, output: logits.append(output))
    batch = next(first_batches(runner))
    with torch.no_grad():
        model.backbone(model.data_preprocessor(copy.deepcopy(batch))['inputs'])
        model.eval()
        model.test_step(copy.deepcopy(batch))
        _calibrate(head.fc_cls, logits[0], model.test_cfg.rcnn.score_thr)
    return {name: value.cpu() for name, value in model.state_dict().items()}


def _calibrate(layer: nn.Linear, logits: Tensor, threshold: float) -> None:
    """Logits of mean 0 and deviation 2; background is as likely as leaves ``CANDIDATES``."""
    scale = 2 / logits.std(0, keepdim=True).clamp(min=1e-6)
    layer.weight.mul_(scale.T)
    layer.bias.copy_((layer.bias - logits.mean(0)) * scale[0])
    logits = (logits - logits.mean(0)) * scale
    low, high = -20.0, 20.0
    for _ in range(30):
        background = (low + high) / 2
        moved = torch.cat([logits[:, :-1], logits[:, -1:] + background], 1)
        passing = int((moved.softmax(1)[:, :-1] > threshold).sum())
        low, high = (background, high) if passing > CANDIDATES else (low, background)
    layer.bias[-1] += background


def first_batches(runner: Runner) -> Iterator[dict[str, Any]]:
    """The batches of a test set, from this process."""
    loader = runner.test_dataloader
    for indices in loader.batch_sampler:
        yield loader.collate_fn([loader.dataset[i] for i in indices])
