"""Deformable convolution in plain PyTorch: exact, with gradients; and a form that exports.

The image lies as rows of channels, with a border of zeros around it. Each tap of each output pixel
is a bag of four rows, weighted by bilinear interpolation times mask: ``F.embedding_bag`` gathers
and weighs them in one call, and one matrix product with the weight follows. This goes by blocks of
output pixels, so that the sampled columns, nine times the input, never exist as a whole; the
backward pass samples again rather than keep them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Bytes of a block's columns: on the CPU it should stay in the cache, elsewhere launches count.
CPU_BLOCK = 4 * 2**20
OTHER_BLOCK = 256 * 2**20
_LARGEST_KEPT = 2**19  # values of places that are kept for the next call
_FAR = -(2.0**24)  # pixels, beyond any image
BORDER = 3  # of zeros: one row (column) before the image, two after it

Pair = tuple[int, int]


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which types stay as they are; ``device`` is its type."""
    return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)


class _Bags(NamedTuple):
    """Where each tap samples; the bags lie as (N, H_out, W_out, taps, deform_groups)."""

    index: Tensor  # (bags, 4): rows of the pixels around it, upper two first
    share: Tensor  # (bags, 4): their weights
    fraction: Tensor  # (N, H_out, W_out, taps, deform_groups, 2): y and x behind the first pixel
    inside: Tensor | None  # the same shape: whether the tap lies beyond row (column) -1


class _Places(NamedTuple):
    """What the places of samples are made of, but for the offsets."""

    grid: Tensor  # (H_out, W_out, taps, 1, 2): y and x of the undeformed taps, 1 after the border
    highest: Tensor  # (2,): y and x of the border's last pixels
    base: Tensor  # (N, 1, 1, 1, deform_groups): row of the first pixel
    around: Tensor  # (4,): rows from a pixel to the four around a sample


def _grid(device: torch.device, kernel: Pair, out: Pair, *places: Pair) -> Tensor:
    """Pixels (y, x) of the undeformed taps, (H_out, W_out, taps, 1, 2); places as in conv2d."""
    axes = [
        torch.arange(o, device=device)[:, None] * s + torch.arange(k, device=device) * d - p
        for o, k, s, p, d in zip(out, kernel, *places, strict=True)
    ]
    y, x = axes[0][:, None, :, None], axes[1][None, :, None, :]
    return torch.stack(torch.broadcast_tensors(y, x), -1).flatten(2, 3).unsqueeze(3)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _places(
    dtype: torch.dtype,
    device: torch.device,
    image: torch.Size,
    groups: int,
    kernel: Pair,
    out: Pair,
    *places: Pair,
) -> _Places:
    batch, _, height, width = image
    pitch = width + BORDER
    size = (height + BORDER) * pitch * groups  # rows of an image
    bags = batch * out[0] * out[1] * kernel[0] * kernel[1] * groups
    integer = torch.int32 if max(batch * size, 8 * bags) < 2**31 else torch.int64
    numbers = dict(dtype=integer, device=device)
    images = torch.arange(batch, **numbers).mul_(size).view(-1, 1, 1, 1, 1)
    return _Places(
        (_grid(device, kernel, out, *places) + 1).to(dtype),
        torch.tensor([height + 1, width + 1], dtype=dtype, device=device),
        images + torch.arange(groups, **numbers),
        torch.tensor([0, 1, pitch, pitch + 1], **numbers) * groups,
    )


def _may_keep(offset: Tensor) -> bool:
    """Whether places are tensors like any other, small, and on no device with queues of its own."""
    plain = type(offset) is Tensor and _get_current_dispatch_mode() is None
    small = offset.is_cpu and offset.shape[1:].numel() <= _LARGEST_KEPT
    return plain and small and not torch.compiler.is_compiling()


