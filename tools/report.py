"""Writes the page of a run, report.html: curves, results, data, config and how to repeat it."""

import argparse
from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/report.py work_dirs/r2n50
  python tools/report.py work_dirs/r2n50 --results results.json --annotations instances_val.json \\
      --images data/val --out val.html
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument('work_dir', type=Path, help='folder of the run')
    parser.add_argument('--out', type=Path, help='the file (WORK_DIR/report.html)')
    parser.add_argument(
        '--results',
        help='COCO results json, such as test.py --out writes, to show for the last validation',
    )
    parser.add_argument('--annotations', help='COCO annotation json for --results')
    parser.add_argument('--images', type=Path, help='folder of its images: shows the worst')
    parser.add_argument('--metric', choices=('bbox', 'segm'), help='of --results (bbox)')
    add_shared(parser, '--images-with-results')
    args = parser.parse_args()

    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.run_page import write_report

    if (args.results is None) != (args.annotations is None):
        raise ToolError('--results and --annotations go together: give both or neither')
    for name in ('images', 'metric', 'images_with_results') if args.results is None else ():
        if getattr(args, name):
            raise ToolError(f'--{name.replace("_", "-")} is for --results: give that too')
    if args.images is not None and not args.images.is_dir():
        raise ToolError(f'--images {args.images} is not a folder')
    sections = detections(args) if args.results else ()
    print(f'report: {write_report(args.work_dir, args.out, sections)}')


def detections(args: argparse.Namespace) -> list[str]:
    """Sections on the results."""
    from res2net_mm.evaluation.analysis import analyse
    from res2net_mm.evaluation.analysis_page import detection_sections
    from res2net_mm.evaluation.coco_files import read_files

    args.metric = args.metric or 'bbox'
    annotations, results, notes, _ = read_files(args)
    print(*(f'note: {note}' for note in notes), sep='\n', end='\n' * bool(notes))
    found = analyse(annotations, results, args.metric)
    return detection_sections(found, annotations, results, args.images)


if __name__ == '__main__':
    run_tool(main)
