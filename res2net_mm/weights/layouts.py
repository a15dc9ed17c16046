"""Renames the weights of every published layout to this package's (mmdet's) names.

====================  ==============================  ===============  ==========================
layout                stem (deep; 7x7)                around it        blocks
====================  ==============================  ===============  ==========================
``mmdet`` (ours)      ``stem.0`` ..; ``conv1 bn1``    ``backbone.``    ``layer1.0.convs.0``
``official``, timm    ``conv1.0`` .. ``bn1``; same    ``fc``           the same
``mmpretrain``        ``stem.0.conv`` ..;             ``backbone.``,   the same
                      ``conv1 bn1``                   ``head.fc``
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import CONVENTION
from .reading import CheckpointError, as_tensor

CLASSIFIER = 'classifier'
AROUND = 'rest of the model around the backbone'
PROGRAM = "names in Paddle's program"
DISCARDED = 'projections that DLA computes and discards'
COUNTER = 'counter of averaged weights'

# What the networks of each layout compute. mmdet's names are also ours, with any convention.
_CONVENTIONS = {
    'mmdet': {},
    **dict.fromkeys(('official', 'mmpretrain'), dict(first_block='official', style='pytorch')),
    'paddle': dict(first_block='paddle', style='pytorch'),
    'detectron2': dict(first_block='mmdet', style='caffe'),
    'maskrcnn': dict(first_block='official', style='caffe'),
}
# of the backbone in a model; the last is PoolNet's
_PREFIXES = ('backbone.bottom_up.', 'backbone.body.', 'backbone.', 'base.resnet.')
# in timm's order; what other projects call ema comes last
_AVERAGED = ('state_dict_ema', 'model_ema')
_CONTAINERS = (*_AVERAGED, 'state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'ema')
_DEEPEST = 8
_WRAPPERS = ('module.', '_orig_mod.')  # of DDP and torch.compile
_OURS = re.compile(
    r'(stem\.[013467]|conv1|(bn|gn|ln|in)1|layer\d+\.\d+\.\w+|base_layer\.\d|level[01]\.\d'
    r'|level[2-5]\.(tree[12]|project|root))(\.[a-z0-9]\w*)+'
)


def _paddle(deep: bool) -> list[tuple[str, str]]:
    """Paddle's modules are pairs of a convolution and a batch norm."""
    pairs = {
        '^conv1': ('conv1', 'bn1'),
        **{f'^conv1_{i + 1}': (f'stem.{3 * i}', f'stem.{3 * i + 1}') for i in range(3)},
        r'\.conv0': ('.conv1', '.bn1'),
        r'\.conv2': ('.conv3', '.bn3'),
        **{rf'\.res\w+_branch2b_{i + 1}': (f'.convs.{i}', f'.bns.{i}') for i in range(9)},
        # with a deep stem there is an average pool before it
        r'\.short': (f'.downsample.{deep:d}', f'.downsample.{deep + 1}'),
    }
    rules = []
    for module, (conv, norm) in pairs.items():
        rules += [(rf'{module}\._conv', conv), (rf'{module}\._batch_norm', norm)]
    rules += [(rf'^bb_{i}_', f'layer{i + 1}.') for i in range(4)]
    return [*rules, (r'\._mean$', '.running_mean'), (r'\._variance$', '.running_var')]


_DEEP_STEM = [(r'^conv1\.(?=\d)', 'stem.'), ('^bn1', 'stem.7')]
_MMPRETRAIN = [
    (rf'^stem\.{i}\.{part}', f'stem.{3 * i + j}')
    for i in range(3)
    for j, part in enumerate(('conv', 'bn'))
]
_DETECTRON2 = [
    (r'^stem\.', ''),
    *_DEEP_STEM,
    *((rf'^res{i + 1}\.', f'layer{i}.') for i in range(1, 5)),
    (r'conv([13])\.norm', r'bn\1'),
    (r'conv2_offsets\.(\d+)', r'convs.\1.conv_offset'),
    (r'shortcut\.1\.norm', 'downsample.2'),
    (r'shortcut\.1', 'downsample.1'),
]
# First tensor of the stem -> layout, and what to replace in its names, in this order
_STEMS: dict[str, tuple[str | None, list[tuple[str, str]]]] = {
    'conv1_1._conv.weight': ('paddle', _paddle(deep=True)),
    'conv1._conv.weight': ('paddle', _paddle(deep=False)),
    'conv1.0.weight': ('official', _DEEP_STEM),
    'stem.0.weight': ('mmdet', []),
    'stem.0.conv.weight': ('mmpretrain', _MMPRETRAIN),
    'stem.conv1.0.weight': ('detectron2', _DETECTRON2),
    'stem.conv1.weight': ('maskrcnn', [(r'^stem\.', '')]),
    'conv1.weight': (None, []),  # mmdet's or the authors', whose files have a classifier
    'base_layer.0.weight': (None, []),
}