def _bags(
    offset: Tensor,
    mask: Tensor | None,
    image: torch.Size,
    kernel: Pair,
    *places: Pair,
    with_inside: bool,
) -> _Bags:
    batch, _, height, width = image
    taps = kernel[0] * kernel[1]
    by_tap = offset.unflatten(1, (-1, taps, 2)).permute(0, 4, 5, 2, 1, 3)
    groups = by_tap.shape[4]
    make = _places if _may_keep(offset) else _places.__wrapped__
    out = tuple(offset.shape[2:])
    found = make(offset.dtype, offset.device, image, groups, kernel, out, *places)
    at = torch.add(by_tap, found.grid, out=offset.new_empty(by_tap.shape))
    # Whatever lies a pixel or more outside samples zero: it is moved to the border.
    kept = at.clamp(at.new_zeros(2), found.highest)
    # mmcv's rule: on the line before the image a tap is outside. Behind the image, on the line
    # too, all four pixels around it are zero, and so is the gradient.
    inside = kept > 0 if with_inside else None
    corner = torch.floor(kept, out=at)
    fraction = kept.sub_(corner)

    y, x = corner.to(found.base.dtype).unbind(-1)
    pitch = width + BORDER
    first = torch.add(x, y, alpha=pitch)
    first = torch.add(found.base, first, alpha=groups, out=first)
    last = batch * (height + BORDER) * pitch * groups - 1
    first.clamp_(0, max(last - (pitch + 1) * groups, 0))  # for offsets that are NaN
    index = first.reshape(-1, 1) + found.around  # torch 2.14 compiles `first` with by_tap's strides

    fy, fx = fraction.unbind(-1)
    rows = torch.empty_like(fraction)  # shares of the upper and the lower two pixels
    if mask is None:
        torch.sub(1, fy, out=rows[..., 0])
        rows[..., 1] = fy
    else:
        mask = mask.unflatten(1, (-1, taps)).permute(0, 3, 4, 2, 1)
        torch.mul(mask, fy, out=rows[..., 1])
        torch.sub(mask, rows[..., 1], out=rows[..., 0])
    share = at.new_empty(*at.shape, 2)
    torch.mul(rows, fx[..., None], out=share[..., 1])
    torch.sub(rows, share[..., 1], out=share[..., 0])
    return _Bags(index, share.view(-1, 4), fraction, inside)


