"""The sizes that objects have in training, and those of the anchors that look for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..sets.nodes import type_name

#: The least IoU with which mmdet's RPN gives an object an anchor (``min_pos_iou``).
LEAST_IOU = 0.3


def anchor_sizes(model: Mapping) -> tuple[str, np.ndarray] | None:
    """Where a model's anchors are set, and their sizes.

    Args:
        model: its config.

    Returns:
        Key in the config, and (N, 2) widths and heights in px; None where objects are not given
        anchors by their IoU.
    """
    from mmdet.registry import TASK_UTILS

    for key, head, train_cfg in _heads(model):
        generator = head.get('anchor_generator')
        assigner = (train_cfg or {}).get('assigner')
        if generator is None or not type_name(assigner).endswith('MaxIoUAssigner'):
            continue
        # a scope that an earlier run of this process left would not know mmdet's generators
        levels = TASK_UTILS.build(dict(generator, _scope_='mmdet')).base_anchors
        corners = np.concatenate([level.numpy() for level in levels])
        return f'{key}.anchor_generator', corners[:, 2:4] - corners[:, :2]
    return None


def resize_factors(pipeline: Sequence, sizes: np.ndarray) -> np.ndarray:
    """By how much a training pipeline enlarges images: the middle of what it may do.

    Args:
        pipeline: configs of transforms; the first that resizes counts.
        sizes: (N, 2) widths and heights of the images in px.

    Returns:
        (N, 2) factors of the width and the height.
    """
    sizes = np.asarray(sizes, np.float64)
    step = next(_resizes(pipeline), None)
    if step is None:
        return np.ones_like(sizes)
    factor = step.get('scale_factor')
    if factor is not None and step.get('scale') is None:
        return np.ones_like(sizes) * factor
    scale = step.get('scale', step.get('scales'))
    if isinstance(scale, list | tuple) and isinstance(scale[0], list | tuple):
        wanted = np.mean(scale, axis=0)
    else:
        wanted = np.ones(2) * scale
    wanted = wanted * np.mean(step.get('ratio_range') or 1)
    if not step.get('keep_ratio', False):
        return wanted / sizes
    # the largest at which neither side is longer than it may be
    long_side, short_side = sizes.max(1), sizes.min(1)
    factors = np.minimum(wanted.max() / long_side, wanted.min() / short_side)
    return np.repeat(factors[:, None], 2, axis=1)


def best_ious(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N,) the IoU of boxes (N, 2) with the best of anchors (M, 2), both about the same centre."""
    best = np.zeros(len(boxes))
    for anchor in np.unique(anchors, axis=0):
        shared = np.minimum(boxes, anchor).prod(1)
        best = np.maximum(best, shared / (boxes.prod(1) + anchor.prod() - shared))
    return best


def _heads(model: Mapping) -> Iterator[tuple[str, Mapping, Any]]:
    """Where the heads with anchors are, their configs, and those of their training."""
    train_cfg = model.get('train_cfg') or {}
    for name, training in (('rpn_head', train_cfg.get('rpn')), ('bbox_head', train_cfg)):
        head = model.get(name)
        if isinstance(head, Mapping):
            yield f'model.{name}', head, training


def _resizes(pipeline: Sequence) -> Iterator[Mapping]:
    for step in pipeline:
        if isinstance(step, list | tuple):
            yield from _resizes(step)
        elif isinstance(step, Mapping):
            if 'Resize' in type_name(step) and {'scale', 'scales', 'scale_factor'} & set(step):
                yield step
            yield from _resizes(step.get('transforms') or ())
