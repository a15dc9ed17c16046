"""Deformable convolution by itself: ours in plain PyTorch against the compiled ones.

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

from res2net_mm.ops.sampling import sample_and_multiply

from .contenders import check_equal
from .measure import exactly, make_record, measure
from .networks import check_batches

SHAPES = {'C3': (52, 64), 'C4': (104, 32), 'C5': (208, 16)}  # channels, side of the map
FORWARD, BOTH = PASSES = ('forward', 'forward + backward')
BOUND = 1e-4
WAYS = {
    # torchvision's operator as it is, without what is done for it in ours
    'torchvision': lambda x, offset, mask, weight, bias, *places: torchvision.ops.deform_conv2d(
        x, offset, weight, bias, *places, mask
    ),
    'ours': sample_and_multiply,
}


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of the task."""
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images (2)')
    text = 'memory format of the image and gradient'
    parser.add_argument('--channels-last', action='store_true', help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of both passes at each level, after a comparison of outputs and gradients."""
    check_batches(args.batch)
    names = list(WAYS)
    rows = []
    for level, shape in SHAPES.items():
        given = args.batch, *shape, args.channels_last, args.device
        with exactly():
            found = {
                n: [make_call(n, FORWARD, *given)(), *make_call(n, BOTH, *given)()] for n in names
            }
        apart = {n: check_equal(n, found[n], 'ours', found['ours'], BOUND) for n in names}
        for part in PASSES:
            part_rows, _ = measure(
                dict.fromkeys(names, False), prepare, part, *given, settings=args
            )
            rows += [
                dict(row, group=f'{level} {part}', difference=apart[row['name']])
                for row in part_rows
            ]
    notes = []
    for part in PASSES:
        theirs, ours = (
            [statistics.median(r['times']) for r in rows if (r['name'], r['group'][3:]) == key]
            for key in (('torchvision', part), ('ours', part))
        )
        mean = statistics.geometric_mean(a / b for a, b in zip(theirs, ours, strict=True))
        notes.append(f'{part}: {mean:.2f} times as fast in the geometric mean')
    title = f'Modulated deformable convolution of Res2Net-50, {args.batch} images of 512x512'
    return make_record(args, title, rows, notes=notes)


def make_call(
    way: str, part: str, batch: int, channels: int, side: int, channels_last: bool, device: str
) -> Callable[[], Any]:
    """One pass of a way over the same random tensors; backward gives all inputs' gradients."""
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    inputs = [
        normal(batch, channels, side, side).contiguous(memory_format=form),
        normal(batch, 18, side, side),  # offsets of about a pixel
        normal(batch, 9, side, side).sigmoid(),
        normal(channels, channels, 3, 3) / (3 * channels**0.5),
        normal(channels),
    ]
    gradient = normal(batch, channels, side, side).contiguous(memory_format=form)
    compute = partial(WAYS[way], *inputs, (1, 1), (1, 1), (1, 1))
    if part == FORWARD:
        return torch.no_grad()(compute)
    for tensor in inputs:
        tensor.requires_grad_()
    return lambda: torch.autograd.grad(compute(), inputs, gradient)


def prepare(way: str, part: str, batch: int, channels: int, side: int, *more: Any) -> Callable:
    """A pass after another one on a small map, so that what is loaded once is there."""
    make_call(way, part, 1, channels, 4, *more)()
    return make_call(way, part, batch, channels, side, *more)
