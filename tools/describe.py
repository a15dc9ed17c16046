"""Tells what a backbone is and costs: stages, parameters, multiply-adds, published weights."""

import argparse
import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from res2net_mm.backbones import VARIANTS, Backbone
from res2net_mm.engine.config import config_folders, load_config, our_backbones
from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.evaluation.complexity import describe_stages, format_architecture, format_stages
from res2net_mm.registry import MODELS, SCOPE
from res2net_mm.weights import SCHEME, ZOO

EXAMPLE = """example:
  python tools/describe.py res2net50_v1b_26w_4s
  python tools/describe.py configs/faster_rcnn_r2n50.py --input 800 1280
  python tools/describe.py res2net101_v1b_26w_4s --cfg-options first_block=mmdet dilations=1,1,2,4
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'network', metavar='CONFIG_OR_VARIANT', help='config, variant or res2net://name'
    )
    parser.add_argument(
        '--input', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='of the image'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help="change the config, or the variant's arguments",
    )
    args = parser.parse_args()
    import_module('mmcv.ops')  # registers deformable convolutions
    for i, arch in enumerate(_backbones(args.network, args.cfg_options or {})):
        arguments = {k: v for k, v in arch.items() if k not in ('type', 'init_cfg')}
        backbone = MODELS.get(arch['type'])
        if backbone is None:
            raise ToolError(f'type {arch["type"]} is no backbone of this package')
        with torch.device('meta'):  # no weights are made
            net = backbone(**arguments)
        height, width = args.input
        title = f'{args.network}: {type(net).__name__}, image {height} x {width}'
        table = format_stages(describe_stages(net, height, width))
        print('\n' * (i > 0) + title, table, format_architecture(arch), sep='\n\n')


def _backbones(name: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Types and arguments of the backbones that are meant."""
    bare = name.removeprefix(SCHEME)
    if name in VARIANTS or bare in ZOO:
        known = VARIANTS[name] if name in VARIANTS else ZOO[bare].arch
        arch = Config({'type': 'Res2Net', **known})
        arch.merge_from_dict(options)
        return [arch.to_dict()]
    if not name.startswith(SCHEME) and (Path(name).suffix or Path(name).exists()):
        return _configured(name, options)
    configs = [f.name for folder in config_folders() for f in folder.glob('*.py')]
    near = difflib.get_close_matches(bare, [*VARIANTS, *ZOO, *configs], n=1, cutoff=0.4)
    hint = f'; did you mean {near[0]}?' if near else ''
    raise ToolError(f'{name} is no variant, no name of published weights and no config{hint}')


def _configured(path: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    cfg = load_config(path, options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))  # of plugins' types
    found = [part.to_dict() for part in our_backbones(cfg)]
    if not found:
        classes = [name for name, cls in MODELS.module_dict.items() if issubclass(cls, Backbone)]
        types = ' or '.join(f'{SCOPE}.{name}' for name in classes)
        raise ToolError(f'the model of config {path} has no backbone of this package: {types}')
    for arch in found:
        if isinstance(arch['type'], type):
            arch['type'] = f'{SCOPE}.{arch["type"].__name__}'
    return found


if __name__ == '__main__':
    run_tool(main)
