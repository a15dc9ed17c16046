"""What an exported file says of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones import VARIANTS, Backbone, Bottle2neck
from ..registry import MODELS
from ..version import __version__
from ..weights.architecture import architecture_of
from ..weights.zoo import IMAGENET_MEAN, IMAGENET_STD
from .exportable import Exportable

IMAGENET = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD, channel_order='RGB')


def normalisation_of(model: nn.Module) -> dict[str, Any]:
    """``mean``, ``std`` and ``channel_order`` of a model of mmdet or mmseg; {} where it has none.

    Images come from mmcv as BGR.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        return {}
    found: dict[str, Any] = {}
    if getattr(preprocessor, '_enable_normalize', False):
        for name in ('mean', 'std'):
            values = getattr(preprocessor, name).double().flatten().tolist()
            found[name] = tuple(round(value, 4) for value in values)  # of float32's noise
    else:
        found.update(mean=(0.0,) * 3, std=(1.0,) * 3)
    # the second name is that of mmsegmentation 1.2.2
    names = ('_channel_conversion', 'channel_conversion')
    converts = any(getattr(preprocessor, name, False) for name in names)
    return dict(found, channel_order='RGB' if converts else 'BGR')


def check_normalisation(
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channel_order: str | None,
) -> None:
    """Raises ``ValueError`` naming the argument, the rule and the value."""
    if (mean is None) != (std is None):
        raise ValueError(f'mean and std go together, but got mean={mean!r} and std={std!r}')
    for name, values in dict(mean=mean, std=std).items():
        listed = isinstance(values, Sequence) and len(values) == channels
        if values is not None and not (listed and all(map(math.isfinite, values))):
            raise ValueError(
                f'{name} must have {channels} finite values, one a channel, but got {values!r}'
            )
    if std is not None and not all(value > 0 for value in std):
        raise ValueError(f'std must be positive, but got {std}')
    if channel_order not in ('RGB', 'BGR', None):
        raise ValueError(f"channel_order must be 'RGB' or 'BGR', but got {channel_order!r}")


def describe(
    net: Exportable, normalisation: Mapping[str, Any], classes: Sequence[str] | None
) -> dict[str, str]:
    """The file's metadata: names -> texts, lists as json."""
    channels = in_channels(net.backbone)
    texts = {'package': f'res2net_mm {__version__}', 'variant': variant_of(net.backbone)}
    texts |= net.backbone.convention
    texts['input'] = _input_in_words(channels, **normalisation)
    for name, value in normalisation.items():
        if value is not None:
            texts[name] = value if isinstance(value, str) else json.dumps(list(map(float, value)))
    texts |= {f'output {name}': text for name, text in net.outputs.items()}
    if classes:
        texts['classes'] = json.dumps(list(classes), ensure_ascii=False)
    if net.notes:
        texts['note'] = '; '.join(net.notes)
    return texts


def _input_in_words(
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channel_order: str | None,
) -> str:
    shape = f'float32 (N, {channels}, H, W)'
    if mean is None:
        return f'{shape}, normalised as the network was trained; this file does not know how'
    low, high = (', '.join(f'{v:g}' for v in values) for values in (mean, std))
    order = f'{channel_order} ' if channel_order else ''
    return (
        f'{shape}: {order}pixels, 0 to 255, from which the mean ({low}) was subtracted, then '
        f'divided by the standard deviation ({high}), channel by channel'
    )


def in_channels(net: Backbone) -> int:
    """Channels of the image."""
    return next(net.parameters()).shape[1]


def variant_of(net: Backbone) -> str:
    """Name of the variant that a network is, or its type and arguments as far as it shows them."""
    shown, own = {**architecture_of(net.state_dict()), **net.convention}, _signature(net)
    for name, args in VARIANTS.items():
        args = dict(args)
        kind = MODELS.get(args.pop('type', 'Res2Net'))
        full = {'type': type(net).__name__, **kind.arguments(), **args}
        if kind is type(net) and all(full.get(k) in (None, v) for k, v in shown.items()):
            with torch.device('meta'):
                if _signature(kind(**args)) == own:
                    return name
    stages = [
        [m for m in getattr(net, name).modules() if isinstance(m, Bottle2neck)]
        for name in net.stage_names
    ]
    dilations = [sorted({b.convs[0].dilation[0] for b in blocks}) for blocks in stages]
    if dilations != [[1]] * len(stages):
        shown['dilations'] = tuple(d[0] if len(d) == 1 else tuple(d) for d in dilations)
    shown['out_strides'] = net.out_strides
    plugins = {name for b in sum(stages, []) for names in b.plugin_names.values() for name in names}
    if plugins:
        shown['plugins'] = tuple(sorted(plugins))
    arguments = ', '.join(f'{k}={v!r}' for k, v in shown.items() if k != 'type')
    return f'{type(net).__name__}: {arguments}'


def _signature(net: Backbone) -> Any:
    """What features depend on besides the weights: the convention, every layer's arguments."""
    layers = []
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):  # of one process or of several
            layers.append((name, module.num_features, module.eps))
        else:
            layers.append((name, type(module).__name__, module.extra_repr()))
    return net.convention, layers
