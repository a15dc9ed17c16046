"""Shows batches of training as the network gets them: boxes and masks after augmentation."""

import argparse
from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/browse.py configs/faster_rcnn_r2n14_bccd.py --out work_dirs/look
"""


def main() -> None:
    parser: argparse.ArgumentParser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', '--data', '--data-format', '--classes', '--ignore-label')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='for browse.html')
    parser.add_argument('--limit', type=int, default=24, metavar='N', help='images (%(default)s)')
    add_shared(parser, '--cfg-options')
    args = parser.parse_args()

    from res2net_mm.engine.adapting import use_data
    from res2net_mm.engine.browse import write_batches
    from res2net_mm.engine.config import load_config
    from res2net_mm.files import check_writable

    check_writable(args.out, '--out', folder=True)
    cfg = load_config(args.config, args.cfg_options)
    if data := use_data(cfg, args, args.out / 'browsed'):
        print(*data.lines, sep='\n')
    print(f'page: {write_batches(cfg, args.out, args.limit)}')


if __name__ == '__main__':
    run_tool(main)
