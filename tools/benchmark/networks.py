"""Inference and training steps of backbones: the tasks backbone, sweep, train and dcn.

All contenders of a task have the same weights and images, and their results are compared before
anything is timed: levels in inference; in training the loss and gradients of some convolutions.
"""

from __future__ import annotations

import argparse
import copy
import functools
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from res2net_mm.deploy import optimize_for_inference
from res2net_mm.engine.errors import ToolError
from res2net_mm.evaluation.complexity import describe_stages
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.deform_conv import VARIABLE, choose_way
from res2net_mm.ops.trained_conv import train_convolutions

from .contenders import (
    BUILDERS,
    CHOICES,
    DCN,
    LEVELS,
    VARIANT,
    Contender,
    State,
    check_equal,
    choose,
    make_state,
    normal_image,
    on_torchvision,
    ours,
)
from .measure import make_record, measure, tf32, type_name

INFERENCE, TRAINING = 'inference', 'training step'
CONTENDERS = {
    INFERENCE: (
        *('mmdet', 'mmdet channels_last', 'timm', 'timm channels_last', 'resnet50'),
        *('torchvision', 'torchvision kept memory', 'torchvision fast', 'ours', 'ours fast'),
        *('mmdet bfloat16', 'ours fast bfloat16', 'ours fast float16', 'mmdet kept memory'),
        *('timm channels_last kept memory', 'resnet50 kept memory', 'mmdet bfloat16 kept memory'),
    ),
    TRAINING: (
        *('mmdet', 'mmdet channels_last', 'mmdet kept memory', 'timm', 'timm channels_last'),
        *('torchvision', 'torchvision kept memory', 'ours', 'ours channels_last', 'ours compile'),
        *('ours bfloat16 channels_last', 'mmdet bfloat16'),
        *(f'ours with_cp {level}' for level in LEVELS),
        'ours with_cp',
    ),
}
OF_DCN = [name for name in CONTENDERS[INFERENCE] if name.startswith('torchvision')]
OF_DCN += ['ours', 'ours fast', 'ours channels_last']
BOUND, BOUND_OF_HALF, BOUND_OF_DCN = 1e-5, 3e-2, 1e-4  # of levels
# Gradients are compared in double precision: in float32 rounding moves the first one by 1e-3 and
# more. What is timed is compared too, with room for that; of bfloat16 only the loss.
BOUND_OF_GRADIENTS, BOUND_OF_TIMED = 1e-6, 1e-2
_COMPARED = 4  # first convolutions
_SMALL = 192  # pixels: gradients are compared on images with sides of at most this


class Inference:
    """The levels of an image, which comes in NCHW.

    Args:
        net: In evaluation mode; it gives levels as a sequence or a dict.
        image: (N, 3, H, W); may be replaced.
        channels_last: Memory format of weights and image; converting the image is part of the call.
        autocast: Type of the computation; None means that of the weights.
    """

    def __init__(
        self,
        net: nn.Module,
        image: Tensor,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.form = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.form) if channels_last else net
        self.image, self.autocast = image, autocast

    def _autocast(self) -> AbstractContextManager:
        typed = self.autocast is not None
        return torch.autocast(self.image.device.type, self.autocast) if typed else nullcontext()

    def __call__(self) -> tuple[Tensor, ...]:
        with torch.inference_mode(), self._autocast():
            levels = self.net(self.image.contiguous(memory_format=self.form))
        return tuple(levels.values() if isinstance(levels, dict) else levels)

    results = __call__


