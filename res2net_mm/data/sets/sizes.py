"""Sizes of images: whether they are what the annotations say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..findings import Finding, error, warning
from .images import Header, Size

#: COCO's ranges of an object's area in square pixels: lower bound in, upper bound out.
COCO_SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
#: Square roots, in px, of the areas that divide them.
COCO_SIDES = tuple(math.isqrt(low) for low, _ in COCO_SIZES.values() if low)


def size_fault(
    file: str, annotated: Size, loaded: Size, header: Header, voc_boxes: Sequence | None = None
) -> Finding:
    """What is wrong with an image that loads with another size than its annotations are for.

    A VOC file that only has width and height swapped, as VOC2012's own 2011_003353 does, is a
    warning: no EXIF tag turns the image, and all boxes (corners, ``voc_boxes``) are inside it.
    """
    size, wanted = (f'{width} x {height} px' for width, height in (loaded, annotated))
    what, turned = f'it has {size}, its annotations are for {wanted}', annotated == loaded[::-1]
    if turned and header.swaps:
        return error(
            'image turned by EXIF',
            file,
            f'{what}; its EXIF tag turns it',
            "load images as they were annotated, in all pipelines: LoadImageFromFile's color_type="
            "'color' turns them, 'color_ignore_orientation' does not",
        )
    inside = all(x2 <= loaded[0] and y2 <= loaded[1] for _, _, x2, y2 in voc_boxes or ())
    if turned and inside and voc_boxes is not None:
        return warning('width and height swapped', file, f'{what}; its boxes are used as they are')
    return error('image of another size', file, what)


def unseen_turn(file: str, header: Header, loaded: Size) -> Iterator[Finding]:
    """Warns of an EXIF tag that may turn the image without changing its size."""
    shows = header.swaps and loaded[0] != loaded[1]
    if header.orientation > 1 and header.size == loaded and not shows:
        what = f'its EXIF tag ({header.orientation}) may turn it without changing its size'
        yield warning('image turned by EXIF', file, what)
