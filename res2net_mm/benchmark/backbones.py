"""Inference of a Res2Net in several projects."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ..engine.errors import ToolError
from .measure import circumstances, interleave, peak_memory, type_name
from .peers import (
    CHOICES,
    PEERS,
    VARIANT,
    choose_peers,
    differences,
    make_state,
    multiply_adds,
    normal_image,
    ours,
)
from .processes import own_process
from .profiling import least_profiles

TYPES = [type_name(dtype) for dtype in dict.fromkeys(peer.dtype for peer in PEERS.values())]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    add_size(parser, ['512x512'])
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images at a time (1)')
    add_peers(parser, None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times peers at each size.

    Returns:
        The record.

    Raises:
        ToolError: An argument does not make sense, a package is missing, or a peer gives other
            levels than ours.
    """
    sizes = parse_sizes(args.size)
    check_batches([args.batch])
    rows, peers, profile = measure(args, sizes, [args.batch])
    at = f', {group_name(sizes[0], args.batch)}' if len(sizes) == 1 else ''
    return dict(
        task='backbone',
        title=f'Inference of {args.variant}{at}',
        yardstick=next(iter(peers)),
        rows=rows,
        profile=profile,
        **circumstances(args, dict.fromkeys(peer.dtype for peer in peers.values())),
    )


def add_size(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """Adds ``--size``."""
    parser.add_argument(
        '--size',
        nargs='+',
        default=default,
        metavar='HxW',
        help=f'of the images, one or several; or H W of one ({" ".join(default)})',
    )


def add_peers(parser: argparse.ArgumentParser, default: list[str] | None) -> None:
    """Adds ``--variant``, ``--peers`` and ``--dtype``."""
    parser.add_argument('--variant', choices=tuple(CHOICES), default=VARIANT)
    parser.add_argument(
        '--peers',
        nargs='+',
        default=default,
        metavar='NAME',
        help=f'of {", ".join(map(repr, PEERS))}; the first one is the yardstick '
        f'({" and ".join(default) if default else "all of the types"})',
    )
    if default is None:
        parser.add_argument(
            '--dtype',
            nargs='+',
            choices=TYPES,
            default=TYPES,
            help='types of the peers, where --peers does not name them (all)',
        )


def parse_sizes(words: Sequence[str]) -> list[tuple[int, int]]:
    """Height and width of each size in ``800x1216 512x512``, or of the one in ``800 1216``.

    Raises:
        ToolError: It is something else, or a size is less than 32 pixels.
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
    return sizes


def check_batches(batches: Sequence[int]) -> None:
    """Raises ``ToolError`` unless all are positive and differ."""
    if min(batches) < 1 or len({*batches}) < len(batches):
        listed = ' '.join(map(str, batches))
        raise ToolError(f'--batch must be at least 1, and no two the same, but got {listed}')


def group_name(size: Sequence[int], batch: int) -> str:
    """``'2x3x512x512'``: the rows that are compared with each other."""
    return f'{batch}x3x{size[0]}x{size[1]}'


def measure(
    args: argparse.Namespace, sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any] | None]:
    """Rows of all peers for each size and batch, the peers by name, a profile of a single size.

    Each peer has a process of its own, with the memory that it keeps and no other. Peak memory is
    measured at a single size too.
    """
    types = getattr(args, 'dtype', TYPES)
    peers = choose_peers(args.peers, args.variant, args.device, types)
    state = make_state(args.variant)
    nets = {name: peer.build(args.variant, state).to(args.device) for name, peer in peers.items()}
    reference = ours(args.variant)
    alone = len(sizes) == len(batches) == 1
    rows, profile = [], None
    for size, batch in ((size, batch) for size in sizes for batch in batches):
        image = normal_image(size, batch, args.device)
        apart = differences(nets, args.variant, state, image)
        given = {name: (name, args.variant, size, batch, args.device) for name in peers}
        with ExitStack() as stack:
            calls = {}
            for name, peer in tqdm(peers.items(), desc='starting', unit='process'):
                own = own_process(name, args.device, peer.keeps_memory, prepare, *given[name])
                calls[name] = stack.enter_context(own)
            times = interleave(calls, args.rounds, args.device)
            if alone:
                profile = least_profiles({name: call.profile for name, call in calls.items()})
        # channels that are padded are no useful work: all Res2Nets count as the plain one
        macs = multiply_adds(reference, image.shape)
        for name, peer in tqdm(peers.items(), desc='rows', unit='row'):
            other = peer.rule is None
            memory = None
            if alone:
                told = dict(device=args.device, prepared=True, keep=peer.keeps_memory)
                memory = peak_memory(prepare, *given[name], **told)
            notes = ['another network, for scale'] * other
            notes += ['keeps freed memory'] * calls[name].keeps
            rows.append(
                dict(
                    name=name,
                    group=group_name(size, batch),
                    size=list(size),
                    batch=batch,
                    dtype=type_name(peer.dtype),
                    times=times[name],
                    memory_mib=memory,
                    gmacs=multiply_adds(nets[name], image.shape) if other else macs,
                    difference=apart[name],
                    note=', '.join(notes),
                )
            )
    return rows, peers, profile


def prepare(
    name: str, variant: str, size: tuple[int, int], batch: int, device: str
) -> Callable[[], object]:
    """A peer's call, that ran on a small image, so that what is loaded once is there."""
    net = PEERS[name].build(variant, make_state(variant)).to(device)
    call = torch.inference_mode()(net)
    call(normal_image((64, 64), 1, device))
    return partial(call, normal_image(size, batch, device))
