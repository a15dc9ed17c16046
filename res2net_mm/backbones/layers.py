"""Convolutions and their norms."""

from __future__ import annotations

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.internals import exports_graph, has_hooks

# the base of all of torch's, and of what mmengine makes of SyncBN in a single process
BATCH_NORMS = (nn.BatchNorm2d.__base__,)


def build_conv_norm(
    inplanes: int,
    outplanes: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    conv_cfg: dict | None,
    norm_cfg: dict,
) -> tuple[nn.Module, nn.Module]:
    """A convolution, without bias and padded to keep the size at stride 1, and its norm."""
    conv = build_conv_layer(
        conv_cfg,
        inplanes,
        outplanes,
        kernel_size=kernel_size,
        stride=stride,
        padding=kernel_size // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    return conv, build_norm_layer(norm_cfg, outplanes)[1]


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, with less memory where the statistics of ``norm`` are fixed.

    Such a norm is a factor and a summand for each channel. With both moved into the convolution
    (https://arxiv.org/abs/2305.11624), its output need not be kept for the backward pass: 30 % less
    memory for a Res2Net-50, with the same gradients. This is done only if gradients are recorded
    and the output is larger than the weight.
    """
    if (
        type(conv) is not nn.Conv2d
        or conv.padding_mode != 'zeros'
        or type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm)
        or norm.training
        or norm.running_mean is None
        or norm.running_mean.dtype != conv.weight.dtype
        or not torch.is_grad_enabled()
        or exports_graph()
        or has_hooks(conv)
        or has_hooks(norm)
    ):
        return norm(conv(x))
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if pixels < conv.weight[0].numel():
        return norm(conv(x))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (0 if conv.bias is None else conv.bias) - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvNormSequential(nn.Sequential):
    """A ``Sequential`` that runs each convolution and the norm after it as :func:`conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last module."""
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if isinstance(module, nn.Conv2d) and modules and isinstance(modules[0], BATCH_NORMS):
                x = conv_norm(module, modules.pop(0), x)
            else:
                x = module(x)
        return x
