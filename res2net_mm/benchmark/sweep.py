"""Latency over sizes of the image and of the batch."""

from __future__ import annotations

import argparse
from typing import Any

from .backbones import add_peers, add_size, check_batches, measure, parse_sizes
from .measure import circumstances


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    add_size(parser, ['256x256', '512x512', '800x1216'])
    parser.add_argument(
        '--batch',
        type=int,
        nargs='+',
        default=[1, 2, 4],
        metavar='N',
        help='images at a time, one or several, each at every size (1 2 4)',
    )
    add_peers(parser, ['mmdet', 'ours fast'])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times peers at each size with each batch; arguments and errors are those of ``backbone``."""
    sizes = parse_sizes(args.size)
    check_batches(args.batch)
    rows, peers, profile = measure(args, sizes, args.batch)
    return dict(
        task='sweep',
        title=f'Inference of {args.variant} by size of image and batch',
        yardstick=next(iter(peers)),
        rows=rows,
        profile=profile,
        **circumstances(args, dict.fromkeys(peer.dtype for peer in peers.values())),
    )
