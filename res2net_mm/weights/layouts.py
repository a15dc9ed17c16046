"""Renames the weights of every published layout to this package's (mmdet's) names.

====================  ==============================  ===============  ==========================
layout                stem (deep; 7x7)                around it        blocks
====================  ==============================  ===============  ==========================
``mmdet`` (ours)      ``stem.0`` ..; ``conv1 bn1``    ``backbone.``    ``layer1.0.convs.0``
``official``, timm    ``conv1.0`` .. ``bn1``; same    ``fc``           the same
``mmpretrain``        as mmdet                        ``backbone.``,   the same
                                                      ``head.fc``
``paddle``            ``conv1_1`` ..; ``conv1``       ``out``          ``bb_0_0.res2a_branch2b_1``
``detectron2``        ``stem.`` and as official       ``backbone.``,   ``res2.0.convs.0``,
                                                      ``.bottom_up.``  ``res2.0.conv1.norm``
``maskrcnn``          ``stem.`` and as official       ``backbone.``,   as mmdet
                                                      ``.body.``
====================  ==============================  ===============  ==========================
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import CONVENTION
from .reading import PROGRAM_NAMES, CheckpointError

# Layout -> first-block rule of its networks. mmdet's names are also ours, with any rule.
LAYOUTS = dict.fromkeys(('official', 'mmpretrain', 'maskrcnn'), 'official')
LAYOUTS |= {'mmdet': None, 'paddle': 'paddle', 'detectron2': 'mmdet'}
_STRIDE_IN_1X1 = ('detectron2', 'maskrcnn')  # by the default of both projects, style='caffe'

CLASSIFIER = 'classifier'
AROUND = 'rest of the model around the backbone'
PROGRAM = "names in Paddle's program"
DISCARDED = 'projections that DLA computes and discards'

# of the backbone in a model; the last is PoolNet's
_PREFIXES = ('backbone.bottom_up.', 'backbone.body.', 'backbone.', 'base.resnet.')
_WRAPPERS = ('state_dict', 'model', 'state_dict_ema', 'model_ema', 'ema')
_DEEPEST = 8
_OURS = re.compile(
    r'(stem\.\d|conv1|(bn|gn|ln|in)1|layer\d+\.\d+\.\w+|base_layer\.\d|level[01]\.\d'
    r'|level[2-5]\.(tree[12]|project|root))\.\w'
)
_DEEP_STEM = {'conv1.0': '0', 'conv1.1': '1', 'conv1.3': '3', 'conv1.4': '4', 'conv1.6': '6'}
_DEEP_STEM['bn1'] = '7'
_PADDLE_KEY = re.compile(
    r'(?:conv1(?:_(?P<stem>[123]))?|bb_(?P<stage>\d+)_(?P<block>\d+)\.'
    r'(?:(?P<part>conv0|conv2|short)|res\w+_branch2b_(?P<branch>\d+)))'
    r'\.(?:_conv\.(?P<conv>weight)|_batch_norm\.(?P<norm>weight|bias|_mean|_variance))'
)
_PADDLE_NORM = {'_mean': 'running_mean', '_variance': 'running_var'}
_DETECTRON2_KEY = re.compile(
    r'res([2-5])\.(\d+)\.(?:((?:convs|bns)\.\d+)|conv2_offsets\.(\d+)|(.+))'
)
_DETECTRON2 = {'conv1': 'conv1', 'conv1.norm': 'bn1', 'conv3': 'conv3', 'conv3.norm': 'bn3'}
_DETECTRON2 |= {'shortcut.1': 'downsample.1', 'shortcut.1.norm': 'downsample.2'}


@dataclass(frozen=True)
class Converted:
    """A state dict with this package's names, and what is known about it.

    Attributes:
        state: Name -> tensor. Its ``_metadata`` has the convention, so that a network with other
            arguments refuses it.
        layout: A key of :data:`LAYOUTS`.
        convention: The ``first_block`` and ``style`` that the weights need, as far as known.
        dropped: Rule -> names that it left out.
        licence: The licence in a file that :func:`convert_weights` wrote.
        classifier: ``weight`` (classes, channels) and ``bias`` (classes,) of the linear layer after
            the pool; empty if the file has none.
    """

    state: OrderedDict[str, Tensor]
    layout: str
    convention: dict[str, str]
    dropped: dict[str, list[str]]
    licence: str | None = None
    classifier: dict[str, Tensor] = field(default_factory=dict)


def convert_state_dict(state: Mapping[str, Any]) -> tuple[OrderedDict[str, Tensor], str]:
    """Renames the weights of a published backbone.

    Args:
        state: A state dict, or a checkpoint with one under ``state_dict``, ``model`` or ``ema``,
            with or without ``module.``, from this package, mmdet (also a whole detector), the
            authors (also of their forks of mmdetection, detectron2 and maskrcnn-benchmark), timm,
            mmpretrain, CenterNet2 or PaddleClas (also as numpy arrays).

    Returns:
        The backbone's weights with this package's names, without classifier or other heads, and
        the layout that was recognised.

    Raises:
        CheckpointError: The layout is not recognised, or a name has no rule.

    Example:
        >>> state, layout = convert_state_dict(timm.create_model('res2net50d').state_dict())
        >>> layout, 'stem.0.weight' in state
        ('official', True)
    """
    converted = convert(state)
    return converted.state, converted.layout


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a checkpoint; averaged weights only if there are no others."""
    for _ in range(_DEEPEST):
        inner = (checkpoint.get(key) for key in _WRAPPERS)
        state = next((value for value in inner if isinstance(value, Mapping) and value), None)
        if state is None:
            return checkpoint
        checkpoint = state
    raise CheckpointError(f'its weights are nested in more than {_DEEPEST} dicts')


