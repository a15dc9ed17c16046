"""The named networks. Each entry holds what differs from ``Res2Net()`` (or its ``type``)."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger

from ..checks import did_you_mean
from ..registry import MODELS
from .base import Backbone, pretrained_cfgs

_V1 = dict(deep_stem=False, avg_down=False)
_VD = dict(first_block='paddle')
_DCN = dict(type='Res2NetDCN')
_SQUEEZE = dict(type='res2net_mm.SqueezeExcitation', reduction=16)
_SE = dict(plugins=[dict(cfg=_SQUEEZE, position='after_conv3')])
_CIFAR = dict(_V1, depth=29, base_width=24, groups=6, first_block='grouped', stem_stride=1)
_CIFAR |= dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))

VARIANTS: dict[str, dict[str, Any]] = {
    'res2net50_48w_2s': dict(_V1, scales=2, base_width=48),
    'res2net50_26w_4s': dict(_V1),
    'res2net50_14w_8s': dict(_V1, scales=8, base_width=14),
    'res2net50_26w_6s': dict(_V1, scales=6),
    'res2net50_26w_8s': dict(_V1, scales=8),
    'res2net101_26w_4s': dict(_V1, depth=101),
    'res2next50_4w_4s_8c': dict(_V1, base_width=4, groups=8),
    'res2net50_v1b_26w_4s': dict(),
    'res2net101_v1b_26w_4s': dict(depth=101),
    'res2net50_vd_26w_4s': dict(_VD),
    'res2net101_vd_26w_4s': dict(_VD, depth=101),
    'res2net200_vd_26w_4s': dict(_VD, depth=200),
    # section 4.1 of the paper; nobody published weights
    'se_res2net50_26w_4s': dict(_V1, **_SE),
    'res2net_dla60': dict(type='Res2NetDLA', base_width=28),
    'res2next_dla60': dict(type='Res2NetDLA', base_width=4, groups=8),
    'res2net50_v1b_26w_4s_dcn': dict(_DCN),
    'res2net101_v1b_26w_4s_dcn': dict(_DCN, depth=101),
    # section 4.3 of the paper, for CIFAR; nobody published weights
    'res2next29_6c_24w_4s': dict(_CIFAR),
    'res2next29_8c_25w_4s': dict(_CIFAR, groups=8, base_width=25),
    'res2next29_6c_24w_6s': dict(_CIFAR, scales=6),
    'se_res2next29_6c_24w_4s': dict(_CIFAR, **_SE),
    'se_res2next29_8c_25w_4s': dict(_CIFAR, **_SE) | dict(groups=8, base_width=25),
    'se_res2next29_6c_24w_6s': dict(_CIFAR, **_SE, scales=6),
    # one or two blocks per stage, for tests, demos and small data; nobody published weights
    'res2net14_v1b_26w_4s': dict(depth=14),
    'res2net26_v1b_26w_4s': dict(depth=26),
    'res2net14_v1b_26w_4s_dcn': dict(_DCN, depth=14),
}


def list_backbones() -> list[str]:
    """Names of all variants that :func:`create_backbone` builds."""
    return list(VARIANTS)


def create_backbone(name: str, pretrained: bool | str = False, **overrides: Any) -> Backbone:
    """Builds a named network.

    Args:
        name: One of :func:`list_backbones`.
        pretrained: True loads the weights published under this name (without ``_dcn``: those of
            the plain network), a string those of another name of ``res2net_mm.weights.ZOO``, of a
            file or of an address.
        **overrides: Arguments of the backbone that replace the variant's, such as
            ``out_indices`` or ``frozen_stages``.

    Returns:
        The backbone, initialised, in training mode. With random weights its batch norm trains;
        with loaded weights it keeps its statistics (``norm_eval=True``, mmdet's default). Pass
        ``norm_eval`` to choose.

    Raises:
        ValueError: The name is unknown, an override has an invalid value, or the weights do not
            fit.
        TypeError: An override is not an argument of the backbone.

    Example:
        >>> net = create_backbone('res2net50_v1b_26w_4s', out_indices=(2, 3))
        >>> net.out_channels, net.out_strides
        ((1024, 2048), (16, 32))
    """
    if name not in VARIANTS:
        hint = did_you_mean(name, VARIANTS)
        raise ValueError(f'name must be one of list_backbones(), but got {name!r}{hint}')
    args = {'type': 'Res2Net', **VARIANTS[name], **overrides}
    if pretrained:
        if 'init_cfg' in overrides:
            raise ValueError('pretrained and init_cfg exclude each other: give one of them')
        plain = name.removesuffix('_dcn')  # offsets start at zero, whatever the weights
        checkpoint = f'res2net://{plain}' if pretrained is True else pretrained
        args['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    if not pretrained_cfgs(args.get('init_cfg')):
        args.setdefault('norm_eval', False)
    net = MODELS.get(args.pop('type'))(**args)
    logger = MMLogger.get_current_instance()
    logger.addFilter(_is_no_listing)
    try:
        net.init_weights()
    finally:
        logger.removeFilter(_is_no_listing)
    return net.train()  # norm_eval takes effect here


def _is_no_listing(record: logging.LogRecord) -> bool:
    """Whether a log record is not mmengine's list of how each parameter was initialised."""
    return ' - torch.Size(' not in record.getMessage()
