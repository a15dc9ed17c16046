"""Checks all data of a config before anyone trains: annotations, images, masks, label maps.

Prints what each split holds and every fault found, errors first, and ends with `fit to train` or
`not fit to train`; the exit status is 0 or 1. After an error, training ends or learns something
wrong; after a warning it goes on, and train.py prints those that it sees. Draws sheet.jpg (images
with their annotations, those with findings first), and lists every finding in findings.csv.
Images that two splits share are found if their pixels are equal; a copy that was compressed again
or resized is not found.
"""

from pathlib import Path

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

SPLITS = ('train', 'val', 'test')
EXAMPLE = """example:
  python tools/check_data.py configs/faster_rcnn_r2n14_shapes.py --splits train val --out checked
  python tools/check_data.py faster_rcnn_r2n50 --data my_photos/
"""


def main() -> int:
    parser = tool_parser(__doc__, EXAMPLE)
    add_shared(parser, 'config', '--data', '--data-format', '--classes', '--ignore-label')
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='which to check (all)'
    )
    parser.add_argument(
        '--out', help='folder for the picture and the list (work_dirs/CONFIG/data_check)'
    )
    add_shared(parser, '--cfg-options')
    args = parser.parse_args()

    from res2net_mm.data.check.inspection import inspect_data
    from res2net_mm.data.check.report import format_inspection, write_inspection
    from res2net_mm.engine.adapting import use_data
    from res2net_mm.engine.config import load_config
    from res2net_mm.files import check_writable

    cfg = load_config(args.config, args.cfg_options)
    out = Path(args.out or Path('work_dirs', Path(args.config).stem, 'data_check'))
    check_writable(out, '--out', folder=True)
    if data := use_data(cfg, args, out):
        print(*data.lines, sep='\n')
    inspection = inspect_data(cfg, args.splits)
    print(format_inspection(inspection), end='\n\n')
    for file in write_inspection(inspection, out):
        print(f'written: {file}')
    print(inspection.findings.verdict)
    return int(inspection.findings.errors > 0)


if __name__ == '__main__':
    run_tool(main)
