"""Loads weights exactly, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..backbones import Backbone
from ..registry import WEIGHT_INITIALIZERS
from .architecture import architecture_of
from .layouts import Converted, listing
from .reading import CheckpointError
from .sources import read_backbone, unknown_rule
from .zoo import Published

BEYOND = 'stages that the network was built without'
EPSILON = (
    "batch norm of the file's project has no epsilon: norm_cfg=dict(type='BN', eps=1e-30) gives "
    'its exact features'
)


@dataclass
class LoadReport:
    """What :func:`load_weights` did; as text, a few lines for a log."""

    source: str  # the file, address or name
    layout: str  # of the file, see convert_state_dict
    first_block: str | None  # the file's rule; None if neither its layout nor a convention says it
    matched: list[str]  # names that were loaded
    missing: list[str] = field(default_factory=list)  # offsets of deformable convolutions
    unexpected: list[str] = field(default_factory=list)  # always empty, since a load is exact
    dropped: dict[str, list[str]] = field(default_factory=dict)  # rule -> names left out
    licence: str | None = None  # of published weights
    note: str = ''  # warning of an unknown first-block rule, or of another epsilon of batch norm
    adapted: str = ''  # how the first convolution was adapted to the network's input channels

    def __str__(self) -> str:
        rule = self.first_block or ('not known' if self.note else 'of one form only')
        lines = [
            f'{self.source}: {len(self.matched)} tensors loaded, layout {self.layout}, '
            f'first_block {rule}',
            f'not in the file, and zero: {listing(self.missing)}' if self.missing else '',
            *(f'left out, {rule}: {listing(names)}' for rule, names in self.dropped.items()),
            self.adapted,
            self.note,
            f'licence of these weights: {self.licence}' if self.licence else '',
        ]
        return '\n  '.join(filter(None, lines))


def load_weights(
    net: Backbone,
    source: str | Path | Mapping[str, Any],
    *,
    prefix: str | None = None,
    map_location: Any = 'cpu',
    trust: bool = False,
) -> LoadReport:
    """Loads weights into a backbone exactly; after an error the network is unchanged.

    Args:
        net: A backbone of this package.
        source: A name of :data:`ZOO` (``res2net://name`` or just the name), a file, an http
            address, ``open-mmlab://name``, or a state dict; in any layout.
        prefix: What the backbone's names begin with in the file; None finds ``backbone.`` and
            PoolNet's ``base.resnet.``.
        map_location: Device to which the file is read.
        trust: Read the file with pickle, which runs code that is in it.

    Returns:
        What was loaded and left out. ``conv_offset`` of deformable convolutions may be missing
        and is then zero, which makes them plain convolutions (times 0.5 in version 2).
        Weights for 3 input channels are adapted to the network's number.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or downloaded, or does not fit the network; the message
            names the arguments to set.

    Example:
        >>> net = create_backbone('res2net50_v1b_26w_4s')
        >>> report = load_weights(net, 'res2net://res2net50_v1b_26w_4s')
    """
    if not isinstance(net, Backbone):
        raise TypeError(
            f'net must be a backbone of res2net_mm, but is {type(net).__name__}: give the '
            'backbone of a detector or segmentor'
        )
    converted, entry = read_backbone(source, prefix, map_location, trust=trust)
    return load_converted(net, converted, entry, name_of(source))


def name_of(source: str | Path | Mapping[str, Any]) -> str:
    """What messages call a source of weights."""
    return 'the state dict' if isinstance(source, Mapping) else str(source)


def load_converted(
    net: Backbone, converted: Converted, entry: Published | None, name: str
) -> LoadReport:
    """:func:`load_weights` for weights that have been read; ``name`` is what errors call them."""
    convention, dropped = converted.convention, dict(converted.dropped)
    beyond = [key for key in converted.state if _is_beyond(net, key)]
    dropped |= {BEYOND: beyond} if beyond else {}
    state = OrderedDict((k, v) for k, v in converted.state.items() if k not in beyond)
    adapted = _adapt_channels(net, state)
    missing = check_fit(net, state, convention, name, converted.layout)
    note = '' if convention or not net.convention.get('first_block') else unknown_rule(net)
    if converted.layout == 'maskrcnn' and any(getattr(m, 'eps', 0) > 1e-12 for m in net.modules()):
        note = EPSILON
    own = net.state_dict()
    net.load_state_dict(state | {key: torch.zeros_like(own[key]) for key in missing})
    return LoadReport(
        source=name,
        layout=converted.layout,
        first_block=convention.get('first_block'),
        matched=list(state),
        missing=missing,
        dropped=dropped,
        licence=entry.licence if entry else converted.licence,
        note=note,
        adapted=adapted,
    )


def check_fit(
    net: Backbone,
    state: Mapping[str, Tensor],
    convention: Mapping[str, str],
    name: str,
    layout: str,
) -> list[str]:
    """Raises ``ValueError``, naming the arguments to set, unless weights fit a network exactly.

    Returns:
        The names of the allowed gap: ``conv_offset`` of deformable convolutions, all or none.
    """
    own = net.state_dict()
    absent = [key for key in own if key not in state]
    gap = [key for key in absent if '.conv_offset.' in key]
    if any('.conv_offset.' in key for key in state):
        gap = []
    parts = {
        'missing': [key for key in absent if key not in gap],
        'unexpected': [key for key in state if key not in own],
        'other shapes': [
            f'{key} {tuple(value.shape)} for {tuple(own[key].shape)}'
            for key, value in state.items()
            if key in own and own[key].shape != value.shape
        ],
    }
    if any(parts.values()):
        detail = '; '.join(f'{what}: {listing(keys)}' for what, keys in parts.items() if keys)
        raise CheckpointError(
            f'{name} (layout {layout}) does not fit the network, and nothing was loaded.'
            f'{_advice(net, own, state, convention)} [{detail}]'
        )
    net.check_convention(convention, name)
    for key, value in state.items():
        if reason := unfit(key, value, own[key]):
            raise CheckpointError(f'{name}: {key} {reason}; nothing was loaded')
    return gap


def unfit(key: str, value: Tensor, own: Tensor) -> str | None:
    """Why a tensor cannot take the place of ``own``, whatever its shape; None if it can."""
    if value.is_meta:
        return 'has no values'
    if value.is_floating_point() != own.is_floating_point() or value.is_complex():
        return f'has type {value.dtype}, where {own.dtype} is needed'
    value = value.to(own.dtype)  # may overflow to infinity
    if value.is_floating_point() and not torch.isfinite(value).all():
        return f'has values that are NaN or infinite in {own.dtype}'
    if key.endswith('running_var') and (value < 0).any():
        return 'has negative variances: it may be swapped with another tensor'
    return None


@WEIGHT_INITIALIZERS.register_module(name='Pretrained', force=True)
def load_pretrained(module: Backbone, checkpoint: str, **options: Any) -> None:
    """``init_cfg=dict(type='Pretrained', ...)`` of our backbones: :func:`load_weights`, logged."""
    MMLogger.get_current_instance().info(str(load_weights(module, checkpoint, **options)))


def describe_partial_load(model: nn.Module, weights: Mapping[str, Any], source: str) -> str:
    """One line on what loading by name and shape leaves out; ``''`` if all weights load.

    Args:
        model: The model.
        weights: The file's weights, with the model's names.
        source: The file, for messages.

    Raises:
        CheckpointError: No weight fits.
    """
    own, given = (
        {k: getattr(v, 'shape', None) for k, v in tensors.items() if 'num_batches_tracked' not in k}
        for tensors in (model.state_dict(), weights)
    )
    loaded = [key for key, shape in own.items() if given.get(key) == shape]
    if not loaded:
        advice = 'Give load_from a checkpoint of this model'
        if any(f'backbone.{key}' in own for key in given):
            advice = (
                "They are a backbone's: set model.backbone.init_cfg=dict(type='Pretrained', "
                f'checkpoint={source!r}) instead of load_from'
            )
        raise CheckpointError(
            f'{source}: none of its {len(given)} weights fits the model by name and shape (there: '
            f'{listing(list(given))}; the model: {listing(list(own))}). {advice}'
        )
    parts = {
        'not loaded, of another shape there': [k for k in own if k in given and k not in loaded],
        'not loaded, not there': [k for k in own if k not in given],
        'left over': [k for k in given if k not in own],
    }
    rest = [f'{len(keys)} {what} ({listing(keys)})' for what, keys in parts.items() if keys]
    if not rest:
        return ''
    return f"{source}: {len(loaded)} of the model's {len(own)} weights loaded; {'; '.join(rest)}"


def _is_beyond(net: Backbone, key: str) -> bool:
    """Whether a stage comes after those of the network, such as layer4 for num_stages=3."""
    stage, last = key.split('.')[0], net.stage_names[-1]
    return last.startswith('layer') and stage in ('layer2', 'layer3', 'layer4') and stage > last


def _adapt_channels(net: Backbone, state: dict[str, Tensor]) -> str:
    """Adapts weights for RGB in place to the network's input as timm does, and says how."""
    name, own = next(iter(net.named_parameters()))
    given, channels = state.get(name), own.shape[1]
    if given is None or given.dim() != 4 or given.shape[1] != 3 or channels == 3:
        return ''
    wide = given.to(torch.promote_types(given.dtype, torch.float32))
    if channels == 1:
        how, wide = 'summed', wide.sum(1, keepdim=True)
    else:
        how = f'repeated and scaled by 3/{channels}'
        wide = wide[:, torch.arange(channels) % 3] * (3 / channels)
    state[name] = wide.to(given.dtype)
    return f'adapted, {name}: its 3 input channels are {how} for the {channels} of the network'


def _advice(
    net: Backbone,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    convention: Mapping[str, str],
) -> str:
    """The arguments that would make the network fit, as far as the weights show them."""
    if not any('.convs.' in key for key in state):
        return ' It is no Res2Net: its blocks have no convs.'
    has = architecture_of(own) | net.convention
    needs = architecture_of(state) | convention
    differs = {key: value for key, value in needs.items() if has.get(key, value) != value}
    if has['type'] == 'Res2NetDCN' and needs['type'] == 'Res2Net':
        del differs['type']  # Res2NetDCN takes plain weights
    if not differs:
        return ''
    advice = ', '.join(f'{key}={value!r}' for key, value in differs.items())
    now = ', '.join(f'{key}={has.get(key)!r}' for key in differs)
    return f' Set {advice} (the network has {now}).'
