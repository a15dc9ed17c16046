"""Scores a file of COCO results against an annotation file; needs no model."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ctrl_c import run_tool

from res2net_mm.evaluation.coco_files import add_arguments

if TYPE_CHECKING:
    from res2net_mm.evaluation.coco import Scores

EXAMPLE = """example:
  python tools/eval_results.py results.json instances_val2017.json --metric bbox --json figures.json
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        '--max-dets',
        nargs='+',
        type=int,
        default=(1, 10, 100),
        metavar='N',
        help='detections of an image and class that count; AP is at the largest (1 10 100)',
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures')
    args = parser.parse_args()

    from res2net_mm.engine.errors import ToolError
    from res2net_mm.evaluation import format_metrics
    from res2net_mm.evaluation.coco import check_max_dets, evaluate
    from res2net_mm.evaluation.coco_files import read_files
    from res2net_mm.files import check_writable

    try:
        limits = check_max_dets(args.max_dets)
    except ValueError as error:
        raise ToolError(f'--max-dets: {error}') from error
    if args.json is not None:
        check_writable(args.json, '--json')
    annotations, results, whole, part, (note, *notes) = read_files(args)
    if not results:
        print(f'{args.results} holds no detection: every AP is 0')
    scores = evaluate(annotations, results, args.metric, max_dets=limits)
    named = {
        f'coco_{args.metric}/{k}': v for k, v in (scores.metrics() | scores.by_class()).items()
    }
    if note and part['images'] and not args.images_with_results:
        ap = evaluate(part, results, args.metric, max_dets=limits).figures()['AP']
        note += f': AP is {ap:.3f} on the other {len(part["images"]):,}'
    lines = [f'note: {line}' for line in (note, *notes) if line]
    print(format_metrics(named, list(scores.categories.values())), *lines, sep='\n', flush=True)
    if args.json is not None:
        counts = dict(
            images=len(whole['images']),
            images_with_results=len(part['images']),
            images_scored=len(annotations['images']),
        )
        write_figures(scores, counts, args.json)
        print(f'figures: {args.json}')


def write_figures(scores: 'Scores', counts: dict[str, int], out: Path) -> None:
    """Writes the figures of all classes and of each; without ground truth they are null."""
    from res2net_mm.files import write_text

    content = dict(
        metric=scores.kind,
        max_dets=scores.max_dets,
        **counts,
        figures=_known(scores.figures()),
        classes=[
            dict(id=key, name=name, **_known(scores.figures(key)))
            for key, name in scores.categories.items()
        ],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(content, indent=1) + '\n')


def _known(figures: dict[str, float]) -> dict[str, float | None]:
    return {
        key: None if value < 0 or math.isnan(value) else value for key, value in figures.items()
    }


if __name__ == '__main__':
    run_tool(main)
