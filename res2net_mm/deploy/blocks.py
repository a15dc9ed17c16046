"""The Res2Net block as inference runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones import Bottle2neck
from ..backbones.layers import split_groups
from ..ops.fixed_conv import FixedConv2d


class InferenceBlock(nn.Module):
    """A :class:`Bottle2neck` without batch norm, with sums and ReLUs inside of the convolutions.

    Args:
        block: Folded (its norms are identities) and without plugins; its modules are taken over.
        owns_input: Nobody else reads the block's input, so that its memory can be used again.
    """

    def __init__(self, block: Bottle2neck, owns_input: bool) -> None:
        super().__init__()
        self.width, self.adds, self.pool = block.width, block.adds, block.pool
        self.scales = block.scales
        self.conv1 = _with_relu(block.conv1)
        self.convs = nn.ModuleList(_with_relu(conv) for conv in block.convs)
        if self.pool is not None and self.pool.count_include_pad and block.conv3.weight.is_cpu:
            self.pool = _as_sum(self.pool, self.width, block.conv3)
        self.conv3 = FixedConv2d(block.conv3, relu=True)
        self.downsample = block.downsample
        self.owns_input = owns_input

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Features of the block; ``shortcut`` is added in the place of ``downsample(x)``."""
        groups = split_groups(self.conv1(x), self.width)
        outs: list[Tensor] = []
        for group, conv in zip(groups, self.convs, strict=False):
            outs.append(conv(group + outs[-1] if self.adds and outs else group))
        if self.scales > 1:
            outs.append(groups[-1] if self.pool is None else self.pool(groups[-1]))
        overwrite = shortcut is None and (self.downsample is not None or self.owns_input)
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(torch.cat(outs, dim=1), shortcut, overwrite)


def _with_relu(conv: nn.Module) -> nn.Module:
    if isinstance(conv, nn.Conv2d):
        return FixedConv2d(conv, relu=True)
    return nn.Sequential(conv, nn.ReLU(inplace=True))  # a deformable one


def _as_sum(pool: nn.AvgPool2d, width: int, conv3: nn.Conv2d) -> nn.Module:
    """The pool of the last group as a convolution with ones, several times as fast on a CPU.

    What is left of an average, the division, goes into the weight of the convolution after it.
    """
    sides = pool.kernel_size, pool.stride, pool.padding
    ones = nn.Conv2d(width, width, *sides, groups=width, bias=False, device='meta')
    ones.weight = nn.Parameter(torch.ones_like(ones.weight, device='cpu'), requires_grad=False)
    ones.to(conv3.weight.dtype)
    weight = conv3.weight.clone()
    weight[:, -width:] /= ones.weight[0].numel()
    conv3.weight = nn.Parameter(weight, requires_grad=False)
    return FixedConv2d(ones)
