"""Deformable convolution and attention in place of mmcv's compiled extension."""

from __future__ import annotations

import math

from torch import Tensor

from ..deform_conv import deform_conv2d
from ..precision import compute_dtype
from ..sampling import FAR
from .buffers import Sizes, Tensors, backward, forward


def _deform_conv(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), v2 if there is a mask.

    mmcv's kernel reads the first values of each image's offsets and masks, in the order of memory,
    so maps larger than the output are valid (DyHead relies on it). A NaN offset is no sample.
    """
    input, weight, offset, mask = (tensors.get(n) for n in ('input', 'weight', 'offset', 'mask'))
    size = tensors.get('output', tensors.get('grad_output')).shape[2:]
    taps = sizes['deformable_group'] * weight[0, 0].numel()
    offset = _first(offset, (2 * taps, *size)).nan_to_num(nan=FAR)
    bias = tensors['bias'] if sizes.get('with_bias') else None
    if mask is None:
        names = ('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW')
    else:
        mask = _first(mask, (taps, *size))
        names = [(f'{name}_h', f'{name}_w') for name in ('stride', 'pad', 'dilation')]
    places = [(sizes[y], sizes[x]) for y, x in names]
    return deform_conv2d(input, offset, weight, bias, *places, mask)


def _first(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if not len(values) or values[0].numel() < count:
        return values  # which deform_conv2d refuses, or an empty batch
    return values.flatten(1)[:, :count].unflatten(1, shape)


def _attention(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159), in plain PyTorch."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    dtype = compute_dtype(tensors['value'])
    value, places, shares = (tensors[name].to(dtype) for name in ('value', 'places', 'shares'))
    result = multi_scale_deformable_attn_pytorch(value, tensors['shapes'], places, shares)
    return result.to(tensors['value'].dtype)


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
