"""Reading of Pascal VOC annotation files, as loose as the files that tools write."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import DataError

#: mmdet looks for ``.jpg`` alone; the others are tried in this order where there is none.
IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.bmp', '.JPG', '.JPEG', '.PNG', '.BMP',
    '.tif', '.tiff', '.webp', '.TIF', '.TIFF', '.WEBP',
)  # fmt: skip
_ENCODING = re.compile(rb'^\s*<\?xml[^>]*encoding\s*=\s*["\']([\w.:-]+)')


@dataclass(frozen=True)
class VocObject:
    """One ``<object>``.

    Attributes:
        name: of its class.
        corners: x1, y1, x2, y2 in px as written, counted from 1; whole numbers are integers.
        difficult: whether it is neither trained on nor counted as missed.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The corners as mmdet reads them: cut to whole pixels."""
        return tuple(map(int, self.corners))


def read_voc(
    content: bytes, file: str, leave_out: Callable[[DataError], None] | None = None
) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Parse one annotation file.

    An empty ``<difficult/>`` means no, coordinates may be fractions, elements may come in any
    order. Encodings that Python's parser lacks, such as GB2312 and Shift JIS, are read too.

    Args:
        content: the xml text.
        file: its name, for messages.
        leave_out: is told of an object that has no name, no box or no numbers, and the others are
            read; without it that is an error.

    Returns:
        (width, height) in pixels, or None where the file does not tell; the objects.

    Raises:
        DataError: the text is not XML, its size is no number, or an object is as said above.
    """
    root = _parse(content, file)
    size = (_number(root, f'size/{side}', file, 0) for side in ('width', 'height'))
    width, height = size
    objects = []
    for i, element in enumerate(root.findall('object'), 1):
        try:
            objects.append(_object(element, i, file))
        except DataError as error:
            if leave_out is None:
                raise
            leave_out(error)
    width, height = int(width), int(height)
    return ((width, height) if width > 0 and height > 0 else None), objects


def find_image(stem: str, exists: Callable[[str], bool]) -> str:
    """The image of an annotation: ``stem`` with the suffix that ``exists``, else with ``.jpg``."""
    found = (stem + suffix for suffix in IMAGE_SUFFIXES if exists(stem + suffix))
    return next(found, stem + IMAGE_SUFFIXES[0])


def _parse(content: bytes, file: str) -> ElementTree.Element:
    declared = _ENCODING.match(content)
    encoding = declared[1].decode() if declared else 'utf-8'
    try:
        try:
            return ElementTree.fromstring(content)
        except (ValueError, LookupError):  # an encoding of several bytes a character, or unknown
            return ElementTree.fromstring(content.decode(encoding))
    except ElementTree.ParseError as error:
        raise DataError(f'{file} is not valid XML ({error}); write it again') from error
    except (ValueError, LookupError) as error:
        raise DataError(
            f'{file} cannot be read in its encoding {encoding!r} ({error}); write it in UTF-8'
        ) from error


def _object(element: ElementTree.Element, position: int, file: str) -> VocObject:
    name = (element.findtext('name') or '').strip()
    if not name:
        raise DataError(f'{file}: object {position} has no <name>; add it or remove the object')
    where = f'{file}: object {position} ({name})'
    x1, y1, x2, y2 = (
        _number(element, f'bndbox/{side}', where) for side in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    return VocObject(name, (x1, y1, x2, y2), bool(_number(element, 'difficult', where, 0)))


def _number(
    element: ElementTree.Element, tag: str, where: str, default: int | None = None
) -> float:
    text = (element.findtext(tag) or '').strip()
    if not text and default is not None:
        return default
    try:
        value = float(text)
        if math.isfinite(value):
            return int(value) if value.is_integer() else value
    except ValueError:
        pass
    shown = text if len(text) < 40 else f'{text[:30]}... ({len(text):,} characters)'
    what = f'<{tag}> is {shown!r}, not a number' if text else f'has no <{tag}>'
    raise DataError(f'{where}: {what}; correct it or remove the object')
