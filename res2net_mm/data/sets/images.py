"""Image files: their suffixes, what their headers say, and how many pixels may be decoded."""

from __future__ import annotations

import io
import os
import re
import struct
from dataclasses import dataclass

from PIL import Image as PillowImage

from ..errors import DataError

#: Suffixes of image files, in lower case, in the order in which they are looked for.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
#: The EXIF tag that says how to turn an image. 1 is upright; ``TURNED`` and more swap its sides.
ORIENTATION, TURNED = 0x0112, 5
#: The environment variable that limits the pixels of an image.
MAX_PIXELS = 'RES2NET_MM_MAX_PIXELS'

_MOST = 1 << 29  # 1.6 GB of colours; OpenCV's own limit is twice that, Pillow's a third
_PNG_DEPTH = 24  # the byte of a PNG that holds its bits per sample
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # tags

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

    @property
    def swaps(self) -> bool:
        """Whether EXIF swaps width and height."""
        return self.orientation >= TURNED


def read_header(source: bytes | str | os.PathLike) -> Header:
    """What Pillow reads of an image (the whole file, or its path); nothing if it is none."""
    header = Header()
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
                if 'exif' not in image.info:  # Pillow would decode the image to look behind it
                    return header
            orientation = image.getexif().get(ORIENTATION)
            header.orientation = orientation if isinstance(orientation, int) else 1
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
