"""Downloads a published data set, or takes its archives from a folder, and lays it out."""

from ctrl_c import run_tool

from res2net_mm.data.prepare.archives import DATA_SETS
from res2net_mm.engine.arguments import tool_parser

EXAMPLE = """examples:
  python tools/prepare_data.py coco --root data
  python tools/prepare_data.py coco --parts train val annotations panoptic
  python tools/prepare_data.py cityscapes --from ~/Downloads

Archives are looked for in RES2NET_MM_MIRROR=FOLDER_OR_ADDRESS before their publishers are asked.

parts (* by default):
"""


def main() -> None:
    parts = ''.join(
        f'  {name:<12}'
        + ', '.join(f'{part}{"*" if part in dataset.default else ""}' for part in dataset.parts)
        + '\n'
        for name, dataset in DATA_SETS.items()
    )
    parser = tool_parser(__doc__, EXAMPLE + parts)
    parser.add_argument('dataset', metavar='SET', help=', '.join(DATA_SETS))
    parser.add_argument('--root', default='data', help='folder of all data sets (default: data)')
    parser.add_argument(
        '--from', dest='source', metavar='DIR', help='folder that has the archives already'
    )
    parser.add_argument('--parts', nargs='+', default=(), metavar='PART', help='see below')
    args = parser.parse_args()

    from res2net_mm.data.prepare.sets import prepare_data

    print(prepare_data(args.dataset, args.root, source=args.source, parts=args.parts))


if __name__ == '__main__':
    run_tool(main)
