"""Deep layer aggregation with Res2Net blocks as a multi-level backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_positive
from ..registry import MODELS
from .base import Backbone
from .bottle2neck import Bottle2neck
from .layers import ConvNormSequential, build_conv_norm


class DLABottle2neck(Bottle2neck):
    """Res2Net block of a DLA network, with a smaller expansion."""

    expansion = 2


class Tree(nn.Module):
    """Blocks in a row, aggregated by roots (https://arxiv.org/abs/1707.06484, section 3.2).

    A tree of depth 1 has two blocks and the root that joins their outputs. A deeper one has two
    trees: the output of the first is the input of the second, whose last root joins it too.

    Args:
        depth: Depth of the tree, which has ``2 ** depth`` blocks.
        joined: Channels that the last root joins in addition to those of its two blocks.
        layers: ``conv_cfg`` and ``norm_cfg``.
        **block_args: Further arguments of every :class:`DLABottle2neck`.

    Shape:
        (N, inplanes, H, W) -> (N, outplanes, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        depth: int,
        inplanes: int,
        outplanes: int,
        *,
        stride: int = 1,
        joined: int = 0,
        layers: dict[str, Any],
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.root = self.project = None
        if depth > 1:
            args = dict(block_args, layers=layers)
            joined += outplanes
            self.tree1 = Tree(depth - 1, inplanes, outplanes, stride=stride, **args)
            self.tree2 = Tree(depth - 1, outplanes, outplanes, joined=joined, **args)
            return
        planes = outplanes // DLABottle2neck.expansion
        first = dict(stride=stride, stage_type='normal' if stride == 1 else 'stage')
        self.tree1 = DLABottle2neck(inplanes, planes, **first, **layers, **block_args)
        self.tree2 = DLABottle2neck(outplanes, planes, **layers, **block_args)
        if inplanes != outplanes:
            self.project = ConvNormSequential(*build_conv_norm(inplanes, outplanes, 1, **layers))
        conv, norm = build_conv_norm(2 * outplanes + joined, outplanes, 1, **layers)
        self.root = ConvNormSequential(OrderedDict(conv=conv, bn=norm, relu=nn.ReLU(inplace=True)))

    def forward(self, x: Tensor, bottom: Tensor, *joined: Tensor) -> Tensor:
        """Features of the tree.

        Args:
            x: Input.
            bottom: The input in the output's size, for the shortcut of the first block.
            *joined: What the last root joins in addition to its two blocks.
        """
        if self.root is None:
            x = self.tree1(x, bottom)
            return self.tree2(x, x, *joined, x)
        first = self.tree1(x, bottom if self.project is None else self.project(bottom))
        return self.root(torch.cat([self.tree2(first), first, *joined], dim=1))


@MODELS.register_module(force=True)
class Res2NetDLA(Backbone):
    """DLA (https://arxiv.org/abs/1707.06484) with the blocks of Res2Net.

    ``Res2NetDLA()`` is the authors' Res2Net-DLA-60 and ``Res2NetDLA(base_width=4, groups=8)`` their
    Res2NeXt-DLA-60, with their state-dict names. Blocks with a stride are first blocks by the
    ``'official'`` rule of :class:`Bottle2neck`; all others are normal ones.

    Args:
        depth: 60.
        base_channels: Channels of the first stage before expansion, a multiple of 4; the stem
            has a quarter and a half of them.
        out_indices: Stages to return, ascending, 0 to 3 for the authors' level2 to level5. Later
            stages are neither run nor trained.
        scales, base_width, groups, in_channels, frozen_stages, conv_cfg, norm_cfg, norm_eval,
            with_cp, zero_init_residual, init_cfg: As for :class:`Res2Net`.

    Example:
        >>> net = Res2NetDLA()
        >>> [tuple(level.shape) for level in net(torch.rand(1, 3, 64, 64))]
        [(1, 128, 16, 16), (1, 256, 8, 8), (1, 512, 4, 4), (1, 1024, 2, 2)]
    """

    stage_depths = {60: (1, 2, 3, 1)}

    def __init__(
        self,
        depth: int = 60,
        scales: int = 4,
        base_width: int = 28,
        groups: int = 1,
        in_channels: int = 3,
        base_channels: int = 64,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            norm_eval=norm_eval, zero_init_residual=zero_init_residual, init_cfg=init_cfg
        )
        check_choice('depth', depth, tuple(self.stage_depths))
        check_positive('in_channels', in_channels)
        check_positive('base_channels', base_channels)
        if base_channels % 4:
            raise ValueError(f'base_channels must be a multiple of 4, but got {base_channels}')
        layers = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg or dict(type='BN'))

        inplanes = in_channels
        stem = dict(base_layer=(4, 7, 1), level0=(4, 3, 1), level1=(2, 3, 2))
        for name, (divisor, kernel_size, stride) in stem.items():
            planes = base_channels // divisor
            modules = build_conv_norm(inplanes, planes, kernel_size, stride=stride, **layers)
            self.add_module(name, ConvNormSequential(*modules, nn.ReLU(inplace=True)))
            inplanes = planes

        # rounds sizes up, as the strided convs do
        self.maxpool = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        sizes = dict(
            scales=scales, base_width=base_width, base_channels=base_channels, groups=groups
        )
        stages = []
        for stage, tree_depth in enumerate(self.stage_depths[depth]):
            name = f'level{stage + 2}'
            outplanes = base_channels * DLABottle2neck.expansion * 2**stage
            joined = inplanes if stage > 0 else 0
            args = dict(stride=2, joined=joined, layers=layers, with_cp=with_cp, **sizes)
            self.add_module(name, Tree(tree_depth, inplanes, outplanes, **args))
            stages.append((name, outplanes, 4 * 2**stage))
            inplanes = outplanes
        self._set_outputs(tuple(stem), stages, out_indices, frozen_stages)

    def _levels(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.level1(self.level0(self.base_layer(x)))
        outs = []
        for stage, name in enumerate(self.stage_names[: self.out_indices[-1] + 1]):
            bottom = self.maxpool(x)
            joined = [bottom] if stage > 0 else []  # the first stage has no tree before it
            x = getattr(self, name)(x, bottom, *joined)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
