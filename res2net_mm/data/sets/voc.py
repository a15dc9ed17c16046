"""Pascal VOC annotation files, as tools write them, and what mmdet makes of a set of them."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...checks import listed, nearest
from ..errors import DataError
from ..findings import Finding, error, guarded, warning
from .images import IMAGE_SUFFIXES, read_header
from .nodes import Node, read_list
from .records import Image, Object, check_missing, count_others

# How similar the name of objects must be to a class without objects to be called a misspelling.
# Evaluating on a class without objects is common; training on one is a mistake anyway.
_LIKENESS, _LIKENESS_IN_TRAINING = 0.81, 0.6
_ENCODING = re.compile(rb'^\s*<\?xml[^>]*encoding\s*=\s*["\']([\w.:-]+)')


class VocObject(NamedTuple):
    """One ``<object>``."""

    name: str
    # x1, y1, x2, y2 in px as written, counted from 1; whole numbers are integers
    corners: tuple[float, float, float, float]
    difficult: bool  # neither trained on nor counted as missed

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The corners as mmdet reads them: cut to whole pixels."""
        return tuple(map(int, self.corners))


def read_voc(
    content: bytes, file: str, leave_out: Callable[[DataError], None] | None = None
) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Parses one annotation file.

    An empty ``<difficult/>`` means no, coordinates may be fractions, elements may have any order.
    Encodings that Python's parser lacks, such as GB2312 and Shift JIS, are read too. The DataError
    of an object without name or numbers goes to ``leave_out``, if that is given.

    Returns:
        (width, height) in px, or None if the file does not say; the objects.
    """
    declared = _ENCODING.match(content)
    encoding = declared[1].decode() if declared else 'utf-8'
    try:
        try:
            root = ElementTree.fromstring(content)
        except (ValueError, LookupError):  # several bytes per character, or unknown to the parser
            root = ElementTree.fromstring(content.decode(encoding))
        width, height = (int(_number(root, f'size/{side}', 0)) for side in ('width', 'height'))
    except (ElementTree.ParseError, ValueError, LookupError) as fault:
        what = f'it is not valid XML of VOC in {encoding} ({fault})'
        raise DataError(what, file, 'write it again, in UTF-8') from fault
    objects = []
    for i, element in enumerate(root.iterfind('object'), 1):
        name = element.findtext('name', '').strip()
        try:
            sides = ('xmin', 'ymin', 'xmax', 'ymax')
            x1, y1, x2, y2 = (_number(element, f'bndbox/{side}') for side in sides)
            difficult = bool(_number(element, 'difficult', 0))
            if not name:
                raise ValueError('it has no <name>')
            objects.append(VocObject(name, (x1, y1, x2, y2), difficult))
        except ValueError as fault:
            broken = DataError(f'object {i} ({name}): {fault}', file, 'correct or remove it')
            if leave_out is None:
                raise broken from fault
            leave_out(broken)
    return ((width, height) if width > 0 and height > 0 else None), objects


def find_image(stem: str, exists: Callable[[str], bool]) -> str:
    """The image of an annotation: ``stem`` with the first suffix that ``exists``, else ``.jpg``."""
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    found = (stem + suffix for suffix in suffixes if exists(stem + suffix))
    return next(found, stem + IMAGE_SUFFIXES[0])


def read_voc_set(
    node: Node, classes: Sequence[str], several: bool = False
) -> Generator[Finding, None, list[Image]]:
    """What mmdet's ``XMLDataset``, or ours, reads; ``classes`` are those it is used with.

    Of ``several`` that are joined, each may lack classes.
    """
    file = node.annotation_file()
    lines = read_list(file)
    for i, name in enumerate(lines, 1):
        if not name.strip() or name != name.strip():
            what = f'line {i} is {name!r}, but must be the name of an image without suffix'
            yield error('blank in a list', file, what)
    root = (node.option('data_prefix') or {}).get('sub_data_root')
    if root is None and node.config.get('data_root'):
        raise DataError(
            f'it is not set, and without it {node.name} does not look below data_root',
            f'{node.key}.data_prefix.sub_data_root',
            "set it, '' for data_root itself: data_prefix=dict(sub_data_root='')",
        )
    root = '' if root is None else node.existing('data_prefix.sub_data_root', root)
    folder, xml_folder = (
        node.existing(key, node.option(key), root) for key in ('img_subdir', 'ann_subdir')
    )
    names = [name.strip() for name in lines if name.strip()]
    xml_files = [os.path.join(xml_folder, f'{name}.xml') for name in names]
    yield from check_missing(xml_files, 'annotation files', file, node.key)
    images = [Image(find_image(os.path.join(folder, name), os.path.isfile)) for name in names]
    filters = None if node.config.get('test_mode') else node.config.get('filter_cfg')
    least = (filters or {}).get('bbox_min_size')
    for image, xml_file in zip(images, xml_files, strict=True):
        if os.path.isfile(xml_file):
            reading = _read_objects(image, xml_file, classes, least)
            yield from guarded('broken annotation', reading)
    yield from _check_names(node, classes, images, file, several)
    return images


def _read_objects(
    image: Image, xml_file: str, classes: Sequence[str], least: float | None
) -> Iterator[Finding]:
    """Gives an image its size and objects; ``least`` px is the shortest side that is trained on."""
    size, objects = read_voc(Path(xml_file).read_bytes(), xml_file)
    if size is None:
        size = read_header(image.file).loaded
    image.width, image.height = size or (0, 0)
    if any(obj.corners != obj.box for obj in objects):
        what = 'mmdet cuts the fractions off VOC coordinates'
        yield warning('fractional coordinates', xml_file, what)
    for i, obj in enumerate(objects, 1):
        if obj.name not in classes:
            image.other_classes[obj.name] += 1
            continue
        box = x1, y1, x2, y2 = tuple(side - 1 for side in obj.box)  # VOC counts pixels from 1
        reason = image.box_fault(box) or ('difficult' if obj.difficult else None)
        if reason is None and least is not None and min(x2 - x1, y2 - y1) < least:
            reason = f'under {least} px'
        image.objects.append(Object(obj.name, box, f'object {i}', reason))


def _check_names(
    node: Node, classes: Sequence[str], images: Sequence[Image], file: str, several: bool
) -> Iterator[Finding]:
    """An error if objects have none of the classes, or a class seems misspelt."""
    found = {item.name for image in images for item in image.objects}
    others = count_others(images)
    likeness = _LIKENESS if node.config.get('test_mode') else _LIKENESS_IN_TRAINING
    lacking = {name: nearest(name, others, likeness) for name in classes if name not in found}
    likely = [f'{name!r} (did you mean {other!r}?)' for name, other in lacking.items() if other]
    likely = [] if several else likely
    if likely or (others and not found):
        shown = listed((f'{name} ({count:,})' for name, count in others.most_common()), 10)
        yield error(
            'classes',
            file,
            f'no object of its files is named {listed(likely or classes)}, as {node.classes_key} '
            f'has it; names that are no class: {shown}',
            'write the names as the files do',
        )


def _number(element: ElementTree.Element, tag: str, default: int | None = None) -> float:
    text = element.findtext(tag, '').strip()
    if not text and default is not None:
        return default
    try:
        value = float(text)
        return int(value) if value == int(value) else value
    except (ValueError, OverflowError):  # NaN and infinite ones too
        raise ValueError(f'<{tag}> is {text!r:.40}, not a number') from None