class Step(Inference):
    """Forward pass, backward pass and a step of SGD; the loss is the sum of levels' mean squares.

    Args:
        net: It gives levels.
        image: (N, 3, H, W); may be replaced.
        channels_last: Memory format of weights and image.
        autocast: Type of the forward pass; None means that of the weights.
        norm_eval: Batch norm keeps its statistics.
    """

    rate = 1e-4

    def __init__(
        self,
        net: nn.Module,
        image: Tensor,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
        norm_eval: bool = False,
    ) -> None:
        super().__init__(net, image, channels_last, autocast)
        self.net.train()
        for module in self.net.modules():
            if norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        weights = self.net.parameters()
        self.sgd = torch.optim.SGD(weights, lr=self.rate, momentum=0.9, weight_decay=1e-4)

    def forward(self) -> Tensor:
        """The loss."""
        with self._autocast():
            levels = self.net(self.image.contiguous(memory_format=self.form))
        # an autocast level is squared in float32, a double one in double
        types = [torch.promote_types(level.dtype, torch.float32) for level in levels]
        # (the gradient of a mean is NCHW, which no layer after a backbone would give)
        squares = (x.to(t).square().sum() for x, t in zip(levels, types, strict=True))
        return sum(x / level.numel() for x, level in zip(squares, levels, strict=True))

    def __call__(self) -> None:
        self.sgd.zero_grad()
        self.forward().backward()
        self.sgd.step()

    def results(self) -> tuple[Tensor, ...]:
        """The loss and gradients of convolutions; nothing is updated but statistics."""
        self.sgd.zero_grad()
        loss = self.forward()
        loss.backward()
        modules = [*self.net.modules()]
        # the stem's and the first and the last 1x1, which have the same place everywhere
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        convs = [*convs[:_COMPARED], [m for m in convs if m.kernel_size == (1, 1)][-1]]
        convs += [m.conv_offset for m in modules if isinstance(m, DeformConv2d)]
        return loss.detach(), *(conv.weight.grad.clone() for conv in convs)


