"""What a backbone is and costs: stages, multiply-adds, receptive fields, published weights."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, ops
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..backbones import DCNV2, VARIANTS, Backbone, Bottle2neck
from ..checks import check_positive
from ..columns import aligned
from ..registry import MODELS
from ..weights import SCHEME, ZOO
from .models import ModelCost

_text = partial(json.dumps, sort_keys=True, default=str)  # the same for lists and tuples
_HOW_IT_RUNS = (
    'out_indices with_stem frozen_stages norm_eval with_cp compile zero_init_residual '
    'init_cfg'.split()
)
# arguments that change the features, but not which weights fit
_HIDDEN = {*'first_block strides dilations contract_dilation multi_grid style ceil_mode'.split()}
_HIDDEN |= {'in_channels', 'num_stages'}  # loading adapts to both


class Field(NamedTuple):
    """Pixel i depends on those of the image from ``stride * i + low`` to ``stride * i + high``."""

    low: int = 0
    high: int = 0
    stride: int = 1


class StageCost(NamedTuple):
    """The stem or a stage at one image size; without shape, field and macs if it is not run."""

    name: str
    shape: tuple[int, ...] | None  # channels, height and width of the output
    field: Field | None  # by the longest path; deformable convolutions at their regular grid
    has_plugins: bool  # in it or before it: modules such as SE that may look further than field
    dilations: tuple[int, ...]  # of the 3x3 convolutions, without repeats, in the blocks' order
    blocks: int  # Res2Net blocks
    params: int
    macs: int
    uncounted: tuple[str, ...]  # class of each module that has parameters and is not in macs


class BackboneCost(NamedTuple):
    """Parameters and multiply-adds of a backbone, and the channels and strides of its levels."""

    params: int
    macs: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]


_RULES = {  # shapes -> two for a multiply-add
    ops.aten._native_batch_norm_legit_no_training: lambda x, *_, **__: 4 * prod(x),
    ops.aten.native_batch_norm: lambda x, *_, **__: 4 * prod(x),  # in other releases of torch
    ops.aten.native_group_norm: lambda x, *_, **__: 10 * prod(x),
    ops.aten.native_layer_norm: lambda x, *_, **__: 10 * prod(x),
    ops.aten.mean: lambda x, *_, **__: 2 * prod(x) * (len(x) == 4),  # a global pool
    ops.torchvision.deform_conv2d: lambda x, w, *_, out_shape: conv_flop_count(x, w, out_shape),
}
_counting = partial(FlopCounterMode, display=False, custom_mapping=_RULES)


def _on_meta(net: nn.Module, height: int, width: int) -> tuple[nn.Module, Tensor]:
    """A copy of a network and an image for it, on the meta device, where any size is free."""
    check_positive('height', height)
    check_positive('width', width)
    net = copy.deepcopy(net).to('meta')
    net.eval()  # not chained: mmdet's backbones return None
    # of its first convolution: a transformer's first parameter is a token
    channels = next(p.shape[1] for p in net.parameters() if p.dim() == 4)
    return net, torch.empty(1, channels, height, width, device='meta')


def describe_stages(net: Backbone, height: int, width: int) -> list[StageCost]:
    """Output shape and cost of the stem, then of each stage, for an image in pixels.

    Multiply-adds are counted as fvcore does: those of convolutions (deformable ones without the
    interpolation), linear layers and matrix products; two for an element of batch norm, five of
    group and layer norm, one of a global pool.
    """
    net, image = _on_meta(net, height, width)
    outs: list[Tensor] = []  # of the stem, then of the stages that are run
    stages = [*map(net.get_submodule, net.stage_names)]
    stages[0].register_forward_pre_hook(lambda _, args: outs.append(args[0]))
    for stage in stages:
        stage.register_forward_hook(lambda _, args, out: outs.append(out))
    for module in net.modules():
        if hasattr(module, 'kernel_size'):
            module.register_forward_hook(_widen)
    image.field = Field()
    with _counting() as counter, _FollowFields(), torch.no_grad():
        net(image)
    counts = counter.get_flop_counts()  # 'Res2Net.layer1.0.conv1' -> operator -> two a multiply-add

    costs, has_plugins = [], False
    rows = {'stem': net.stem_names, **{name: (name,) for name in net.stage_names}}
    for (name, parts), out in zip_longest(rows.items(), outs):
        inner = {n: m for part in parts for n, m in getattr(net, part).named_modules(prefix=part)}
        macs = Counter()
        for path in inner:
            macs[path] = sum(counts.get(f'{type(net).__name__}.{path}', {}).values()) // 2
        blocks = [m for m in inner.values() if isinstance(m, Bottle2neck)]
        has_plugins |= any(names for b in blocks for names in b.plugin_names.values())
        cost = StageCost(
            name=name,
            shape=None if out is None else tuple(out.shape[1:]),
            field=None if out is None else out.field,
            has_plugins=has_plugins,
            dilations=tuple(dict.fromkeys(_side(b.convs[0].dilation) for b in blocks)),
            blocks=len(blocks),
            params=sum(p.numel() for part in parts for p in getattr(net, part).parameters()),
            macs=sum(macs[part] for part in parts),
            uncounted=tuple(
                type(module).__name__
                for path, module in inner.items()
                if out is not None
                and list(module.parameters(recurse=False))
                and macs[path] == sum(macs[f'{path}.{n}'] for n, _ in module.named_children())
            ),
        )
        costs.append(cost)
    return costs


def describe_backbone(net: nn.Module, height: int, width: int) -> BackboneCost:
    """Counts any backbone, ours or not, as :func:`describe_stages` does."""
    net, image = _on_meta(net, height, width)
    with torch.no_grad():
        with _counting() as counter:
            levels = net(image)
        strides = getattr(net, 'out_strides', None)
        if strides is None:
            square = image.new_empty(*image.shape[:2], 256, 256)
            strides = [256 // level.shape[2] for level in net(square)]
    return BackboneCost(
        params=sum(p.numel() for p in net.parameters()),
        macs=counter.get_total_flops() // 2,
        channels=tuple(level.shape[1] for level in levels),
        strides=tuple(strides),
    )


class _FollowFields(TorchFunctionMode):
    """A tensor's ``field`` is the union of those of the tensors that it is computed from."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is Tensor.type_as:  # returns its input, without values of the other
            return out
        inputs = [t for arg in args for t in (arg if isinstance(arg, list | tuple) else [arg])]
        fields = [t.field for t in inputs if hasattr(t, 'field')]
        for tensor in out if isinstance(out, tuple) else [out]:
            if fields and isinstance(tensor, Tensor):
                lows, highs, strides = zip(*fields, strict=True)
                tensor.field = Field(min(lows), max(highs), max(strides))
        return out


