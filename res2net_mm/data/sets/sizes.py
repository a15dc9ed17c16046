"""Sizes of images: whether they are what the annotations say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..findings import Finding, error, warning
from .images import TURNED, Header, Size

#: COCO's ranges of an object's area in square pixels: lower bound in, upper bound out.
COCO_SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
#: Square roots, in px, of the areas that divide them.
COCO_SIDES = tuple(math.isqrt(low) for low, _ in COCO_SIZES.values() if low)


def size_fault(
    file: str,
    annotated: Size,
    loaded: Size,
    header: Header,
    voc_boxes: Sequence[Sequence[float]] | None = None,
) -> Finding:
    """What is wrong with an image whose annotations are for another size.

    A VOC file that only has width and height swapped, as VOC2012's own 2011_003353 does, is a
    warning: no EXIF tag turns the image, and all boxes are inside it.

    Args:
        file: The image.
        annotated: The size in the annotations.
        loaded: The size as the pipeline loads the image.
        header: The header of the file.
        voc_boxes: Corners x1, y1, x2, y2 of the objects in a VOC file; None for other formats.
    """
    size, wanted = (f'{width} x {height} px' for width, height in (loaded, annotated))
    turned = annotated == loaded[::-1]
    if (
        voc_boxes is not None
        and (turned and header.size == loaded)
        and all(x2 <= loaded[0] and y2 <= loaded[1] for _, _, x2, y2 in voc_boxes)
    ):
        return warning(
            'width and height swapped',
            file,
            f'it has {size}, its xml file says {wanted}; its boxes are used as they are',
        )
    kind, remedy = 'image turned by EXIF', ''
    if turned and header.orientation >= TURNED and header.size == annotated:
        what = (
            f'its EXIF tag turns it to {size} when it is loaded, its annotations are for {wanted}'
        )
        remedy = (
            "load it unturned (color_type='color_ignore_orientation' of LoadImageFromFile, in the "
            'pipelines of train, val and test), or write it upright without the tag and annotate '
            'that'
        )
    elif turned and header.orientation >= TURNED:
        what = (
            f'it is loaded as stored, {size}, its annotations are for the {wanted} that its EXIF '
            'tag turns it to'
        )
        remedy = (
            "load it turned (color_type='color' and imdecode_backend='cv2' of LoadImageFromFile), "
            'or write it upright without the tag'
        )
    else:
        kind = 'image of another size'
        what = f'it has {size}, its annotations are for {wanted}'
    return error(kind, file, what, remedy)


def unseen_turn(file: str, header: Header, loaded: Size) -> Iterator[Finding]:
    """Warns of an EXIF tag that may turn the image without changing its size."""
    shows = header.orientation >= TURNED and loaded[0] != loaded[1]
    if header.orientation > 1 and header.size == loaded and not shows:
        yield warning(
            'image turned by EXIF',
            file,
            f'its EXIF tag ({header.orientation}) may turn it when it is loaded, and its size does '
            'not show whether the annotations are for that',
        )
