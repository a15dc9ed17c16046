"""Recall of boxes whatever their class, as mmdet's ``eval_recalls``, which numpy 2 refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np


def box_recalls(
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    limits: Sequence[int],
    iou_thrs: Sequence[float],
    overlaps: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Shares of the objects that a box finds: (limits, thresholds); NaN without an object.

    The pair of box and object with the largest IoU is matched first, then the next of the others.

    Args:
        images: For each image: objects (M, 4), and boxes (N, 4), best first.
        limits: How many boxes of an image count.
        iou_thrs: Least overlaps.
        overlaps: Gives IoU (M, N).
    """
    tables = [overlaps(objects, boxes) for objects, boxes in images]
    found = [
        np.concatenate([np.zeros(0), *(_matched(table[:, :limit]) for table in tables)])
        for limit in limits
    ]
    hits = [[(ious >= threshold).sum() for threshold in iou_thrs] for ious in found]
    return np.array(hits, dtype=float) / (len(found[0]) or np.nan)


def _matched(ious: np.ndarray) -> np.ndarray:
    """IoU of each object with its box, 0 without one: (M,)."""
    ious, matched = ious.copy(), np.zeros(len(ious))
    for _ in range(min(ious.shape)):
        place, box = np.unravel_index(ious.argmax(), ious.shape)
        matched[place] = ious[place, box]
        ious[place], ious[:, box] = -1, -1
    return matched
