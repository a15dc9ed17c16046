"""Works out a network's arguments from its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from ..backbones import Res2Net


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
        found['type'] = 'Res2NetDCN'
        found.update(_deformable(shapes))
    expansion = 2 if dla else 4

    scales, conv3 = _scales(shapes, first), shapes.get(f'{first}.conv3.weight')
    branch = shapes.get(f'{first}.convs.0.weight')
    if scales and conv3:
        groups = branch[0] // branch[1]
        found.update(scales=scales, groups=groups)
        found.update(base_channels=conv3[0] // expansion)
        found.update(base_width=branch[0] // max(groups, 1))
    if dla:
        stem = shapes.get('base_layer.0.weight')
    else:
        deep = 'stem.0.weight' in shapes
        stem = shapes.get('stem.0.weight' if deep else 'conv1.weight')
        # an average pool before the shortcut's convolution makes that the second module
        avg_down = any(
            re.fullmatch(r'layer\d+\.0\.downsample\.1\.weight', key) and len(shape) == 4
            for key, shape in shapes.items()
        )
        found.update(deep_stem=deep, avg_down=avg_down, **_stages(shapes))
        if stem:
            found['stem_channels'] = stem[0] * (2 if deep else 1)
            found |= {} if deep else {'stem_stride': 1 if stem[2:] == (3, 3) else 4}
    if stem and len(stem) == 4:
        found['in_channels'] = stem[1]
    return found


def _deformable(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Stages with offsets, and the kind of convolution if the number of values per tap shows it."""
    offsets = {k: shape for k, shape in shapes.items() if k.endswith('.conv_offset.weight')}
    stages = {int(m[1]) for key in offsets if (m := re.match(r'layer([1-4])\.', key))}
    last = max((int(m[1]) for key in shapes if (m := re.match(r'layer([1-4])\.', key))), default=0)
    found: dict[str, Any] = dict(stage_with_dcn=tuple(s in stages for s in range(1, last + 1)))
    kinds = set()
    for rows, channels, *kernel in (shape for shape in offsets.values() if len(shape) == 4):
        taps = prod(kernel) or 1
        for kind, numbers in (('DCN', 2), ('DCNv2', 3)):
            groups, rest = divmod(rows, numbers * taps)
            if groups and not rest and channels % groups == 0:
                kinds.add((kind, groups))
    if len(kinds) == 1:
        kind, groups = kinds.pop()
        first = [f'layer{stage}.0.convs.0.conv_offset.weight' in offsets for stage in stages]
        found['dcn'] = dict(type=kind, deform_groups=groups, fallback_on_stride=not all(first))
    return found


def _scales(shapes: Mapping[str, tuple[int, ...]], block: str) -> int:
    """Channel groups of a block; 0 if its weights do not show it."""
    conv1, branch = (shapes.get(f'{block}.{name}.weight') for name in ('conv1', 'convs.0'))
    known = conv1 and branch and len(branch) == 4 and all(branch)
    return conv1[0] // branch[0] if known else 0


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    blocks: dict[int, int] = {}
    for key in shapes:
        if place := re.match(r'layer([1-4])\.(\d{1,4})\.', key):
            stage, block = map(int, place.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if not blocks:
        return {}
    counts = tuple(blocks.get(stage, 0) for stage in range(1, max(blocks) + 1))
    depths = [d for d, known in Res2Net.stage_blocks.items() if known[: len(counts)] == counts]
    return dict(depth=depths[0] if depths else counts, num_stages=len(counts))
