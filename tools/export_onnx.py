"""Writes a backbone or a segmentation model as an ONNX file, compared with PyTorch."""

import argparse
import difflib
import signal
from pathlib import Path
from typing import Any

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback

from mmengine.config import Config
from torch import nn

from res2net_mm.backbones import VARIANTS, Backbone
from res2net_mm.deploy import export_onnx, measure_speed
from res2net_mm.deploy.export import check_path
from res2net_mm.deploy.metadata import in_channels, normalisation_of
from res2net_mm.engine.arguments import ConfigOptions
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.engine.infer import classes_of, load_model
from res2net_mm.registry import MODELS
from res2net_mm.weights import load_weights

EXAMPLE = """example:
  python tools/export_onnx.py my_upernet.py iter_80000.pth upernet.onnx --shape 512 1024
  python tools/export_onnx.py configs/faster_rcnn_r2n50.py epoch_12.pth backbone.onnx --backbone
  python tools/export_onnx.py res2net50_v1b_26w_4s res2net://res2net50_v1b_26w_4s r2n50.onnx
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'network', metavar='CONFIG_OR_VARIANT', help='config, or name of a backbone'
    )
    parser.add_argument(
        'checkpoint',
        help='weights of the whole model; of the backbone, from any source, for a variant',
    )
    parser.add_argument('out', metavar='OUT.onnx')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='SIZE',
        help='H W or N C H W to export and compare at; default 512 512',
    )
    parser.add_argument(
        '--static', action='store_true', help='fix batch, height and width to --shape'
    )
    parser.add_argument('--backbone', action='store_true', help="the model's backbone alone")
    parser.add_argument('--time', action='store_true', help='time it against PyTorch at --shape')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read the checkpoint with pickle, which runs code that is in it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help="change the config, or the variant's arguments",
    )
    args = parser.parse_args()
    if args.shape and len(args.shape) not in (2, 4):
        raise ToolError(f'--shape must be H W or N C H W, but got {args.shape}')
    if args.static and not args.shape:
        raise ToolError('--static fixes the file to one shape: give --shape')
    check_path(args.out)
    print(f'loading {args.checkpoint}', flush=True)
    model, said = _load(args)
    if args.backbone:
        model = getattr(model, 'backbone', model)
    shape = tuple(args.shape or (512, 512))
    if len(shape) == 2:
        inner = getattr(model, 'backbone', model)
        shape = (1, in_channels(inner) if isinstance(inner, Backbone) else 3, *shape)
    report = export_onnx(
        model,
        args.out,
        shape,
        dynamic=not args.static,
        progress=lambda line: print(line, flush=True),
        **said,
    )
    print(report, flush=True)
    if args.time:
        print('timing', flush=True)
        print(measure_speed(model, report.path, shape))


def _load(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, and what its file should say beside."""
    if args.network in VARIANTS:
        arch = Config({'type': 'Res2Net', **VARIANTS[args.network]})
        arch.merge_from_dict(args.cfg_options or {})
        arguments = arch.to_dict()
        kind = MODELS.get(arguments.pop('type'))
        if not (isinstance(kind, type) and issubclass(kind, Backbone)):
            raise ToolError('type of --cfg-options is no backbone of this package')
        net = kind(**arguments)
        print(load_weights(net, args.checkpoint, trust=args.trust_checkpoint), flush=True)
        return net, {}
    if not Path(args.network).suffix:
        near = difflib.get_close_matches(args.network, VARIANTS, n=1, cutoff=0.4)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise ToolError(f'{args.network} is no variant and no config{hint}')
    cfg = load_config(args.network, args.cfg_options)
    if not cfg.get('model'):
        raise ToolError(f'config {args.network} has no model')
    model, loaded = load_model(cfg, args.checkpoint, args.trust_checkpoint)
    said = normalisation_of(model)
    return model, said if args.backbone else dict(said, classes=classes_of(cfg, loaded))


if __name__ == '__main__':
    run_tool(main)
