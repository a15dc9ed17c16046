"""Deformable convolution in plain PyTorch: an exact one with gradients, and one for exports.

The exact one reads the image as rows of channels, one row per pixel, with a border of zeros. Each
tap of each output pixel is a bag of four rows, weighted by bilinear interpolation times mask:
``F.embedding_bag`` gathers and weighs them in one call, and a matrix product with the weight
follows. This goes block by block of output pixels, so that the sampled columns, nine times the
input for a 3x3 kernel, never exist as a whole. The backward pass samples again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .internals import bag_products
from .precision import without_autocast

# Bytes of a block's columns: they should stay in a CPU's cache; elsewhere few launches count.
CPU_BLOCK = 4 * 2**20
OTHER_BLOCK = 256 * 2**20
BORDER = 3  # zeros around the image: one row (column) before it, two after it
FAR = -(2.0**24)  # pixels, beyond any image

Pair = tuple[int, int]


class _Bags(NamedTuple):
    """Where each tap samples. The bags are ordered (N, H_out, W_out, taps, deform_groups)."""

    index: Tensor  # (bags, 4): rows of the pixels around the sample, upper two first
    share: Tensor  # (bags, 4): their weights
    fraction: Tensor  # (N, H_out, W_out, taps, deform_groups, 2): y and x from the first pixel on
    inside: Tensor | None  # the same shape: whether the tap is beyond row (column) -1


def _grid(device: torch.device, kernel: Pair, out: Pair, *places: Pair) -> Tensor:
    """Pixels (y, x) of the undeformed taps, (H_out, W_out, taps, 1, 2); places as in conv2d."""
    axes = [
        torch.arange(o, device=device)[:, None] * s + torch.arange(k, device=device) * d - p
        for o, k, s, p, d in zip(out, kernel, *places, strict=True)
    ]
    y, x = axes[0][:, None, :, None], axes[1][None, :, None, :]
    return torch.stack(torch.broadcast_tensors(y, x), -1).flatten(2, 3).unsqueeze(3)


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
    grid = _grid(offset.device, kernel, tuple(offset.shape[2:]), *places) + 1  # after the border
    at = torch.add(by_tap, grid.to(offset.dtype), out=offset.new_empty(by_tap.shape))
    # What is a pixel or more outside samples zero: move it to the border.
    kept = at.clamp(at.new_zeros(2), at.new_tensor([height + 1, width + 1]))
    # mmcv's rule: a tap on the line before the image is outside. Behind the image, and on the line
    # there, all four pixels around it are zero, and so is the gradient.
    inside = kept > 0 if with_inside else None
    corner = torch.floor(kept, out=at)
    fraction = kept.sub_(corner)

    pitch = width + BORDER
    size = (height + BORDER) * pitch * groups  # rows of an image
    integer = torch.int32 if max(batch * size, 4 * fraction.numel()) < 2**31 else torch.int64
    numbers = dict(dtype=integer, device=offset.device)
    y, x = corner.to(integer).unbind(-1)
    base = torch.arange(batch, **numbers).mul_(size).view(-1, 1, 1, 1, 1)
    base = base + torch.arange(groups, **numbers)  # (N, 1, 1, 1, deform_groups)
    first = torch.add(x, y, alpha=pitch)
    first = torch.add(base, first, alpha=groups, out=first)
    first.clamp_(0, max(batch * size - 1 - (pitch + 1) * groups, 0))  # NaN offsets
    around = torch.tensor([0, 1, pitch, pitch + 1], **numbers) * groups
    index = first.reshape(-1, 1) + around  # torch 2.14 compiles `first` with by_tap's strides

    fy, fx = fraction.unbind(-1)
    rows = torch.empty_like(fraction)  # shares of the upper and the lower two pixels
    if mask is None:
        torch.sub(1, fy, out=rows[..., 0])
        rows[..., 1] = fy
    else:
        mask = _by_tap(mask, taps)
        torch.mul(mask, fy, out=rows[..., 1])
        torch.sub(mask, rows[..., 1], out=rows[..., 0])
    share = at.new_empty(*at.shape, 2)
    torch.mul(rows, fx[..., None], out=share[..., 1])
    torch.sub(rows, share[..., 1], out=share[..., 0])
    return _Bags(index, share.view(-1, 4), fraction, inside)


def _by_tap(mask: Tensor, taps: int) -> Tensor:
    """(N, deform_groups * taps, H_out, W_out) in the order of the bags."""
    return mask.unflatten(1, (-1, taps)).permute(0, 3, 4, 2, 1)


def _blocks(bags: _Bags, channels: int) -> Iterator[tuple[slice, slice]]:
    """Slices of output pixels, each with the slice of its bags."""
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
    """Columns of a block for each group, (groups, pixels, taps * channels / groups)."""
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
        *places: Pair,
    ) -> Tensor:
        batch, channels, height, width = input.shape
        groups = channels // weight.shape[1]
        trains = any(ctx.needs_input_grad)
        kernel = tuple(weight.shape[2:])
        bags = _bags(offset, mask, input.shape, kernel, *places, with_inside=trains)
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
        return out if input.stride(1) == 1 else out.contiguous()  # in the input's memory format

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad.device.type):
            return *_gradients(ctx, grad), None, None, None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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
            of_share[block] = bag_products(of_columns, rows, bags.index[block])

    of_offset, of_mask = _of_place(of_share, bags, mask) if needs_place else (None, None)
    inner = of_rows.view(batch, height + BORDER, width + BORDER, channels)
    inner = inner[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
    of_weight = of_matrices.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)
    found = inner, of_offset, of_mask, of_weight, by_pixel.sum(0) if needs_bias else None
    needs = ctx.needs_input_grad[:5]
    return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))


def _scatter(of_rows: Tensor, of_columns: Tensor, index: Tensor, share: Tensor) -> None:
    """Adds the gradients of the bags to their rows: sorted by row, these are bags as well."""
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
        of_at *= _by_tap(mask, bags.fraction.shape[3])[..., None]
    return of_at.permute(0, 4, 3, 5, 1, 2).flatten(1, 3), of_mask


# Takes tensors that are all float32 or all float64, in the shapes of deform_conv2d.
sample_and_multiply = _DeformConv.apply


def hide_outside(offset: Tensor, image: Pair, kernel: Pair, *places: Pair) -> Tensor:
    """Moves the taps that mmcv's operator takes to be outside the image far away.

    These are taps on the lines around the image too (row -1 and H, column -1 and W), and those
    with a NaN offset. torchvision's kernels would give the former a gradient and read memory at
    the latter. ``image`` and ``kernel`` are heights and widths.
    """
    if torch.jit.is_tracing():  # the exporter takes only the name of mmcv's function
        return offset
    by_tap = offset.unflatten(1, (-1, kernel[0] * kernel[1], 2))
    grid = _grid(offset.device, kernel, tuple(offset.shape[2:]), *places)[..., 0, :]
    y, x = (by_tap + grid.permute(2, 3, 0, 1)).unbind(3)  # (N, deform_groups, taps, H_out, W_out)
    inside = (y > -1) & (y < image[0]) & (x > -1) & (x < image[1])
    return by_tap.masked_fill(~inside.unsqueeze(3), FAR).flatten(1, 3)


def grid_sample_and_multiply(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *places: Pair,
) -> Tensor:
    """Deformable convolution by ``F.grid_sample``, which ONNX has; not for training.

    A normalised grid does not hit whole pixels, where bilinear interpolation has its kinks, so
    some gradients of fresh offsets, all zero, are the slope before the kink.
    """
    height, width = input.shape[2:]
    out_height, out_width = offset.shape[2:]
    taps = weight[0, 0].numel()
    deform_groups = offset.shape[1] // (2 * taps)
    grid = _grid(weight.device, tuple(weight.shape[2:]), (out_height, out_width), *places)
    at = offset.reshape(-1, taps, 2, out_height, out_width) + grid[..., 0, :].permute(2, 3, 0, 1)
    y, x = at.unbind(2)  # (N * deform_groups, taps, H_out, W_out)
    if not torch.onnx.is_in_onnx_export():  # gradients are possible
        # Clamping to -1 .. size changes no value, and relu has no slope at 0: mmcv's rule
        y, x = (n - F.relu(n + 1 - F.relu(a + 1)) for a, n in ((y, height), (x, width)))
    sampled = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    image = input.reshape(-1, input.shape[1] // deform_groups, height, width)
    columns = F.grid_sample(image, sampled.flatten(1, 2), align_corners=False)
    columns = columns.unflatten(2, (taps, out_height))  # (N * groups, C / groups, taps, H, W)
    if mask is not None:
        columns = columns * mask.reshape(-1, 1, taps, out_height, out_width)
    columns = columns.reshape(-1, input.shape[1] * taps, out_height, out_width)
    groups = input.shape[1] // weight.shape[1]
    return F.conv2d(columns, weight.flatten(1)[..., None, None], bias, groups=groups)
