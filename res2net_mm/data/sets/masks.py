"""Masks of COCO's annotations, and what may be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from faster_coco_eval.core import mask as coco_mask

from ..errors import DataError

#: Kinds of faults with which training ends, or learns something wrong.
MASK_ERRORS = ('mask broken', 'mask empty')
#: How far outside the image a polygon may go, as a multiple of the image's width + height.
FARTHEST = 10
# how far a mask's own box may be from the annotated one: px, or a share of the box's longer side
_SLACK, _SLACK_SHARE = 3, 0.1


def read_rle(segmentation: dict, width: int, height: int) -> dict:
    """Run lengths, numbers or COCO's text, as a mask that can be decoded.

    pycocotools takes run lengths that do not fill the image, or overflow it, without a word.

    Raises:
        DataError: They are not for an image of this ``width`` and ``height`` in px.
    """
    size, wanted = segmentation.get('size'), [height, width]
    if size != wanted:
        raise DataError(f'the mask has size {size}, but the image has {wanted}')
    try:
        plain = isinstance(segmentation['counts'], list)
        rle = coco_mask.frPyObjects(segmentation, height, width) if plain else segmentation
        coco_mask.decode(rle)
    except (KeyError, ValueError, RuntimeError) as fault:
        raise DataError(f'its run lengths do not decode ({str(fault):.100})') from fault
    return rle


def read_mask(segmentation: Any, width: int, height: int) -> tuple[dict, str]:
    """The part of a segmentation that mmdet uses.

    Args:
        segmentation: Polygons or run lengths, as COCO writes them.
        width: Of the image, in px.
        height: Likewise.

    Returns:
        The mask as pycocotools decodes it; what is wrong with the polygons that mmdet drops.

    Raises:
        DataError: Nothing of it can be used.
    """
    if isinstance(segmentation, dict):
        return read_rle(segmentation, width, height), ''
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise DataError('it is neither a list of polygons [x, y, x, y, ...] nor an RLE')
    farthest = FARTHEST * (width + height)  # drawing what is farther takes the memory
    values = [value for polygon in segmentation for value in polygon]
    if not all(
        isinstance(v, int | float) and math.isfinite(v) and abs(v) <= farthest for v in values
    ):
        raise DataError('a coordinate is no finite number, or far outside the image')
    good = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
    dropped = (
        f'{len(segmentation) - len(good)} of its {len(segmentation)} polygons cannot be used: '
    )
    dropped += 'one needs an even number of coordinates, at least 6'
    if not good:
        raise DataError(dropped)
    mask = coco_mask.merge(coco_mask.frPyObjects(good, height, width))
    return mask, dropped if len(good) < len(segmentation) else ''


def mask_fault(
    segmentation: Any, box: Sequence[float], width: int, height: int
) -> tuple[str, str] | None:
    """The kind of finding and what is wrong with a mask; None if nothing is.

    Takes what :func:`read_mask` does, and the corners of the object's ``box`` in px.
    """
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
