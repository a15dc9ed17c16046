"""Focal loss, PSAMask and CARAFE in place of mmcv's compiled extension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import compute_dtype
from .buffers import Sizes, Tensors, backward, forward


def _focal_loss(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Focal loss of each class on its own (https://arxiv.org/abs/1708.02002).

    Takes logits (N, C) and their classes (N,), any number but 0 to C - 1 for the background.
    ``weight``, (C,), may be empty.
    """
    input, target, weight = (tensors[name] for name in ('input', 'target', 'weight'))
    logits = input.to(compute_dtype(input))
    classes = logits.shape[1]
    positive = target[:, None] == torch.arange(classes, device=target.device)
    alpha = logits.new_tensor(sizes['alpha'])
    scale = torch.where(positive, alpha, 1 - alpha)
    if weight.numel():
        known = (target >= 0) & (target < classes)
        # The weights have no entry for the background, which counts once.
        by_row = torch.where(known, weight.to(logits)[target.where(known, 0)], 1.0)
        scale = scale * by_row[:, None]
    right = torch.where(positive, logits, -logits)  # logits of the right answers
    # not sigmoid ** gamma, whose derivative has no value where it underflows
    return -scale * (sizes['gamma'] * F.logsigmoid(-right)).exp() * F.logsigmoid(right)


def _psamask(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Lays the attention masks of all pixels out over the image (PSANet, Zhao et al., ECCV 2018).

    (N, h_mask * w_mask, H, W), a mask around each pixel, -> (N, H * W, H, W). ``psa_type`` is 0
    (collect) for what each pixel takes from the others, 1 (distribute) for what it gives to them.
    """
    input = tensors['input']
    batch, _, height, width = input.shape
    tall, wide = sizes['h_mask'], sizes['w_mask']
    y, x = (torch.arange(n, device=input.device) for n in (height, width))
    rows = y[:, None] - y + sizes['half_h_mask']  # (H of the other, H): row in the mask
    columns = x[:, None] - x + sizes['half_w_mask']
    picked = input.unflatten(1, (tall, wide))[
        :,
        rows.clamp(0, tall - 1)[:, None, :, None],
        columns.clamp(0, wide - 1)[None, :, None, :],
        y[:, None],
        x,
    ]  # (N, H of the other, W of the other, H, W)
    in_rows, in_columns = (rows >= 0) & (rows < tall), (columns >= 0) & (columns < wide)
    picked = picked.masked_fill(~(in_rows[:, None, :, None] & in_columns[None, :, None, :]), 0)
    laid_out = picked.reshape(batch, height * width, height * width)
    laid_out = laid_out if sizes['psa_type'] == 0 else laid_out.transpose(1, 2)
    return laid_out.reshape(batch, height * width, height, width)


def _carafe(tensors: Tensors, sizes: Sizes) -> Tensor:
    """Content-aware reassembly of features (https://arxiv.org/abs/1905.02188).

    Each output pixel is a weighted sum of the ``kernel_size ** 2`` features, (N, C, H, W), around
    its place; each of ``group_size`` groups of channels has its own weights, ``masks``. The output
    is ``scale_factor`` times as large.
    """
    features, masks = tensors['features'], tensors['masks']
    kernel, groups, scale = (sizes[n] for n in ('kernel_size', 'group_size', 'scale_factor'))
    given, dtype = features.dtype, compute_dtype(features, masks)
    batch, channels, height, width = features.shape
    padded = F.pad(features.to(dtype), [kernel // 2] * 4).unflatten(1, (groups, -1))
    masks = masks.to(dtype).view(batch, groups, kernel**2, height, scale, width, scale)
    out = 0
    for tap in range(kernel**2):
        y, x = divmod(tap, kernel)
        pixels = padded[..., y : y + height, x : x + width]
        out = out + pixels[..., None, :, None] * masks[:, :, tap, None]
    return out.reshape(batch, channels, height * scale, width * scale).to(given)


def _carafe_forward(tensors: Tensors, sizes: Sizes) -> Tensor:
    tensors['rfeatures'].copy_(tensors['features'])  # all that the backward pass is given
    return _carafe(tensors, sizes)


OPERATORS = {
    'sigmoid_focal_loss_forward': forward(_focal_loss, 'input target weight output'),
    'sigmoid_focal_loss_backward': backward(_focal_loss, 'input target weight grad_input'),
    'carafe_forward': forward(_carafe_forward, 'features masks rfeatures routput rmasks output'),
    'carafe_backward': backward(
        _carafe,
        'grad_output features masks rgrad_output rgrad_input_hs rgrad_input rgrad_masks '
        'grad_features grad_masks',
    ),
    'psamask_forward': forward(_psamask, 'input output'),
    # its gradient does not depend on the input, whose place the buffer takes
    'psamask_backward': backward(_psamask, 'grad_output input', adds='input'),
}
