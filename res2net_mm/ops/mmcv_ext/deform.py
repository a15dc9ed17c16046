"""Deformable convolution and attention in place of mmcv's compiled extension."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..deform_conv import convolve
from ..internals import exports_graph
from ..precision import compute_dtype
from .buffers import Sizes, Tensors, backward, forward

_FAR = -(2.0**24)  # pixels, beyond any image


def _deform_conv(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), v2 if there is a mask.

    mmcv's kernel reads the first values of each image's offsets and masks, in the order of memory,
    so maps larger than the output are valid (DyHead relies on it). A NaN offset is no sample.
    """
    weight, offset, mask = (tensors.get(name) for name in ('weight', 'offset', 'mask'))
    size = tensors.get('output', tensors.get('grad_output')).shape[2:]
    taps = sizes['deformable_group'] * weight[0, 0].numel()
    offset = _first(offset, (2 * taps, *size)).nan_to_num(nan=_FAR)
    bias = tensors['bias'] if sizes.get('with_bias') else None
    if mask is None:
        names = ('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW')
    else:
        mask = _first(mask, (taps, *size))
        names = [(f'{name}_h', f'{name}_w') for name in ('stride', 'pad', 'dilation')]
    places = [(sizes[y], sizes[x]) for y, x in names]
    input = tensors['input']
    way = 'export' if exports_graph() else 'torch' if input.is_cpu else 'torchvision'
    return convolve(way, input, offset, mask, weight, bias, *places)


def _first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if not len(values) or values[0].numel() < count:
        return values  # which convolve refuses, or an empty batch
    return values.flatten(1)[:, :count].unflatten(1, shape)


def _attention(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159).

    ``value`` is (N, keys, heads, dim), the pixels of one level after the other, whose heights and
    widths are in ``shapes``. ``places``, (N, queries, heads, levels, points, 2), are x and y from 0
    to 1, and ``shares`` their weights. The result is (N, queries, heads * dim).
    """
    given = tensors['value'].dtype
    names = ('value', 'places', 'shares')
    value, places, shares = (tensors[name].to(compute_dtype(tensors['value'])) for name in names)
    batch, _, heads, dim = value.shape
    queries = places.shape[1]
    grids = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (N * heads, queries, levels, ...)
    shares = shares.transpose(1, 2).flatten(0, 1)[:, None]
    sides = tensors['shapes'].tolist()
    images = value.split([height * width for height, width in sides], dim=1)
    result = value.new_zeros(batch * heads, dim, queries)
    for level, (image, (height, width)) in enumerate(zip(images, sides, strict=True)):
        image = image.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        sampled = F.grid_sample(image, grids[:, :, level], align_corners=False)
        result = result + (sampled * shares[:, :, :, level]).sum(-1)
    return result.view(batch, heads * dim, queries).transpose(1, 2).to(given)


OPERATORS = {
    'deform_conv_forward': forward(_deform_conv, 'input weight offset output columns ones'),
    'deform_conv_backward_input': backward(
        _deform_conv, 'input offset grad_output grad_input grad_offset weight columns'
    ),
    # its gradient does not depend on the weight, whose place the buffer takes
    'deform_conv_backward_parameters': backward(
        _deform_conv, 'input offset grad_output weight columns ones', adds='weight'
    ),
    'modulated_deform_conv_forward': forward(
        _deform_conv, 'input weight bias ones offset mask output columns'
    ),
    'modulated_deform_conv_backward': backward(
        _deform_conv,
        'input weight bias ones offset mask columns '
        'grad_input grad_weight grad_bias grad_offset grad_mask grad_output',
    ),
    'ms_deform_attn_forward': forward(_attention, 'value shapes starts places shares'),
    'ms_deform_attn_backward': backward(
        _attention,
        'value shapes starts places shares grad_output grad_value grad_places grad_shares',
    ),
}
