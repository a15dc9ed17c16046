"""Whether the masks of COCO's annotations are what they should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError

_FEWEST = 6  # coordinates of a polygon
FARTHEST = 10  # times the image's sides from it that a polygon may go
# how far a mask's own box may be from the annotated one: px, or a share of the box's longer side
_SLACK, _SLACK_SHARE = 3, 0.1


def mask_runs(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Run lengths, of background and object by turns, of an RLE in either of COCO's forms.

    Args:
        counts: the numbers themselves, or COCO's text: a number is characters of five bits each,
            least first, of which the sixth bit says that another follows, and from the fourth
            number on it is the difference to the last but one.

    Raises:
        DataError: it is neither.
    """
    if isinstance(counts, list | tuple):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            raise DataError('its run lengths are not all whole numbers from 0')
        return np.array(counts, np.int64)
    text = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise DataError('its run lengths are no text that COCO writes')
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    if (last - first).max() > 11:  # more than 60 bits
        raise DataError('its run lengths are no text that COCO writes')
    places = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((codes & 31) << (5 * places), first)
    negative = codes[last] & 16 > 0
    values[negative] -= np.int64(1) << (5 * (last - first + 1)[negative])
    values[3::2] = np.cumsum(values[1::2])[1:]
    values[4::2] = np.cumsum(values[2::2])[1:]
    return values


def check_mask(
    segmentation: Any, box: Sequence[float], width: int, height: int
) -> tuple[str, str] | None:
    """What is wrong with a mask.

    Args:
        segmentation: polygons or run lengths, as COCO writes them.
        box: corners of its object's box in px.
        width: of the image in px.
        height: likewise.

    Returns:
        The kind of fault, one of :data:`MASK_REMEDIES`, and what it is; None where there is none.
    """
    if isinstance(segmentation, dict):
        try:
            rle = _checked_rle(segmentation, width, height)
        except DataError as fault:
            return 'mask broken', str(fault)
        if isinstance(rle, tuple):
            return rle
        dropped = None
    else:
        try:
            rle, dropped = _polygons(segmentation, width, height)
        except DataError as fault:
            return 'mask broken', str(fault)
    from pycocotools import mask as coco_mask

    x1, y1, x2, y2 = box
    if not coco_mask.area(rle):
        thin = not isinstance(segmentation, dict) and min(x2 - x1, y2 - y1) < 2
        return ('thin mask' if thin else 'mask empty'), 'it covers no pixel'
    x, y, w, h = (float(side) for side in coco_mask.toBbox(rle))
    wanted = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    away = max(abs(a - b) for a, b in zip(wanted, (x, y, x + w, y + h), strict=True))
    if away > max(_SLACK, _SLACK_SHARE * max(x2 - x1, y2 - y1)):
        corners = ', '.join(f'{side:g}' for side in (x, y, x + w, y + h))
        said = ', '.join(f'{side:g}' for side in box)
        return 'mask unlike its box', f'its corners are {corners}, those of the box {said}'
    return ('polygon dropped', dropped) if dropped else None


#: Kinds with which training ends or learns what is wrong.
MASK_ERRORS = ('mask broken', 'mask size', 'mask empty')
#: Kind -> what to do.
MASK_REMEDIES = {
    'mask broken': 'write the mask again, or remove the object',
    'mask size': 'write the mask again for the image as it is',
    'mask empty': 'draw the mask, or remove the object',
    'thin mask': 'nothing, or remove the object: its box is trained on, its mask says background',
    'mask unlike its box': 'look which of both is right (contact sheet), and write the other again',
    'polygon dropped': 'nothing, or remove the polygon: the others of the object are used',
}


def _checked_rle(rle: dict, width: int, height: int) -> dict | tuple[str, str]:
    """The RLE as pycocotools decodes it, or that it is for an image of another size."""
    from pycocotools import mask as coco_mask

    size, counts = rle.get('size'), rle.get('counts')
    if not isinstance(counts, str | bytes | list) or not isinstance(size, list) or len(size) != 2:
        raise DataError("it has no 'size' [height, width] with 'counts'")
    if size != [height, width]:
        return 'mask size', (
            f'it is for {size[1]} x {size[0]} px, but the image has {width} x {height}'
        )
    runs = mask_runs(counts)
    total = int(runs.sum())
    if total != width * height or runs.min() < 0:
        raise DataError(
            f'its run lengths add up to {total:,}, not to {width} x {height} = {width * height:,}'
        )
    return coco_mask.frPyObjects(rle, height, width) if isinstance(counts, list) else rle


def _polygons(polygons: Any, width: int, height: int) -> tuple[dict, str | None]:
    """The RLE of what mmdet uses of the polygons, and what it drops."""
    from pycocotools import mask as coco_mask

    if not isinstance(polygons, list) or not all(isinstance(part, list) for part in polygons):
        raise DataError('it is no list of polygons [x, y, x, y, ...] and no RLE')
    if not all(isinstance(v, int | float) and math.isfinite(v) for p in polygons for v in p):
        raise DataError('a coordinate is no finite number')
    if any(abs(value) > FARTHEST * (width + height) for part in polygons for value in part):
        raise DataError('a coordinate is far outside the image')  # to draw it takes the memory
    bad = [len(part) for part in polygons if len(part) % 2 or len(part) < _FEWEST]
    good = [part for part in polygons if len(part) % 2 == 0 and len(part) >= _FEWEST]
    faults = ' and '.join(
        f'one of {count} coordinates, {"an odd number" if count % 2 else "fewer than 3 points"}'
        for count in bad[:2]
    )
    if not good:
        raise DataError(f'of its polygons none can be used: {faults or "it has none"}')
    return coco_mask.merge(coco_mask.frPyObjects(good, height, width)), faults or None
