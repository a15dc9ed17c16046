"""Reading of Pascal VOC annotation files, as loose as the files that tools write."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

from .errors import DataError

#: mmdet looks for ``.jpg`` alone; the others are tried in this order where there is none.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.JPG', '.JPEG', '.PNG', '.BMP')


@dataclass(frozen=True)
class VocObject:
    """One ``<object>``: its name, its box (x1, y1, x2, y2) in whole pixels as written, from 1."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool


def read_voc(
    content: bytes, file: str, leave_out: Callable[[DataError], None] | None = None
) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Parse one annotation file.

    An empty ``<difficult/>`` means no, coordinates may be fractions (they are cut to whole pixels,
    as mmdet does), elements may come in any order.

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
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f'{file} is not valid XML ({error}); write it again') from error
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
    return ((width, height) if width > 0 and height > 0 else None), objects


def find_image(stem: str, exists: Callable[[str], bool]) -> str:
    """The image of an annotation: ``stem`` with the suffix that ``exists``, else with ``.jpg``."""
    found = (stem + suffix for suffix in IMAGE_SUFFIXES if exists(stem + suffix))
    return next(found, stem + IMAGE_SUFFIXES[0])


def _object(element: ElementTree.Element, position: int, file: str) -> VocObject:
    name = (element.findtext('name') or '').strip()
    if not name:
        raise DataError(f'{file}: object {position} has no <name>; add it or remove the object')
    where = f'{file}: object {position} ({name})'
    x1, y1, x2, y2 = (
        _number(element, f'bndbox/{side}', where) for side in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    return VocObject(name, (x1, y1, x2, y2), bool(_number(element, 'difficult', where, 0)))


def _number(element: ElementTree.Element, tag: str, where: str, default: int | None = None) -> int:
    text = (element.findtext(tag) or '').strip()
    if not text and default is not None:
        return default
    try:
        return int(float(text))
    except (ValueError, OverflowError) as error:
        what = f'<{tag}> is {text!r}, not a number' if text else f'has no <{tag}>'
        raise DataError(f'{where}: {what}; correct it or remove the object') from error
