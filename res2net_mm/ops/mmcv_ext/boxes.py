"""Operators on boxes with the signatures of mmcv's compiled extension.

Boxes are (x1, y1, x2, y2) in pixels. ``offset`` is 0, or 1 for the older convention where x2 and y2
are the last pixels inside, so that the width is x2 - x1 + 1.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from ..precision import compute_dtype


def _overlaps(first: Tensor, second: Tensor, offset: int, over_first: bool = False) -> Tensor:
    """Intersection over union, or over the area of the first boxes; boxes broadcast."""
    corner_low = torch.maximum(first[..., :2], second[..., :2])
    corner_high = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (corner_high - corner_low + offset).clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if not over_first:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(-1) - intersection
    return intersection / area


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Writes the overlaps of (M, 4) boxes with (N, 4) boxes into ``ious``.

    Args:
        bboxes1: (M, 4).
        bboxes2: (N, 4).
        ious: Result, (M, N), or (M,) if ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the area of ``bboxes1``.
        aligned: Compare row by row (M == N) instead of all with all.
        offset: 0 or 1.
    """
    dtype = compute_dtype(bboxes1, bboxes2)
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        first = first[:, None]
    ious.copy_(_overlaps(first, second, offset, over_first=mode == 1))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, in descending order of score.

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou_threshold: A box that overlaps a better one by more than this is dropped.
        offset: 0 or 1.
    """
    dtype = compute_dtype(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # The extension compares in the boxes' type and keeps an overlap of exactly the threshold.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torchvision.ops.nms(boxes, scores.to(dtype), threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (https://arxiv.org/abs/1704.04503).

    Boxes that overlap a better one get a lower score; those below ``min_score`` are dropped. Equal
    scores come in the extension's order: it swaps rows instead of sorting them.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: Result, (N, 5); the first K rows get boxes and new scores in the order of choice.
        iou_threshold: Overlap from which on a score is lowered (methods 0 and 1).
        sigma: Width of the Gaussian (method 2).
        min_score: A box whose lowered score is below this is dropped.
        method: 0 drops (score 0), 1 multiplies by 1 - overlap, 2 by exp(-overlap^2 / sigma).
        offset: 0 or 1.

    Returns:
        Indices into ``boxes``, (K,).
    """
    dtype = compute_dtype(boxes, scores)
    rows = torch.cat((boxes.to(dtype), scores.to(dtype)[:, None]), dim=1)
    kept = torch.arange(len(rows), device=rows.device)
    done = 0
    while done < len(rows):
        best = done + int(rows[done:, 4].argmax())
        swap, swapped = [done, best], [best, done]
        rows[swap], kept[swap] = rows[swapped], kept[swapped]
        done += 1

        # 0 / 0: two boxes without area do not overlap
        overlap = _overlaps(rows[done - 1, :4], rows[done:, :4], offset).nan_to_num(nan=0.0)
        if method == 2:
            decay = torch.exp(-(overlap**2) / sigma)
        else:
            lowered = 1 - overlap if method == 1 else torch.zeros_like(overlap)
            decay = torch.where(overlap >= iou_threshold, lowered, 1.0)
        rows[done:, 4] *= decay

        keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        keep[done:] = rows[done:, 4] >= min_score
        count = int(keep.sum())
        # Fill the gaps with the last rows that stay, as the extension does one by one.
        gaps = (~keep[:count]).nonzero()[:, 0]
        movers = (count + keep[count:].nonzero()[:, 0]).flip(0)
        rows[gaps], kept[gaps] = rows[movers], kept[movers]
        rows, kept = rows[:count], kept[:count]
    dets[: len(rows)] = rows.to(dets)
    return kept


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression that reports which box dropped which.

    Args:
        dets: (N, 5), boxes and scores.
        iou_threshold: A box that overlaps a better one by this or more is dropped.

    Returns:
        For each box kept, by descending score: its index, then those of the boxes it dropped.
    """
    dets = dets.to(compute_dtype(dets))
    left = dets[:, 4].sort(descending=True, stable=True).indices
    groups = []
    while len(left):
        best, rest = left[0], left[1:]
        dropped = _overlaps(dets[best, :4], dets[rest, :4], offset=0) >= iou_threshold
        groups.append([int(best), *rest[dropped].tolist()])
        left = rest[~dropped]
    return groups


OPERATORS = {f.__name__: f for f in (bbox_overlaps, nms, nms_match, softnms)}
