"""Deformable convolution, v1 (https://arxiv.org/abs/1703.06211) and v2, the modulated one
(https://arxiv.org/abs/1811.11168): one function, and the layers."""

import math
import os
from collections.abc import Iterable

import torch
import torchvision
from torch import Tensor, nn

from .internals import exports_graph
from .precision import compute_dtype, without_autocast
from .sampling import Pair, grid_sample_and_multiply, hide_outside, sample_and_multiply

VARIABLE = 'RES2NET_MM_DEFORM_CONV'
WAYS = ('auto', 'torch', 'torchvision')


def choose_way(device: torch.device) -> str:
    """How deformable convolutions are computed: ``'torch'`` or ``'torchvision'``.

    The environment variable ``RES2NET_MM_DEFORM_CONV`` decides. Unset or ``auto``, it is
    ``'torch'``, plain PyTorch, which is the fastest on the CPU (``python tools/benchmark.py
    deform_conv``), and torchvision's kernels on CUDA, which was never measured.
    """
    way = os.environ.get(VARIABLE) or 'auto'
    if way not in WAYS:
        raise ValueError(f'{VARIABLE} must be one of {", ".join(WAYS)}, but got {way!r}')
    if device.type == 'meta':  # plain PyTorch needs values
        return 'torchvision'
    if way == 'auto':
        return 'torchvision' if device.type == 'cuda' else 'torch'
    return way


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = (1, 1),
    padding: int | Pair = (0, 0),
    dilation: int | Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution, with torchvision's signature.

    Each tap of the kernel samples the image bilinearly at its place plus an offset, with zeros
    outside. Half precision and autocast sample in float32. A NaN offset gives NaN in plain PyTorch
    and no sample in torchvision's kernels. There are no second derivatives.

    Plain PyTorch (see :func:`choose_way`) needs memory for a copy of the input, 42 bytes (float32)
    for each tap of each output pixel and deform group, and a block of the sampled columns, 4 MiB on
    the CPU and 256 MiB elsewhere.

    Fresh offsets, all zero, are on kinks of the interpolation. Their gradient is that of mmcv's
    operator: the slope below and to the right of a pixel, and none where a tap is exactly on the
    line around the image (row -1 or H, column -1 or W), where torchvision differs. Traces and
    exports use ``grid_sample``, which keeps the second rule but does not always hit the kinks.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * deform_groups * kh * kw, H_out, W_out), pairs (y, x) in pixels for
            one tap of a group after the other.
        weight: (C_out, C / groups, kh, kw).
        bias: (C_out,).
        stride: One number or (y, x), as in ``nn.Conv2d``, like ``padding`` and ``dilation``.
        mask: (N, deform_groups * kh * kw, H_out, W_out), a factor for each sample; None (v1) is
            all ones.

    Returns:
        (N, C_out, H_out, W_out), with the type of ``input``.

    Example:
        >>> x, weight = torch.rand(1, 8, 5, 5), torch.rand(16, 8, 3, 3)
        >>> deform_conv2d(x, torch.zeros(1, 18, 5, 5), weight, padding=1).shape
        torch.Size([1, 16, 5, 5])
    """
    exports, places = exports_graph(), (pair(stride), pair(padding), pair(dilation))
    way, kernel, image = choose_way(input.device), tuple(weight.shape[2:]), input.shape[2:]
    given = (input, offset, mask, weight, bias)
    if not exports:  # sizes may be symbols
        _check_shapes(*given, *places)
    dtype = compute_dtype(*(t for t in given if t is not None))
    x, offset, mask, weight, bias = (t if t is None else t.to(dtype) for t in given)
    with without_autocast(input.device.type):
        if exports:  # to operators that other runtimes have, for any size
            out = grid_sample_and_multiply(x, offset, mask, weight, bias, *places)
        elif way == 'torchvision':
            offset = hide_outside(offset, image, kernel, *places)
            out = torchvision.ops.deform_conv2d(x, offset, weight, bias, *places, mask)
        else:
            out = sample_and_multiply(x, offset, mask, weight, bias, *places)
    return out.to(input.dtype)


def pair(value: int | Pair) -> Pair:
    """``value`` for both axes, unless it is a pair already."""
    return tuple(value) if isinstance(value, Iterable) else (value, value)


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *places: Pair,
) -> None:
    for name, tensor in dict(input=input, offset=offset, weight=weight).items():
        if tensor.dim() != 4:
            raise ValueError(f'{name} must have 4 dimensions, but has shape {tuple(tensor.shape)}')
    batch, channels, *image = input.shape
    out_channels, per_group, *kernel = weight.shape
    if channels % per_group or out_channels % (channels // per_group or 1):
        raise ValueError(
            f'weight must have shape (C_out, C / groups, kh, kw) for an input of {channels} '
            f'channels and groups that divide C_out, but its shape is {tuple(weight.shape)}'
        )
    taps = math.prod(kernel)
    size = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(image, kernel, *places, strict=True)
    ]
    groups = offset.shape[1] // (2 * taps) or 1
    if channels % groups:
        raise ValueError(f'deform_groups must divide the {channels} channels, but got {groups}')
    expected = dict(
        offset=(offset, (batch, 2 * groups * taps, *size)),
        mask=(mask, (batch, groups * taps, *size)),
        bias=(bias, (out_channels,)),
    )
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f'{name} must have shape {shape}, but has {tuple(tensor.shape)}')


class DeformConv2d(nn.Module):
    """Deformable convolution, v1, that predicts its offsets with a convolution of its own.

    (N, in_channels, H, W) -> (N, out_channels, H_out, W_out). Its parameters have the names, order
    and initial values of mmcv's ``DeformConv2dPack``, so weights fit: ``weight``, ``bias``,
    ``conv_offset.weight`` and ``conv_offset.bias``. The last two start at zero.

    Args are those of ``nn.Conv2d``, and ``deform_groups``, groups of channels that each have their
    own offsets. A ``bias`` of None is mmcv's default: no in v1, yes in v2.
    """

    numbers_per_tap = 2  # y and x
    has_bias = False  # the default of bias

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        bias = self.has_bias if bias is None else bias
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.groups = groups
        if deform_groups < 1 or in_channels % deform_groups:
            raise ValueError(
                f'deform_groups must divide the {in_channels} channels, but got {deform_groups}'
            )
        self.deform_groups = deform_groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels,
            deform_groups * self.numbers_per_tap * math.prod(self.kernel_size),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises all parameters as mmcv does."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity='relu')
        self._reset_others()

    def _reset_others(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x, (N, in_channels, H, W), at the taps that it predicts from x."""
        return self._convolve(x, self.conv_offset(x))

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        places = self.stride, self.padding, self.dilation
        return deform_conv2d(x, offset, self.weight, self.bias, *places, mask)

    def extra_repr(self) -> str:
        """The arguments, as ``nn.Conv2d`` shows them."""
        names = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'deform_groups')
        shown = ', '.join(f'{name}={getattr(self, name)}' for name in names)
        return f'{self.in_channels}, {self.out_channels}, {shown}, bias={self.bias is not None}'


class ModulatedDeformConv2d(DeformConv2d):
    """Deformable convolution, v2, which also predicts a factor (0 to 1) for each sample.

    As in mmcv's ``ModulatedDeformConv2dPack``, ``conv_offset`` gives all offsets and then the
    logits of all factors. They start at zero, so a fresh layer is half of a plain convolution. The
    arguments are those of :class:`DeformConv2d`.
    """

    numbers_per_tap = 3  # y, x and the logit of the mask
    has_bias = True

    def reset_parameters(self) -> None:
        """Initialises all parameters as mmcv does."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        self._reset_others()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x, (N, in_channels, H, W), at taps and with factors predicted from x."""
        predicted = self.conv_offset(x)
        taps = predicted.shape[1] // 3
        offset, logit = predicted.split((2 * taps, taps), 1)
        return self._convolve(x, offset, logit.sigmoid())
