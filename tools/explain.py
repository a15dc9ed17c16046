"""Draws what a model looks at: class activation maps of images, or effective receptive fields."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ctrl_c import run_tool

from res2net_mm.engine.arguments import CAM_METHODS, add_shared, tool_parser

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = """example:
  python tools/explain.py configs/faster_rcnn_r2n50.py epoch_12.pth photos/ --out maps/
  python tools/explain.py configs/faster_rcnn_r50.py r50.pth photos/ --out maps/ \\
      --compare configs/faster_rcnn_r2n50.py r2n50.pth --method eigencam
  python tools/explain.py --erf resnet50 res2net50_26w_4s --out fields/
  python tools/explain.py configs/faster_rcnn_r2n50.py epoch_12.pth photos/ --out fields/ --erf
"""

_LEAST_SIDE = 64  # of images whose last level has more than one pixel


def main() -> int:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', 'checkpoint', nargs='?')
    parser.add_argument('images', type=Path, nargs='?', metavar='IMAGE_OR_FOLDER')
    parser.add_argument('--out', type=Path, help='folder for the pictures')
    parser.add_argument('--method', choices=CAM_METHODS, default='gradcam')
    parser.add_argument(
        '--target', metavar='CLASS', help='class to explain; by default the one that is predicted'
    )
    parser.add_argument(
        '--threshold', type=float, default=0.3, help='least score of a detection, 0 to 1'
    )
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a second model, beside the first in every picture',
    )
    parser.add_argument(
        '--erf',
        nargs='*',
        metavar='NETWORK',
        help='effective receptive fields: of the model on the images, or of these networks with '
        'random weights on random images',
    )
    parser.add_argument('--side', type=int, default=513, help='of the images of --erf, in px')
    parser.add_argument('--samples', type=int, default=16, help='random images of --erf')
    parser.add_argument('--device', help='such as cpu or cuda:1')
    add_shared(parser, '--trust-checkpoint')
    add_shared(parser, '--cfg-options', help='change CONFIG, but not that of --compare')
    args = parser.parse_args()
    if args.erf is not None and args.side < _LEAST_SIDE:
        parser.error(f'--side must be at least {_LEAST_SIDE}, but is {args.side}')
    if args.erf:
        if args.config:
            parser.error(
                '--erf takes either names of networks or CONFIG CHECKPOINT IMAGE_OR_FOLDER'
            )
        from res2net_mm.evaluation.receptive_field import random_fields

        fields = {name: random_fields(name, args.samples, args.side) for name in args.erf}
        return report_fields(fields, args.out)
    if args.images is None or args.out is None:
        parser.error('give CONFIG CHECKPOINT IMAGE_OR_FOLDER --out FOLDER, or --erf NETWORK ...')

    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.explaining import Explainer, explain_images, image_fields
    from res2net_mm.engine.infer import ConfiguredModel
    from res2net_mm.engine.sources import find_images

    if not 0 <= args.threshold <= 1:
        raise ToolError(f'--threshold must be a score from 0 to 1, but is {args.threshold}')
    if args.target is not None and args.method == 'eigencam':
        raise ToolError('--target has no effect on eigencam, which looks at no class: leave it out')
    images = find_images(args.images, args.out)
    models = {}
    for config, checkpoint in filter(None, [(args.config, args.checkpoint), args.compare]):
        cfg = load_config(config, None if models else args.cfg_options)
        if cfg.get('default_scope') == 'mmpose':
            raise ToolError(f'config {config} is of a pose estimator, which cannot be explained')
        name = Path(config).stem if Path(config).stem not in models else str(checkpoint)
        models[name] = ConfiguredModel(cfg, checkpoint, args.device, args.trust_checkpoint)
    if args.erf is not None:
        fields = {name: image_fields(model, images, args.side) for name, model in models.items()}
        return report_fields(fields, args.out)
    explainers = {
        name: Explainer(model, args.method, args.target, args.threshold)
        for name, model in models.items()
    }
    failures = explain_images(explainers, images, args.out, [args.images])
    print(f'{len(images) - len(failures)} of {len(images)} images: {args.out}')
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    return 1 if failures else 0


def report_fields(fields: dict[str, dict[str, Tensor]], out: Path | None) -> int:
    """Prints the sizes of effective receptive fields, and draws the fields."""
    from res2net_mm.evaluation.receptive_field import format_fields, square_side

    print(format_fields(fields))
    if out is not None:
        from res2net_mm.engine.explaining import draw_sheet

        out.mkdir(parents=True, exist_ok=True)
        rows = [
            [
                (f'{name} {level}: {square_side(f)} px', f.sqrt().cpu())
                for level, f in levels.items()
            ]
            for name, levels in fields.items()
        ]
        draw_sheet(rows, out / 'fields.png')  # roots, so that small influences are seen
    return 0


if __name__ == '__main__':
    run_tool(main)
