"""A training step of a detector: mmdet's way, and ours as ``train.py`` runs it.

mmdet's way is its own Res2Net in mmdet's detector on the operators that there are: where mmcv has
none of its own, torchvision's kernels, and none of this package's. All have the same random
weights, images, boxes and random numbers, and their losses and some gradients are compared first.
Each has a process of its own, in which ours keeps freed memory, as ``train.py`` does.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from tqdm import tqdm

from ..engine.config import load_config
from ..engine.errors import ToolError
from ..ops.trained_conv import train_convolutions
from ..registry import SCOPE
from .backbones import check_batches, group_name, parse_sizes
from .measure import circumstances, exact_float32, interleave
from .peers import check_equal, randomise, require, torchvision_kernels
from .processes import KEPT, own_process, without_kept
from .profiling import least_profiles

YARDSTICK, OURS = 'mmdet', 'ours'
CONTENDERS = YARDSTICK, YARDSTICK + KEPT, f'{YARDSTICK} channels_last', OURS
BOUND = 5e-3  # of the losses; proposals that change places by rounding change what is sampled
BOUND_OF_GRADIENTS = 3e-2
COMPARED = (
    'rpn_head.rpn_conv.weight',
    'neck.fpn_convs.0.conv.weight',
    'neck.lateral_convs.1.conv.weight',
    'backbone.layer2.0.conv1.weight',
)
BOXES = 8  # in an image


class DetectorStep:
    """Losses, backward pass and a step of SGD.

    Args:
        model: It trains on ``images``.
        images: (N, 3, H, W), of bytes.
        operators: Gives a context for all that is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        operators: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.images, self.operators = model.train(), images, operators
        self.samples = [_sample(images[0], i) for i in range(len(images))]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def losses(self) -> dict[str, Tensor]:
        """Losses by name; ``loss`` is their sum."""
        torch.manual_seed(0)  # which proposals are sampled
        data = dict(inputs=[*self.images], data_samples=copy.deepcopy(self.samples))
        with self.operators():
            found = self.model(**self.model.data_preprocessor(data, True), mode='loss')
        total, named = self.model.parse_losses(found)
        return {**named, 'loss': total}

    def gradients(self) -> list[Tensor]:
        """Of some convolutions, without a step."""
        self.backward()
        return [self.model.get_parameter(name).grad.clone() for name in COMPARED]

    def backward(self) -> None:
        """Gradients of the losses' sum."""
        self.sgd.zero_grad()
        loss = self.losses()['loss']
        with self.operators():
            loss.backward()

    def __call__(self) -> None:
        self.backward()
        self.sgd.step()


def _sample(image: Tensor, seed: int) -> Any:
    structures = require('mmdet.structures', 'mmdet')
    generator = torch.Generator().manual_seed(seed)
    size = tuple(image.shape[1:])
    corners = torch.rand((BOXES, 2, 2), generator=generator).sort(1).values * torch.tensor(
        [size[1], size[0]]
    )
    labels = torch.randint(0, 80, (BOXES,), generator=generator)
    sample = structures.DetDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    sample.gt_instances = InstanceData(bboxes=corners.flatten(1), labels=labels)
    return sample


def make_images(size: tuple[int, int], batch: int) -> Tensor:
    """Random images of bytes, the same at every call, (batch, 3, *size)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def prepare(
    name: str, config: str, size: tuple[int, int], batch: int, device: str
) -> Callable[[], None]:
    """A contender's step."""
    return build(load_config(config), make_images(size, batch), device, [name])[name]


def build(
    cfg: Config, images: Tensor, device: str, names: Sequence[str] = CONTENDERS
) -> dict[str, DetectorStep]:
    """A step of each contender, with the same weights at every call.

    Raises:
        ToolError: mmdet is missing, or the config is of something else than it has.
    """
    require('mmdet')
    init_default_scope('mmdet')
    model = copy.deepcopy(cfg.model)
    head = model.get('roi_head') or {}
    if (model.get('backbone') or {}).get('type') != f'{SCOPE}.Res2Net' or 'mask_head' in head:
        raise ToolError('the config must be of a detector of boxes on a Res2Net of this package')
    model.backbone.update(init_cfg=None, first_block='mmdet')
    logging.disable(logging.WARNING)  # a line for each weight
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ours = MODELS.build(model)
            ours.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    randomise(ours.backbone)
    model.backbone.type = 'mmdet.Res2Net'
    model.backbone.pop('first_block')
    steps = {}
    for name in names:
        net = ours
        if name != OURS:
            try:
                net = MODELS.build(model)
            except (TypeError, KeyError) as error:
                raise ToolError(f"mmdet's Res2Net cannot be built: {error}") from error
            net.load_state_dict(ours.state_dict())
        if name.endswith('channels_last') or (name == OURS and torch.device(device).type == 'cpu'):
            net = net.to(memory_format=torch.channels_last)
        net = train_convolutions(net) if name == OURS else net
        operators = nullcontext if name == OURS else torchvision_kernels
        steps[name] = DetectorStep(net.to(device), images, operators)
    return steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument('--config', default='faster_rcnn_r2n50.py', help='of a detector of boxes')
    parser.add_argument(
        '--size', nargs='+', default=['480x640'], metavar='HxW', help='of the images (480x640)'
    )
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images a step (1)')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times a step of each contender after a comparison of their losses.

    Returns:
        The record.

    Raises:
        ToolError: An argument or the config does not fit, mmdet is missing, or losses differ.
    """
    sizes = parse_sizes(args.size)
    if len(sizes) > 1:
        raise ToolError(f'--size must be one, but got {" ".join(args.size)}')
    check_batches([args.batch])
    given = sizes[0], args.batch
    steps = build(load_config(args.config), make_images(*given), args.device)
    with exact_float32():
        losses = {name: step.losses() for name, step in steps.items()}
    reference = [*losses[OURS].values()]
    apart = {
        name: check_equal(name, [*found.values()], OURS, reference, BOUND)
        for name, found in losses.items()
    }
    with exact_float32():
        gradients = {name: step.gradients() for name, step in steps.items()}
    for name, found in gradients.items():
        check_equal(name, found, OURS, gradients[OURS], BOUND_OF_GRADIENTS)
    del steps
    names = without_kept(CONTENDERS, args.device)
    with ExitStack() as stack:
        calls = {}
        for name in tqdm(names, desc='starting', unit='process'):
            keep = name == OURS or name.endswith(KEPT)
            own = own_process(
                name, args.device, keep, prepare, name, args.config, *given, args.device
            )
            calls[name] = stack.enter_context(own)
        times = interleave(calls, args.rounds, args.device)
        profile = least_profiles({name: call.profile for name, call in calls.items()})
    rows = [
        dict(
            name=name,
            times=times[name],
            memory_mib=None,
            gmacs=None,
            difference=apart[name],
            note='keeps freed memory' if calls[name].keeps else '',
        )
        for name in names
    ]
    name = Path(args.config).name
    return dict(
        task='train_detector',
        title=f'Training step of {name}, {group_name(sizes[0], args.batch)}',
        yardstick=YARDSTICK,
        rows=rows,
        profile=profile,
        **circumstances(args),
    )
