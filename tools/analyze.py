"""Shows what a detector gets wrong: a page, and one table with all figures."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

if TYPE_CHECKING:
    from res2net_mm.evaluation.analysis import Analysis

EXAMPLE = """example:
  python tools/analyze.py results.json instances_val2017.json --out analysis/ --images val2017/
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'results', 'annotations', '--metric', '--images-with-results')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--images', type=Path, help='folder of the images: shows the worst of them')
    parser.add_argument(
        '--score', type=float, default=0.3, help='least score for confusions and worst images (0.3)'
    )
    args = parser.parse_args()

    from res2net_mm.engine.errors import ToolError
    from res2net_mm.evaluation import charts
    from res2net_mm.evaluation.analysis import analyse
    from res2net_mm.evaluation.analysis_page import detection_sections
    from res2net_mm.evaluation.coco_files import read_files
    from res2net_mm.files import check_writable, writing

    if args.images is not None and not args.images.is_dir():
        raise ToolError(f'--images {args.images} is not a folder')
    check_writable(args.out, '--out', folder=True)
    if not 0 <= args.score <= 1:
        raise ToolError(f'--score must be from 0 to 1, but is {args.score}')
    annotations, results, notes, _ = read_files(args)
    analysis = analyse(annotations, results, args.metric, args.score)
    lines = [f'note: {note}' for note in notes]
    print(format_errors(analysis), *lines, sep='\n', flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / 'analysis.csv'
    files = {
        image['id']: image.get('file_name', str(image['id'])) for image in annotations['images']
    }
    with writing(table) as partial, partial.open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(('table', 'row', 'column', 'value'))
        writer.writerows(analysis.rows(files))
    print(f'figures: {table}', flush=True)
    sections = detection_sections(analysis, annotations, results, args.images)
    page = charts.write_page(args.out / 'analysis.html', Path(args.results).name, sections)
    print(f'page: {page}')


def format_errors(analysis: 'Analysis') -> str:
    """The kinds of errors as a table."""
    every, confident, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    lines = [f'AP at IoU 0.5: {max(analysis.every.ap(), 0):.3f}']
    lines.append(f'{"error":24}{"all":>10}{f"from {analysis.least:g}":>10}{"AP without":>12}')
    for kind, gain in gains.items():
        lines.append(f'{kind:24}{every[kind]:10}{confident[kind]:10}{gain:+12.3f}')
    return '\n'.join(lines)


if __name__ == '__main__':
    run_tool(main)
