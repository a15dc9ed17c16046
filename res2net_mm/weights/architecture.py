"""Works out a network's arguments from its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..backbones import VARIANTS, Backbone, Res2Net
from ..registry import MODELS

Shapes = Mapping[str, tuple[int, ...]]


def architecture_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the backbone that has these weights, from their names and shapes.

    Args:
        state: A state dict with this package's names; it may be incomplete.

    Returns:
        ``type`` and all arguments that the weights show. ``depth`` is a tuple of blocks per stage
        if no named depth has these numbers.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    dla = any(key.startswith('base_layer.') for key in shapes)
    first = 'level2.tree1' if dla else 'layer1.0'
    found: dict[str, Any] = {'type': 'Res2NetDLA' if dla else 'Res2Net'}
    if _scales(shapes, 'layer1.0') == 1 < _scales(shapes, 'layer1.1'):
        found['first_block'], first = 'grouped', 'layer1.1'
    if any('.conv_offset.' in key for key in shapes):
        found |= dict(type='Res2NetDCN', **_deformable(shapes))

    scales, conv3 = _scales(shapes, first), shapes.get(f'{first}.conv3.weight')
    if scales and conv3:
        width, inputs = shapes[f'{first}.convs.0.weight'][:2]
        groups = width // inputs
        found |= dict(scales=scales, groups=groups, base_channels=conv3[0] // (2 if dla else 4))
        found['base_width'] = width // max(groups, 1)
    deep = 'stem.0.weight' in shapes
    name = 'base_layer.0' if dla else 'stem.0' if deep else 'conv1'
    stem = shapes.get(f'{name}.weight', ())
    if not dla:
        # an average pool before the shortcut's convolution makes that the second module
        avg_down = any(
            re.fullmatch(r'layer\d+\.0\.downsample\.1\.weight', key) and len(shape) == 4
            for key, shape in shapes.items()
        )
        found |= dict(deep_stem=deep, avg_down=avg_down, **_stages(shapes))
        if stem:
            found['stem_channels'] = stem[0] * (2 if deep else 1)
        if stem and not deep:
            found['stem_stride'] = 1 if stem[2:] == (3, 3) else 4
    if len(stem) == 4:
        found['in_channels'] = stem[1]
    return found


def variants_like(arch: Mapping[str, Any]) -> Iterator[tuple[str, Backbone]]:
    """Names of the variants with the arguments ``arch``, as far as they say, and the networks."""
    for name, args in VARIANTS.items():
        args = dict(args)
        kind = MODELS.get(args.pop('type', 'Res2Net'))
        full = {'type': kind.__name__, **kind.arguments(), **args}
        if all(full.get(key) in (None, value) for key, value in arch.items()):
            with torch.device('meta'):
                net = kind(**args)
            yield name, net


def _deformable(shapes: Shapes) -> dict[str, Any]:
    """Stages with offsets, and the kind of convolution if the number of values per tap shows it."""
    offsets = {k: shape for k, shape in shapes.items() if k.endswith('.conv_offset.weight')}
    stages = {int(m[1]) for key in offsets if (m := re.match(r'layer([1-4])\.', key))}
    last = max((int(m[1]) for key in shapes if (m := re.match(r'layer([1-4])\.', key))), default=0)
    found: dict[str, Any] = dict(stage_with_dcn=tuple(s in stages for s in range(1, last + 1)))
    kinds = set()
    for rows, channels, *kernel in (shape for shape in offsets.values() if len(shape) == 4):
        for kind, numbers in (('DCN', 2), ('DCNv2', 3)):
            groups, rest = divmod(rows, numbers * max(prod(kernel), 1))
            if groups and not rest and channels % groups == 0:
                kinds.add((kind, groups))
    if len(kinds) == 1:
        kind, groups = kinds.pop()
        first = [f'layer{stage}.0.convs.0.conv_offset.weight' in offsets for stage in stages]
        found['dcn'] = dict(type=kind, deform_groups=groups, fallback_on_stride=not all(first))
    return found


def _scales(shapes: Shapes, block: str) -> int:
    """Channel groups of a block; 0 if its weights do not show it."""
    conv1, branch = (shapes.get(f'{block}.{name}.weight', ()) for name in ('conv1', 'convs.0'))
    return conv1[0] // branch[0] if conv1 and len(branch) == 4 and all(branch) else 0


def _stages(shapes: Shapes) -> dict[str, Any]:
    places = {m.groups() for key in shapes if (m := re.match(r'layer([1-4])\.(\d{1,4})\.', key))}
    blocks = [[int(b) for s, b in places if s == str(stage)] for stage in range(1, 5)]
    counts = tuple(max(numbers, default=-1) + 1 for numbers in blocks)
    while counts and not counts[-1]:
        counts = counts[:-1]
    depths = [d for d, known in Res2Net.stage_blocks.items() if known[: len(counts)] == counts]
    return dict(depth=depths[0] if depths else counts, num_stages=len(counts)) if counts else {}
