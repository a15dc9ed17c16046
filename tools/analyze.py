"""Says what a detector gets wrong: pictures, and one table with all figures."""

import argparse
import csv
from pathlib import Path

from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.evaluation.analysis import Analysis, analyse
from res2net_mm.evaluation.analysis_pictures import draw_analysis, draw_worst
from res2net_mm.evaluation.coco import KINDS
from res2net_mm.evaluation.files import read_annotations, read_results
from res2net_mm.evaluation.judging import FALSE, MISSED
from res2net_mm.files import writing

EXAMPLE = """example:
  python tools/analyze.py results.json instances_val2017.json --out analysis/ --images val2017/
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('results', help='COCO results json, such as test.py --out writes')
    parser.add_argument('annotations', help='COCO annotation json')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--metric', choices=KINDS, default='bbox')
    parser.add_argument('--images', type=Path, help='folder of the images: draws the worst of them')
    parser.add_argument(
        '--score', type=float, default=0.3, help='least score for confusions and worst images (0.3)'
    )
    args = parser.parse_args()
    if args.images is not None and not args.images.is_dir():
        raise ToolError(f'--images {args.images} is no folder')
    if args.out.exists() and not args.out.is_dir():
        raise ToolError(f'--out {args.out} is no folder')
    if not 0 <= args.score <= 1:
        raise ToolError(f'--score must be from 0 to 1, but is {args.score}')
    annotations = read_annotations(args.annotations, args.metric)
    results = read_results(args.results, annotations, args.metric)
    analysis = analyse(annotations, results, args.metric, args.score)
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = []
    if args.images is not None:  # first, as it is what can fail
        worst = args.out / 'worst.png'
        pictures += filter(None, [draw_worst(analysis, annotations, results, args.images, worst)])
    pictures += draw_analysis(analysis, args.out)
    table = args.out / 'analysis.csv'
    files = {
        image['id']: image.get('file_name', str(image['id'])) for image in annotations['images']
    }
    write_table(analysis, files, table)
    print(format_errors(analysis))
    print(f'figures: {table}')
    print(f'pictures: {", ".join(map(str, pictures))}')


def format_errors(analysis: Analysis) -> str:
    """The kinds of errors as a table."""
    every, confident, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    lines = [f'AP at IoU 0.5: {max(analysis.every.ap(), 0):.3f}']
    lines.append(f'{"error":24}{"all":>10}{f"from {analysis.least:g}":>10}{"AP without":>12}')
    for kind in (*FALSE, MISSED):
        lines.append(f'{kind:24}{every[kind]:10}{confident[kind]:10}{gains[kind]:+12.3f}')
    return '\n'.join(lines)


def write_table(analysis: Analysis, files: dict, out: Path) -> None:
    """Writes all figures, one a line."""
    with writing(out) as partial, partial.open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(('table', 'row', 'column', 'value'))
        writer.writerows(analysis.rows(files))


if __name__ == '__main__':
    run_tool(main)
