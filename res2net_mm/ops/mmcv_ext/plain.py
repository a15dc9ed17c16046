"""Operators in plain PyTorch with the signatures of mmcv's compiled extension.

RoIPool, the focal losses, multi-scale deformable attention and PSAMask. As in the extension,
results go into buffers that the caller made, filled with zeros; scratch buffers and hints such as
``im2col_step`` are not needed here and stay as they are. Half precision is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import compute_dtype

__all__ = [
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'psamask_backward',
    'psamask_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
]


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Largest value in every bin: (N, C, H, W) and (K, 5) to ``output`` (K, C, height, width).

    Written out rather than left to torchvision, which rounds the region to whole pixels before
    it divides: mmcv divides first, and its results differ.

    Args:
        argmax: result, (K, C, height, width): places in H * W, -1 where a bin is empty.
    """
    height, width = input.shape[2:]
    argmax.fill_(-1)
    regions = rois.to(compute_dtype(rois))
    start, end = regions[:, 1:3] * spatial_scale, (regions[:, 3:] + 1) * spatial_scale
    valid = (end > start).all(1)

    def edges(axis: int, bins: int, limit: int) -> tuple[Tensor, Tensor]:
        step = (end - start)[:, axis, None] / bins
        place = torch.arange(bins + 1, device=rois.device) * step + start[:, axis, None]
        low, high = place[:, :-1].floor(), place[:, 1:].ceil()
        return low.clamp(0, limit).int(), high.clamp(0, limit).int()  # (K, bins)

    lefts, rights = edges(0, pooled_width, width)
    tops, bottoms = edges(1, pooled_height, height)
    for k in valid.nonzero()[:, 0].tolist():
        y = torch.arange(int(tops[k, 0]), int(bottoms[k, -1]), device=rois.device)
        x = torch.arange(int(lefts[k, 0]), int(rights[k, -1]), device=rois.device)
        if not len(y) or not len(x):
            continue
        in_y = (y >= tops[k, :, None]) & (y < bottoms[k, :, None])  # (pooled_height, h)
        in_x = (x >= lefts[k, :, None]) & (x < rights[k, :, None])  # (pooled_width, w)
        region = input[int(regions[k, 0]), :, y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        # Along x and then y, so that the first of equal values is found in reading order.
        best, at_x = region[:, :, None].masked_fill(~in_x, -torch.inf).max(3)  # (C, h, width)
        best, at_y = best[:, None].masked_fill(~in_y[:, :, None], -torch.inf).max(2)
        place = y[at_y] * width + x[at_x.gather(1, at_y)]
        filled = in_y.any(1)[:, None] & in_x.any(1)
        output[k] = best.where(filled, 0)
        argmax[k] = place.where(filled, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` for its input, into ``grad_input``."""
    dtype = compute_dtype(grad_output, rois)
    # Needs no region but the places alone, so that torchvision's serves as it is.
    grad = torch.ops.torchvision._roi_pool_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        argmax,
        spatial_scale,
        pooled_height,
        pooled_width,
        *grad_input.shape,
    )
    grad_input.copy_(grad)


def _signed_logits(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sign and logit of every (sample, class) for the right answer, and the weight of its loss."""
    logits = input.to(compute_dtype(input))
    classes = logits.shape[1]
    positive = target[:, None] == torch.arange(classes, device=target.device)
    sign = positive.to(logits.dtype) * 2 - 1
    scale = torch.where(positive, logits.new_tensor(alpha), logits.new_tensor(1 - alpha))
    if weight.numel():
        known = (target >= 0) & (target < classes)
        # The weights have no entry for the background: it counts once.
        by_row = torch.where(known, weight.to(logits)[target.where(known, 0)], 1.0)
        scale = scale * by_row[:, None]
    return sign, sign * logits, scale


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every class by itself (Lin et al., https://arxiv.org/abs/1708.02002).

    Args:
        input: logits, (N, C).
        target: (N,), 0 .. C - 1, or any other number (C, by custom) for the background.
        weight: (C,) one factor per class, or empty.
        output: result, (N, C).
        gamma: exponent that plays down what is right already.
        alpha: share of the positive class; 1 - ``alpha`` that of the others.
    """
    _, logits, scale = _signed_logits(input, target, weight, alpha)
    output.copy_(-scale * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of :func:`sigmoid_focal_loss_forward` for its input, (N, C)."""
    sign, logits, scale = _signed_logits(input, target, weight, alpha)
    right, wrong = torch.sigmoid(logits), torch.sigmoid(-logits)
    slope = gamma * right * F.logsigmoid(logits) - wrong
    grad_input.copy_(sign * scale * wrong**gamma * slope)


def _picked(softmax: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Probability of the right class of every sample, and the weight of its loss."""
    softmax = softmax.to(compute_dtype(softmax))
    label = target.clamp(min=0)
    scale = alpha * (target >= 0).to(softmax.dtype)
    if weight.numel():
        scale = scale * weight.to(softmax)[label]
    return softmax.gather(1, label[:, None])[:, 0], scale


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of the one right class.

    Args:
        input: probabilities (after the softmax), (N, C).
        target: (N,), 0 .. C - 1; a negative one is ignored.
        weight: (C,) one factor per class, or empty.
        output: result, (N,).
        gamma: exponent that plays down what is right already.
        alpha: factor on all.
    """
    right, scale = _picked(input, target, weight, alpha)
    tiny = torch.finfo(right.dtype).tiny
    output.copy_(-scale * (1 - right) ** gamma * right.clamp(min=tiny).log())


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative for the logits before the softmax, into ``grad_input`` (N, C).

    Args:
        buff: scratch, (N,): derivative for the logarithm of the right class's probability.
    """
    right, scale = _picked(softmax, target, weight, alpha)
    tiny = torch.finfo(right.dtype).tiny
    # 1 - p is kept off zero: 0 ** (gamma - 1) * log(1) is not a number for gamma < 1
    wrong = (1 - right).clamp(min=tiny)
    inner = gamma * wrong ** (gamma - 1) * right * right.clamp(min=tiny).log()
    slope = scale * (inner - (1 - right) ** gamma)
    hit = target[:, None] == torch.arange(softmax.shape[1], device=target.device)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (hit.to(slope.dtype) - softmax))


def _attend(
    value: Tensor, shapes: Tensor, starts: Tensor, places: Tensor, weights: Tensor
) -> Tensor:
    batch, _, heads, dim = value.shape
    queries, levels, points = places.shape[1], *places.shape[3:5]
    # grid_sample's -1 .. 1, and one image for each head
    grids = (2 * places - 1).transpose(1, 2).reshape(batch * heads, queries, levels, points, 2)
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    result = value.new_zeros(batch * heads, dim, queries)
    for level, ((height, width), start) in enumerate(
        zip(shapes.tolist(), starts.tolist(), strict=True)
    ):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1)
        image = image.reshape(batch * heads, dim, height, width)
        sampled = F.grid_sample(image, grids[:, :, level], align_corners=False)
        result = result + (sampled * shares[:, :, :, level]).sum(-1)
    return result.view(batch, heads * dim, queries).transpose(1, 2)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., https://arxiv.org/abs/2010.04159).

    Args:
        value: (N, keys, heads, dim), the levels' pixels one after the other.
        value_spatial_shapes: (levels, 2), height and width of each level.
        value_level_start_index: (levels,), the first key of each level.
        sampling_locations: (N, queries, heads, levels, points, 2), x and y, 0 .. 1 in the image.
        attention_weights: (N, queries, heads, levels, points).

    Returns:
        (N, queries, heads * dim).
    """
    dtype = compute_dtype(value)
    result = _attend(
        value.to(dtype),
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
    )
    return result.to(value.dtype)


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
    dtype = compute_dtype(value)
    given = (value, sampling_locations, attention_weights)
    value, places, weights = (t.detach().to(dtype).requires_grad_() for t in given)
    with torch.enable_grad():
        result = _attend(value, value_spatial_shapes, value_level_start_index, places, weights)
    grads = torch.autograd.grad(result, (value, places, weights), grad_output.to(dtype))
    for buffer, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        buffer.copy_(grad)


def _take_shifted(source: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``result[n, i, j, y, x] = source[n, rows[i, y], columns[j, x], y, x]``, 0 outside."""
    count_y, count_x, height, width = source.shape[1:]
    inside_y, inside_x = (rows >= 0) & (rows < count_y), (columns >= 0) & (columns < count_x)
    picked = source[
        :,
        rows.clamp(0, count_y - 1)[:, None, :, None],
        columns.clamp(0, count_x - 1)[None, :, None, :],
        torch.arange(height, device=source.device)[:, None],
        torch.arange(width, device=source.device),
    ]
    return picked.masked_fill(~(inside_y[:, None, :, None] & inside_x[None, :, None, :]), 0)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Attention masks around every pixel, laid out over the image (Zhao et al., ECCV 2018).

    Args:
        input: (N, h_mask * w_mask, H, W).
        output: result, (N, H * W, H, W).
        psa_type: 0 (collect): what every pixel gets from the others; 1 (distribute): gives.
    """
    y, x = (torch.arange(n, device=input.device) for n in (h_feature, w_feature))
    masks = input.view(num_, h_mask, w_mask, h_feature, w_feature)
    rows, columns = y[:, None] - y + half_h_mask, x[:, None] - x + half_w_mask
    laid_out = _take_shifted(masks, rows, columns)  # (N, H, W of the other, H, W of the pixel)
    laid_out = laid_out.reshape(num_, h_feature * w_feature, h_feature * w_feature)
    output.copy_((laid_out if psa_type == 0 else laid_out.transpose(1, 2)).view_as(output))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Gradient of :func:`psamask_forward` for its input, into ``grad_input``."""
    y, x = (torch.arange(n, device=grad_input.device) for n in (h_feature, w_feature))
    mask_y, mask_x = (torch.arange(n, device=grad_input.device) for n in (h_mask, w_mask))
    grad = grad_output.reshape(num_, h_feature * w_feature, h_feature * w_feature)
    if psa_type == 1:
        grad = grad.transpose(1, 2)
    grad = grad.reshape(num_, h_feature, w_feature, h_feature, w_feature)
    rows, columns = mask_y[:, None] + y - half_h_mask, mask_x[:, None] + x - half_w_mask
    grad_input.copy_(_take_shifted(grad, rows, columns).view_as(grad_input))
