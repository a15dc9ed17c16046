"""Measures deformable convolution in plain PyTorch against the compiled ones.

The layers are those of C3 to C5 of Res2Net-50 for an image of 512 x 512, modulated. All ways do the
same work on the same inputs, one after the other in each round; a ratio is that of the medians.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from .deform_conv import COMPUTE, choose_way
from .mmcv_ext import ensure_mmcv_ops

SHAPES = {'C3': (52, 64), 'C4': (104, 32), 'C5': (208, 16)}  # channels, side of the map
# torchvision's operator as it is, without what is done for it here
WAYS = {
    **COMPUTE,
    'torchvision': lambda x, offset, mask, weight, bias, *places: torchvision.ops.deform_conv2d(
        x, offset, weight, bias, *places, mask
    ),
}
PASSES = ('forward', 'forward + backward')
EXAMPLE = """example:
  python -m res2net_mm.ops.bench_deform_conv
  python -m res2net_mm.ops.bench_deform_conv --device cuda --batch 8
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batch', type=int, default=2, help='images')
    parser.add_argument('--device', default='cpu', help='such as cpu or cuda')
    parser.add_argument('--rounds', type=int, default=15, help='of which the medians are taken')
    parser.add_argument('--threads', type=int, help='of PyTorch; its own choice by default')
    parser.add_argument(
        '--channels-last', action='store_true', help='memory format of the image and gradient'
    )
    args = parser.parse_args()
    for name in ('batch', 'rounds', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, but is {getattr(args, name)}')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {args.device} cannot be used: {str(error).splitlines()[0]}')
    if args.threads:
        torch.set_num_threads(args.threads)
    peers = ['torchvision'] + ['mmcv'] * (ensure_mmcv_ops() == 'mmcv')
    auto = choose_way(torch.device(args.device))
    print(f'{args.device}, {torch.get_num_threads()} threads, batch {args.batch}; auto is {auto}')
    print(f'ratio: time of the peer / time of plain PyTorch, medians of {args.rounds} rounds')
    print('memory: beyond the inputs, at the peak of one call, in MiB')
    for peer in peers:
        _compare(peer, args)


def _compare(peer: str, args: argparse.Namespace) -> None:
    print(f'\n{peer:<14}{"pass":<20}{"ratio":>6}{"memory":>10}{"plain":>8}{"difference":>13}')
    ratios: dict[str, list[float]] = {name: [] for name in PASSES}
    for level, shape in SHAPES.items():
        inputs, grad = _inputs(args, *shape)
        results = [_results(way, inputs, grad) for way in ('torch', peer)]
        difference = max(
            ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True)
        )
        for name in PASSES:
            calls = [_call(way, name, inputs, grad) for way in ('torch', peer)]
            plain, other = _medians(calls, args)
            ratios[name].append(other / plain)
            memory = [_memory(way, name, args, shape) for way in (peer, 'torch')]
            print(
                f'{level} {shape[0]:>3} {shape[1]}^2   {name:<20}{ratios[name][-1]:>6.2f}'
                f'{memory[0]:>10}{memory[1]:>8}{difference:>13.1e}'
            )
    for name, values in ratios.items():
        print(f'{"mean":<14}{name:<20}{statistics.geometric_mean(values):>6.2f}  (geometric)')


def _inputs(args: argparse.Namespace, channels: int, side: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    form = torch.channels_last if args.channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(args.device)

    at = args.batch, channels, side, side
    given = [
        normal(*at).contiguous(memory_format=form),
        normal(at[0], 18, side, side),  # offsets of about a pixel
        normal(at[0], 9, side, side).sigmoid(),
        normal(channels, channels, 3, 3) / (3 * channels**0.5),
        normal(channels),
    ]
    return [t.requires_grad_() for t in given], normal(*at).contiguous(memory_format=form)


def _call(way: str, name: str, inputs: list[Tensor], grad: Tensor) -> Callable[[], object]:
    places = (1, 1), (1, 1), (1, 1)
    if name == PASSES[0]:
        return torch.no_grad()(lambda: WAYS[way](*inputs, *places))
    return lambda: torch.autograd.grad(WAYS[way](*inputs, *places), inputs, grad)


def _results(way: str, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return [_call(way, PASSES[0], inputs, grad)(), *_call(way, PASSES[1], inputs, grad)()]


def _medians(calls: list[Callable[[], object]], args: argparse.Namespace) -> list[float]:
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(2 + args.rounds):
        for call, times in zip(calls, taken, strict=True):
            start = _now(args.device)
            call()
            times.append(_now(args.device) - start)
    return [statistics.median(times[2:]) for times in taken]  # the first two warm up


def _now(device: str) -> float:
    if device != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter()


def _memory(way: str, name: str, args: argparse.Namespace, shape: tuple[int, int]) -> str:
    """Peak of a call in a process of its own; only Linux tells it for the CPU."""
    if args.device == 'cpu' and not Path('/proc/self/clear_refs').exists():
        return '-'
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return f'{pool.apply(_peak, (way, name, args, shape)) / 2**20:.0f}'


def _peak(way: str, name: str, args: argparse.Namespace, shape: tuple[int, int]) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    _call(way, name, *_inputs(args, 8, 8))()  # what is loaded once
    call = _call(way, name, *_inputs(args, *shape))
    if args.device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')  # the peak is what is in use now
    before = _resident()
    call()
    return _resident() - before


def _resident() -> int:
    """Peak of the resident memory, in bytes."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:'))


if __name__ == '__main__':
    main()
