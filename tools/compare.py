"""Trains several backbones under the same head on your data, and says which differences count."""

from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser, use_device

EXAMPLE = """example:
  python tools/compare.py --data my_photos/ --backbones res2net14 resnet14 resnext14 --epochs 12
  python tools/compare.py --backbones res2net14 timm/rexnet_100 --seeds 5
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    config = 'config with the head and the schedule (%(default)s)'
    parser.add_argument('--config', default='faster_rcnn_r2n14_shapes', help=config)
    add_shared(parser, '--data', '--data-format', '--classes', '--ignore-label')
    parser.add_argument(
        '--backbones',
        nargs='+',
        required=True,
        metavar='NAME',
        help='res2netN, resnetN or resnextN (depth N, as wide as the same multiply-adds allow), a '
        'variant, or timm/NAME; others are compared with the first',
    )
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='runs of each (3)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/compare'), help='(%(default)s)')
    add_shared(parser, '--epochs', '--batch', '--size', '--device', '--cfg-options')
    args = parser.parse_args()
    use_device(args.device)

    from res2net_mm.checks import check_positive
    from res2net_mm.engine.adapting import adapt
    from res2net_mm.engine.comparing import compare
    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.report import keep_memory

    check_positive('--seeds', args.seeds)
    keep_memory()
    cfg = load_config(args.config, args.cfg_options)
    args.work_dir, args.resume = str(args.out), 'auto'
    if said := adapt(cfg, args):
        print(*said, sep='\n', flush=True)
    page = compare(cfg, args.backbones, args.seeds, args.out)
    print(f'\n{page.read_text()}\nwritten: {page}')


if __name__ == '__main__':
    run_tool(main)