@dataclass(frozen=True)
class Converted:
    """A state dict with this package's names, and what is known about it."""

    state: OrderedDict[str, Tensor]  # its _metadata has the convention: other networks refuse it
    layout: str
    convention: dict[str, str]  # the first_block and style that it needs, as far as known
    dropped: dict[str, list[str]]  # rule -> names that it left out
    licence: str | None = None  # in a file that convert_weights wrote
    # weight (classes, channels) and bias (classes,) of the linear layer, if there is one
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


def convert(checkpoint: Mapping[str, Any], prefix: str | None = None) -> Converted:
    """:func:`convert_state_dict`, with everything that it finds out.

    Args:
        checkpoint: As for :func:`convert_state_dict`.
        prefix: What the backbone's names begin with, with or without the last point; None means
            ``backbone.`` if there is one, with the ``bottom_up.`` or ``body.`` of detectron2 and
            maskrcnn-benchmark.
    """
    whole = _without_wrappers(unwrap(checkpoint), prefix or '')
    if prefix is None:
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in whole)), '')
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    inner = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    if whole and not inner:
        raise CheckpointError(f'no name begins with {prefix!r}: {listing(list(whole), 3)}')
    mmpretrain = bool(prefix) and any(key.startswith('head.fc.') for key in whole)
    taken, *others = _containers(checkpoint) or ['']
    dropped: dict[str, list[str]] = {f'weights other than {taken}': others} if others else {}
    for key in whole:
        if not key.startswith(prefix):
            head = mmpretrain and key.startswith('head.')
            dropped.setdefault(CLASSIFIER if head else AROUND, []).append(key)

    layout, rules = _recognise(inner)
    if mmpretrain and layout == 'mmdet':
        layout = 'mmpretrain'
    state: OrderedDict[str, Tensor] = OrderedDict()
    unknown = []
    for key, value in inner.items():
        if reason := _reason_to_drop(key, inner):
            dropped.setdefault(reason, []).append(prefix + key)
            continue
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if not _OURS.fullmatch(name):
            unknown.append(prefix + key)
        elif name in state:
            raise CheckpointError(f'two tensors of the file become {name}, one of them {key}')
        else:
            state[name] = _tensor(key, value)
    if unknown:
        raise CheckpointError(
            f'names in layout {layout} have no rule: {listing(unknown)}; is it a Res2Net?'
        )
    _complete(state, layout)
    known = _CONVENTIONS[layout]
    if layout == 'mmpretrain' and not rules and unwrap(checkpoint) is checkpoint:
        known = {}  # mmpretrain's files have a dict around; our classifiers have the same names
    convention = read_convention(checkpoint, prefix) or known
    write_convention(state, convention)
    licence = _mapping(checkpoint.get('meta')).get('licence')
    licence = licence if isinstance(licence, str) else None
    classifier = _classifier(whole, ('head.fc',) if prefix else ('head.fc', 'out', 'fc'))
    return Converted(state, layout, dict(convention), dropped, licence, classifier)


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a checkpoint, or the averaged one if timm or torchvision saved both.

    mmengine's EMAHook saves the averaged weights as ``state_dict``.
    """
    for _ in range(_DEEPEST):
        if not (found := _containers(checkpoint)):
            return checkpoint
        checkpoint = checkpoint[found[0]]
    raise CheckpointError(f'its weights are nested in more than {_DEEPEST} dicts')


def _containers(checkpoint: Mapping[str, Any]) -> list[str]:
    """Keys of a checkpoint's state dicts, that of :func:`unwrap` first."""
    found = {key: _mapping(checkpoint.get(key)) for key in _CONTAINERS}
    for key in _AVERAGED:  # settings of the averaging have the same names
        part = found[key]
        inner = any(_mapping(part.get(name)) for name in _CONTAINERS)
        found[key] = part if inner or any(map(torch.is_tensor, part.values())) else {}
    return [key for key, part in found.items() if part]


