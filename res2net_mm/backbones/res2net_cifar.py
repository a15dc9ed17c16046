"""Res2NeXt-29, the network of the paper for images of 32 x 32 px."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_conv_layer
from torch import nn

from ..checks import check_choice
from ..registry import MODELS
from .res2net import Res2Net


@MODELS.register_module(force=True)
class Res2NetCIFAR(Res2Net):
    """Res2NeXt-29 for CIFAR (https://arxiv.org/abs/1904.01169, section 4.3).

    The CIFAR network of ResNeXt (https://arxiv.org/abs/1611.05431, section 5.3) with Res2Net
    blocks: a 3x3 conv without stride as stem, no max pool, three stages of three blocks.
    ``Res2NetCIFAR()`` is the paper's 6c x 24w x 4s; ``scales=1`` gives ResNeXt-29.

    Args:
        depth: 29.
        scales, base_width, groups, num_stages, strides, dilations, out_indices: As for
            :class:`Res2Net`, with other defaults.
        first_block: ``'grouped'``, which gives the sizes in the paper's table, or another rule of
            :class:`Bottle2neck`. The authors report similar accuracies with ``'official'``
            (https://github.com/Res2Net/Res2Net-PretrainedModels/issues/36).
        deep_stem: False; the stem is one conv.
        avg_down: Average pool before the 1x1 conv of a shortcut.
        **kwargs: Other arguments of :class:`Res2Net`.

    Raises:
        ValueError: An argument has an invalid value.

    Example:
        >>> net = Res2NetCIFAR()
        >>> [tuple(level.shape) for level in net(torch.rand(1, 3, 32, 32))]
        [(1, 256, 32, 32), (1, 512, 16, 16), (1, 1024, 8, 8)]
    """

    stage_blocks = {29: (3, 3, 3)}
    stem_stride = 1

    def __init__(
        self,
        depth: int = 29,
        scales: int = 4,
        base_width: int = 24,
        groups: int = 6,
        first_block: str = 'grouped',
        deep_stem: bool = False,
        avg_down: bool = False,
        num_stages: int = 3,
        strides: Sequence[int] = (1, 2, 2),
        dilations: Sequence[int] = (1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2),
        **kwargs: Any,
    ) -> None:
        check_choice('deep_stem', deep_stem, (False,))
        check_choice('num_stages', num_stages, (1, 2, 3))
        super().__init__(
            depth,
            scales,
            base_width,
            groups,
            first_block,
            deep_stem,
            avg_down,
            num_stages=num_stages,
            strides=strides,
            dilations=dilations,
            out_indices=out_indices,
            **kwargs,
        )

    def _make_stem(self, in_channels: int, channels: int, **layers: Any) -> None:
        super()._make_stem(in_channels, channels, **layers)
        self.conv1 = build_conv_layer(
            layers['conv_cfg'], in_channels, channels, kernel_size=3, padding=1, bias=False
        )
        self.maxpool = nn.Identity()
