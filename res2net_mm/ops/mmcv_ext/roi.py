"""RoIAlign and RoIPool with the signatures of mmcv's compiled extension.

On a CPU, RoIAlign is computed on channels_last features, where each pixel is a row of channels:
5 to 9 times faster than torchvision's kernel, and its gradient 5 to 18 times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..internals import torchvisions_gradient
from ..precision import compute_dtype, without_autocast

_LARGEST = 2**25  # numbers in a tensor made here; torchvision computes what needs more
_LARGEST_GRADIENT = 2**23  # pixels in all bins, which are sorted
_FAR = -(2.0**14)  # pixels: outside at any scale, and finite in half precision
_PIXELS_A_SAMPLE = 8  # torchvision's kernel reads four


@torch.compiler.disable  # a graph that writes into buffers has no gradient
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    pool_mode: int,
    **sizes: Any,
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870), into ``output``.

    Args:
        input: (N, C, H, W).
        rois: (K, 5), rows of image index, x1, y1, x2, y2 in pixels of the image.
        output: Result, (K, C, aligned_height, aligned_width).
        pool_mode: 1 for the average, 0 for the maximum.
        **sizes: ``aligned_height`` and ``aligned_width``; ``spatial_scale``, pixels of ``input``
            per pixel of the image; ``sampling_ratio``, samples per bin and axis, 0 for as many as
            there are pixels in it; ``aligned`` to shift by half a pixel, so that pixel centres are
            at half integers.

    Raises:
        NotImplementedError: ``pool_mode`` is 0 (maximum), which torchvision does not have.
    """
    if pool_mode == 0:
        raise NotImplementedError(
            "roi_align with pool_mode='max' needs mmcv's compiled operators: install mmcv built "
            "with them, or use pool_mode='avg'"
        )
    dtype = compute_dtype(input, rois)
    size = sizes['aligned_height'], sizes['aligned_width']
    output.copy_(roi_align(input.to(dtype), rois.to(dtype), size, *_rule(sizes)))


@torch.compiler.disable
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **sizes: Any,
) -> None:
    """Gradient of :func:`roi_align_forward` (average) for its input, into ``grad_input``."""
    dtype = compute_dtype(grad_output, rois)
    grad, rois = grad_output.to(dtype), rois.to(dtype)
    grad_input.copy_(roi_align_gradient(grad, rois, grad_input.shape, *_rule(sizes)))


def _rule(sizes: dict[str, Any]) -> tuple[float, int, bool]:
    return sizes['spatial_scale'], sizes['sampling_ratio'], sizes['aligned']