def read_convention(checkpoint: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    """The convention that this package saved in a checkpoint for the backbone under a prefix."""
    saved = [_mapping(_mapping(checkpoint.get('meta')).get(CONVENTION)).get(prefix.rstrip('.'))]
    for path, kept in _mapping(getattr(unwrap(checkpoint), '_metadata', None)).items():
        if _bare(f'{path}.').rstrip('.') == _bare(prefix).rstrip('.'):
            saved.insert(0, _mapping(kept).get(CONVENTION))
    convention = next(filter(None, saved), {})
    pairs = convention.items() if isinstance(convention, Mapping) else [(None,)]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise CheckpointError(f'its convention ({CONVENTION}) must be a dict of strings')
    return dict(convention)


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


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _bare(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition('.')[2]
    return name


def _without_wrappers(state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    if wrong := [key for key in state if not isinstance(key, str)]:
        raise CheckpointError(f'a state dict has names as keys, but this one has {wrong[0]!r:.80}')
    wrapped = all(key.startswith(_WRAPPERS) for key in state if '.' in key)  # without counters
    if not wrapped or prefix.startswith(_WRAPPERS):
        return state
    return {_bare(key): value for key, value in state.items()}


def _recognise(state: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    stem = next((name for name in _STEMS if name in state), None)
    if stem is None:
        raise CheckpointError(
            f'no layout of Res2Net is recognised: no stem ({", ".join(_STEMS)}) among '
            f'{listing(list(state), 3) or "no names"}; prefix (convert_weights.py --prefix) says '
            "what the backbone's names begin with"
        )
    layout, rules = _STEMS[stem]
    if layout is None:
        layout = 'official' if any(key.startswith('fc.') for key in state) else 'mmdet'
    return layout, rules


def _reason_to_drop(key: str, state: Mapping[str, Any]) -> str | None:
    if re.match(r'(fc|out|head)\.', key):
        return CLASSIFIER
    if key == 'StructuredToParameterName@@':
        return PROGRAM
    if key in ('n_averaged', 'steps'):  # torch's, mmengine's
        return COUNTER
    # In a tree of trees each inner tree has and uses a projection of its own.
    tree = re.fullmatch(r'(level\d(?:\.tree\d)*)\.project\.\w+\.\w+', key)
    if tree and any(k.startswith(f'{tree[1]}.tree1.tree1.') for k in state):
        return DISCARDED
    return None


def _tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':  # from Paddle
        return as_tensor(value)
    if not isinstance(value, Tensor):
        raise CheckpointError(f'{key} must be a tensor, but is {type(value).__name__}')
    return value


def _complete(state: OrderedDict[str, Tensor], layout: str) -> None:
    """Adds what other projects do not save, and what no feature depends on."""
    counters = [key for key in state if key.endswith('.num_batches_tracked')]
    if all(state[key].is_floating_point() for key in counters):  # a file was cast as a whole
        for key in counters:
            del state[key]
    for key in list(state):
        if key.endswith('.running_mean'):  # Paddle and old torch count no batches
            counter = key.replace('running_mean', 'num_batches_tracked')
            state.setdefault(counter, torch.tensor(0))
        elif layout == 'detectron2' and key.endswith('.conv_offset.weight'):  # CenterNet2's
            bias = state[key].new_zeros(state[key].shape[:1])
            state.setdefault(key.replace('weight', 'bias'), bias)


def _classifier(state: Mapping[str, Any], layers: tuple[str, ...]) -> dict[str, Tensor]:
    layer = next((name for name in layers if f'{name}.weight' in state), layers[0])
    keys = {leaf: f'{layer}.{leaf}' for leaf in ('weight', 'bias')}
    found = {leaf: _tensor(key, state[key]) for leaf, key in keys.items() if key in state}
    weight = found.get('weight', torch.empty(0))
    if layer == 'out' and weight.dim() == 2:  # Paddle's is transposed
        found['weight'] = weight.t().contiguous()
    elif weight.shape[2:] == (1, 1):  # DLA's is a convolution
        found['weight'] = weight.flatten(1)
    return found