def read_convention(checkpoint: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    """The convention that this package saved in a checkpoint for the backbone under a prefix."""
    metadata = getattr(unwrap(checkpoint), '_metadata', None)
    wrappers = ('', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.')
    paths = [wrapper + prefix for wrapper in wrappers]
    places = [(metadata, path.rstrip('.'), CONVENTION) for path in paths]
    for value, *keys in (*places, (checkpoint.get('meta'), CONVENTION, prefix.rstrip('.'))):
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value:
            pairs = value.items() if isinstance(value, Mapping) else [(None,)]
            if not all(isinstance(text, str) for pair in pairs for text in pair):
                raise CheckpointError(f'its convention ({CONVENTION}) must be a dict of strings')
            return dict(value)
    return {}


def convert(checkpoint: Mapping[str, Any], prefix: str | None = None) -> Converted:
    """:func:`convert_state_dict`, with everything that it finds out.

    Args:
        checkpoint: As for :func:`convert_state_dict`.
        prefix: What the backbone's names begin with; None means ``backbone.`` if there is one, with
            the ``bottom_up.`` or ``body.`` of detectron2 and maskrcnn-benchmark.
    """
    state = unwrap(checkpoint)
    dropped: dict[str, list[str]] = {}
    if wrong := [key for key in state if not isinstance(key, str)]:
        raise CheckpointError(f'a state dict has names as keys, but this one has {wrong[0]!r:.80}')
    if prefix and not prefix.endswith('.'):  # mmengine accepts both forms
        prefix += '.'
    for wrapper in ('module.', '_orig_mod.', 'module.'):  # from DDP and torch.compile
        wrapped = state and all(key.startswith(wrapper) for key in state)
        if wrapped and not (prefix or '').startswith(wrapper):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    if prefix is None:
        prefix = next((p for p in _PREFIXES if any(k.startswith(p) for k in state)), '')
    layout, whole = '', state
    if prefix:
        if not any(key.startswith(prefix) for key in state):
            raise CheckpointError(f'no name begins with {prefix!r}: {listing(list(state), 3)}')
        mmpretrain = any(key.startswith('head.fc.') for key in state)
        layout = 'mmpretrain' if mmpretrain else 'mmdet'
        for key in state:
            if not key.startswith(prefix):
                head = mmpretrain and key.startswith('head.')
                dropped.setdefault(CLASSIFIER if head else AROUND, []).append(key)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    names = _recognise(state)
    if names != 'mmdet' or not layout:  # other names show the rule, whatever their prefix
        layout = names
    rename = _RENAMES[names]

    renamed: OrderedDict[str, Tensor] = OrderedDict()
    unknown = []
    for key, value in state.items():
        if rule := _dropped_by(key, state):
            dropped.setdefault(rule, []).append(prefix + key)
            continue
        name = rename(key, state)
        if name is None:
            unknown.append(prefix + key)
        elif name in renamed:
            raise CheckpointError(f'two tensors of the file become {name}, one of them {key}')
        else:
            renamed[name] = _tensor(key, value)
    if unknown:
        raise CheckpointError(
            f'names in layout {layout} have no rule: {listing(unknown)}; is it a Res2Net?'
        )
    _add_counters(renamed)
    if layout == 'detectron2':  # CenterNet2 predicts offsets without a bias
        for key in [key for key in renamed if key.endswith('.conv_offset.weight')]:
            zeros = renamed[key].new_zeros(renamed[key].shape[:1])
            renamed.setdefault(key.replace('weight', 'bias'), zeros)
    convention = read_convention(checkpoint, prefix)
    if not convention and LAYOUTS[layout]:
        style = 'caffe' if layout in _STRIDE_IN_1X1 else 'pytorch'
        convention = dict(first_block=LAYOUTS[layout], style=style)
    write_convention(renamed, convention)
    meta = checkpoint.get('meta')
    licence = meta.get('licence') if isinstance(meta, Mapping) else None
    licence = licence if isinstance(licence, str) else None
    mmpretrains = prefix or 'head.fc.weight' in whole
    layer = 'head.fc' if mmpretrains else 'out' if names == 'paddle' else 'fc'
    classifier = _classifier(whole, layer)
    return Converted(renamed, layout, convention, dropped, licence, classifier)


def write_convention(
    state: OrderedDict[str, Tensor], convention: Mapping[str, str], path: str = ''
) -> None:
    """Stores the convention of the backbone at ``path`` where ``load_state_dict`` looks for it."""
    metadata = OrderedDict(getattr(state, '_metadata', None) or {})
    if convention:
        metadata[path] = {**metadata.get(path, {}), CONVENTION: dict(convention)}
    state._metadata = metadata


def listing(names: list[str], most: int = 6) -> str:
    """The first names and the number of the others, for one line."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    shown = [name if name.isprintable() else ascii(name) for name in names[:most]]
    return ', '.join(f'{name:.200}' for name in shown) + more


def _tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':  # from Paddle
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder('='), order='C'))
    if not isinstance(value, Tensor):
        raise CheckpointError(f'{key} must be a tensor, but is {type(value).__name__}')
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        raise CheckpointError(f'{key} is no plain tensor')
    return value


def _classifier(state: Mapping[str, Any], layer: str) -> dict[str, Tensor]:
    keys = {leaf: f'{layer}.{leaf}' for leaf in ('weight', 'bias')}
    found = {leaf: _tensor(key, state[key]) for leaf, key in keys.items() if key in state}
    weight = found.get('weight', torch.empty(0))
    if layer == 'out' and weight.dim() == 2:  # Paddle's is transposed
        found['weight'] = weight.t().contiguous()
    elif weight.shape[2:] == (1, 1):  # DLA's is a convolution
        found['weight'] = weight.flatten(1)
    return found


def _recognise(state: Mapping[str, Any]) -> str:
    if 'conv1_1._conv.weight' in state or 'conv1._conv.weight' in state:
        return 'paddle'
    if 'conv1.0.weight' in state:
        return 'official'
    if 'stem.0.weight' in state:
        return 'mmdet'
    if 'stem.conv1.0.weight' in state:
        return 'detectron2'
    if 'stem.conv1.weight' in state:
        return 'maskrcnn'
    if 'conv1.weight' in state or 'base_layer.0.weight' in state:  # the same in both
        return 'official' if any(key.startswith('fc.') for key in state) else 'mmdet'
    names = listing(list(state), 3) or 'no names'
    raise CheckpointError(
        f'no layout of Res2Net is recognised: no stem (stem.0, conv1, conv1.0, conv1_1, '
        f'stem.conv1, stem.conv1.0 or base_layer.0) among {names}'
    )


def _dropped_by(key: str, state: Mapping[str, Any]) -> str | None:
    if re.match(r'(fc|out|head)\.', key):
        return CLASSIFIER
    if key == PROGRAM_NAMES:
        return PROGRAM
    # In a tree of trees each inner tree has and uses a projection of its own.
    tree = re.fullmatch(r'(level\d(?:\.tree\d)*)\.project\.\w+\.\w+', key)
    if tree and any(k.startswith(f'{tree[1]}.tree1.tree1.') for k in state):
        return DISCARDED
    return None


def _from_mmdet(key: str, state: Mapping[str, Any]) -> str | None:
    return key if _OURS.match(key) else None


def _from_official(key: str, state: Mapping[str, Any]) -> str | None:
    if 'conv1.0.weight' not in state:
        return _from_mmdet(key, state)
    module, _, leaf = key.rpartition('.')
    if module in _DEEP_STEM:
        return f'stem.{_DEEP_STEM[module]}.{leaf}'
    return key if re.match(r'layer\d+\.\d+\.\w+\.', key) else None


def _from_paddle(key: str, state: Mapping[str, Any]) -> str | None:
    match = _PADDLE_KEY.fullmatch(key)
    if match is None:
        return None
    place = match.groupdict()
    leaf = place['conv'] or _PADDLE_NORM.get(place['norm'], place['norm'])
    is_norm = place['conv'] is None
    deep = 'conv1_1._conv.weight' in state
    if place['stage'] is None:
        if not place['stem']:
            return f'{"bn1" if is_norm else "conv1"}.{leaf}'
        return f'stem.{3 * (int(place["stem"]) - 1) + is_norm}.{leaf}'
    if place['branch']:
        module = f'{"bns" if is_norm else "convs"}.{int(place["branch"]) - 1}'
    elif place['part'] == 'short':
        module = f'downsample.{deep + is_norm}'
    else:
        module = f'{"bn" if is_norm else "conv"}{1 if place["part"] == "conv0" else 3}'
    return f'layer{int(place["stage"]) + 1}.{place["block"]}.{module}.{leaf}'


def _from_detectron2(key: str, state: Mapping[str, Any]) -> str | None:
    module, _, leaf = key.rpartition('.')
    first, _, inner = module.partition('.')
    if first == 'stem':
        return f'stem.{_DEEP_STEM[inner]}.{leaf}' if inner in _DEEP_STEM else None
    place = _DETECTRON2_KEY.fullmatch(module)
    if place is None:
        return None
    stage, block, same, offset, part = place.groups()
    name = same or (f'convs.{offset}.conv_offset' if offset else _DETECTRON2.get(part))
    return name and f'layer{int(stage) - 1}.{block}.{name}.{leaf}'


def _from_maskrcnn(key: str, state: Mapping[str, Any]) -> str | None:
    if re.match(r'layer\d+\.\d+\.\w+\.', key):
        return key
    return key.removeprefix('stem.') if re.match(r'stem\.(conv1|bn1)\.\w', key) else None


_RENAMES: dict[str, Callable[[str, Mapping[str, Any]], str | None]] = {
    'mmdet': _from_mmdet,
    'official': _from_official,
    'paddle': _from_paddle,
    'detectron2': _from_detectron2,
    'maskrcnn': _from_maskrcnn,
}


def _add_counters(state: OrderedDict[str, Tensor]) -> None:
    """Adds num_batches_tracked, which Paddle and old torch do not save; no feature uses it."""
    for key in [key for key in state if key.endswith('.running_mean')]:
        state.setdefault(key.replace('running_mean', 'num_batches_tracked'), torch.tensor(0))
