"""The Res2Net block: a bottleneck whose 3x3 convolution is a cascade over channel groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import check_choice, check_positive
from ..ops.internals import allow_recompiles, makes_graph
from .layers import BATCH_NORMS, build_conv_norm, conv_norm

FIRST_BLOCK_RULES = ('official', 'mmdet', 'paddle', 'grouped')
# torch 2.7 compiles recomputation so that it counts each batch into the statistics twice.
_COMPILES_CHECKPOINTS = torch.__version__ >= '2.11'


class Bottle2neck(BaseModule):
    """Res2Net block (https://arxiv.org/abs/1904.01169, section 3).

    1x1 conv, split into ``scales`` groups x_1 .. x_s of ``width`` channels, y_1 = K_1(x_1),
    y_i = K_i(x_i + y_(i-1)) with 3x3 convs, the last group passed through, concatenation, 1x1
    conv, shortcut. The first block of a stage does not add, and may pool the passed group: no
    weight shows which, so the sources differ (``first_block``).

    Args:
        inplanes: Channels of the input.
        planes: Channels of the stage before expansion; the output has ``expansion * planes``.
        scales: Number of channel groups; 1 is a plain bottleneck.
        base_width: Channels of one group (of one group of a grouped conv) if ``planes`` equals
            ``base_channels``; ``width = planes * base_width // base_channels * groups``.
        base_channels: ``planes`` of the network's first stage.
        groups: Groups of each 3x3 conv (the cardinality of Res2NeXt).
        stride: Stride of the block.
        dilation: Dilation of the 3x3 convs.
        stage_type: ``'stage'`` for the first block of a stage, ``'normal'`` for the others.
        first_block: What a first block does. ``'official'`` (authors, timm, mmpretrain): no
            additions, last group pooled 3x3 with the stride. ``'mmdet'``: the same, but not
            pooled at stride 1. ``'paddle'``: a normal block at stride 1; otherwise no additions
            and a pool that does not count the padding. ``'grouped'``: ResNeXt's block, one 3x3
            conv with ``groups * scales`` groups over all channels.
        downsample: Module of the shortcut, or None for the identity.
        style, with_cp, compile, conv_cfg, norm_cfg, plugins, init_cfg: As for :class:`Res2Net`.

    Shape:
        (N, inplanes, H, W) -> (N, expansion * planes, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *,
        scales: int = 4,
        base_width: int = 26,
        base_channels: int = 64,
        groups: int = 1,
        stride: int = 1,
        dilation: int = 1,
        stage_type: str = 'normal',
        first_block: str = 'official',
        downsample: nn.Module | None = None,
        style: str = 'pytorch',
        with_cp: bool = False,
        compile: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        plugins: Sequence[dict] | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive('scales', scales)
        check_positive('base_width', base_width)
        check_positive('groups', groups)
        check_positive('stride', stride)
        check_positive('dilation', dilation)
        check_choice('stage_type', stage_type, ('normal', 'stage'))
        check_choice('first_block', first_block, FIRST_BLOCK_RULES)
        check_choice('style', style, ('pytorch', 'caffe'))
        if stage_type == 'normal' and stride != 1:
            raise ValueError(
                f"stride must be 1 if stage_type is 'normal', but got {stride}: a group that is "
                'passed through cannot change its size'
            )
        if stage_type == 'stage' and first_block == 'grouped':
            scales, groups = 1, groups * scales
        norm_cfg = norm_cfg or dict(type='BN')
        width = planes * base_width // base_channels * groups
        if width < 1:
            raise ValueError(
                f'base_width must give every group at least one channel, but {base_width} with '
                f'base_channels={base_channels} gives none at {planes} planes'
            )
        inner, outplanes = width * scales, planes * self.expansion
        conv1_stride, stride = (1, stride) if style == 'pytorch' else (stride, 1)
        self.scales = scales
        self.width = width
        self.with_cp = with_cp
        self.compile_forward = compile
        is_first = stage_type == 'stage' and scales > 1
        self.adds, self.pool = _first_block(first_block, stride) if is_first else (True, None)

        # norms have the names that mmcv gives them: bn1, gn1
        self.conv1 = build_conv_layer(
            conv_cfg, inplanes, inner, kernel_size=1, stride=conv1_stride, bias=False
        )
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, inner, postfix=1)
        self.add_module(self.norm1_name, norm1)
        sizes = dict(stride=stride, dilation=dilation, groups=groups)
        branches = [
            build_conv_norm(width, width, 3, **sizes, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for _ in range(max(scales - 1, 1))
        ]
        self.convs = nn.ModuleList(conv for conv, _ in branches)
        self.bns = nn.ModuleList(norm for _, norm in branches)
        self.conv3 = build_conv_layer(conv_cfg, inner, outplanes, kernel_size=1, bias=False)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, outplanes, postfix=3)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

        channels = dict(after_conv1=inner, after_conv2=inner, after_conv3=outplanes)
        self.plugin_names: dict[str, list[str]] = {position: [] for position in channels}
        for plugin in plugins or ():
            position, cfg = plugin.get('position'), dict(plugin['cfg'])
            check_choice('plugins position', position, tuple(channels))
            name, layer = build_plugin_layer(
                cfg, postfix=cfg.pop('postfix', ''), in_channels=channels[position]
            )
            if hasattr(self, name):
                raise ValueError(
                    f'plugins of one block need different names, but {name!r} occurs twice: '
                    "give one of them a 'postfix' in its cfg"
                )
            self.add_module(name, layer)
            self.plugin_names[position].append(name)

    @property
    def norm1(self) -> nn.Module:
        """Normalisation after the first 1x1 conv."""
        return getattr(self, self.norm1_name)

    @property
    def norm3(self) -> nn.Module:
        """Normalisation after the last 1x1 conv."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Features of the block; ``shortcut``, if given, replaces ``downsample(x)``."""
        trains = x.requires_grad or self.conv1.weight.requires_grad
        if self.with_cp and trains and torch.is_grad_enabled():
            if not torch.compiler.is_compiling():
                return checkpoint(
                    self._run, x, shortcut, use_reentrant=False, context_fn=self._contexts
                )
            if _COMPILES_CHECKPOINTS:  # recomputation does not reach the statistics
                return checkpoint(self._run, x, shortcut, use_reentrant=False)
        return self._run(x, shortcut)

    def _run(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        if self.compile_forward and not makes_graph():
            return _compiled(Bottle2neck._forward)(self, x, shortcut)
        return self._forward(x, shortcut)

    def _forward(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        out = self.relu(conv_norm(self.conv1, self.norm1, x))  # (N, scales * width, H, W)
        out = self._apply_plugins(out, 'after_conv1')
        out = self._apply_plugins(self._cascade(out), 'after_conv2')
        out = self._apply_plugins(conv_norm(self.conv3, self.norm3, out), 'after_conv3')
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut
        return self.relu(out)

    def _cascade(self, x: Tensor) -> Tensor:
        groups = x.split(self.width, dim=1)
        outs: list[Tensor] = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = groups[i] + outs[-1] if self.adds and outs else groups[i]
            outs.append(self.relu(conv_norm(conv, norm, y)))
        if self.scales > 1:
            outs.append(groups[-1] if self.pool is None else self.pool(groups[-1]))
        return torch.cat(outs, dim=1)  # (N, scales * width, H / stride, W / stride)

    def _apply_plugins(self, x: Tensor, position: str) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), self._untracked_statistics()

    @contextmanager
    def _untracked_statistics(self) -> Iterator[None]:
        """Recomputation must not count a batch into the running statistics a second time."""
        norms = [m for m in self.modules() if isinstance(m, BATCH_NORMS)]
        norms = [norm for norm in norms if norm.training and norm.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked -= 1
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _first_block(rule: str, stride: int) -> tuple[bool, nn.Module | None]:
    """Whether the first block of a stage adds, and its pool for the last group."""
    if rule == 'paddle' and stride == 1:
        return True, None
    if rule == 'mmdet' and stride == 1:
        return False, None
    return False, nn.AvgPool2d(3, stride, padding=1, count_include_pad=rule != 'paddle')


@cache
def _compiled(function: Callable) -> Callable:
    allow_recompiles(64)  # blocks differ in shapes, in what they do, and in their mode
    # With dynamic shapes, Inductor's generated C++ does not compile for the cascade (PyTorch 2.11)
    return torch.compile(function, dynamic=False)
