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
    """Writes overlaps of boxes (M, 4) and (N, 4) into ``ious``, (M, N), or (M,) if ``aligned``.

    ``mode`` is 0 for intersection over union, 1 for intersection over the area of ``bboxes1``.
    """
    dtype = compute_dtype(bboxes1, bboxes2)
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        first = first[:, None]
    ious.copy_(_overlaps(first, second, offset, over_first=mode == 1))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes (N, 4) kept, in descending order of score."""
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
    """Soft-NMS (https://arxiv.org/abs/1704.04503): lowers the scores of boxes that overlap others.

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
    boxes, scores = boxes.to(dtype), scores.to(dtype, copy=True)
    left = torch.arange(len(boxes), device=boxes.device)
    kept = left[:0]
    while len(left):
        best = left[scores[left].argmax()]
        kept, left = torch.cat([kept, best[None]]), left[left != best]
        # 0 / 0: two boxes without area do not overlap
        overlap = _overlaps(boxes[best], boxes[left], offset).nan_to_num(nan=0.0)
        if method == 2:
            decay = torch.exp(-(overlap**2) / sigma)
        else:
            lowered = 1 - overlap if method == 1 else torch.zeros_like(overlap)
            decay = torch.where(overlap >= iou_threshold, lowered, 1.0)
        scores[left] *= decay
        left = left[scores[left] >= min_score]
    dets[: len(kept)] = torch.cat([boxes, scores[:, None]], 1)[kept].to(dets)
    return kept


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression of boxes and scores, (N, 5), that reports which box dropped which.

    A box that overlaps a better one by the threshold or more is dropped. The result has a list for
    each box kept, by descending score: its index, then those of the boxes it dropped.
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
