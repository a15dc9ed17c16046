"""Modules for the ``plugins`` of a block."""

from __future__ import annotations

import torchvision

from ..checks import check_positive
from ..registry import MODELS


@MODELS.register_module(force=True)
class SqueezeExcitation(torchvision.ops.SqueezeExcitation):
    """Scales channels by gates from their global averages (https://arxiv.org/abs/1709.01507).

    Args:
        in_channels: Channels of the features; the block fills it in.
        reduction: The hidden layer has ``in_channels // reduction`` channels.
    """

    _abbr_ = 'se'

    def __init__(self, in_channels: int, reduction: int = 16) -> None:
        check_positive('reduction', reduction)
        if reduction > in_channels:
            raise ValueError(
                f'reduction must leave at least one of {in_channels} channels, but got {reduction}'
            )
        super().__init__(in_channels, in_channels // reduction)
