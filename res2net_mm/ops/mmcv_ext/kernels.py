"""RoIAlign and deformable convolution with the signatures of mmcv's compiled extension.

The work is done by torchvision's kernels and by :mod:`.roi_align`. As in the extension, results go
into buffers that the caller made (``output``, ``grad_*``), and every function takes all arguments
of its namesake: scratch buffers and hints such as ``columns``, ``ones`` and ``im2col_step`` are not
needed here and stay as they are. Half precision is computed in float32.
"""

import torch
import torchvision
from torch import Tensor

from ..sampling import hide_outside
from .boxes import compute_dtype
from .roi_align import roi_align, roi_align_gradient

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'roi_align_backward',
    'roi_align_forward',
]


def get_compiler_version() -> str:
    """What did the work of a compiler here."""
    return f'none (torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """The extension's words for a build without CUDA."""
    return 'not available'


@torch.compiler.disable  # a graph of what goes into buffers has no gradient
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870), into ``output``.

    Args:
        input: (N, C, H, W).
        rois: (K, 5), rows of image index, x1, y1, x2, y2 in pixels of the image.
        output: result, (K, C, aligned_height, aligned_width).
        spatial_scale: pixels of ``input`` per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 takes as many as pixels lie in it.
        pool_mode: 1 for the average, 0 for the maximum.
        aligned: shift by half a pixel, so that pixel centres lie at half integers.

    Raises:
        NotImplementedError: for ``pool_mode`` 0 (maximum), which torchvision does not have.
    """
    if pool_mode == 0:
        raise NotImplementedError(
            "roi_align with pool_mode='max' needs mmcv's compiled operators: install mmcv built "
            "with them, or use pool_mode='avg'"
        )
    dtype = compute_dtype(input, rois)
    size = (aligned_height, aligned_width)
    pooled = roi_align(
        input.to(dtype), rois.to(dtype), size, spatial_scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


@torch.compiler.disable
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` (average) for its input, into ``grad_input``."""
    dtype = compute_dtype(grad_output, rois)
    grad, rois = grad_output.to(dtype), rois.to(dtype)
    arguments = spatial_scale, sampling_ratio, aligned
    grad_input.copy_(roi_align_gradient(grad, rois, grad_input.shape, *arguments))


def _deform_conv_grads(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Gradients for input, weight, offset, mask and bias."""
    dtype = compute_dtype(input)
    weight = weight.to(dtype)
    places = tuple(weight.shape[2:]), stride, padding, dilation
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(dtype),
        input.to(dtype),
        weight,
        hide_outside(offset.to(dtype), input.shape[2:], *places),
        weight.new_zeros(len(input), 1) if mask is None else mask.to(dtype),
        weight.new_zeros(len(weight)),
        *stride,
        *padding,
        *dilation,
        *groups,
        mask is not None,
    )


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), without bias, into ``output``."""
    dtype = compute_dtype(input)
    places = (dH, dW), (padH, padW), (dilationH, dilationW)
    offset = hide_outside(offset.to(dtype), input.shape[2:], (kH, kW), *places)
    result = torchvision.ops.deform_conv2d(input.to(dtype), offset, weight.to(dtype), None, *places)
    output.copy_(result)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` for input and offset."""
    grads = _deform_conv_grads(
        gradOutput,
        input,
        weight,
        offset,
        None,
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        (group, deformable_group),
    )
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient for the weight to ``gradWeight``."""
    grads = _deform_conv_grads(
        gradOutput,
        input,
        gradWeight,  # for its shape: the gradient does not depend on the weight's values
        offset,
        None,
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        (group, deformable_group),
    )
    gradWeight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution (https://arxiv.org/abs/1811.11168), into ``output``."""
    dtype = compute_dtype(input)
    places = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    offset = hide_outside(offset.to(dtype), input.shape[2:], (kernel_h, kernel_w), *places)
    result = torchvision.ops.deform_conv2d(
        input.to(dtype),
        offset,
        weight.to(dtype),
        bias.to(dtype) if with_bias else None,
        *places,
        mask.to(dtype),
    )
    output.copy_(result)


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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` for all that it is given."""
    grads = _deform_conv_grads(
        grad_output,
        input,
        weight,
        offset,
        mask,
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        (group, deformable_group),
    )
    buffers = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for buffer, grad in zip(buffers, grads, strict=True):
        if buffer is not grad_bias or with_bias:
            buffer.copy_(grad)
