"""What reading an image file as 8-bit colours changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .sets.images import read_header

_DARK = 15  # 16-bit values of fewer bits become at most 63 of 255


def value_notes(file: str | Path) -> list[str]:
    """What OpenCV's ``IMREAD_COLOR``, mmcv's default, changes; nothing for 8-bit RGB and grey.

    Returns:
        Phrases such as ``'16-bit values were divided by 256'``, the same for images treated in the
        same way.
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
