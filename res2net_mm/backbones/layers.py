"""Convolution and batch norm as one where the statistics are fixed; groups of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.internals import is_transformed, makes_graph

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``.

    A batch norm in evaluation mode inside of training, as detectors are trained (``norm_eval``),
    is a factor and a summand a channel. Put into the weight, they take no pass over the features
    and no copy of them for the backward pass, and the gradients are the same
    (https://arxiv.org/abs/2305.11624). This is done where the output is larger than the weight, and
    where gradients are computed at all.
    """
    if (
        type(conv) is not nn.Conv2d
        or conv.padding_mode != 'zeros'
        or not _is_constant(norm, conv.weight.dtype)
        or not torch.is_grad_enabled()
        or torch.jit.is_tracing()
        or any(getattr(module, kind) for module in (conv, norm) for kind in _HOOKS)
    ):
        return norm(conv(x))
    pixels = len(x) * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    if pixels < conv.weight[0].numel():
        return norm(conv(x))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (0 if conv.bias is None else conv.bias) - norm.running_mean
    bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def gains_by_channels_last(x: Tensor, net: nn.Module) -> bool:
    """Whether a network is faster in channels_last than in the form of images and weights."""
    if _is_watched(x) or not x.is_cpu or torch.is_grad_enabled():
        return False
    if x.dim() != 4 or x.shape[1] == 1 or not x.is_contiguous():
        return False
    weights = (m.weight for m in net.modules() if isinstance(m, nn.Conv2d))
    for weight in weights:
        if weight.dim() == 4 and weight.shape[1] > 1 and weight[0, 0].numel() > 1:
            return weight.is_contiguous()
        # of others the form cannot be told
    return False


def split_groups(x: Tensor, width: int) -> Sequence[Tensor]:
    """``x.split(width, dim=1)``.

    Those that go into sums and convolutions have memory of their own where PyTorch is several times
    slower with strides: in half precision and channels_last on a CPU. The last is passed on.
    """
    *convolved, last = x.split(width, dim=1)
    if _strides_are_slow(x) and x.dtype in (torch.bfloat16, torch.float16):
        convolved = [group.contiguous(memory_format=torch.channels_last) for group in convolved]
    return [*convolved, last]


def join_groups(groups: Sequence[Tensor]) -> Tensor:
    """``torch.cat(groups, dim=1)``, whose gradients have memory of their own where that is faster.

    They go into ReLU's backward pass, but for the last, which was passed on.
    """
    *rectified, last = groups
    if torch.is_grad_enabled() and _strides_are_slow(groups[0]):
        rectified = [group.view_as(group) for group in rectified]
        for group in rectified:
            if group.requires_grad:
                group.register_hook(_contiguous)
    return torch.cat([*rectified, last], dim=1)


def _strides_are_slow(x: Tensor) -> bool:
    return x.is_cpu and not _is_watched(x) and x.stride(1) == 1


def _is_watched(x: Tensor) -> bool:
    """Whether a graph is made of what is done to a tensor, or it stands for several."""
    return makes_graph() or is_transformed(x)


def _contiguous(grad: Tensor) -> Tensor:
    if is_transformed(grad):  # several gradients at once
        return grad
    return grad.contiguous(memory_format=torch.channels_last)


def _is_constant(norm: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a norm is a factor and a summand of this type for each channel."""
    if type(norm) not in _NORMS or norm.training or norm.running_mean is None:
        return False
    return norm.running_mean.dtype == dtype


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
