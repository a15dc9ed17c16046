"""Draws a model's predictions over pictures and videos, and writes them as json."""

import sys
from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/infer.py configs/faster_rcnn_r2n50.py epoch_12.pth photos/ --out predicted/
  python tools/infer.py configs/faster_rcnn_r2n50.py epoch_12.pth clip.mp4 --out p/ --fast bfloat16
  python tools/infer.py configs/faster_rcnn_r2n50.py detector.xml 'photos/*.jpg' --out predicted/
"""


def main() -> int:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', 'checkpoint')
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='SOURCE',
        help='images, videos, folders, patterns, http(s) addresses, or the number of a camera',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for pictures and json')
    parser.add_argument(
        '--conf',
        '--threshold',
        type=float,
        default=0.3,
        metavar='SCORE',
        help='least score of an instance, 0 to 1 (%(default)s)',
    )
    parser.add_argument(
        '--boxes',
        metavar='PREDICTIONS.json',
        help='for pose estimators: persons that a detector found in the same images',
    )
    add_shared(parser, '--fast', '--compile')
    add_shared(parser, '--device', '--trust-checkpoint', '--cfg-options')
    args = parser.parse_args()

    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.evaluate import fast_options
    from res2net_mm.engine.infer import predict_images
    from res2net_mm.engine.posing import configured_model
    from res2net_mm.engine.report import keep_memory
    from res2net_mm.engine.sources import find_sources

    if not 0 <= args.conf <= 1:
        raise ToolError(f'--conf must be a score from 0 to 1, but is {args.conf}')
    fast = fast_options(args)
    keep_memory()
    sources = find_sources(args.sources, args.out)
    cfg = load_config(args.config, args.cfg_options)
    predictor = configured_model(
        cfg, args.checkpoint, args.device, args.trust_checkpoint, fast, boxes=args.boxes
    )
    failures = predict_images(predictor, sources, args.out, args.conf, args.sources)
    print(f'{len(sources) - len(failures)} of {len(sources)} sources: {args.out}')
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    run_tool(main)
