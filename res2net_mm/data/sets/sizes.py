"""Image sizes: those that annotations are for, and those that a pipeline can resize."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import mmcv
from PIL import Image as PillowImage

from .nodes import type_name

# ranges of an object's area in square pixels, lower bound in, upper bound out
COCO_SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}

TURNED = 5  # from this EXIF orientation on, width and height change places
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
# what Pillow raises at headers that it cannot read
NOT_PICTURES = (
    OSError, SyntaxError, ValueError, struct.error, PillowImage.DecompressionBombError,
)  # fmt: skip

# type -> the argument that holds its scales
_RESIZES = {'Resize': 'scale', 'RandomResize': 'scale', 'RandomChoiceResize': 'scales'}

Size = tuple[int, int]  # width and height in px
RESIZE_KIND = 'image that cannot be resized'
RESIZE_REMEDY = 'take it out of the annotations, or cut it into parts'


def read_header(content: bytes) -> tuple[Size | None, str, int]:
    """Size before EXIF turns it, Pillow's mode, and EXIF orientation (1 is upright) of an image.

    Args:
        content: the whole file; None, '' and 1 where it cannot be read.
    """
    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            return image.size, image.mode, orientation if isinstance(orientation, int) else 1
    except NOT_PICTURES:
        return None, '', 1


def only_swapped(
    annotated: Size, loaded: Size, stored: Size | None, boxes: Iterable[Sequence[float]]
) -> bool:
    """Whether a VOC file only has width and height in each other's place, as VOC2012's own
    2011_003353 has: no EXIF tag turns the image, and all boxes (x1, y1, x2, y2) are within it."""
    width, height = loaded
    return (
        annotated == (height, width)
        and stored == loaded
        and all(x2 <= width and y2 <= height for _, _, x2, y2 in boxes)
    )


def size_fault(
    annotated: Size, loaded: Size, stored: Size | None, orientation: int
) -> tuple[str, str, str]:
    """Kind, description and remedy of an image whose annotations are for another size.

    Args:
        annotated: the size in the annotations.
        loaded: the size as the pipeline loads the image.
        stored: the size before EXIF turns it.
        orientation: the EXIF tag.
    """
    size, wanted = (f'{width} x {height}' for width, height in (loaded, annotated))
    if orientation >= TURNED and annotated == loaded[::-1]:
        if stored == annotated:
            return (
                'image turned by EXIF',
                f'its EXIF tag turns it to {size} px when it is loaded, its annotations are for '
                f'{wanted}',
                "load it unturned (color_type='color_ignore_orientation' of LoadImageFromFile, in "
                'the pipelines of train, val and test), or write it upright without the tag and '
                'annotate that',
            )
        return (
            'image turned by EXIF',
            f'it is loaded as it is stored, {size} px, its annotations are for the {wanted} px '
            'that its EXIF tag turns it to',
            "load it turned (color_type='color' and imdecode_backend='cv2' of LoadImageFromFile), "
            'or write it upright without the tag',
        )
    return (
        'image of another size',
        f'it has {size} px, its annotations are for {wanted}',
        'annotate the image as it is, or put back the one that was annotated',
    )


def is_unseen_turn(orientation: int, stored: Size | None, loaded: Size | None) -> bool:
    """Whether EXIF turns an image and its size tells nothing of how it was loaded."""
    told = orientation >= TURNED and stored is not None and stored[0] != stored[1]
    return orientation > 1 and stored == loaded and not told


def unseen_turn(orientation: int) -> tuple[str, str, str]:
    """Kind, description and remedy of an image that EXIF turns without changing its size."""
    return (
        'image turned by EXIF',
        f'its EXIF tag ({orientation}) may turn it when it is loaded, and its size does not tell '
        'whether the annotations are for that',
        'look at it (contact sheet of check_data.py); to be sure, write it upright without the tag',
    )


def resize_faults(pipeline: Sequence, sizes: Iterable[Size]) -> dict[Size, str]:
    """Sizes of which a pipeline's first resizing makes a side of 0 px, with which it fails.

    Args:
        pipeline: configs of transforms. A random resizing counts with its smallest scale.
        sizes: of images.

    Returns:
        Size -> what is wrong with it.
    """
    resizes = [
        (type_name(step), scale)
        for step in _first_resizes(pipeline)
        for scale in _smallest_scales(step)
    ]
    faults = {}
    for size in set(sizes):
        for name, scale in resizes:
            width, height = mmcv.rescale_size(size, scale)
            if not (width and height):
                faults[size] = (
                    f'it has {size[0]} x {size[1]} px, of which {name} to {scale[0]} x {scale[1]} '
                    f'makes {width} x {height}'
                )
    return faults


def _first_resizes(pipeline: Sequence) -> Iterator[Mapping]:
    for step in pipeline:
        name = type_name(step).rpartition('.')[2]
        if name == 'RandomChoice':
            for branch in step.get('transforms') or ():
                yield from _first_resizes(branch if isinstance(branch, list | tuple) else [branch])
        elif name in _RESIZES and step.get('keep_ratio'):
            yield step
        elif name.startswith(('Load', 'Drop', 'Check', 'RandomFlip')):
            continue
        return  # after other steps the size is not known


def _smallest_scales(step: Mapping) -> list[tuple[int, int]]:
    """The smallest scales that a step resizes to, as far as they are its own."""
    name = type_name(step).rpartition('.')[2]
    scales = step.get(_RESIZES[name])
    if scales is None or step.get('resize_type', 'Resize').rpartition('.')[2] != 'Resize':
        return []
    if isinstance(scales, int):
        return [(scales, scales)]
    if isinstance(scales[0], int):
        scales = [scales]
    scales = [tuple(scale) for scale in scales if not isinstance(scale, int)]
    if name == 'RandomResize' and scales:
        # between two scales each side is drawn by itself, then multiplied by the ratio
        least = min(step.get('ratio_range') or (1,))
        scales = [tuple(int(min(sides) * least) for sides in zip(*scales, strict=True))]
    return scales
