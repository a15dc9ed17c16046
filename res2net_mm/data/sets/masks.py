"""Masks of COCO's annotations, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from faster_coco_eval.core import mask as coco_mask

from ..errors import DataError

#: Kinds of faults with which training ends, or learns something wrong.
MASK_ERRORS = ('mask broken', 'mask empty')
#: How far outside the image a polygon may go, as a multiple of the image's width + height.
FARTHEST = 10
# how far a mask's own box may be from the annotated one: px, or a share of the box's longer side
_SLACK, _SLACK_SHARE = 3, 0.1


def read_rle(segmentation: dict, width: int, height: int) -> dict:
    """Run lengths, numbers or COCO's text, as a mask that can be decoded; else a DataError.

    pycocotools takes run lengths that do not fill the image, or overflow it, without a word.
    """
    size, wanted = segmentation.get('size'), [height, width]
    if size != wanted:
        raise DataError(f'the mask has size {size}, but the image has {wanted}')
    try:
        plain = isinstance(segmentation['counts'], list)
        rle = coco_mask.frPyObjects(segmentation, height, width) if plain else segmentation
        (runs,) = mask_api_new_cpp.toUncompressedRLE([rle])
        total = sum(runs['counts'])
        if total != height * width:
            raise ValueError(f'they add up to {total:,}, not to {height * width:,}')
    except (KeyError, IndexError, ValueError, RuntimeError) as fault:
        raise DataError(f'the mask does not decode ({str(fault):.100})') from fault
    return rle


def read_mask(segmentation: Any, width: int, height: int) -> tuple[dict, str]:
    """The part of a segmentation, polygons or run lengths, that mmdet uses.

    Returns:
        The mask as pycocotools decodes it; what is wrong with the polygons that mmdet drops.

    Raises:
        DataError: Nothing of it can be used in an image of this ``width`` and ``height`` in px.
    """
    if isinstance(segmentation, dict):
        return read_rle(segmentation, width, height), ''
    try:
        farthest = np.max([np.abs(part).max(initial=0) for part in segmentation], initial=0)
        good = [part for part in segmentation if len(part) % 2 == 0 and len(part) >= 6]
        if any(np.ndim(part) != 1 for part in segmentation):
            raise ValueError('its coordinates are nested otherwise')
    except (TypeError, ValueError) as fault:
        what = f'it is neither polygons [[x, y, x, y, ...], ...] nor run lengths ({fault})'
        raise DataError(what) from fault
    if not farthest <= FARTHEST * (width + height):  # nor is NaN; drawing it takes the memory
        raise DataError('a coordinate is no number, or far outside the image')
    bad = len(segmentation) - len(good)
    dropped = f'{bad} of its {len(segmentation)} polygons do not have 6, 8, 10, ... coordinates'
    if not good:
        raise DataError(dropped)
    return coco_mask.merge(coco_mask.frPyObjects(good, height, width)), dropped if bad else ''


def mask_fault(
    segmentation: Any, box: Sequence[float], width: int, height: int
) -> tuple[str, str] | None:
    """The kind of finding and what is wrong with the mask of an object with ``box`` (corners)."""
    try:
        rle, dropped = read_mask(segmentation, width, height)
    except DataError as fault:
        return 'mask broken', fault.what
    x1, y1, x2, y2 = box
    if not coco_mask.area(rle):
        thin = not isinstance(segmentation, dict) and min(x2 - x1, y2 - y1) < 2
        return 'thin mask' if thin else 'mask empty', 'it covers no pixel'
    x, y, w, h = (float(side) for side in coco_mask.toBbox(rle))
    own, wanted = (x, y, x + w, y + h), (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    away = max(abs(a - b) for a, b in zip(wanted, own, strict=True))
    if away > max(_SLACK, _SLACK_SHARE * max(x2 - x1, y2 - y1)):
        corners, said = (', '.join(f'{side:g}' for side in sides) for sides in (own, box))
        return 'mask unlike its box', f'its corners are {corners}, those of the box {said}'
    return ('polygon dropped', dropped) if dropped else None