def make_call(
    contender: Contender,
    work: str,
    variant: str,
    state: State,
    image: Tensor,
    norm_eval: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Inference:
    """A contender's call: :class:`Inference`, or :class:`Step` with weights of a type."""
    build = BUILDERS[contender.source]
    net = build(variant, state, **contender.arguments).to(image.device, dtype)
    autocast = None if contender.dtype == torch.float32 else contender.dtype
    if contender.fast:
        net, autocast = optimize_for_inference(net, contender.dtype), None
    if contender.as_trained and work == TRAINING:
        train_convolutions(net)
    if contender.source == 'torchvision':
        on_torchvision(net)
    if work == INFERENCE:
        return Inference(net, image, contender.channels_last, autocast)
    return Step(net, image.to(dtype), contender.channels_last, autocast, norm_eval)


def prepare(
    name: str,
    work: str,
    variant: str,
    size: tuple[int, int],
    batch: int,
    device: str,
    norm_eval: bool,
) -> Callable[[], object]:
    """A call that ran on a small image, so that what is loaded once and gradients are there."""
    small = normal_image((64, 64), 2, device)
    call = make_call(Contender(name), work, variant, make_state(variant), small, norm_eval)
    call()
    image = normal_image(size, batch, device)
    call.image = image.contiguous(memory_format=call.form) if work == TRAINING else image
    return call


def compare(
    contenders: dict[str, Contender],
    work: str,
    variant: str,
    state: State,
    image: Tensor,
    norm_eval: bool = True,
) -> dict[str, float | None]:
    """How far each contender's results are from ours; None for another network.

    Raises:
        ToolError: One is further than its bound.
    """
    given = work, variant, state, image, norm_eval
    exact = torch.float32 if work == INFERENCE else torch.float64
    references: dict[str, tuple[Tensor, ...]] = {}
    apart: dict[str, float | None] = {}
    for name, contender in tqdm(contenders.items(), desc='comparing', unit='contender'):
        rule = contender.rule
        if rule is None:
            apart[name] = None
            continue
        label = f"ours (first_block='{rule}', {type_name(exact)})"
        with tf32(False, False):
            if rule not in references:
                plain = Contender('ours')
                plain.arguments['first_block'] = rule
                references[rule] = make_call(plain, *given, exact).results()
            reference = references[rule]
            found = make_call(contender, *given).results()
            if work == INFERENCE:
                bound = BOUND_OF_DCN if variant == DCN else BOUND
                bound = bound if contender.dtype == torch.float32 else BOUND_OF_HALF
                apart[name] = check_equal(name, found, label, reference, bound)
            elif contender.dtype != torch.float32:
                apart[name] = check_equal(name, found[:1], label, reference[:1], BOUND_OF_TIMED)
            else:
                check_equal(name, found, label, reference, BOUND_OF_TIMED)
                found = make_call(contender, *given, exact).results()
                apart[name] = check_equal(name, found, label, reference, BOUND_OF_GRADIENTS)
    return apart


def multiply_adds(net: nn.Module, shape: Sequence[int], train: bool = False) -> float:
    """Multiply-adds of a network's convolutions in 1e9, as counted without data.

    Args:
        net: Not changed.
        shape: Of the images, (N, C, H, W).
        train: With those of the backward pass.
    """
    net = copy.deepcopy(net).to('meta').train(train)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        levels = net(torch.empty(tuple(shape), device='meta'))
        if train:
            sum(level.sum() for level in levels).backward()
    return counter.get_total_flops() / 2e9


@functools.cache
def useful_work(source: str, work: str, variant: str, shape: Sequence[int]) -> float | None:
    """Multiply-adds in 1e9 of the plain network, without padded channels and recomputation."""
    if variant == DCN:  # without the interpolation of samples, which a backward pass is made of
        net = ours(variant)
        macs = sum(stage.macs for stage in describe_stages(net, *shape[2:])) * shape[0] / 1e9
        return macs if work == INFERENCE else None
    return multiply_adds(BUILDERS[source](variant, None), shape, train=work == TRAINING)


def parse_sizes(words: Sequence[str], several: bool = True) -> list[tuple[int, int]]:
    """Height and width of each size in ``800x1216 512x512``, or of the one in ``800 1216``.

    Raises:
        ToolError: It is something else, a size is less than 32 pixels, or there are too many.
    """
    if len(words) == 2 and all(word.isdecimal() for word in words):
        words = ['x'.join(words)]
    sizes = []
    for word in words:
        found = re.fullmatch(r'(\d+)x(\d+)', word)
        if not found or min(map(int, found.groups())) < 32:
            raise ToolError(f'--size must be HxW, each of 32 pixels or more, but got {word!r}')
        sizes.append((int(found[1]), int(found[2])))
    if len({*sizes}) < len(sizes):
        raise ToolError(f'--size must differ, but are {" ".join(words)}')
    if len(sizes) > 1 and not several:
        raise ToolError(f'--size must be one, but got {" ".join(words)}')
    return sizes


def check_batches(*batches: int) -> None:
    """Raises ``ToolError`` unless all are positive and differ."""
    if min(batches) < 1 or len({*batches}) < len(batches):
        listed = ' '.join(map(str, batches))
        raise ToolError(f'--batch must be at least 1, and no two the same, but got {listed}')


def group_name(size: Sequence[int], batch: int) -> str:
    """``'2x3x512x512'``: rows of one group are compared with each other."""
    return f'{batch}x3x{size[0]}x{size[1]}'


# task -> default sizes, default batch
_DEFAULTS: dict[str, tuple[list[str], int | list[int]]] = {
    'backbone': (['512x512'], 1),
    'sweep': (['256x256', '512x512', '800x1216'], [1, 2, 4]),
    'train': (['320x320'], 2),
    'dcn': (['320x320'], 2),
}


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of a task."""
    sizes, batch = _DEFAULTS[task]
    several = ', one or several; or H W of one' if task in ('backbone', 'sweep') else ''
    add_shape(parser, sizes, batch, several)
    if task == 'dcn':
        only = 'one of the two, with a profile of it (both)'
        parser.add_argument('--part', choices=(INFERENCE, TRAINING), help=only)
        parser.set_defaults(variant=DCN)
        return
    table = CONTENDERS[TRAINING if task == 'train' else INFERENCE]
    listed = ', '.join(repr(name) for name in table if not name.startswith('torchvision'))
    default = ['mmdet', 'ours fast'] if task == 'sweep' else None
    text = f'of {listed}; the first one is the yardstick '
    text += '(mmdet and ours fast)' if default else "(all of the types but 'ours compile')"
    parser.add_argument('--variant', choices=tuple(CHOICES), default=VARIANT)
    parser.add_argument('--peers', nargs='+', default=default, metavar='NAME', help=text)
    types = [*dict.fromkeys(type_name(Contender(name).dtype) for name in table)]
    if task != 'sweep':
        text = 'types of the peers, where --peers does not name them (all)'
        parser.add_argument('--dtype', nargs='+', choices=types, default=types, help=text)
    if task == 'train':
        text = "statistics of batch norm: fixed as in detectors, or the batch's (fixed)"
        parser.add_argument('--norm', choices=('fixed', 'batch'), default='fixed', help=text)


def add_shape(
    parser: argparse.ArgumentParser, sizes: list[str], batch: int | list[int], more: str = ''
) -> None:
    """Adds ``--size`` and ``--batch``."""
    text = f'of the images{more} ({" ".join(sizes)})'
    parser.add_argument('--size', nargs='+', default=sizes, metavar='HxW', help=text)
    if isinstance(batch, int):
        options, text = dict(type=int), f'images at a time ({batch})'
    else:
        options = dict(type=int, nargs='+')
        text = f'images at a time, one or several, each at every size ({" ".join(map(str, batch))})'
    parser.add_argument('--batch', default=batch, metavar='N', help=text, **options)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the contenders of a task at each size and batch.

    Returns:
        The record, with a profile where it is of one size, batch and part.

    Raises:
        ToolError: An argument does not make sense, a package is missing, or a contender computes
            something else than ours.
    """
    task, variant = args.task, args.variant
    sizes = parse_sizes(args.size, several=task in ('backbone', 'sweep'))
    batches = args.batch if isinstance(args.batch, list) else [args.batch]
    check_batches(*batches)
    works = dict(train=[TRAINING], dcn=[args.part] if getattr(args, 'part', None) else CONTENDERS)
    given = getattr(args, 'peers', None), getattr(args, 'dtype', None)
    chosen = {}
    for work in works.get(task, [INFERENCE]):
        table = CONTENDERS[work]
        if task == 'dcn':
            table = [name for name in OF_DCN if name in table]
        chosen[work] = choose(table, args.device, variant, *given)
    state, norm_eval = make_state(variant), getattr(args, 'norm', 'fixed') == 'fixed'
    places = [(work, size, batch) for work in chosen for size in sizes for batch in batches]
    rows, profile = [], None
    for work, size, batch in places:
        contenders, training = chosen[work], work == TRAINING
        sides = [min(side, _SMALL) for side in size] if training else size
        image = normal_image(sides, max(batch, 2) if training else batch, args.device)
        apart = compare(contenders, work, variant, state, image, norm_eval)
        # recomputing does nothing that is of another kind
        profiled = [n for n in contenders if 'with_cp' not in n or n == next(iter(contenders))]
        found, profile = measure(
            {name: contender.keeps_memory for name, contender in contenders.items()},
            prepare,
            *(work, variant, size, batch, args.device, norm_eval),
            settings=args,
            profiled=profiled if len(places) == 1 else (),
        )
        for row in found:
            contender = contenders[row['name']]
            other = 'another network, for scale' if contender.rule is None else ''
            row.update(
                group=dict(train='', dcn=work).get(task, group_name(size, batch)),
                size=list(size),
                batch=batch,
                dtype=type_name(contender.dtype),
                gmacs=useful_work(
                    'resnet50' if other else 'ours', work, variant, (batch, 3, *size)
                ),
                difference=apart[row['name']],
                note=', '.join(filter(None, (other, row['note']))),
            )
        rows += found
    at = f', {group_name(sizes[0], batches[0])}' if len(sizes) == 1 else ''
    statistics = 'fixed statistics' if norm_eval else 'statistics of the batch'
    title = dict(
        backbone=f'Inference of {variant}{at}',
        sweep=f'Inference of {variant} by size of image and batch',
        train=f'Training step of {variant}{at}, {statistics}',
        dcn=f'{variant}{at}',
    )[task]
    record = make_record(args, title, rows, profile)
    if task == 'dcn':
        record['settings'][VARIABLE] = choose_way(torch.device(args.device))
    return record
