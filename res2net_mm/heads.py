"""Decode heads for mmseg: a U-Net, and heads with one channel for one kind of object.

A config names them, as in ``type='res2net_mm.UNetHead'``; only then is mmseg imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import FPNHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import DiceLoss
from mmseg.models.utils import resize
from torch import Tensor, nn


class BinaryDiceLoss(DiceLoss):
    """mmseg's ``DiceLoss`` for a head with one channel.

    mmseg's own compares a single channel with class 0, so it teaches the background; it also
    counts ignored pixels.
    """

    def forward(
        self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = 255
    ) -> Tensor:
        """The loss of logits (N, 1, H, W) for labels (N, H, W) of 0, 1 and ``ignore_index``."""
        if logits.shape[1] != 1:
            raise ValueError(f'logits must have 1 channel, but have {logits.shape[1]}')
        labels = labels[:, None]
        logits = logits.masked_fill(labels == ignore_index, -torch.inf)  # of probability 0
        return super().forward(logits, (labels == 1).long(), weight)


class _OneChannel:
    """Leaves out mmseg's ``acc_seg``, which of one channel is the share of the background."""

    def loss_by_feat(self, *args: Any) -> dict[str, Tensor]:
        losses = super().loss_by_feat(*args)
        if self.out_channels == 1:
            del losses['acc_seg']
        return losses


class BinaryFPNHead(_OneChannel, FPNHead):
    """mmseg's ``FPNHead`` (https://arxiv.org/abs/1901.02446) with ``out_channels=1``."""


class UNetHead(_OneChannel, BaseDecodeHead):
    """Decoder of U-Net (https://arxiv.org/abs/1505.04597) on any levels.

    From the coarsest level on, features are enlarged to the next finer level, joined with it and
    convolved twice. With ``with_stem=True`` of the backbone, logits have stride 2.

    Args:
        channels: Channels at the finest level; each coarser level has twice as many.
        kwargs: mmseg's; ``in_channels`` and ``in_index`` are lists, the finest level first.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(channels=channels, input_transform='multiple_select', **kwargs)
        layers = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.blocks = nn.ModuleList()  # coarsest first
        *skips, width = self.in_channels
        for i, skip in reversed([*enumerate(skips)]):
            into, width = skip + width, channels * 2**i
            convs = [ConvModule(n, width, 3, padding=1, **layers) for n in (into, width)]
            self.blocks.append(nn.Sequential(*convs))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (N, out_channels, H, W), at the size of the finest level."""
        *skips, x = self._transform_inputs(inputs)
        for skip, block in zip(reversed(skips), self.blocks, strict=True):
            x = resize(x, skip.shape[2:], mode='bilinear', align_corners=self.align_corners)
            x = block(torch.cat([skip, x], 1))
        return self.cls_seg(x)
