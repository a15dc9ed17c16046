"""Scores a file of COCO results against an annotation file; no model is needed."""

import argparse
import json
import math
import signal
from pathlib import Path

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback

from res2net_mm.engine.errors import run_tool
from res2net_mm.evaluation import format_metrics
from res2net_mm.evaluation.coco import KINDS, MAX_DETS, Scores, check_max_dets, evaluate
from res2net_mm.evaluation.files import (
    describe_images,
    describe_oddities,
    images_with_results,
    read_annotations,
    read_results,
)
from res2net_mm.files import check_writable, write_text

EXAMPLE = """example:
  python tools/eval_results.py results.json instances_val2017.json --metric bbox --json figures.json
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', help='COCO results json, such as test.py --out writes')
    parser.add_argument('annotations', help='COCO annotation json')
    parser.add_argument('--metric', choices=KINDS, default='bbox')
    parser.add_argument(
        '--max-dets',
        nargs='+',
        type=int,
        default=MAX_DETS,
        metavar='N',
        help='detections of an image and class that count; AP is at the largest (1 10 100)',
    )
    parser.add_argument(
        '--images-with-results',
        action='store_true',
        help='score only images that have a detection, for results of a part of the images',
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures')
    args = parser.parse_args()
    limits = check_max_dets(args.max_dets)
    if args.json is not None:
        check_writable(args.json, '--json')
    annotations = read_annotations(args.annotations, args.metric)
    results = read_results(args.results, annotations, args.metric)
    if not results:
        print(f'{args.results} holds no detection: every AP is 0')
    part, only = images_with_results(annotations, results), args.images_with_results
    note = describe_images(part, annotations, only)
    notes = [note, *describe_oddities(annotations, results)]
    counts = dict(images=len(annotations['images']), images_with_results=len(part['images']))
    if only and part['images']:
        annotations = part
    scores = evaluate(annotations, results, args.metric, max_dets=limits)
    named = {
        f'coco_{args.metric}/{k}': v for k, v in (scores.metrics() | scores.by_class()).items()
    }
    text = format_metrics(named, list(scores.categories.values()))
    if note and part['images'] and not only:
        ap = evaluate(part, results, args.metric, max_dets=limits).figures()['AP']
        notes[0] += f': AP is {ap:.3f} on the other {len(part["images"]):,}'
    print(text, *(f'note: {line}' for line in notes if line), sep='\n', flush=True)
    if args.json is not None:
        write_figures(scores, args.json, {**counts, 'images_scored': len(annotations['images'])})
        print(f'figures: {args.json}')


def write_figures(scores: Scores, out: Path, counts: dict[str, int]) -> None:
    """Writes the figures of all classes and of each; what has no ground truth is null."""
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
