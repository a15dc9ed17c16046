"""Describes a backbone (stages, parameters, multiply-adds, published weights), the whole model of a
config, several of them side by side, or the zoo."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ctrl_c import run_tool

from res2net_mm.engine.arguments import add_shared, tool_parser

TIMM = 'timm/'
EXAMPLE = """example:
  python tools/describe.py res2net50_v1b_26w_4s
  python tools/describe.py configs/faster_rcnn_r2n50.py --input 800 1280
  python tools/describe.py res2net101_v1b_26w_4s --cfg-options first_block=mmdet dilations=1,1,2,4
  python tools/describe.py res2net50_v1b_26w_4s timm/resnet50 configs/mask_rcnn_r50.py --compare
  python tools/describe.py --zoo
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument(
        'network',
        nargs='*',
        metavar='CONFIG_OR_VARIANT',
        help='config, variant, res2net://name, or timm/name for a network of timm',
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help='print parameters, multiply-adds, channels and strides of several in one table',
    )
    parser.add_argument(
        '--zoo',
        action='store_true',
        help='print all published weights, and the configs with published accuracies, as Markdown',
    )
    parser.add_argument(
        '--input', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='of the image'
    )
    add_shared(parser, '--cfg-options', help="change the config, or the variant's arguments")
    args = parser.parse_args(argv)
    if args.zoo == bool(args.network):
        parser.error('give either CONFIG_OR_VARIANT or --zoo')
    if len(args.network) > 1 and not args.compare:
        parser.error('several networks need --compare')
    if args.compare and args.cfg_options:
        parser.error('--cfg-options is for one network: leave out --compare')

    from mmengine.logging import MMLogger

    from res2net_mm.engine.zoo_table import format_zoo

    import_module('mmcv.ops')  # registers deformable convolutions
    MMLogger.get_current_instance().setLevel('WARNING')  # stdout is for the tables
    if args.zoo:
        print(format_zoo())
        return
    network, options = args.network[0], args.cfg_options or {}
    if args.compare or network.startswith(TIMM):
        print(compare(args.network, options, *args.input))
    elif is_config(network):
        print('\n\n\n'.join(describe_config(network, options, *args.input)))
    else:
        print(describe_network(network, named(network, options), *args.input))


def is_config(name: str) -> bool:
    """Whether a name is that of a config, not of a network or of weights."""
    from res2net_mm.backbones import VARIANTS
    from res2net_mm.registry import find_config
    from res2net_mm.weights import SCHEME, ZOO

    known = name.startswith((TIMM, SCHEME)) or name in VARIANTS or name in ZOO
    named = Path(name).suffix != '' or Path(name).is_file() or find_config(name)
    return not known and bool(named)


def named(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Type and arguments of a variant, of a timm network or of what weights belong to."""
    from mmengine.config import Config

    from res2net_mm.backbones import VARIANTS
    from res2net_mm.checks import did_you_mean
    from res2net_mm.engine.errors import ToolError, building_config
    from res2net_mm.registry import config_folders
    from res2net_mm.weights import SCHEME, ZOO

    bare = name.removeprefix(SCHEME)
    if name.startswith(TIMM):
        known = dict(type='TimmBackbone', model_name=name.removeprefix(TIMM))
    elif name in VARIANTS:
        known = VARIANTS[name]
    elif bare in ZOO:
        known = ZOO[bare].arch
    else:
        configs = [f.name for folder in config_folders() for f in folder.glob('*.py')]
        hint = did_you_mean(bare, [*VARIANTS, *ZOO, *configs])
        raise ToolError(f'{name} is no variant, no name of published weights and no config{hint}')
    arch = Config({'type': 'Res2Net', **known})
    with building_config('network'):
        arch.merge_from_dict(options)
    return arch.to_dict()


def describe_network(name: str, arch: dict[str, Any], height: int, width: int) -> str:
    """Stages, totals, arguments and published weights of a backbone of this package."""
    import torch

    from res2net_mm.engine.errors import ToolError, building_config
    from res2net_mm.evaluation.complexity import describe_stages, format_architecture, format_stages
    from res2net_mm.registry import MODELS

    arguments = {k: v for k, v in arch.items() if k not in ('type', 'init_cfg')}
    backbone = MODELS.get(arch['type'])
    if backbone is None:
        raise ToolError(f'type {arch["type"]} is no backbone of this package')
    with torch.device('meta'), building_config('network'):  # without memory for weights
        net = backbone(**arguments)
    title = f'{name}: {type(net).__name__}, image {height} x {width}'
    table = format_stages(describe_stages(net, height, width))
    return '\n\n'.join([title, table, format_architecture(arch)])


def whole_model(cfg: Any, height: int, width: int) -> Any:
    """The cost of a config's model, or one line that says why it cannot be counted."""
    import torch

    from res2net_mm.engine.errors import one_line
    from res2net_mm.evaluation.models import describe_model
    from res2net_mm.registry import ROOT_MODELS

    try:
        with torch.device('meta'):
            model = ROOT_MODELS.build(cfg.model)
        model.eval()  # not chained: mmdet's backbones return None
        return describe_model(model, height, width)
    except Exception as error:  # someone else's model may need anything
        return f'cannot be counted: {one_line(error)}'


def compare(names: Sequence[str], options: dict[str, Any], height: int, width: int) -> str:
    """Costs of several networks and configs, in one table."""
    import torch
    from mmengine.registry import init_default_scope

    from res2net_mm.engine.config import load_config
    from res2net_mm.engine.errors import building_config
    from res2net_mm.evaluation.complexity import describe_backbone, format_comparison
    from res2net_mm.registry import MODELS, ROOT_MODELS

    costs, models, notes = {}, {}, []
    for name in names:
        if is_config(name):
            cfg = load_config(name, options)
            init_default_scope(cfg.get('default_scope', 'mmengine'))
            cost = whole_model(cfg, height, width)
            if isinstance(cost, str):
                notes.append(f'{name}: the whole model {cost}')
            else:
                models[name] = cost
        with torch.device('meta'), building_config('network'):
            if is_config(name):
                net = ROOT_MODELS.build(cfg.model.backbone)
            else:
                arch = named(name, options)
                net = MODELS.get(arch.pop('type'))(**arch)
            costs[name] = describe_backbone(net, height, width)
    return '\n'.join([format_comparison(costs, models), *notes])


def describe_config(path: str, options: dict[str, Any], height: int, width: int) -> list[str]:
    """Sections on each of our backbones in a config and on its whole model."""
    from mmengine.registry import init_default_scope

    from res2net_mm.engine.config import load_config, our_backbones
    from res2net_mm.engine.errors import ToolError
    from res2net_mm.engine.safety import use_safe_loading
    from res2net_mm.registry import SCOPE

    cfg = load_config(path, options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))  # for the types of plugins
    use_safe_loading()
    sections = []
    for part in our_backbones(cfg):
        arch = part.to_dict()
        if isinstance(arch['type'], type):
            arch['type'] = f'{SCOPE}.{arch["type"].__name__}'
        sections.append(describe_network(path, arch, height, width))
    cost = whole_model(cfg, height, width)
    if isinstance(cost, str) and not sections:
        raise ToolError(
            f'the model of config {path} has no backbone of this package, and as a whole it {cost}'
        )
    title = f'{path}: the whole model'
    counted = f'{title}, image {height} x {width}\n\n{cost}'
    return [*sections, f'{title} {cost}' if isinstance(cost, str) else counted]


if __name__ == '__main__':
    run_tool(main)
