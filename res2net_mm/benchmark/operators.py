"""Deformable convolution alone: ours in plain PyTorch against the compiled ones.

The layers are those of C3 to C5 of Res2Net-50 for an image of 512 x 512, modulated.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

from ..ops.deform_conv import COMPUTE
from ..ops.mmcv_ext import uses_stand_in
from .backbones import check_batches
from .measure import circumstances, exact_float32, interleave, peak_memory
from .peers import check_equal

YARDSTICK, OURS = 'torchvision', 'ours'
SHAPES = {'C3': (52, 64), 'C4': (104, 32), 'C5': (208, 16)}  # channels, side of the map
PASSES = ('forward', 'forward + backward')
BOUND = 1e-4
WAYS = {
    OURS: COMPUTE['torch'],
    'mmcv': COMPUTE['mmcv'],
    # torchvision's operator as it is, without what is done for it here
    YARDSTICK: lambda x, offset, mask, weight, bias, *places: torchvision.ops.deform_conv2d(
        x, offset, weight, bias, *places, mask
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images (2)')
    parser.add_argument(
        '--channels-last', action='store_true', help='memory format of the image and gradient'
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both passes at each level, and measures their memory.

    Returns:
        The record.

    Raises:
        ToolError: An argument does not make sense, or the ways do not give the same.
    """
    check_batches([args.batch])
    names = [YARDSTICK, *([] if uses_stand_in() else ['mmcv']), OURS]
    rows, notes = [], []
    for level in SHAPES:
        given = args.batch, level, args.channels_last, args.device
        with exact_float32():
            found = {name: results(name, *given) for name in names}
        for name in PASSES:
            times = interleave(
                {way: make_call(way, name, *given) for way in names}, args.rounds, args.device
            )
            for way in names:
                rows.append(
                    dict(
                        name=way,
                        group=f'{level} {name}',
                        times=times[way],
                        memory_mib=peak_memory(
                            prepare, way, name, *given, device=args.device, prepared=True
                        ),
                        difference=check_equal(way, found[way], OURS, found[OURS], BOUND),
                        note='',
                    )
                )
    for name in PASSES:
        medians = [
            [statistics.median(row['times']) for row in rows if row['group'].endswith(f' {name}')]
            for rows in ([r for r in rows if r['name'] == way] for way in (YARDSTICK, OURS))
        ]
        ratios = [theirs / ours for theirs, ours in zip(*medians, strict=True)]
        mean = statistics.geometric_mean(ratios)
        notes.append(f'{name}: {mean:.2f} times as fast in the geometric mean')
    return dict(
        task='deform_conv',
        title=f'Modulated deformable convolution of Res2Net-50, {args.batch} images of 512x512',
        yardstick=YARDSTICK,
        rows=rows,
        profile=None,
        notes=notes,
        **circumstances(args),
    )


def make_inputs(
    batch: int, level: str, channels_last: bool, device: str
) -> tuple[list[Tensor], Tensor]:
    """Image, offsets, mask, weight and bias of a layer, and the gradient of its output."""
    channels, side = SHAPES[level]
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    given = [
        normal(batch, channels, side, side).contiguous(memory_format=form),
        normal(batch, 18, side, side),  # offsets of about a pixel
        normal(batch, 9, side, side).sigmoid(),
        normal(channels, channels, 3, 3) / (3 * channels**0.5),
        normal(channels),
    ]
    grad = normal(batch, channels, side, side).contiguous(memory_format=form)
    return [tensor.requires_grad_() for tensor in given], grad


def make_call(way: str, name: str, *given: Any) -> Callable[[], Any]:
    """One pass of a way; ``given`` is what :func:`make_inputs` takes."""
    inputs, grad = make_inputs(*given)
    compute = partial(WAYS[way], *inputs, (1, 1), (1, 1), (1, 1))
    if name == PASSES[0]:
        return torch.no_grad()(compute)
    return lambda: torch.autograd.grad(compute(), inputs, grad)


def prepare(way: str, name: str, *given: Any) -> Callable[[], Any]:
    """A call after another one on the smallest layer, so that what is loaded once is there."""
    make_call(way, name, 1, 'C5', *given[2:])()
    return make_call(way, name, *given)


def results(way: str, *given: Any) -> list[Tensor]:
    """Output and gradients of a way."""
    return [make_call(way, PASSES[0], *given)(), *make_call(way, PASSES[1], *given)()]
