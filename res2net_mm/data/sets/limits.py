"""How large an image may be: its header tells, before anything is decoded."""

from __future__ import annotations

import io
import os
import re
import struct

from PIL import Image

from ..errors import DataError

MAX_PIXELS = 'RES2NET_MM_MAX_PIXELS'
_MOST = 1 << 29  # 1.6 GB of colours; OpenCV's own limit is twice that, Pillow's a third


def check_pixels(source: bytes | str | os.PathLike, what: str) -> None:
    """Raises where an image has more pixels than RES2NET_MM_MAX_PIXELS, or 2**29 if not set.

    Args:
        source: the whole file, or its path.
        what: its name, for the message.

    Raises:
        DataError: it has. A file that is no image passes: its decoder says what is wrong.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # Pillow warns once above 89 million; catch_warnings would undo what was warned of once
        with Image.open(file) as image:
            width, height = image.size
        size, pixels = f'{width} x {height} px', width * height
    except Image.DecompressionBombError as error:  # beyond Pillow's limit, which is for its decoder
        found = re.search(r'\d+', str(error))
        pixels = int(found[0]) if found else 0
        size = f'{pixels:,} px'
    except (OSError, SyntaxError, ValueError, struct.error):
        return
    given = os.environ.get(MAX_PIXELS) or str(_MOST)
    if not given.replace('_', '').isdecimal():
        raise DataError(f'{MAX_PIXELS} must be a number of pixels, but is {given!r}')
    most = int(given)
    if pixels > most:
        raise DataError(
            f'{what} has {size}, more than the {most:,} that are decoded here; cut it into parts, '
            f'or set {MAX_PIXELS} if the machine has the memory for it'
        )
