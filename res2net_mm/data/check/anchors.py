"""The sizes of anchors, and the factors by which training resizes objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..sets.nodes import type_name

#: The least IoU with which mmdet's RPN gives an object an anchor (``min_pos_iou``).
LEAST_IOU = 0.3


def anchor_sizes(model: Mapping) -> tuple[str, np.ndarray] | None:
    """The anchors of a model.

    Args:
        model: Its config.

    Returns:
        Where the config sets them, and (N, 2) widths and heights in px; None if objects do not get
        their anchors by IoU.
    """
    from mmdet.registry import TASK_UTILS

    training = model.get('train_cfg') or {}
    for name, own in (('rpn_head', training.get('rpn') or {}), ('bbox_head', training)):
        head = model.get(name)
        generator = head.get('anchor_generator') if isinstance(head, Mapping) else None
        if generator and type_name(own.get('assigner')).endswith('MaxIoUAssigner'):
            # with the scope of an earlier run of this process, mmdet's generators are unknown
            levels = TASK_UTILS.build(dict(generator, _scope_='mmdet')).base_anchors
            corners = np.concatenate([level.numpy() for level in levels])
            return f'model.{name}.anchor_generator', corners[:, 2:4] - corners[:, :2]
    return None


def resize_factors(pipeline: Sequence, sizes: np.ndarray) -> np.ndarray:
    """By how much a training pipeline enlarges images: the middle of what it may do.

    Args:
        pipeline: Configs of transforms; the first that resizes counts.
        sizes: (N, 2) widths and heights of the images in px.

    Returns:
        (N, 2) factors of the width and the height.
    """
    sizes = np.asarray(sizes, np.float64)
    step = next(_resizes(pipeline), None)
    if step is None:
        return np.ones_like(sizes)
    scale = step.get('scale', step.get('scales'))
    if scale is None:
        return np.ones_like(sizes) * step['scale_factor']
    wanted = np.ones(2) * np.mean(step.get('ratio_range') or 1)
    # several scales count with their mean
    wanted *= np.mean(scale, axis=0) if np.ndim(scale) == 2 else scale
    if not step.get('keep_ratio', False):
        return wanted / sizes
    # the largest factor with which neither side is too long
    factors = np.minimum(wanted.max() / sizes.max(1), wanted.min() / sizes.min(1))
    return np.repeat(factors[:, None], 2, axis=1)


def best_ious(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N,) IoU of boxes (N, 2) with the best of anchors (M, 2), both with the same centre."""
    best = np.zeros(len(boxes))
    for anchor in np.unique(anchors, axis=0):
        shared = np.minimum(boxes, anchor).prod(1)
        best = np.maximum(best, shared / (boxes.prod(1) + anchor.prod() - shared))
    return best


def _resizes(pipeline: Sequence) -> Iterator[Mapping]:
    for step in pipeline:
        if isinstance(step, list | tuple):
            yield from _resizes(step)
        elif isinstance(step, Mapping):
            if 'Resize' in type_name(step) and {'scale', 'scales', 'scale_factor'} & set(step):
                yield step
            yield from _resizes(step.get('transforms') or ())
