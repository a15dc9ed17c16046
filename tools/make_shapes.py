"""Makes the synthetic set of shapes: COCO json, Pascal VOC xml and label maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ctrl_c import run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: python tools/make_shapes.py data/shapes --train 400 --val 100',
    )
    parser.add_argument('root', help='folder to make')
    parser.add_argument('--train', type=int, default=400, help='training images (%(default)s)')
    parser.add_argument('--val', type=int, default=100, help='validation images (%(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(256, 256),
        metavar=('W', 'H'),
        help='size of the images in px, from 224 (256 256)',
    )
    parser.add_argument('--seed', type=int, default=0, help='whole number from 0 (%(default)s)')
    parser.add_argument(
        '--force', action='store_true', help='replace a set that was made with other arguments'
    )
    args = parser.parse_args(argv)

    from res2net_mm.data.synthetic.shapes import make_shapes

    made = make_shapes(
        args.root, args.train, args.val, tuple(args.size), args.seed, overwrite=args.force
    )
    print(made)
    print(f'{"found ready" if made.reused else "written"}: {made.root}')


if __name__ == '__main__':
    run_tool(main)