def _blocks(bags: _Bags, channels: int) -> Iterator[tuple[slice, slice]]:
    """Output pixels, and their bags."""
    per_pixel = bags.fraction.shape[3:5].numel()
    pixels = bags.fraction.shape[:3].numel()
    bound = CPU_BLOCK if bags.share.device.type == 'cpu' else OTHER_BLOCK
    column = channels * bags.fraction.shape[3] * bags.share.element_size()
    blocks = max(-(-pixels * column // bound), 1)
    step = -(-pixels // blocks)
    for start in range(0, pixels, step or 1):
        stop = min(start + step, pixels)
        yield slice(start, stop), slice(start * per_pixel, stop * per_pixel)


def _gather(rows: Tensor, bags: _Bags, block: slice, groups: int) -> Tensor:
    """The columns of a block by group, (groups, pixels, taps * channels / groups)."""
    index, share = bags.index[block], bags.share[block]
    samples = F.embedding_bag(index, rows, per_sample_weights=share, mode='sum')
    taps, deform_groups = bags.fraction.shape[3:5]
    columns = samples.view(-1, taps, groups, deform_groups * rows.shape[1] // groups)
    return columns.permute(2, 0, 1, 3).reshape(groups, len(columns), -1)


def _matrices(weight: Tensor, groups: int) -> Tensor:
    """(C_out, C / groups, kh, kw) -> (groups, C_out / groups, taps * C / groups)."""
    return weight.permute(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        batch, channels, height, width = input.shape
        groups = channels // weight.shape[1]
        places = tuple(weight.shape[2:]), stride, padding, dilation
        trains = any(ctx.needs_input_grad)
        bags = _bags(offset, mask, input.shape, *places, with_inside=trains)
        rows = input.new_zeros(batch, height + BORDER, width + BORDER, channels)
        rows[:, 1 : height + 1, 1 : width + 1] = input.permute(0, 2, 3, 1)
        rows = rows.view(-1, channels // bags.fraction.shape[4])

        matrices = _matrices(weight, groups)
        out = input.new_empty(bags.fraction.shape[:3].numel(), len(weight))
        for pixels, block in _blocks(bags, channels):
            parts = _gather(rows, bags, block, groups)
            targets = out[pixels].chunk(groups, 1)
            for part, matrix, target in zip(parts, matrices, targets, strict=True):
                torch.mm(part, matrix.t(), out=target)
        if bias is not None:
            out += bias

        if trains:
            ctx.save_for_backward(rows, mask, weight, *bags)
            ctx.image = input.shape
        out = out.view(*bags.fraction.shape[:3], len(weight)).permute(0, 3, 1, 2)
        return out if input.stride(1) == 1 else out.contiguous()  # as the input lies in memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad.device.type):
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, mask, weight, *bags = ctx.saved_tensors
    needs_input, needs_offset, needs_mask, needs_weight, needs_bias = ctx.needs_input_grad[:5]
    needs_place = needs_offset or needs_mask
    bags = _Bags(*bags)
    batch, channels, height, width = ctx.image
    groups = channels // weight.shape[1]
    taps = bags.fraction.shape[3]
    matrices = _matrices(weight, groups)
    of_matrices = torch.zeros_like(matrices)
    of_rows = torch.zeros_like(rows)
    of_share = torch.empty_like(bags.share)
    by_pixel = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))

    for pixels, block in _blocks(bags, channels):
        of_out = by_pixel[pixels].chunk(groups, 1)
        if needs_weight:
            parts = _gather(rows, bags, block, groups)
            for of_matrix, of_one, part in zip(of_matrices, of_out, parts, strict=True):
                of_matrix.addmm_(of_one.t(), part)
        else:
            parts = grad.new_empty(groups, len(by_pixel[pixels]), matrices.shape[2])
        if not (needs_input or needs_place):
            continue
        for of_one, matrix, part in zip(of_out, matrices, parts, strict=True):
            torch.mm(of_one, matrix, out=part)
        parts = parts.view(groups, len(by_pixel[pixels]), taps, -1).permute(1, 2, 0, 3)
        of_columns = parts.reshape(-1, rows.shape[1])
        if needs_input:
            _scatter(of_rows, of_columns, bags.index[block], bags.share[block])
        if needs_place:
            of_share[block] = _dot(of_columns, rows, bags.index[block])

    of_offset, of_mask = _of_place(of_share, bags, mask) if needs_place else (None, None)
    inner = of_rows.view(batch, height + BORDER, width + BORDER, channels)
    of_weight = of_matrices.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
    return (
        inner[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2) if needs_input else None,
        of_offset if needs_offset else None,
        of_mask if needs_mask else None,
        of_weight if needs_weight else None,
        by_pixel.sum(0) if needs_bias else None,
        None,
        None,
        None,
    )


def _scatter(of_rows: Tensor, of_columns: Tensor, index: Tensor, share: Tensor) -> None:
    """Add to every row what its bags pass on: a sum of bags too, once sorted by row."""
    row, order = index.view(-1).sort(stable=True)
    low, high = row[0].item(), row[-1].item() + 1
    starts = torch.searchsorted(row, torch.arange(low, high, dtype=row.dtype, device=row.device))
    of_rows[low:high] += F.embedding_bag(
        order >> 2,  # four rows a bag
        of_columns,
        starts,
        per_sample_weights=share.view(-1).index_select(0, order),
        mode='sum',
    )


def _dot(of_columns: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Products of each bag's gradient with its four rows: the gradient of their shares."""
    numbers = dict(dtype=index.dtype, device=index.device)
    starts = torch.arange(0, index.numel(), 4, **numbers)
    owner = torch.arange(len(index), **numbers).repeat_interleave(4)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        of_columns, rows, index.view(-1), starts, owner, 0, -1
    ).view(-1, 4)


def _of_place(of_share: Tensor, bags: _Bags, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of offset and mask from those of the shares."""
    fy, fx = bags.fraction.unbind(-1)
    of_share = of_share.view(*bags.fraction.shape, 2)
    along_x = of_share[..., 1] - of_share[..., 0]
    in_row = torch.addcmul(of_share[..., 0], along_x, fx[..., None])
    of_at = torch.empty_like(bags.fraction)
    torch.sub(in_row[..., 1], in_row[..., 0], out=of_at[..., 0])
    torch.lerp(along_x[..., 0], along_x[..., 1], fy, out=of_at[..., 1])
    of_at *= bags.inside
    of_mask = None
    if mask is not None:
        at_tap = torch.lerp(in_row[..., 0], in_row[..., 1], fy)
        of_mask = at_tap.permute(0, 4, 3, 1, 2).reshape(mask.shape)
        taps = bags.fraction.shape[3]
        of_at *= mask.unflatten(1, (-1, taps)).permute(0, 3, 4, 2, 1)[..., None]
    return of_at.permute(0, 4, 3, 5, 1, 2).flatten(1, 3), of_mask


# For tensors that all are float32, or all float64, of the shapes that deform_conv2d names.
sample_and_multiply = _DeformConv.apply


def hide_outside(offset: Tensor, image: Pair, kernel: Pair, *places: Pair) -> Tensor:
    """The offsets, far outside wherever mmcv's operator takes the tap to be outside.

    It does so on the lines around the image too (row -1 and H, column -1 and W) and where an
    offset is NaN. Such a tap reads nothing and gets no gradient from torchvision's kernels, which
    by themselves give it a gradient on the lines, and take NaN for an index.

    Args:
        offset: As in ``deform_conv2d``.
        image: Height and width of its input.
        kernel: Height and width of its weight.
        *places: Its stride, padding and dilation, pairs.
    """
    if torch.jit.is_tracing():  # mmcv's function, of which the exporter takes the name only
        return offset
    by_tap = offset.unflatten(1, (-1, kernel[0] * kernel[1], 2))
    grid = _grid(offset.device, kernel, tuple(offset.shape[2:]), *places)[..., 0, :]
    y, x = (by_tap + grid.permute(2, 3, 0, 1)).unbind(3)  # (N, deform_groups, taps, H_out, W_out)
    inside = (y > -1) & (y < image[0]) & (x > -1) & (x < image[1])
    return by_tap.masked_fill(~inside.unsqueeze(3), _FAR).flatten(1, 3)


def grid_sample_and_multiply(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The same values by ``F.grid_sample``, which ONNX has; not for training.

    A normalised grid does not hit integer positions, where bilinear interpolation has its kinks:
    some gradients of fresh offsets, all zero, are the slope before the kink.
    """
    height, width = input.shape[2:]
    out_height, out_width = offset.shape[2:]
    taps = weight[0, 0].numel()
    deform_groups = offset.shape[1] // (2 * taps)
    places = (out_height, out_width), stride, padding, dilation
    grid = _grid(weight.device, tuple(weight.shape[2:]), *places)
    at = offset.reshape(-1, taps, 2, out_height, out_width) + grid[..., 0, :].permute(2, 3, 0, 1)
    y, x = at.unbind(2)  # (N * deform_groups, taps, H_out, W_out)
    if not torch.onnx.is_in_onnx_export():  # where there are gradients
        # from -1 to the size: no value changes, and relu has no slope at 0, which is mmcv's rule
        y, x = (n - F.relu(n + 1 - F.relu(a + 1)) for a, n in ((y, height), (x, width)))
    places = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    image = input.reshape(-1, input.shape[1] // deform_groups, height, width)
    columns = F.grid_sample(image, places.flatten(1, 2), align_corners=False)
    columns = columns.unflatten(2, (taps, out_height))  # (N * groups, C / groups, taps, H, W)
    if mask is not None:
        columns = columns * mask.reshape(-1, 1, taps, out_height, out_width)
    columns = columns.reshape(-1, input.shape[1] * taps, out_height, out_width)
    groups = input.shape[1] // weight.shape[1]
    return F.conv2d(columns, weight.flatten(1)[..., None, None], bias, groups=groups)
