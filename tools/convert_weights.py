"""Converts published weights of any layout to this package's names, with their convention."""

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

EXAMPLE = """example:
  python tools/convert_weights.py Res2Net50_vd_26w_4s_pretrained.pdparams res2net50_vd.safetensors
  python tools/convert_weights.py res2net://res2net50_v1b_26w_4s weights/res2net50_v1b.pth
"""


def main() -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument(
        'source', metavar='IN', help='file, http address, res2net://name or open-mmlab://name'
    )
    parser.add_argument(
        'out', metavar='OUT', help='.safetensors or .pth; its sha256 is added to the name'
    )
    parser.add_argument(
        '--first-block',
        choices=('official', 'mmdet', 'paddle', 'grouped'),
        help='the rule, if the file does not say it',
    )
    parser.add_argument('--prefix', help="what the backbone's names begin with in the file")
    add_shared(parser, '--trust-checkpoint')
    args = parser.parse_args()

    from res2net_mm.weights import convert_weights

    written = convert_weights(
        args.source,
        args.out,
        first_block=args.first_block,
        prefix=args.prefix,
        trust=args.trust_checkpoint,
    )
    print(written.report)


if __name__ == '__main__':
    run_tool(main)
