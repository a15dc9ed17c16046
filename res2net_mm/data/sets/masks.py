"""Masks of COCO's annotations, and what may be wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError

#: How far outside the image a polygon may go, as a multiple of the image's width + height.
FARTHEST = 10
_FEWEST = 6  # coordinates of a polygon
# how far a mask's own box may be from the annotated one: px, or a share of the box's longer side
_SLACK, _SLACK_SHARE = 3, 0.1
_POLYGON = 'one needs an even number of coordinates, at least 6'
_TEXT = 'its run lengths are no text that COCO writes'


def mask_runs(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Lengths of the alternating runs of background and object in either of COCO's RLE forms.

    Args:
        counts: The numbers themselves, or COCO's text: a number is characters of five bits each,
            least first, whose sixth bit says that another follows; from the fourth number on, it is
            the difference to the last but one.

    Raises:
        DataError: It is neither.
    """
    if isinstance(counts, list | tuple):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            raise DataError('its run lengths are not all whole numbers from 0')
        return np.array(counts, np.int64)
    text = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError(_TEXT)
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    if (last - first).max() > 11:  # more than 60 bits
        raise DataError(_TEXT)
    places = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & 31) << (5 * places), first)
    negative = codes[last] & 16 > 0
    values[negative] -= np.int64(1) << (5 * (last - first + 1)[negative])
    values[3::2] = np.cumsum(values[1::2])[1:]
    values[4::2] = np.cumsum(values[2::2])[1:]
    return values


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
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        _check_rle(segmentation, width, height)
        plain = isinstance(segmentation['counts'], list)
        rle = coco_mask.frPyObjects(segmentation, height, width) if plain else segmentation
        return rle, ''
    good, faults = _usable_polygons(segmentation, width + height)
    return coco_mask.merge(coco_mask.frPyObjects(good, height, width)), faults


def mask_fault(
    segmentation: Any, box: Sequence[float], width: int, height: int
) -> tuple[str, str] | None:
    """The kind of finding and what is wrong with a mask; None if nothing is.

    Takes what :func:`read_mask` does, and the corners of the object's ``box`` in px.
    """
    from pycocotools import mask as coco_mask

    try:
        rle, dropped = read_mask(segmentation, width, height)
    except DataError as fault:
        return 'mask broken', fault.what
    x1, y1, x2, y2 = box
    if not coco_mask.area(rle):
        thin = not isinstance(segmentation, dict) and min(x2 - x1, y2 - y1) < 2
        return 'thin mask' if thin else 'mask empty', 'it covers no pixel'
    x, y, w, h = (float(side) for side in coco_mask.toBbox(rle))
    wanted = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    away = max(abs(a - b) for a, b in zip(wanted, (x, y, x + w, y + h), strict=True))
    if away > max(_SLACK, _SLACK_SHARE * max(x2 - x1, y2 - y1)):
        corners = ', '.join(f'{side:g}' for side in (x, y, x + w, y + h))
        said = ', '.join(f'{side:g}' for side in box)
        return 'mask unlike its box', f'its corners are {corners}, those of the box {said}'
    return ('polygon dropped', dropped) if dropped else None


#: The kinds with which training ends, or learns something wrong.
MASK_ERRORS = ('mask broken', 'mask empty')


def _check_rle(rle: dict, width: int, height: int) -> None:
    size, counts = rle.get('size'), rle.get('counts')
    if not isinstance(counts, str | bytes | list) or not isinstance(size, list) or len(size) != 2:
        raise DataError("it has no 'size' [height, width] with 'counts'")
    if size != [height, width]:
        raise DataError(f'it is for {size[1]} x {size[0]} px, the image has {width} x {height}')
    runs = mask_runs(counts)
    total = int(runs.sum())
    if total != width * height or runs.min() < 0:
        raise DataError(
            f'its run lengths add up to {total:,}, not to {width} x {height} = {width * height:,}'
        )


def _usable_polygons(polygons: Any, sides: int) -> tuple[list, str]:
    if not isinstance(polygons, list) or not all(isinstance(part, list) for part in polygons):
        raise DataError('it is neither a list of polygons [x, y, x, y, ...] nor an RLE')
    if not all(isinstance(v, int | float) and math.isfinite(v) for p in polygons for v in p):
        raise DataError('a coordinate is no finite number')
    if any(abs(value) > FARTHEST * sides for part in polygons for value in part):
        raise DataError('a coordinate is far outside the image')  # drawing it takes the memory
    good = [part for part in polygons if len(part) % 2 == 0 and len(part) >= _FEWEST]
    if not good:
        raise DataError(f'none of its {len(polygons)} polygons can be used: {_POLYGON}')
    bad = len(polygons) - len(good)
    return good, f'{bad} of its {len(polygons)} polygons cannot be used: {_POLYGON}' if bad else ''
