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
        self.conv3 = FixedConv2d(block.conv3, relu=True)
        if block.conv3.weight.is_cpu and _is_convolution(self.pool):
            self._convolve_pool()
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

    def _convolve_pool(self) -> None:
        """Makes a convolution of the pool of the last group: faster on a CPU at many pixels.

        Its weight is a power of two, exact in half precision, which no sum of values overflows;
        what the average lacks goes into the weight of the convolution after it.
        """
        pool, weight = self.pool, self.conv3.weight
        taps = pool.kernel_size**2
        share = 2.0 ** -(taps - 1).bit_length()
        conv = nn.Conv2d(
            self.width,
            self.width,
            pool.kernel_size,
            pool.stride,
            pool.padding,
            groups=self.width,
            bias=False,
            dtype=weight.dtype,
        ).requires_grad_(False)
        nn.init.constant_(conv.weight, share)
        self.pool = FixedConv2d(conv)
        scaled = weight.clone()
        scaled[:, -self.width :] /= taps * share
        self.conv3.weight = nn.Parameter(scaled, requires_grad=False)


def _with_relu(conv: nn.Module) -> nn.Module:
    if isinstance(conv, nn.Conv2d):
        return FixedConv2d(conv, relu=True)
    return nn.Sequential(conv, nn.ReLU(inplace=True))  # a deformable one


def _is_convolution(pool: nn.Module | None) -> bool:
    """Whether a pool is an average over as many values everywhere, which nobody watches."""
    return (
        type(pool) is nn.AvgPool2d
        and isinstance(pool.kernel_size, int)
        and pool.count_include_pad
        and not pool.ceil_mode
        and pool.divisor_override is None
        and not are_hooked(pool)
    )


def are_hooked(*modules: nn.Module) -> bool:
    """Whether somebody sees, or changes, what goes through a module."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)
