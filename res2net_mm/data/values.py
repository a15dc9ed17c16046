"""What reading an image file as 8-bit colours does to the values in it."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_PNG_HEAD = struct.Struct('>24xB')  # bits a channel
_DARK = 1 << 14  # 16-bit values all below it become at most 63 of 255


def value_notes(file: str | Path) -> list[str]:
    """What OpenCV's ``IMREAD_COLOR``, mmcv's default, changes; nothing for 8-bit RGB and grey.

    Args:
        file: An image that it can read.

    Returns:
        Phrases such as ``'16-bit values were divided by 256'``, in words that are the same for
        images treated in the same way.
    """
    file = Path(file)
    mode, alpha, pages = _header(file)
    tiff = file.suffix.lower() in ('.tif', '.tiff')
    with open(file, 'rb') as stream:
        head = stream.read(_PNG_HEAD.size)
    png = head.startswith(b'\x89PNG') and len(head) == _PNG_HEAD.size
    bits = _PNG_HEAD.unpack(head)[0] if png else 8
    notes = []
    if bits == 16 or tiff:
        pixels = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED)
        kind = np.uint8 if pixels is None else pixels.dtype
        if kind == np.uint16:
            # libtiff reads colours, OpenCV the rest: the lower 8 bits are cut off
            by = 257 if tiff and pixels.ndim == 3 else 256
            notes.append(f'16-bit values were divided by {by}')
            if 0 < pixels.max() < _DARK:
                used = int(pixels.max()).bit_length()
                notes.append(
                    f'its values need {used} of 16 bits, so the image came out dark: if {used} '
                    f'bits are its range, multiply the values by {1 << 16 - used} first'
                )
        elif kind != np.uint8:
            notes.append(f'{kind} values were turned into 8-bit ones by libtiff')
    if mode == 'P':
        notes.append("the palette's colours were used")
    if alpha:
        notes.append(
            f'the alpha channel was {"multiplied into the colours" if tiff else "dropped"}'
        )
    if mode == 'CMYK':
        notes.append('CMYK was turned into RGB without a colour profile')
    if pages > 1:
        notes.append(f'only the first of {pages} pages was read')
    return notes


def _header(file: Path) -> tuple[str, bool, int]:
    """Pillow's mode of a file, whether it has alpha, and its images, as far as Pillow reads it."""
    try:
        with Image.open(file) as image:
            alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
            return image.mode, alpha, getattr(image, 'n_frames', 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return '', False, 1
