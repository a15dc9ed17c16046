"""Scores a file of COCO results against an annotation file; needs no model."""

import json
from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/eval_results.py results.json instances_val2017.json --metric bbox --json figures.json
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'results', 'annotations', '--metric', '--images-with-results')
    parser.add_argument(
        '--max-dets',
        nargs='+',
        type=int,
        default=(1, 10, 100),
        metavar='N',
        help='detections of an image and class that count; figures are at the largest, but AP of '
        'all classes is at 100 if that is listed, as in pycocotools (1 10 100)',
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures')
    args = parser.parse_args()

    from res2net_mm.engine.errors import ToolError
    from res2net_mm.evaluation.coco import check_max_dets, evaluate
    from res2net_mm.evaluation.coco_files import read_files
    from res2net_mm.evaluation.tables import format_metrics
    from res2net_mm.files import check_writable, write_text

    try:
        limits = check_max_dets(args.max_dets)
    except ValueError as error:
        raise ToolError(f'--max-dets: {error}') from error
    if args.json is not None:
        check_writable(args.json, '--json')
    annotations, results, notes, images = read_files(args)
    if not results:
        print(f'{args.results} holds no detection: every AP is 0')
    scores = evaluate(annotations, results, args.metric, max_dets=limits)
    metrics = scores.metrics() | scores.by_class()
    if 100 in limits and limits[-1] > 100:
        notes.append(f'AP of all is with 100 detections (pycocotools), the rest with {limits[-1]}')
    lines = [f'note: {note}' for note in notes]
    print(format_metrics(metrics, list(scores.categories.values())), *lines, sep='\n', flush=True)
    if args.json is None:
        return
    content = dict(
        metric=args.metric,
        max_dets=limits,
        images=images,
        images_with_results=len({result['image_id'] for result in results}),
        images_scored=len(annotations['images']),
        figures=known(scores.figures()),
        classes=[
            dict(id=key, name=name, **known(scores.figures(key)))
            for key, name in scores.categories.items()
        ],
    )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.json, json.dumps(content, indent=1) + '\n')
    print(f'figures: {args.json}')


def known(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures with null for those without ground truth."""
    return {key: value if value >= 0 else None for key, value in figures.items()}


if __name__ == '__main__':
    run_tool(main)
