"""What a backbone is and costs: stages, multiply-adds, receptive fields, published weights."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn, ops
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..backbones import DCNV2, VARIANTS, Backbone, Bottle2neck, Res2NetDLA
from ..backbones.res2net_dla import Tree
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


@dataclass(frozen=True)
class StageCost:
    """A stage, or the stem, at one image size.

    Attributes:
        name: ``'stem'`` or the name of the stage.
        shape: Channels, height and width of the output; None if the stage is not run.
        stride: From the image to the output.
        dilations: Of the 3x3 convolutions, without repeats, in the blocks' order.
        blocks: Number of Res2Net blocks.
        params: Number of parameters.
        macs: Multiply-adds; 0 if the stage is not run.
        field: Pixels along one side of the image that one output pixel depends on by the longest
            path, with deformable convolutions at their regular grid and without plugins.
        uncounted: Class of each module that has parameters and is not in ``macs``.
    """

    name: str
    shape: tuple[int, ...] | None
    stride: int
    dilations: tuple[int, ...]
    blocks: int
    params: int
    macs: int
    field: int
    uncounted: tuple[str, ...]


def describe_stages(net: Backbone, height: int, width: int) -> list[StageCost]:
    """Output shape and cost of the stem and of each stage.

    Multiply-adds are counted as fvcore does: those of convolutions (deformable ones without the
    interpolation), linear layers and matrix products; two for an element of batch norm, five of
    group and layer norm, one of a global pool. The network runs on the meta device, so any size is
    free.

    Args:
        net: The backbone; not changed.
        height, width: Size of the image in pixels.

    Returns:
        The stem, then the stages.

    Raises:
        ValueError: A size is not a positive integer.
    """
    check_positive('height', height)
    check_positive('width', width)
    net = copy.deepcopy(net).to('meta').eval()
    shapes: list[tuple[int, ...]] = []  # of the stem, then of the stages that are run
    stages = [*map(net.get_submodule, net.stage_names)]
    stages[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[1:])))
    for stage in stages:
        stage.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[1:])))
    image = torch.empty(1, next(net.parameters()).shape[1], height, width, device='meta')
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter, torch.no_grad():
        net(image)
    counts = counter.get_flop_counts()  # 'Res2Net.layer1.0.conv1' -> operator -> two a multiply-add

    costs, root = [], type(net).__name__
    rows = {'stem': net.stem_names, **{name: (name,) for name in net.stage_names}}
    for (name, parts), field, shape in zip_longest(rows.items(), receptive_fields(net), shapes):
        inner = {n: m for part in parts for n, m in getattr(net, part).named_modules(prefix=part)}
        macs = {n: sum(counts.get(f'{root}.{n}', {}).values()) // 2 for n in inner}
        sizes = {n: sum(p.numel() for p in m.parameters(recurse=False)) for n, m in inner.items()}
        own = Counter(macs)
        for n in inner:
            own[n.rpartition('.')[0]] -= macs[n]
        blocks = [m for m in inner.values() if isinstance(m, Bottle2neck)]
        missed = [type(m).__name__ for n, m in inner.items() if shape and sizes[n] and not own[n]]
        cost = StageCost(
            name=name,
            shape=shape,
            stride=field.stride,
            dilations=tuple(dict.fromkeys(_side(b.convs[0].dilation) for b in blocks)),
            blocks=len(blocks),
            params=sum(sizes.values()),
            macs=sum(macs[part] for part in parts),
            field=field.high - field.low + 1,
            uncounted=tuple(missed),
        )
        costs.append(cost)
    return costs


class BackboneCost(NamedTuple):
    """Parameters and multiply-adds of a backbone, and the channels and strides of its levels."""

    params: int
    macs: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]


def describe_backbone(net: nn.Module, height: int, width: int) -> BackboneCost:
    """Counts any backbone, ours or not, as :func:`describe_stages` does."""
    check_positive('height', height)
    check_positive('width', width)
    net = copy.deepcopy(net).to('meta')
    net.eval()  # not chained: mmdet's backbones return None
    channels = next(net.parameters()).shape[1]
    image = torch.empty(1, channels, height, width, device='meta')
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter, torch.no_grad():
        levels = net(image)
    strides = getattr(net, 'out_strides', None)
    if strides is None:
        with torch.no_grad():
            strides = [256 // out.shape[2] for out in net(image.new_empty(1, channels, 256, 256))]
    return BackboneCost(
        params=sum(p.numel() for p in net.parameters()),
        macs=counter.get_total_flops() // 2,
        channels=tuple(level.shape[1] for level in levels),
        strides=tuple(strides),
    )


def _each(x: Sequence[int], *args: Any, macs: int, **kwargs: Any) -> int:
    return 2 * macs * prod(x)


_RULES = {
    ops.aten._native_batch_norm_legit_no_training: partial(_each, macs=2),
    ops.aten.native_batch_norm: partial(_each, macs=2),  # in other releases of torch
    ops.aten.native_group_norm: partial(_each, macs=5),
    ops.aten.native_layer_norm: partial(_each, macs=5),
    ops.aten.mean: lambda x, *_, **__: 2 * prod(x) * (len(x) == 4),  # a global pool
    ops.torchvision.deform_conv2d: lambda x, w, *_, out_shape: conv_flop_count(x, w, out_shape),
}


class Field(NamedTuple):
    """Output i depends on the image from ``stride * i + low`` to ``stride * i + high``."""

    low: int = 0
    high: int = 0
    stride: int = 1


def receptive_fields(net: Backbone) -> list[Field]:
    """Receptive fields of the stem and the stages along one side; see :class:`StageCost`."""
    x = _through(Field(), *map(net.get_submodule, net.stem_names))
    dla = isinstance(net, Res2NetDLA)
    fields = [x if dla else _through(x, net.maxpool)]
    for i, stage in enumerate(map(net.get_submodule, net.stage_names)):
        x, bottom = fields[-1], _through(fields[-1], net.maxpool)
        fields.append(_tree(stage, x, bottom, *[bottom][:i]) if dla else _through(x, stage))
    return fields


def _through(x: Field, *layers: nn.Module | None) -> Field:
    for layer in layers:
        if isinstance(layer, Bottle2neck):
            x = _block(layer, x)
        elif isinstance(layer, nn.Sequential):
            x = _through(x, *layer)
        elif hasattr(layer, 'kernel_size'):
            reach = _side(getattr(layer, 'dilation', 1)) * (_side(layer.kernel_size) - 1)
            pad, step = x.stride * _side(layer.padding), x.stride * _side(layer.stride)
            x = Field(x.low - pad, x.high - pad + x.stride * reach, step)
    return x


def _block(block: Bottle2neck, x: Field, shortcut: Field | None = None) -> Field:
    group = _through(x, block.conv1)
    outs: list[Field] = []
    for conv in block.convs:
        outs.append(_through(_union(group, *outs[-1:]) if block.adds else group, conv))
    if block.scales > 1:
        outs.append(_through(group, block.pool))
    return _union(_through(_union(*outs), block.conv3), shortcut or _through(x, block.downsample))


def _tree(tree: Tree, x: Field, bottom: Field, *joined: Field) -> Field:
    if tree.root is None:
        x = _tree(tree.tree1, x, bottom)
        return _tree(tree.tree2, x, x, *joined, x)
    first = _block(tree.tree1, x, _through(bottom, tree.project))
    return _through(_union(_block(tree.tree2, first), first, *joined), tree.root)


def _union(*fields: Field) -> Field:
    return Field(min(f.low for f in fields), max(f.high for f in fields), fields[-1].stride)


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def format_stages(costs: list[StageCost]) -> str:
    """The stages as a table, and the totals without and with a classifier of 1000 classes."""
    head = 'stage|output|stride|dilation|blocks|params (M)|multiply-adds (G)|receptive field'
    rows = [head.split('|')]
    for c in costs:
        shape = ' x '.join(map(str, c.shape)) if c.shape else 'not run'
        dilation = ', '.join(map(str, c.dilations)) if {*c.dilations} - {1} else ''
        numbers = f'{c.params / 1e6:.3f}', f'{c.macs / 1e9:.3f}', str(c.field)
        rows.append([c.name, shape, str(c.stride), dilation, str(c.blocks or ''), *numbers])
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    lines = [*aligned(list(zip(*columns, strict=True))), '']

    params, macs = sum(c.params for c in costs), sum(c.macs for c in costs)
    last = [c.shape for c in costs if c.shape][-1]
    head = params + (last[0] + 1) * 1000, macs + prod(last) + last[0] * 1000  # global pool, linear
    for what, (p, m) in {'backbone': (params, macs), 'with a 1000-class classifier': head}.items():
        lines.append(f'{what}: {p / 1e6:.2f} M parameters, {m / 1e9:.3f} G multiply-adds')
    missed = Counter(kind for c in costs for kind in c.uncounted)
    lines += [f'not in the multiply-adds: {kind} (of {n} layers)' for kind, n in missed.items()]
    return '\n'.join(lines)


def format_comparison(costs: Mapping[str, BackboneCost], models: Mapping[str, ModelCost]) -> str:
    """Backbones side by side, and the whole models of those that have one."""
    head = 'network|params (M)|multiply-adds (G)|channels|strides|model (M)|model GFLOPs'
    rows = [head.split('|')]
    for name, cost in costs.items():
        model = models.get(name)
        levels = [', '.join(map(str, values)) for values in (cost.channels, cost.strides)]
        whole = [f'{model.params / 1e6:.2f}', f'{model.gflops:.2f}'] if model else ['', '']
        rows.append([name, f'{cost.params / 1e6:.2f}', f'{cost.macs / 1e9:.3f}', *levels, *whole])
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return '\n'.join(aligned(list(zip(*columns, strict=True))))


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
    entries = {name: entry for name, entry in ZOO.items() if entry.variant == variant}
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
