"""Res2Net as a multi-level backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from ..checks import check_choice, check_positive
from ..registry import MODELS
from .base import Backbone
from .bottle2neck import Bottle2neck
from .layers import ConvNormSequential, build_conv_norm, conv_norm


@MODELS.register_module(force=True)
class Res2Net(Backbone):
    """Res2Net backbone (https://arxiv.org/abs/1904.01169).

    ``Res2Net(depth=50)`` is the authors' Res2Net-50 v1b 26w 4s. State-dict names are mmdet's.

    Args:
        depth: 14, 26, 50, 101, 152 or 200; 29 for CIFAR, with three stages.
        scales: Channel groups of a block; 1 is a plain bottleneck.
        base_width: Channels of one group in the first stage.
        groups: Groups of each 3x3 conv (the cardinality of Res2NeXt).
        first_block: Rule for the first block of a stage: ``'official'`` (authors, timm,
            mmpretrain), ``'mmdet'``, ``'paddle'`` or ``'grouped'``; see :class:`Bottle2neck`.
            Weights need the rule they were trained with.
        deep_stem: Stem of three 3x3 convs (v1b, v1d, vd) instead of one 7x7 conv (v1).
        avg_down: Average pool before the 1x1 conv of a shortcut (v1b, v1d, vd) instead of a
            strided 1x1 conv (v1).
        in_channels: Channels of the image.
        stem_channels: Channels of the stem; None is ``base_channels``.
        stem_stride: 4, or 1 for images as small as CIFAR's: no stride, no max pool, and a 3x3 conv
            instead of the 7x7 one.
        base_channels: Channels of the first stage before expansion.
        num_stages: Number of stages, 1 to 4.
        strides: Stride of the first block of each stage.
        dilations: Dilation of each stage.
        contract_dilation: Halve the dilation in the first block of a dilated stage.
        multi_grid: Dilations of the blocks of the last stage; None takes that of ``dilations``.
        out_indices: Stages to return, ascending, 0 to 3 for C2 to C5. Later stages are neither run
            nor trained.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        conv_cfg: Config of the convolutions; None is ``Conv2d``.
        norm_cfg: Config of the normalisation layers; None is ``dict(type='BN')``.
        norm_eval: Keep batch norm in evaluation mode during training; for loaded weights only.
        plugins: Configs ``dict(cfg=dict(type=...), position='after_conv1|2|3', stages=(...))``;
            without ``stages`` a plugin goes into every stage.
        with_cp: Recompute blocks in the backward pass to save memory; a bool, or one per stage. Has
            no effect inside ``torch.compile`` before torch 2.11.
        compile: Run blocks under ``torch.compile``. This is for images of one or few sizes: each
            kind of block is compiled when it first meets a size, which takes minutes on a CPU.
        zero_init_residual: Start each block as the identity (if ``init_cfg`` is None).
        style: ``'pytorch'`` has strides in the 3x3 convs, ``'caffe'`` in the first 1x1 conv.
        with_stem: Return the features of the stem, before the max pool, as the first level.
        ceil_mode: Round sizes up in the max pool of the stem (PoolNet): even ones get one more row
            and column.
        init_cfg: mmengine's initialisation config; None is Kaiming.

    Raises:
        ValueError: An argument has an invalid value.

    Example:
        >>> net = Res2Net(depth=50)
        >>> [tuple(level.shape) for level in net(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    # 14 and 26 count layers as timm's small ResNets do; 200 is PaddleClas's
    stage_blocks = {
        14: (1, 1, 1, 1),
        26: (2, 2, 2, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 12, 48, 3),
        29: (3, 3, 3),
    }

    def __init__(
        self,
        depth: int = 50,
        scales: int = 4,
        base_width: int = 26,
        groups: int = 1,
        first_block: str = 'official',
        deep_stem: bool = True,
        avg_down: bool = True,
        in_channels: int = 3,
        stem_channels: int | None = None,
        stem_stride: int = 4,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        multi_grid: Sequence[int] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        plugins: Sequence[dict] | None = None,
        with_cp: bool | Sequence[bool] = False,
        compile: bool = False,
        zero_init_residual: bool = True,
        style: str = 'pytorch',
        with_stem: bool = False,
        ceil_mode: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            norm_eval=norm_eval, zero_init_residual=zero_init_residual, init_cfg=init_cfg
        )
        check_choice('depth', depth, tuple(self.stage_blocks))
        check_choice('num_stages', num_stages, range(1, len(self.stage_blocks[depth]) + 1))
        check_choice('stem_stride', stem_stride, (4, 1))
        stem_channels = base_channels if stem_channels is None else stem_channels
        check_positive('in_channels', in_channels)
        check_positive('base_channels', base_channels)
        check_positive('stem_channels', stem_channels)
        if stem_stride == 1 and (deep_stem or ceil_mode):
            raise ValueError(
                'stem_stride=1 needs deep_stem=False, because no weight of a deep stem shows its '
                'stride, and ceil_mode=False, because it has no max pool'
            )
        if deep_stem and stem_channels % 2:
            raise ValueError(
                f'stem_channels must be even with deep_stem=True, but got {stem_channels}'
            )
        blocks = self.stage_blocks[depth][:num_stages]
        check_each('strides', strides, num_stages)
        check_each('dilations', dilations, num_stages)
        with_cp = with_cp if isinstance(with_cp, Sequence) else [with_cp] * num_stages
        check_each('with_cp', with_cp, num_stages, (False, True))
        # As in mmseg, a multi grid replaces the stage's dilation, contracted or not
        grids = [[dilation] * number for dilation, number in zip(dilations, blocks, strict=True)]
        for grid in grids if contract_dilation else ():
            grid[0] = max(grid[0] // 2, 1)
        if multi_grid is not None:
            check_each('multi_grid', multi_grid, blocks[-1])
            grids[-1] = list(multi_grid)

        self.first_block = first_block
        self.style = style
        self.deep_stem = deep_stem
        self.with_stem = with_stem
        layers = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg or dict(type='BN'))
        if deep_stem:
            self.stem = _deep_stem(in_channels, stem_channels, **layers)
        else:
            stride, kernel = (2, 7) if stem_stride == 4 else (1, 3)
            sizes = dict(kernel_size=kernel, stride=stride, padding=kernel // 2)
            self.conv1 = build_conv_layer(conv_cfg, in_channels, stem_channels, **sizes, bias=False)
            self.norm1_name, norm1 = build_norm_layer(layers['norm_cfg'], stem_channels, postfix=1)
            self.add_module(self.norm1_name, norm1)
            self.relu = nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=ceil_mode)
        self.maxpool = pool if stem_stride == 4 else nn.Identity()

        block_args: dict[str, Any] = dict(
            scales=scales,
            base_width=base_width,
            base_channels=base_channels,
            groups=groups,
            first_block=first_block,
            style=style,
            compile=compile,
            **layers,
        )
        inplanes, total_stride, stages = stem_channels, stem_stride, []
        for stage, (stride, grid) in enumerate(zip(strides, grids, strict=True)):
            name, planes = f'layer{stage + 1}', base_channels * 2**stage
            block_args['with_cp'] = with_cp[stage]
            block_args['plugins'] = _plugins_of(plugins, stage, num_stages)
            layer = _make_stage(inplanes, planes, stride, grid, avg_down, **block_args)
            self.add_module(name, layer)
            inplanes, total_stride = planes * Bottle2neck.expansion, total_stride * stride
            stages.append((name, inplanes, total_stride))

        stem = ['stem'] if deep_stem else ['conv1', self.norm1_name]
        self._set_outputs(stem, stages, out_indices, frozen_stages)
        if with_stem:
            self.out_channels = (stem_channels, *self.out_channels)
            self.out_strides = (min(stem_stride, 2), *self.out_strides)

    @property
    def norm1(self) -> nn.Module:
        """Normalisation of the 7x7 stem."""
        return getattr(self, self.norm1_name)

    def _levels(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x) if self.deep_stem else self.relu(conv_norm(self.conv1, self.norm1, x))
        outs = [x] if self.with_stem else []
        x = self.maxpool(x)
        for stage, name in enumerate(self.stage_names[: self.out_indices[-1] + 1]):
            x = getattr(self, name)(x)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)


def _deep_stem(in_channels: int, channels: int, **layers: Any) -> ConvNormSequential:
    widths = (in_channels, channels // 2, channels // 2, channels)
    modules: list[nn.Module] = []
    for i in range(3):
        modules += build_conv_norm(widths[i], widths[i + 1], 3, stride=2 if i == 0 else 1, **layers)
        modules.append(nn.ReLU(inplace=True))
    return ConvNormSequential(*modules)


def _make_stage(
    inplanes: int,
    planes: int,
    stride: int,
    dilations: Sequence[int],
    avg_down: bool,
    **block_args: Any,
) -> nn.Sequential:
    outplanes = planes * Bottle2neck.expansion
    downsample = None
    if stride != 1 or inplanes != outplanes:
        layers = {name: block_args[name] for name in ('conv_cfg', 'norm_cfg')}
        conv_stride = 1 if avg_down else stride
        modules = [*build_conv_norm(inplanes, outplanes, 1, stride=conv_stride, **layers)]
        if avg_down:  # at stride 1 too: published names count it
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            modules.insert(0, pool)
        downsample = ConvNormSequential(*modules)
    first = dict(stride=stride, stage_type='stage', downsample=downsample)
    blocks = [Bottle2neck(inplanes, planes, dilation=dilations[0], **first, **block_args)]
    for dilation in dilations[1:]:
        blocks.append(Bottle2neck(outplanes, planes, dilation=dilation, **block_args))
    return nn.Sequential(*blocks)


def _plugins_of(plugins: Sequence[dict] | None, stage: int, num_stages: int) -> list[dict]:
    chosen = []
    for plugin in plugins or ():
        if not isinstance(plugin, dict) or not isinstance(plugin.get('cfg'), dict):
            raise ValueError(f'plugins must be dict(cfg=dict(...), position=...), not {plugin!r}')
        stages = plugin.get('stages') or (True,) * num_stages
        check_each("plugins' stages", stages, num_stages, (False, True))
        if stages[stage]:
            chosen.append(plugin)
    return chosen


def check_each(
    argument: str, values: Any, length: int, choices: Sequence[Any] | None = None
) -> None:
    """Raises ``ValueError`` unless there are ``length`` choices, or else positive integers."""
    if not isinstance(values, Sequence) or len(values) != length:
        raise ValueError(
            f'{argument} must have {length} values, one per stage or block, but got {values!r}'
        )
    for value in values:
        if choices is None:
            check_positive(f'every value of {argument}', value)
        else:
            check_choice(f'every value of {argument}', value, choices)
