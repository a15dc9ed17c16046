"""Parameters and GFLOPs of whole models, counted as in the published table of detectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import listed
from ..ops import DeformConv2d, ModulatedDeformConv2d

PROPOSALS = 1000
MASKS = 100
_PARTLY_RUN = ('backbone', 'decode_head', 'auxiliary_head', 'head')  # the rest is for training


class ModelCost(NamedTuple):
    """Trained parameters, all parameters, and multiply-adds of one image in 1e9."""

    trained: int
    params: int
    gflops: float

    def __str__(self) -> str:
        sizes = f'{self.params / 1e6:.2f} M parameters, {self.trained / 1e6:.2f} M of them trained'
        return f'{sizes}, {self.gflops:.2f} GFLOPs (a multiply-add is one)'


def describe_model(model: nn.Module, height: int, width: int) -> ModelCost:
    """Counts a detector, segmentor or classifier by the rules of the authors' COCO table.

    Convolutions (transposed ones at each output; deformable ones without the interpolation) and
    linear layers count with their biases, a normalisation two an element, a ReLU or a pooling one
    an input element. 1,000 proposals go through each box head, 100 through each mask head.
    RoIAlign, resizing, losses, auxiliary heads and whatever selects boxes do not count.

    The model must be in evaluation mode and built under ``torch.device('meta')``, where any size is
    free (else ValueError, as for a model without a head that can be counted, with other heads
    too, or with layers of other kinds, as transformers have).
    """
    if not next(model.parameters()).is_meta:
        raise ValueError("model must be built under torch.device('meta')")
    model = copy.deepcopy(model)
    counts, rules, weighted, ran = [], _rules(), {}, set()
    for name, module in model.named_modules():
        weighs = any(p.numel() > 1 for p in module.parameters(recurse=False))
        if weighs and not name.startswith(_PARTLY_RUN):
            weighted[module] = '.'.join(name.split('.')[:2])
            module.register_forward_hook(lambda m, *_: ran.add(m))
        rule = next((rule for kinds, rule in rules.items() if isinstance(module, kinds)), None)
        if rule is not None:
            module.register_forward_hook(
                lambda m, inputs, out, rule=rule: counts.append(rule(m, inputs[0], out))
            )
        elif weighs:
            module.register_forward_hook(_refuse)
    shapes = (p.shape for p in getattr(model, 'backbone', model).parameters())
    channels = next((shape[1] for shape in shapes if len(shape) == 4), 3)
    channels = channels if channels < 5 else 3  # others' first layer may get pixels side by side
    with torch.no_grad():
        _run(model, torch.empty(1, channels, height, width, device='meta'))
    if unknown := [part for module, part in weighted.items() if module not in ran]:
        what = listed(dict.fromkeys(unknown))
        raise ValueError(f'model must use all of its heads, but {what} has weights that do not run')
    params = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(n for n, trains in params if trains)
    return ModelCost(trained, sum(n for n, _ in params), sum(counts) / 1e9)


def _rules() -> dict[tuple[type, ...], Callable[[Any, Tensor, Tensor], int]]:
    """Types of modules -> multiply-adds from the module, its input and its output."""
    from mmcv import ops

    deformable = (DeformConv2d, ModulatedDeformConv2d, ops.DeformConv2d, ops.ModulatedDeformConv2d)
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    return {
        (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, *deformable): _weighted,
        (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm): lambda _, x, out: 2 * x.numel(),
        (nn.ReLU, *pools): lambda _, x, out: x.numel(),
    }


def _refuse(module: nn.Module, inputs: Any, out: Any) -> None:
    kind = type(module).__name__
    raise ValueError(f'model must have layers that these rules count, but has {kind}')


def _weighted(module: nn.Module, x: Tensor, out: Tensor) -> int:
    """Each output takes the weights of its channel, and its bias."""
    channels = out.shape[-1] if isinstance(module, nn.Linear) else out.shape[1]
    biased = getattr(module, 'bias', None) is not None
    return out.numel() * (module.weight.numel() // channels + biased)


def _run(model: nn.Module, image: Tensor) -> None:
    names = ('rpn_head', 'bbox_head', 'semantic_head', 'decode_head', 'head')
    heads = [getattr(model, name) for name in names if getattr(model, name, None)]
    if not heads or isinstance(heads[0], nn.ModuleList):
        kind = type(model).__name__
        raise ValueError(
            f'model must be a detector, classifier or segmentor of one head, but is {kind}'
        )
    levels = model.backbone(image)
    levels = model.neck(levels) if getattr(model, 'neck', None) else levels
    for head in heads:
        head(levels)
    roi = getattr(model, 'roi_head', None)
    if roi is None:
        return
    shared = getattr(roi, 'shared_head', None) or nn.Identity()

    def stages(heads: nn.Module, extractors: nn.Module, count: int) -> Iterable:
        """Each head of a cascade, or the one of another detector, and its regions."""
        if not isinstance(heads, nn.ModuleList):
            heads, extractors = [heads], [extractors]
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.out_channels, *extractor.roi_layers[0].output_size
            yield head, shared(torch.empty(count, *size, device='meta'))

    for head, regions in stages(roi.bbox_head, roi.bbox_roi_extractor, PROPOSALS):
        head(regions)
    if getattr(roi, 'with_semantic', False):
        roi.semantic_head(levels)
    features = None
    if roi.with_mask:
        for head, regions in stages(roi.mask_head, roi.mask_roi_extractor, MASKS):
            if getattr(roi, 'mask_info_flow', False):  # of a hybrid task cascade
                _, features = head(regions, features)
            else:
                head(regions)