def _widen(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
    """Hook of convolutions and pools."""
    x = args[0].field
    reach = _side(getattr(module, 'dilation', 1)) * (_side(module.kernel_size) - 1)
    low = x.low - x.stride * _side(module.padding)
    high = x.high + x.stride * (reach - _side(module.padding))
    out.field = Field(low, high, x.stride * _side(module.stride))


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def with_classifier(costs: Sequence[StageCost]) -> tuple[int, int]:
    """Parameters and multiply-adds of all stages, a global pool and 1000 classes."""
    last = [cost.shape for cost in costs if cost.shape][-1]
    params = sum(cost.params for cost in costs) + (last[0] + 1) * 1000
    return params, sum(cost.macs for cost in costs) + prod(last) + last[0] * 1000


def format_stages(costs: Sequence[StageCost]) -> str:
    """The stages as a table, and the totals without and with a classifier of 1000 classes."""
    head = 'stage|output|stride|dilation|blocks|params (M)|multiply-adds (G)|receptive field'
    rows = []
    for c in costs:
        shape = ' x '.join(map(str, c.shape)) if c.shape else 'not run'
        stride, field = (c.field.stride, c.field.high - c.field.low + 1) if c.field else ('', '')
        field = f'{field} without plugins' if c.field and c.has_plugins else field
        dilation = ', '.join(map(str, c.dilations)) if {*c.dilations} - {1} else ''
        sizes = f'{c.params / 1e6:.3f}', f'{c.macs / 1e9:.3f}'
        rows.append((c.name, shape, stride, dilation, c.blocks or '', *sizes, field))
    totals = {
        'backbone': (sum(c.params for c in costs), sum(c.macs for c in costs)),
        'with a 1000-class classifier': with_classifier(costs),
    }
    lines = [*_table(head, rows), '']
    for what, (params, macs) in totals.items():
        lines.append(f'{what}: {params / 1e6:.2f} M parameters, {macs / 1e9:.3f} G multiply-adds')
    missed = Counter(kind for c in costs for kind in c.uncounted)
    lines += [f'not in the multiply-adds: {kind} (of {n} layers)' for kind, n in missed.items()]
    return '\n'.join(lines)


def format_comparison(costs: Mapping[str, BackboneCost], models: Mapping[str, ModelCost]) -> str:
    """Backbones side by side, and the whole models of those that have one."""
    head = 'network|params (M)|multiply-adds (G)|channels|strides|model (M)|model GFLOPs'
    rows = []
    for name, cost in costs.items():
        model = models.get(name)
        levels = [', '.join(map(str, values)) for values in (cost.channels, cost.strides)]
        whole = [f'{model.params / 1e6:.2f}', f'{model.gflops:.2f}'] if model else ['', '']
        rows.append([name, f'{cost.params / 1e6:.2f}', f'{cost.macs / 1e9:.3f}', *levels, *whole])
    return '\n'.join(_table(head, rows))


def _table(head: str, rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a table; columns without content are left out."""
    table = [head.split('|'), *(map(str, row) for row in rows)]
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]
    return aligned(list(zip(*columns, strict=True)))


def format_architecture(args: Mapping[str, Any]) -> str:
    """Non-default arguments of a config's backbone, its variant and published weights."""
    defaults = MODELS.get(args['type']).arguments()
    shown = {'first_block': 'official'}
    shown |= {k: v for k, v in args.items() if k in defaults and _text(v) != _text(defaults[k])}
    init_cfg = shown.pop('init_cfg', None)
    lines = ['arguments: ' + ', '.join(f'{k}={v!r}' for k, v in shown.items())]
    if isinstance(init_cfg, Mapping) and init_cfg.get('type') == 'Pretrained':
        lines.append(f'pretrained: {init_cfg.get("checkpoint", "no checkpoint is named")}')

    network = _network(args).items()
    differs = {n: {k for k, _ in network ^ _network(v).items()} for n, v in VARIANTS.items()}
    alike = {n: keys for n, keys in differs.items() if keys <= _HIDDEN}
    variant = min(alike, key=lambda n: len(alike[n]), default='none of the named ones')
    but = ', '.join(sorted(alike.get(variant, ())))
    lines.append(f'variant: {variant}' + (f', but for {but}' if but else ''))
    plain = variant.removesuffix('_dcn')  # whose weights fit
    entries = {name: entry for name, entry in ZOO.items() if entry.variant == plain}
    lines.append('published weights:' if entries else 'published weights: none')
    for name, entry in entries.items():
        reported = ', '.join(f'{measure} {value}' for measure, value in entry.accuracy.items())
        lines += [
            f'  {SCHEME}{name}: {reported or "no accuracy reported"}',
            f'    first_block={entry.rule!r}, layout {entry.layout}; {entry.licence}',
            f'    {entry.source}: {entry.url}',
        ]
    return '\n'.join(lines)


def _network(args: Mapping[str, Any]) -> dict[str, str]:
    """The arguments that decide on the features, as text."""
    kind = MODELS.get(args.get('type', 'Res2Net'))
    full = {**kind.arguments(), **args, 'type': kind.__name__}
    norm = {'requires_grad': True, **(full['norm_cfg'] or {'type': 'BN'})}
    full['norm_cfg'] = {**norm, 'type': norm['type'].replace('SyncBN', 'BN')}
    if 'dcn' in full:
        full['dcn'] = {**DCNV2, **full['dcn']}
    if full.get('stem_channels') == full['base_channels']:
        full['stem_channels'] = None
    return {k: _text(v) for k, v in full.items() if k not in _HOW_IT_RUNS}