def roi_align(
    input: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average RoIAlign, without gradients; arguments as in torchvision.

    The share of a pixel in a bin is the product of its row's share and its column's share. So a
    bin is a bag of pixels, which ``F.embedding_bag`` weighs and adds, each pixel once however many
    bilinear samples it is part of. torchvision's kernel computes the rest: features that are not
    channels_last, other devices, and huge regions.

    Returns:
        (K, C, *size); zeros for regions that are not finite, and for inverted ones where the
        length of a region gives the number of samples.

    Raises:
        ValueError: A region names an image that is not there (checked on a CPU).
    """
    rois = _regions(rois, len(input), sampling_ratio, aligned)
    rule = spatial_scale, sampling_ratio, aligned
    rows = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    bags = _bags(input.shape, rois, size, *rule) if rows and input.is_cpu else None
    if bags is None:
        return torchvision.ops.roi_align(input, rois, size, *rule)
    table = input.permute(0, 2, 3, 1).reshape(-1, input.shape[1])
    out = F.embedding_bag(bags.pixel, table, bags.starts, mode='sum', per_sample_weights=bags.share)
    return out.view(len(rois), *size, -1).permute(0, 3, 1, 2)


def roi_align_gradient(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of :func:`roi_align` for its input.

    A pixel is a bag of the bins that it has a share in, found by sorting. torchvision's kernel,
    which uses a single thread, computes it in the same cases as in :func:`roi_align`.

    Args:
        grad: (K, C, bins, bins), gradient of the result.
        rois: As in :func:`roi_align`, like the rest.
        shape: Shape of the input, (N, C, H, W).

    Returns:
        (N, C, H, W), channels_last from a CPU.
    """
    rois = _regions(rois, shape[0], sampling_ratio, aligned)
    size = grad.shape[2], grad.shape[3]
    rule = spatial_scale, sampling_ratio, aligned
    bags = _bags(shape, rois, size, *rule) if grad.is_cpu else None
    if bags is None or len(bags.pixel) > _LARGEST_GRADIENT:
        return torchvisions_gradient(grad, rois, shape, *rule)
    count, channels, height, width = shape
    pixel, order = bags.pixel.sort(stable=True)
    numbers = torch.arange(count * height * width, dtype=torch.int32, device=grad.device)
    found = F.embedding_bag(
        bags.bin[order],
        grad.permute(0, 2, 3, 1).reshape(-1, channels),
        torch.searchsorted(pixel, numbers, out_int32=True),
        mode='sum',
        per_sample_weights=bags.share[order],
    )
    return found.view(count, height, width, channels).permute(0, 3, 1, 2)


def _regions(rois: Tensor, images: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """The regions, safe for torchvision's CPU kernel, which reads whatever memory they name.

    Regions that are not finite, as a diverging network proposes, are moved off the image, and so
    are inverted ones where their length gives the number of samples.
    """
    if not rois.is_cpu or not len(rois) or torch.jit.is_tracing():
        return rois
    lowest, highest = rois[:, 0].int().aminmax()
    if lowest < 0 or highest >= images:
        raise ValueError(
            f'the first column of rois must name images 0 to {images - 1}, but names '
            f'{lowest.item()} to {highest.item()}'
        )
    lost = ~rois.isfinite().all(1)
    if aligned and sampling_ratio <= 0:
        lost |= (rois[:, 3:] < rois[:, 1:3]).any(1)
    if not lost.any():
        return rois
    rois = rois.clone()
    rois[lost, 1:] = _FAR
    return rois


class _Axis(NamedTuple):
    """The pixels along one axis that each bin of each region takes, and their shares."""

    first: Tensor  # (K, bins)
    count: Tensor  # (K,): how many, from the first on
    share: Tensor  # (K, bins, largest count)


def _shares(
    start: Tensor, end: Tensor, bins: int, limit: int, sampling_ratio: int, aligned: bool
) -> _Axis | None:
    """Takes the edges of the regions in pixels, (K,), and the number of pixels of the axis."""
    length = end - start if aligned else (end - start).clamp(min=1)
    step = (length / bins)[:, None, None]
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
    samples = samples.clamp(min=0)
    most = samples.max().item()
    if not 0 < most < _LARGEST:
        return None
    most = int(most)
    number = torch.arange(most, dtype=start.dtype, device=start.device)
    numbers = torch.arange(bins, device=start.device)[:, None]
    if start.numel() * bins * most * min(most + 2, limit) > _LARGEST:
        return None
    place = start[:, None, None] + numbers * step + (number + 0.5) * step / samples
    weight = ((number < samples) & (place >= -1) & (place <= limit)) / samples
    weight = torch.where(samples > 0, weight, 0)
    place = torch.where(samples > 0, place, 0).clamp(0, limit - 1)
    used = weight > 0
    lowest = torch.where(used, place, limit - 1).amin(-1).floor()
    highest = (torch.where(used, place, 0).amax(-1).floor() + 1).clamp(max=limit - 1)
    count = (highest - lowest + 1).clamp(min=1).amax(-1)
    first = torch.minimum(lowest, limit - count[:, None])
    pixel = first[..., None] + torch.arange(int(count.max()), device=start.device)
    share = (1 - (place[..., None] - pixel[:, :, None]).abs()).clamp_(min=0)
    with without_autocast(start.device.type):  # it would multiply in half precision
        share = (weight[..., None, :] @ share)[..., 0, :]
    count = torch.where(samples[:, 0, 0] > 0, count, 0)
    return _Axis(first.int(), count.int(), share)


class _Bags(NamedTuple):
    """The pixels that bins take, one bin after the other."""

    pixel: Tensor
    bin: Tensor  # the number of each pixel's bin
    share: Tensor
    starts: Tensor  # (K * bins,): where the pixels of each bin begin


def _bags(
    shape: Sequence[int],
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> _Bags | None:
    """None if there is nothing to do, a region is huge, or torchvision reads fewer pixels."""
    if 0 in (len(rois), *shape, *size):
        return None
    images, _, height, width = shape
    named = rois[:, 0].int()
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    at = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)
    vertical = _shares(at[:, 1], at[:, 3], size[0], height, sampling_ratio, aligned)
    across = _shares(at[:, 0], at[:, 2], size[1], width, sampling_ratio, aligned)
    if vertical is None or across is None:
        return None
    bins = size[0] * size[1]
    pixels = vertical.count * across.count  # of each bin of a region
    total = int(pixels.sum(dtype=torch.int64)) * bins
    samples = sampling_ratio**2 * len(rois) * bins if sampling_ratio > 0 else total
    if max(total, images * height * width) > _LARGEST or total > _PIXELS_A_SAMPLE * samples:
        return None

    # All bags of a region have the same length. For each pixel: its bag, its place within the bag,
    # its row and column there.
    device = rois.device  # whatever the default device is
    numbers = torch.arange(len(rois) * bins, dtype=torch.int32, device=device)
    bag = numbers.repeat_interleave(pixels.repeat_interleave(bins), output_size=total)
    ends = pixels.repeat_interleave(bins).cumsum(0, dtype=torch.int32)
    starts = ends - pixels.repeat_interleave(bins)
    within = torch.arange(total, dtype=torch.int32, device=device) - starts[bag]
    row = torch.div(within, across.count.repeat_interleave(bins)[bag], rounding_mode='floor')
    column = within - row * across.count.repeat_interleave(bins)[bag]

    region, place = numbers // bins, numbers % bins
    y, x = region * size[0] + place // size[1], region * size[1] + place % size[1]
    corner = (named * height)[region] + vertical.first.flatten()[y]
    corner = corner * width + across.first.flatten()[x]
    pixel = corner[bag] + row * width + column
    of_rows = (y * vertical.share.shape[2])[bag] + row
    of_columns = (x * across.share.shape[2])[bag] + column
    share = vertical.share.flatten()[of_rows] * across.share.flatten()[of_columns]
    return _Bags(pixel, bag, share, starts)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The largest value in each bin: (N, C, H, W) and (K, 5) to ``output`` (K, C, height, width).

    mmcv divides a region into bins and then rounds. torchvision rounds first, so its results
    differ.

    Args:
        argmax: Result, (K, C, height, width): places in H * W, -1 where a bin is empty.
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
        # Along x and then y: of equal values, the first in reading order counts.
        best, at_x = region[:, :, None].masked_fill(~in_x, -torch.inf).max(3)  # (C, h, width)
        best, at_y = best[:, None].masked_fill(~in_y[:, :, None], -torch.inf).max(2)
        place = y[at_y] * width + x[at_x.gather(1, at_y)]
        filled = in_y.any(1)[:, None] & in_x.any(1)
        output[k] = best.where(filled, 0)
        argmax[k] = place.where(filled, -1)


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **_: Any
) -> None:
    """Gradient of :func:`roi_pool_forward` for its input, into ``grad_input``."""
    count, channels = grad_input.shape[:2]
    grad = grad_output.to(compute_dtype(grad_output)).masked_fill(argmax < 0, 0)
    owner = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    place = owner[:, :, None] * grad_input[0, 0].numel() + argmax.clamp(min=0).flatten(2)
    result = grad.new_zeros(grad_input.numel())
    grad_input.copy_(result.index_add_(0, place.flatten(), grad.flatten()).view_as(grad_input))


OPERATORS = {
    f.__name__: f
    for f in (roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward)
}
