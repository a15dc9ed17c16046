"""RoIAlign on channels_last features, where each pixel is a row of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ..sampling import without_autocast

_LARGEST = 2**25  # of the tensors made here; more than this is torchvision's work
_LARGEST_GRADIENT = 2**23  # pixels of bins, which are sorted
_FAR = -(2.0**14)  # pixels: outside at any scale, and a number of half precision too
_PIXELS_A_SAMPLE = 8  # torchvision's kernels take four


def roi_align(
    input: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average RoIAlign (https://arxiv.org/abs/1703.06870), without gradients.

    The share of a pixel in a bin is the product of one that its row has and one that its column
    has. A bin is so a bag of pixels, which ``F.embedding_bag`` weighs and adds, each pixel once
    however many bilinear samples it is part of. On a CPU this is faster than torchvision's kernel,
    which computes it for features that are not channels_last, on other devices and for regions
    beyond all measure.

    Args:
        input: (N, C, H, W).
        rois: (K, 5), rows of image index, x1, y1, x2, y2 in pixels of the image.
        size: Bins of the result, height and width.
        spatial_scale: Pixels of ``input`` per pixel of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as pixels lie in it.
        aligned: Shift by half a pixel, so that pixel centres lie at half integers.

    Returns:
        (K, C, *size); zeros for regions that are not finite, or empty where their length is the
        number of samples.

    Raises:
        ValueError: A region is of an image that is not there (checked on a CPU).
    """
    rois = _regions(rois, len(input), sampling_ratio, aligned)
    channels = input.shape[1]
    rows = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    arguments = size, spatial_scale, sampling_ratio, aligned
    bags = _bags(input.shape, rois, *arguments) if rows and input.is_cpu else None
    if bags is None:
        return torchvision.ops.roi_align(input, rois, *arguments)
    table = input.permute(0, 2, 3, 1).reshape(-1, channels)
    out = F.embedding_bag(bags.pixel, table, bags.starts, mode='sum', per_sample_weights=bags.share)
    return out.view(len(rois), *size, channels).permute(0, 3, 1, 2)


def roi_align_gradient(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of :func:`roi_align` for its input.

    A pixel is a bag of the bins that it has a share in: what belongs to a bag is found by sorting.
    torchvision's kernel, which is for what it is for in :func:`roi_align`, takes one thread.

    Args:
        grad: (K, C, bins, bins), gradient of the result.
        rois: As there.
        shape: Of the input, (N, C, H, W).
        spatial_scale: As there, as are the others.

    Returns:
        (N, C, H, W), in channels_last from a CPU.
    """
    rois = _regions(rois, shape[0], sampling_ratio, aligned)
    size = grad.shape[2], grad.shape[3]
    arguments = spatial_scale, sampling_ratio, aligned
    bags = _bags(shape, rois, size, *arguments) if grad.is_cpu else None
    if bags is None or len(bags.pixel) > _LARGEST_GRADIENT:
        return torchvisions_gradient(grad, rois, shape, *arguments)
    count, channels, height, width = shape
    pixel, order = bags.pixel.sort(stable=True)
    numbers = torch.arange(count * height * width, dtype=torch.int32, device=grad.device)
    table = grad.permute(0, 2, 3, 1).reshape(-1, channels)
    found = F.embedding_bag(
        bags.bin[order],
        table,
        torch.searchsorted(pixel, numbers, out_int32=True),
        mode='sum',
        per_sample_weights=bags.share[order],
    )
    return found.view(count, height, width, channels).permute(0, 3, 1, 2)


def torchvisions_gradient(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """:func:`roi_align_gradient` by torchvision's kernel."""
    backward = torch.ops.torchvision._roi_align_backward
    places = *grad.shape[2:], *shape
    return backward(grad, rois, spatial_scale, *places, sampling_ratio, aligned)


def _regions(rois: Tensor, images: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """The regions, of which torchvision's kernel for CPUs reads whatever memory they name.

    Those that are not finite, as a network that diverges proposes, and those with their corners
    swapped where the length says how many samples there are, are moved off the image.
    """
    if not rois.is_cpu or not len(rois) or torch.jit.is_tracing():
        return rois
    lowest, highest = rois[:, 0].int().aminmax()
    if lowest < 0 or highest >= images:
        raise ValueError(
            f'rois must be of images 0 to {images - 1} in their first column, but are of '
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
    """Which pixels of an axis the bins of regions take, and with which shares."""

    first: Tensor  # (K, bins)
    count: Tensor  # (K,) how many from the first on
    share: Tensor  # (K, bins, most of count)


def _shares(
    start: Tensor, end: Tensor, bins: int, limit: int, sampling_ratio: int, least: int
) -> _Axis | None:
    """Args: edges (K,) of regions in pixels; pixels of the axis; least length of a region."""
    length = end - start
    length = length.clamp(min=1) if least else length
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
    with without_autocast(start.device.type):  # which would multiply in half precision
        share = (weight[..., None, :] @ share)[..., 0, :]
    count = torch.where(samples[:, 0, 0] > 0, count, 0)
    return _Axis(first.int(), count.int(), share)


class _Bags(NamedTuple):
    """Which pixels bins take, those of a bin after each other."""

    pixel: Tensor
    bin: Tensor
    share: Tensor
    starts: Tensor  # (K * bins,): where the pixels of a bin begin


def _bags(
    shape: Sequence[int],
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> _Bags | None:
    """None where there is nothing, a region is beyond all measure, or samples ask for less."""
    if 0 in (len(rois), *shape, *size):
        return None
    images, _, height, width = shape
    named = rois[:, 0].int()
    rois = rois.to(torch.promote_types(rois.dtype, torch.float32))
    at = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)
    least = 0 if aligned else 1
    vertical = _shares(at[:, 1], at[:, 3], size[0], height, sampling_ratio, least)
    across = _shares(at[:, 0], at[:, 2], size[1], width, sampling_ratio, least)
    if vertical is None or across is None:
        return None
    bins = size[0] * size[1]
    pixels = vertical.count * across.count  # of each bin of a region
    total = int(pixels.sum(dtype=torch.int64)) * bins
    samples = sampling_ratio**2 * len(rois) * bins if sampling_ratio > 0 else total
    if max(total, images * height * width) > _LARGEST or total > _PIXELS_A_SAMPLE * samples:
        return None

    # Bags of a region have the same length. Of each pixel: its bag, its place within the bag, its
    # row and column there.
    device = rois.device  # also where another is the default
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
