"""Convolution and batch norm as one where the statistics are fixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``.

    A batch norm in evaluation mode inside of training, as detectors are trained (``norm_eval``),
    is a factor and a summand a channel. Put into the weight, they take no pass over the features
    and no copy of them for the backward pass, and the gradients are the same
    (https://arxiv.org/abs/2305.11624). This is done where the output is larger than the weight, and
    where gradients are computed at all.
    """
    constant = type(norm) in _NORMS and not norm.training and norm.running_mean is not None
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
    hooks = [getattr(module, kind) for module in (conv, norm) for kind in kinds]
    if (
        not constant
        or type(conv) is not nn.Conv2d
        or not torch.is_grad_enabled()
        or conv.weight.dtype != norm.running_mean.dtype
        or torch.jit.is_tracing()
        or any(hooks)
    ):
        return norm(conv(x))
    pixels = len(x) * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if pixels < conv.weight[0].numel():
        return norm(conv(x))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (0 if conv.bias is None else conv.bias) - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], bias)


class ConvNormSequential(nn.Sequential):
    """A ``Sequential`` whose convolutions and norms run as :func:`conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last module."""
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if isinstance(module, nn.Conv2d) and modules and isinstance(modules[0], _NORMS):
                x = conv_norm(module, modules.pop(0), x)
            else:
                x = module(x)
        return x
