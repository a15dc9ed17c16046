"""Deformable convolution, v1 (https://arxiv.org/abs/1703.06211) and v2, the modulated one
(https://arxiv.org/abs/1811.11168): one function, three ways to compute it, and the layers."""

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
WAYS = ('auto', 'torch', 'torchvision', 'mmcv')


def choose_way(device: torch.device) -> str:
    """How deformable convolutions are computed: ``'torch'``, ``'torchvision'`` or ``'mmcv'``.

    The environment variable ``RES2NET_MM_DEFORM_CONV`` decides. Unset or ``auto``, it is
    ``'torch'``, plain PyTorch, which is the fastest on the CPU (``python tools/benchmark.py
    deform_conv``), and torchvision's kernels on CUDA, which was never measured.

    Raises:
        ValueError: The variable has another value.
    """
    way = os.environ.get(VARIABLE) or 'auto'
    if way not in WAYS:
        raise ValueError(f'{VARIABLE} must be one of {", ".join(WAYS)}, but got {way!r}')
    if device.type == 'meta':  # the other ways need values
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

    Each tap of the kernel samples the image bilinearly at its place plus an offset. Pixels outside
    the image are zero. Plain PyTorch (see :func:`choose_way`) makes the sampled columns, kh * kw
    times the input, in blocks of 4 MiB on the CPU and 256 MiB elsewhere; it needs memory for a
    copy of the input and 42 bytes (float32) for each tap of each output pixel and deform group.
    Half precision and autocast sample in float32. A NaN offset gives NaN in plain PyTorch and no
    sample in the other ways. There are no second derivatives.

    Bilinear interpolation has kinks, and fresh offsets, all zero, are on them. Offsets get the same
    gradient there as from mmcv's operator, in every way: the slope below and to the right of a
    pixel, and none where a tap is exactly on the line around the image (row -1 or H, column -1 or
    W). torchvision differs on that line. Traces and exports use ``grid_sample``, which keeps the
    second rule but does not always hit the kinks.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * deform_groups * kh * kw, H_out, W_out), pairs (y, x) in pixels for
            one tap of a group after the other.
        weight: (C_out, C / groups, kh, kw).
        bias: (C_out,).
        stride: One number or (y, x), as in ``nn.Conv2d``.
        padding: Like ``stride``.
        dilation: Like ``stride``.
        mask: (N, deform_groups * kh * kw, H_out, W_out), a factor for each sample; None (v1) is
            all ones.

    Returns:
        (N, C_out, H_out, W_out), with the type of ``input``.

    Raises:
        ValueError: The shapes do not fit each other.

    Example:
        >>> x, weight = torch.rand(1, 8, 5, 5), torch.rand(16, 8, 3, 3)
        >>> deform_conv2d(x, torch.zeros(1, 18, 5, 5), weight, padding=1).shape
        torch.Size([1, 16, 5, 5])
    """
    way = 'export' if exports_graph() else choose_way(input.device)
    places = pair(stride), pair(padding), pair(dilation)
    return convolve(way, input, offset, mask, weight, bias, *places)


def convolve(
    way: str,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *places: Pair,
) -> Tensor:
    """:func:`deform_conv2d` by one way of ``COMPUTE``."""
    if way != 'export':  # whose sizes may be symbols
        _check_shapes(input, offset, mask, weight, bias, *places)
    given = (input, offset, mask, weight, bias)
    dtype = compute_dtype(*(t for t in given if t is not None))
    with without_autocast(input.device.type):
        out = COMPUTE[way](*(t if t is None else t.to(dtype) for t in given), *places)
    return out.to(input.dtype)


def pair(value: int | Pair) -> Pair:
    """``value`` for both axes, unless it is a pair already."""
    return tuple(value) if isinstance(value, Iterable) else (value, value)


def _by_torchvision(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *places: Pair,
) -> Tensor:
    offset = hide_outside(offset, input.shape[2:], tuple(weight.shape[2:]), *places)
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, *places, mask)


def _by_mmcv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *places: Pair,
) -> Tensor:
    from .mmcv_ext import compiled_modulated_deform_conv2d  # which stands on this module

    taps = weight[0, 0].numel()
    groups = input.shape[1] // weight.shape[1], offset.shape[1] // (2 * taps)
    if mask is None:
        mask = offset.new_ones(len(offset), groups[1] * taps, *offset.shape[2:])
    offset = hide_outside(offset, input.shape[2:], tuple(weight.shape[2:]), *places)
    compute = compiled_modulated_deform_conv2d()
    return compute(input, offset, mask, weight, bias, *places, *groups)


COMPUTE = {
    'torch': sample_and_multiply,
    'torchvision': _by_torchvision,
    'mmcv': _by_mmcv,
    'export': grid_sample_and_multiply,  # to operators that other runtimes have, for any size
}


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    for name, tensor in dict(input=input, offset=offset, weight=weight).items():
        if tensor.dim() != 4:
            raise ValueError(f'{name} must have 4 dimensions, but has shape {tuple(tensor.shape)}')
    if not input.is_floating_point():
        raise ValueError(f'input must have a floating-point type, but has {input.dtype}')
    for name, pair in dict(stride=stride, padding=padding, dilation=dilation).items():
        lowest = 0 if name == 'padding' else 1
        integers = all(isinstance(value, int) for value in pair)
        if len(pair) != 2 or not integers or min(pair) < lowest:
            raise ValueError(f'{name} must be one or two integers >= {lowest}, but got {pair}')
    channels = input.shape[1]
    out_channels, per_group, *kernel = weight.shape
    if not all(weight.shape):
        raise ValueError(f'weight must not be empty, but has shape {tuple(weight.shape)}')
    if not channels or channels % per_group or out_channels % (channels // per_group):
        raise ValueError(
            f'weight must have shape (C_out, C / groups, kh, kw) for an input of {channels} '
            f'channels and groups that divide C_out, but its shape is {tuple(weight.shape)}'
        )
    taps = math.prod(kernel)
    size = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(
            input.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    if min(size) < 1:
        raise ValueError(
            f'input must be at least as large as the kernel, but its {tuple(input.shape[2:])} '
            f'pixels would give an output of {tuple(size)}'
        )
    expected = f'({len(input)}, deform_groups * {2 * taps}, {size[0]}, {size[1]})'
    groups = offset.shape[1] // (2 * taps)
    shape = (len(input), groups * 2 * taps, *size)
    if offset.shape != shape or not groups or channels % groups:
        raise ValueError(
            f'offset must have shape {expected}, and deform_groups must divide the {channels} '
            f'channels of the input, but its shape is {tuple(offset.shape)}'
        )
    shape = (len(input), groups * taps, *size)
    if mask is not None and mask.shape != shape:
        raise ValueError(f'mask must have shape {shape}, but has {tuple(mask.shape)}')
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f'bias must have shape ({out_channels},), but has {tuple(bias.shape)}')


class DeformConv2d(nn.Module):
    """Deformable convolution, v1, that predicts its offsets with a convolution of its own.

    Its parameters have the names, order and initial values of mmcv's ``DeformConv2dPack``, so
    weights fit: ``weight``, ``bias``, ``conv_offset.weight`` and ``conv_offset.bias``. The last two
    start at zero.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One number or (y, x), like stride, padding and dilation.
        stride: Stride of the convolution and of the one that predicts offsets.
        padding: Zeros around the input.
        dilation: Distance between taps.
        groups: Groups of channels, each convolved by itself.
        deform_groups: Groups of channels, each with its own offsets.
        bias: Whether to add a bias; None is mmcv's default: no in v1, yes in v2.

    Raises:
        ValueError: The groups do not divide the channels.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H_out, W_out).
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
        for name, value in dict(groups=groups, deform_groups=deform_groups).items():
            if value < 1 or in_channels % value or (name == 'groups' and out_channels % value):
                raise ValueError(
                    f'{name} must divide the channels ({in_channels} in, {out_channels} out), '
                    f'but got {value}'
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.groups = groups
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
