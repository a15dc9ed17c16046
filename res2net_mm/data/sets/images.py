"""Image files: what their headers say, whether that fits the annotations, what decoding changes."""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

from ..errors import DataError
from ..findings import Finding, error, warning

#: Suffixes of image files, in lower case, in the order in which they are looked for.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.jfif')
#: Those of photos that are not read.
UNREAD_SUFFIXES = ('.avif', '.dng', '.heic', '.heif', '.mpo')
#: The EXIF tag that says how to turn an image. 1 is upright; ``TURNED`` and more swap its sides.
ORIENTATION, TURNED = 0x0112, 5
#: The environment variable that limits the pixels of an image.
MAX_PIXELS = 'RES2NET_MM_MAX_PIXELS'
#: COCO's ranges of an object's area in square pixels: lower bound in, upper bound out.
COCO_SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
#: Square roots, in px, of the areas that divide them.
COCO_SIDES = tuple(math.isqrt(low) for low, _ in COCO_SIZES.values() if low)

_MOST = 1 << 29  # 1.6 GB of colours; OpenCV's own limit is twice that, Pillow's a third
_PNG_DEPTH = 24  # the byte of a PNG that holds its bits per sample
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags
_TURNING = ('JPEG', 'MPO', 'PNG')  # formats whose EXIF tag OpenCV obeys; libtiff turns TIFF
_DARK = 15  # 16-bit values of fewer bits become at most 63 of 255

Size = tuple[int, int]  # width and height in px


@dataclass
class Header:
    """What a file says about its image before it is decoded."""

    size: Size | None = None  # as stored, before EXIF turns the image; None if it is unknown
    pixels: int = 0  # also known for some files whose size is not
    mode: str = ''  # Pillow's name for the channels: RGB, L, RGBA, ...
    orientation: int = 1  # the EXIF tag, 1 to 8, if OpenCV obeys it in this format
    ignored: int = 1  # the EXIF tag if OpenCV does not
    deep: bool = False  # whether a sample has more than 8 bits
    alpha: bool = False  # whether it is partly transparent
    pages: int = 1  # images in the file

    @property
    def swaps(self) -> bool:
        """Whether EXIF swaps width and height."""
        return self.orientation >= TURNED

    @property
    def loaded(self) -> Size | None:
        """The size of the image as OpenCV loads it."""
        return self.size[::-1] if self.size and self.swaps else self.size


def read_header(source: bytes | str | os.PathLike) -> Header:
    """What Pillow reads of an image (the whole file, or its path); nothing if it is none."""
    header = Header()
    if not isinstance(source, bytes) and not os.path.isfile(source):  # opening a pipe may block
        return header
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb')
        with stream, PillowImage.open(stream) as image:
            header.size, header.mode = image.size, image.mode
            if image.format == 'TIFF':  # whose size Pillow gives as turned
                header.size = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            header.pixels = image.width * image.height
            header.alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
            header.pages = getattr(image, 'n_frames', 1)
            header.deep = image.mode.startswith(('I', 'F'))
            if image.format == 'PNG':
                stream.seek(_PNG_DEPTH)
                header.deep = stream.read(1) == b'\x10'
            # without 'exif', Pillow would decode a PNG to look behind its pixels
            if 'exif' in image.info or image.format == 'TIFF':
                found = image.getexif().get(ORIENTATION)
                found = found if found in range(1, 9) else 1
                if image.format in (*_TURNING, 'TIFF'):
                    header.orientation = found
                else:
                    header.ignored = found
    except PillowImage.DecompressionBombError as error:  # its limit is for its own decoder
        header.pixels = int(re.search(r'\d+', str(error))[0])
    except (OSError, SyntaxError, ValueError, struct.error):
        pass
    return header


def check_pixels(source: bytes | str | os.PathLike, where: str) -> None:
    """Raises a DataError if an image has more pixels than RES2NET_MM_MAX_PIXELS, or 2**29.

    ``source`` is the whole file, or its path. A file that is no image passes.
    """
    pixels, given = read_header(source).pixels, os.environ.get(MAX_PIXELS) or str(_MOST)
    if not given.replace('_', '').isdecimal():
        raise DataError(f'it is {given!r}', MAX_PIXELS, 'set it to a number of pixels')
    if pixels > int(given):
        what = f'it has {pixels:,} px, more than the limit of {int(given):,}'
        remedy = f'cut it into parts, or set {MAX_PIXELS} if there is memory for it'
        raise DataError(what, where, remedy)


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


def value_notes(file: str | Path) -> list[str]:
    """What OpenCV's ``IMREAD_COLOR``, mmcv's default, changes; nothing for 8-bit RGB and grey.

    The phrases, such as ``'16-bit values were divided by 256'``, are the same for all images that
    are treated in the same way.
    """
    header, tiff = read_header(file), Path(file).suffix.lower() in ('.tif', '.tiff')
    notes = []
    if header.deep or tiff:
        pixels = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
        kind = np.uint8 if pixels is None else pixels.dtype
        if kind == np.uint16:
            # libtiff reads colours, OpenCV the rest, and cuts off the lower 8 bits
            by, used = 257 if tiff and pixels.ndim == 3 else 256, int(pixels.max()).bit_length()
            notes.append(f'16-bit values were divided by {by}')
            if 0 < used < _DARK:
                notes.append(
                    f'its values need {used} of 16 bits, so the image came out dark: if {used} '
                    f'bits are its range, multiply the values by {1 << 16 - used} first'
                )
        elif kind != np.uint8:
            notes.append(f'{kind} values were turned into 8-bit ones by libtiff')
    if header.ignored > 1:
        notes.append(f'its EXIF tag ({header.ignored}), which asks to turn it, was ignored')
    if header.mode == 'P':
        notes.append("the palette's colours were used")
    if header.alpha:
        notes.append(
            f'the alpha channel was {"multiplied into the colours" if tiff else "dropped"}'
        )
    if header.mode == 'CMYK':
        notes.append('CMYK was turned into RGB without a colour profile')
    if header.pages > 1:
        notes.append(f'only the first of {header.pages} pages was read')
    return notes
