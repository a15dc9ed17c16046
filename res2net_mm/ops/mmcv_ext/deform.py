"""Deformable convolution and attention with the signatures of mmcv's compiled extension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..deform_conv import deform_conv2d
from ..internals import gradients
from ..precision import compute_dtype
from ..sampling import Pair

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
]
_FAR = -(2.0**24)  # pixels, beyond any image


def _deform(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    places: tuple[Pair, Pair, Pair],
    groups: int,
    size: Sequence[int],
) -> Tensor:
    """Deformable convolution as mmcv's kernel computes it.

    The kernel reads the first values of each image's offsets and masks, in the order of memory, so
    maps larger than the output are valid (DyHead relies on it). A NaN offset is no sample.
    """
    taps = groups * weight[0, 0].numel()
    offset = _first(offset, (2 * taps, *size)).nan_to_num(nan=_FAR)
    mask = None if mask is None else _first(mask, (taps, *size))
    return deform_conv2d(input, offset, weight, bias, *places, mask)


def _first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    enough = values[0].numel() >= count if len(values) else False
    return values.flatten(1)[:, :count].unflatten(1, shape) if enough else values


def _places(
    dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int, **_: int
) -> tuple[Pair, Pair, Pair]:
    return (dH, dW), (padH, padW), (dilationH, dilationW)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    deformable_group: int,
    **sizes: int,
) -> None:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), without bias, into ``output``."""
    rest = _places(**sizes), deformable_group, output.shape[2:]
    output.copy_(_deform(input, offset, None, weight, None, *rest))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    deformable_group: int,
    **sizes: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` for input and offset."""
    rest = _places(**sizes), deformable_group, gradOutput.shape[2:]
    of_input, of_offset = gradients(
        lambda x, o: _deform(x, o, None, weight, None, *rest), (input, offset), gradOutput
    )
    gradInput.copy_(of_input)
    gradOffset.copy_(of_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    deformable_group: int,
    scale: float,
    **sizes: int,
) -> None:
    """Adds ``scale`` times the gradient for the weight to ``gradWeight``."""
    rest = _places(**sizes), deformable_group, gradOutput.shape[2:]
    (of_weight,) = gradients(  # does not depend on the weight's values
        lambda w: _deform(input, offset, None, w, None, *rest), (gradWeight,), gradOutput
    )
    gradWeight.add_(of_weight, alpha=scale)


def _modulated_places(
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    **_: int,
) -> tuple[Pair, Pair, Pair]:
    return (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    deformable_group: int,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Modulated deformable convolution (https://arxiv.org/abs/1811.11168), into ``output``."""
    rest = _modulated_places(**sizes), deformable_group, output.shape[2:]
    output.copy_(_deform(input, offset, mask, weight, bias if with_bias else None, *rest))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    deformable_group: int,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` for all its tensors."""
    rest = _modulated_places(**sizes), deformable_group, grad_output.shape[2:]
    tensors, buffers = (
        (input, offset, mask, weight),
        (grad_input, grad_offset, grad_mask, grad_weight),
    )
    if with_bias:
        tensors, buffers = (*tensors, bias), (*buffers, grad_bias)

    def compute(x: Tensor, o: Tensor, m: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return _deform(x, o, m, w, b, *rest)

    for buffer, grad in zip(buffers, gradients(compute, tensors, grad_output), strict=True):
        buffer.copy_(grad)


def _attend(value: Tensor, places: Tensor, weights: Tensor, shapes: Tensor) -> Tensor:
    given, dtype = value.dtype, compute_dtype(value)
    value, places, weights = value.to(dtype), places.to(dtype), weights.to(dtype)
    batch, _, heads, dim = value.shape
    queries = places.shape[1]
    # (N * heads, queries, levels, points, 2)
    grids = (2 * places - 1).transpose(1, 2).flatten(0, 1)
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None]
    sizes = [(height, width) for height, width in shapes.tolist()]
    images = value.split([height * width for height, width in sizes], dim=1)
    result = value.new_zeros(batch * heads, dim, queries)
    for level, (image, size) in enumerate(zip(images, sizes, strict=True)):
        image = image.permute(0, 2, 3, 1).reshape(batch * heads, dim, *size)
        sampled = F.grid_sample(image, grids[:, :, level], align_corners=False)
        result = result + (sampled * shares[:, :, :, level]).sum(-1)
    return result.view(batch, heads * dim, queries).transpose(1, 2).to(given)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159).

    Args:
        value: (N, keys, heads, dim), the pixels of one level after the other.
        value_spatial_shapes: (levels, 2), height and width of each level.
        value_level_start_index: (levels,), the first key of each level.
        sampling_locations: (N, queries, heads, levels, points, 2), x and y, 0 .. 1 in the image.
        attention_weights: (N, queries, heads, levels, points).

    Returns:
        (N, queries, heads * dim).
    """
    return _attend(value, sampling_locations, attention_weights, value_spatial_shapes)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward` for value, locations and weights."""
    tensors = value, sampling_locations, attention_weights
    buffers = grad_value, grad_sampling_loc, grad_attn_weight
    found = gradients(lambda *t: _attend(*t, value_spatial_shapes), tensors, grad_output)
    for buffer, grad in zip(buffers, found, strict=True):
        buffer.copy_(grad)
