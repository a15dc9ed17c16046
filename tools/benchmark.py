"""Measures this package against other implementations, the same work on both sides."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import ctrl_c  # noqa: F401

from res2net_mm.engine.arguments import tool_parser
from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.files import write_text

# task -> module, what it measures
TASKS = {
    'backbone': ('networks', 'inference of backbones'),
    'train': ('networks', 'a training step of backbones, and of ours with_cp by stage'),
    'dcn': ('networks', "Res2NetDCN on our operator and on torchvision's"),
    'deform_conv': ('operators', 'only deformable convolution, forward and backward'),
    'sweep': ('networks', 'inference over sizes of image and batch'),
    'detector': ('detectors', "images a second of a detector's test loop"),
    'train_detector': ('detectors', 'a training step of a detector'),
    'deploy': ('deploy', 'a model in PyTorch, onnxruntime and OpenVINO, float32 and int8'),
    'coco': ('coco', 'COCO evaluation against pycocotools'),
}
TABLES = 'tables'
EXAMPLE = """example:
  python tools/benchmark.py backbone --size 800x1216 --rounds 20 --json docs/benchmarks/c.json
  python tools/benchmark.py sweep --chart sweep.png
  python tools/benchmark.py tables docs/benchmarks/*.json --out docs/benchmarks.md
"""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv[0] if argv else '').parse_args(argv)
    report = import_module('benchmark.report')
    if args.task == TABLES:
        records = {path: report.read_record(path) for path in args.records}
        if args.out is None:
            print('\n\n'.join(report.markdown(record) for record in records.values()))
        else:
            _check_file('out', args.out, '.md')
            report.write_page(args.out, records)
            print(f'{args.out}: {len(records)} records')
        return
    _check(args)
    args.command = shlex.join(['python', 'tools/benchmark.py', *argv])
    record = _module(args.task).run(args)
    print(report.format_record(record))
    if args.json:
        write_text(args.json, json.dumps(record, indent=1, default=str) + '\n')
    if args.chart:
        report.draw(record, args.chart)


def _module(task: str):
    return import_module(f'benchmark.{TASKS[task][0]}')  # the folder beside this file


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Of all tasks; only what the chosen one needs is imported."""
    parser = tool_parser(__doc__, EXAMPLE)
    parts = parser.add_subparsers(dest='task', required=True, metavar='TASK')
    for name, (_, text) in TASKS.items():
        part = parts.add_parser(name, help=text, description=text)
        if name == chosen:
            _module(name).add_arguments(part, name)
        part.add_argument('--json', type=Path, metavar='FILE', help='the record, with all times')
        part.add_argument('--chart', type=Path, metavar='FILE.png')
        part.add_argument('--rounds', type=int, default=15, metavar='N', help='times of each (15)')
        part.add_argument(
            '--threads', type=int, metavar='N', help="of PyTorch (PyTorch's own choice)"
        )
        part.add_argument('--device', default='cpu', help='such as cpu or cuda (cpu)')
    tables = parts.add_parser(TABLES, help='markdown of records: ratios, never a time')
    tables.add_argument('records', nargs='+', type=Path, metavar='FILE.json')
    tables.add_argument('--out', type=Path, metavar='FILE.md', help='a page of them, or print them')
    return parser


def _check(args: argparse.Namespace) -> None:
    """Refuses what would fail after minutes; sets the threads."""
    import torch

    for name in ('rounds', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ToolError(f'--{name} must be at least 1, but is {value}')
    for name, suffix in (('json', '.json'), ('chart', '.png')):
        if getattr(args, name) is not None:
            _check_file(name, getattr(args, name), suffix)
    if args.device.partition(':')[0] not in ('cpu', 'cuda'):
        raise ToolError(f'--device must be cpu or cuda, but is {args.device}')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ToolError(f'--device {args.device} cannot be used: {reason}') from error
    if args.threads:
        torch.set_num_threads(args.threads)


def _check_file(name: str, path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise ToolError(f'--{name} must end in {suffix}, but is {path}')
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ToolError(f'--{name} {path}: {path.parent} is not a writable folder')


if __name__ == '__main__':
    run_tool(main)
