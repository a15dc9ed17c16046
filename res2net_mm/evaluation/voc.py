"""Average precision by the rules of the Pascal VOC development kit, in numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MODES = ('11points', 'area')


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4), whose corners are pixels that belong to them."""
    boxes, others = (np.asarray(b, dtype=float).reshape(-1, 1, 4) for b in (boxes, others))
    others = others.transpose(1, 0, 2)
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    both = np.clip(high - low + 1, 0, None).prod(-1)
    areas = [(b[..., 2:] - b[..., :2] + 1).prod(-1) for b in (boxes, others)]
    union = areas[0] + areas[1] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def average_precision(
    images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    mode: str,
    iou_thr: float = 0.5,
) -> float:
    """AP of one class, 0 to 1.

    A detection belongs to the object that it overlaps most. If that is ``iou_thr`` or more it is
    right, unless a better scored one was there before; objects marked difficult count neither as
    found nor as missed, and what belongs to one not at all.

    Args:
        images: For each image: detections (N, 5) of x1, y1, x2, y2 and score; objects (M, 4); and
            which of them are difficult, (M,) of bool.
        mode: ``'11points'``, VOC 2007: the mean of the best precision at a recall of at least 0,
            0.1, ... 1. ``'area'``, VOC 2010 and later: the area below the curve.
        iou_thr: Least overlap.

    Returns:
        AP; NaN where there is no object that is not difficult.

    Raises:
        ValueError: The mode is another.
    """
    if mode not in MODES:
        raise ValueError(f'eval_mode must be 11points or area, but is {mode!r}')
    scores, right, wrong, objects = [], [], [], 0
    for found, boxes, difficult in images:
        found = np.asarray(found, dtype=float).reshape(-1, 5)
        difficult = np.asarray(difficult, dtype=bool).reshape(-1)
        found = found[np.argsort(-found[:, 4], kind='stable')]
        objects += int((~difficult).sum())
        good, bad = _judge(found, boxes, difficult, iou_thr)
        scores.append(found[:, 4])
        right.append(good)
        wrong.append(bad)
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
    gained = np.diff(hits, prepend=0) / objects
    return float((gained * envelope).sum())


def _judge(
    found: np.ndarray, boxes: np.ndarray, difficult: np.ndarray, iou_thr: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of an image, best scored first, are right and which wrong: (N,) each."""
    right = np.zeros(len(found), dtype=bool)
    if not len(difficult) or not len(found):
        return right, ~right
    overlaps = box_overlaps(found[:, :4], boxes)
    nearest = overlaps.argmax(1)
    near = overlaps.max(1) >= iou_thr
    counted = np.flatnonzero(near & ~difficult[nearest])
    _, first = np.unique(nearest[counted], return_index=True)
    right[counted[first]] = True
    return right, ~right & ~(near & difficult[nearest])
