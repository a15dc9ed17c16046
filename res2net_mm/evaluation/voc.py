"""Pascal VOC's average precision by its development kit's rules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from faster_coco_eval import mask as coco_mask

from ..checks import check_choice

MODES = ('11points', 'area')


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4) whose corners are pixels that belong to them."""
    sized = []
    for corners in (boxes, others):
        corners = np.array(corners, float)
        corners[:, 2:] += 1 - corners[:, :2]
        sized.append(corners)
    return coco_mask.iou(*sized, [0] * len(others))


def average_precision(
    images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    mode: str,
    iou_thr: float = 0.5,
) -> float:
    """AP of one class, 0 to 1; NaN if all objects are difficult or there is none.

    A detection belongs to the object that it overlaps most. It is right if that overlap is at least
    ``iou_thr`` and no better scored detection was there before. Objects marked difficult count
    neither as found nor as missed, and detections of them do not count.

    Args:
        images: For each image: detections (N, 5) of x1, y1, x2, y2 and score; objects (M, 4); and
            which of them are difficult, (M,) of bool.
        mode: ``'11points'``, VOC 2007: the mean of the best precision at a recall of at least 0,
            0.1, ... 1. ``'area'``, VOC 2010 and later: the area below the curve.
        iou_thr: Least overlap.

    Raises:
        ValueError: The mode is another.
    """
    check_choice('eval_mode', mode, MODES)
    scores, right, wrong, objects = [], [], [], 0
    for found, boxes, difficult in images:
        found = np.asarray(found, dtype=float).reshape(-1, 5)
        difficult = np.asarray(difficult, dtype=bool)
        found = found[np.argsort(-found[:, 4], kind='stable')]
        objects += int((~difficult).sum())
        good, counted = np.zeros(len(found), dtype=bool), np.ones(len(found), dtype=bool)
        if len(difficult) and len(found):
            overlaps = box_overlaps(found[:, :4], boxes)
            nearest, near = overlaps.argmax(1), overlaps.max(1) >= iou_thr
            counted = ~(near & difficult[nearest])
            candidates = np.flatnonzero(near & counted)
            good[candidates[np.unique(nearest[candidates], return_index=True)[1]]] = True
        scores.append(found[:, 4])
        right.append(good)
        wrong.append(counted & ~good)
    if not objects:
        return float('nan')
    order = np.argsort(-np.concatenate(scores), kind='stable')
    hits = np.cumsum(np.concatenate(right)[order])
    precision = hits / np.maximum(hits + np.cumsum(np.concatenate(wrong)[order]), 1)
    if mode == '11points':
        # whole numbers: 0.1 * 6 is more than 0.6, and a recall of 3 in 5 would not reach it
        best = [precision[10 * hits >= k * objects].max(initial=0.0) for k in range(11)]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(hits, prepend=0) / objects * envelope).sum())
