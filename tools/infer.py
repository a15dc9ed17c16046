"""Draws a model's predictions over images and writes them as json."""

import sys
from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/infer.py configs/faster_rcnn_r2n50.py epoch_12.pth photos/ --out predicted/
  python tools/infer.py configs/faster_rcnn_r2n50.py epoch_12.pth photos/ --out p/ --fast bfloat16
  python tools/infer.py configs/faster_rcnn_r2n50.py detector.xml photos/ --out predicted/
"""


def main() -> int:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', 'checkpoint')
    parser.add_argument('images', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--out', type=Path, required=True, help='folder for pictures and json')
    parser.add_argument(
        '--threshold', type=float, default=0.3, help='least score of an instance, 0 to 1'
    )
    parser.add_argument(
        '--boxes',
        metavar='PREDICTIONS.json',
        help='for pose estimators: persons that a detector found in the same images',
    )
    parser.add_argument('--device', help='such as cpu or cuda:1')
    add_shared(parser, '--fast', '--compile')
    add_shared(parser, '--trust-checkpoint', '--cfg-options')
    args = parser.parse_args()

    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.evaluate import fast_options
    from res2net_mm.engine.infer import find_images, predict_images
    from res2net_mm.engine.posing import configured_model
    from res2net_mm.engine.report import keep_memory

    if not 0 <= args.threshold <= 1:
        raise ToolError(f'--threshold must be a score from 0 to 1, but is {args.threshold}')
    fast = fast_options(args)
    keep_memory()
    images = find_images(args.images, args.out)
    cfg = load_config(args.config, args.cfg_options)
    predictor = configured_model(
        cfg, args.checkpoint, args.device, args.trust_checkpoint, fast, boxes=args.boxes
    )
    failures = predict_images(predictor, images, args.images, args.out, args.threshold)
    print(f'{len(images) - len(failures)} of {len(images)} images: {args.out}/predictions.json')
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    run_tool(main)
