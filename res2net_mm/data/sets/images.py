"""Image files: suffixes, headers, limits, and sizes that do not fit annotations or pipeline."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mmcv
from PIL import Image as PillowImage

from ..errors import DataError
from ..findings import Finding, error, warning
from .nodes import type_name

#: Suffixes of image files, in lower case, in the order in which they are looked for.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
#: The EXIF tag that says how to turn an image. 1 is upright; ``TURNED`` and more swap its sides.
ORIENTATION, TURNED = 0x0112, 5
#: The environment variable that limits the pixels of an image.
MAX_PIXELS = 'RES2NET_MM_MAX_PIXELS'

_MOST = 1 << 29  # 1.6 GB of colours; OpenCV's own limit is twice that, Pillow's a third
_PNG_DEPTH = 24  # the byte of a PNG that holds its bits per sample

# type -> the argument that holds its scales
_RESIZES = {'Resize': 'scale', 'RandomResize': 'scale', 'RandomChoiceResize': 'scales'}

Size = tuple[int, int]  # width and height in px


@dataclass
class Header:
    """What a file says about its image before it is decoded."""

    size: Size | None = None  # as stored, before EXIF turns the image; None if it is unknown
    pixels: int = 0  # also known for some files whose size is not
    mode: str = ''  # Pillow's name for the channels: RGB, L, RGBA, ...
    orientation: int = 1  # the EXIF tag
    deep: bool = False  # whether a sample has more than 8 bits
    alpha: bool = False  # whether it is partly transparent
    pages: int = 1  # images in the file


def read_header(source: bytes | str | os.PathLike) -> Header:
    """Reads the header of an image.

    Args:
        source: The whole file, or its path.

    Returns:
        As much as Pillow can read, which is nothing if the file is no image.
    """
    header = Header()
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb')
        with stream, PillowImage.open(stream) as image:
            header.size, header.mode = image.size, image.mode
            header.pixels = image.width * image.height
            header.alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
            header.pages = getattr(image, 'n_frames', 1)
            header.deep = image.mode.startswith(('I', 'F'))
            if image.format == 'PNG':
                stream.seek(_PNG_DEPTH)
                header.deep = stream.read(1) == b'\x10'
                if 'exif' not in image.info:  # Pillow would decode the image to look behind it
                    return header
            orientation = image.getexif().get(ORIENTATION)
            header.orientation = orientation if isinstance(orientation, int) else 1
    except PillowImage.DecompressionBombError as error:  # its limit is for its own decoder
        number = re.search(r'\d+', str(error))
        header.pixels = int(number[0]) if number else 0
    except (OSError, SyntaxError, ValueError, struct.error):
        pass
    return header


def check_pixels(source: bytes | str | os.PathLike, where: str) -> None:
    """Raises if an image has more pixels than RES2NET_MM_MAX_PIXELS, or 2**29 if that is not set.

    Args:
        source: The whole file, or its path.
        where: Its name in the error.

    Raises:
        DataError: It has too many. A file that is no image passes; its decoder says what is wrong.
    """
    header = read_header(source)
    given = os.environ.get(MAX_PIXELS) or str(_MOST)
    if not given.replace('_', '').isdecimal():
        what = f'it must be a number of pixels, but is {given!r}'
        raise DataError(what, MAX_PIXELS, 'set it to a number, or unset it')
    if header.pixels > int(given):
        size = '{} x {}'.format(*header.size) if header.size else f'{header.pixels:,}'
        raise DataError(
            f'it has {size} px, more than the limit of {int(given):,}',
            where,
            f'cut it into parts, or set {MAX_PIXELS} if the machine has the memory for it',
        )


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


def resize_faults(pipeline: Sequence, sizes: Iterable[Size]) -> dict[Size, str]:
    """Image sizes that a pipeline's first resizing shrinks to a side of 0 px, which fails.

    Args:
        pipeline: Configs of transforms. A random resizing counts with its smallest scale.
        sizes: Sizes of images.

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
                    f'it has {size[0]} x {size[1]} px, which {name} to {scale[0]} x {scale[1]} '
                    f'shrinks to {width} x {height}'
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
        return  # after any other step the size is unknown


def _smallest_scales(step: Mapping) -> list[Size]:
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
        # each side is drawn between those of two scales, then multiplied by the ratio
        least = min(step.get('ratio_range') or (1,))
        scales = [tuple(int(min(sides) * least) for sides in zip(*scales, strict=True))]
    return scales
