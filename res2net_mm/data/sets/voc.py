"""Pascal VOC annotation files, as tools write them, and what mmdet makes of a set of them."""

from __future__ import annotations

import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import mmcv

from ...checks import listed, nearest
from ..errors import DataError
from ..findings import Finding, caught, error, raised, warning
from . import records
from .images import IMAGE_SUFFIXES, check_pixels
from .nodes import Node, read_list
from .records import Image, Object, Reading

# Training on a class without objects is a mistake anyway, so a name less like it is a misspelling
# there; evaluating on such a class is common.
_LIKENESS_IN_TRAINING = 0.6
_ENCODING = re.compile(rb'^\s*<\?xml[^>]*encoding\s*=\s*["\']([\w.:-]+)')
_CLASSES_REMEDY = 'write the names as the files do'


@dataclass(frozen=True)
class VocObject:
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
    Encodings that Python's parser lacks, such as GB2312 and Shift JIS, are read too.

    Args:
        content: The xml text.
        file: Its name in errors.
        leave_out: Gets the error of an object without name, box or numbers, which is then left out;
            without it, the error is raised.

    Returns:
        (width, height) in px, or None if the file does not say; the objects.

    Raises:
        DataError: The text is not XML, its size is no number, or an object is as said above.
    """
    root = _parse(content, file)
    width, height = (int(_number(root, f'size/{side}', file, 0)) for side in ('width', 'height'))
    objects = []
    for i, element in enumerate(root.findall('object'), 1):
        try:
            objects.append(_object(element, i, file))
        except DataError as fault:
            if leave_out is None:
                raise
            leave_out(fault)
    return ((width, height) if width > 0 and height > 0 else None), objects


def find_image(stem: str, exists: Callable[[str], bool]) -> str:
    """The image of an annotation: ``stem`` with the first suffix that ``exists``, else ``.jpg``."""
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    found = (stem + suffix for suffix in suffixes if exists(stem + suffix))
    return next(found, stem + IMAGE_SUFFIXES[0])


def read_voc_set(
    node: Node, classes: Sequence[str], training: bool
) -> Generator[Finding, None, Reading]:
    """A dataset that mmdet's ``XMLDataset``, or ours, reads; ``classes`` are those it is used with.

    Raises:
        DataError: A list or folder is missing.
    """
    file = node.annotation_file()
    names = read_list(file)
    for i, name in enumerate(names, 1):
        if not name.strip() or name != name.strip():
            what = f'line {i} is {name!r}, but must be the name of an image without suffix'
            yield error('blank in a list', file, what)
    names = [name.strip() for name in names if name.strip()]
    image_folder, xml_folder = _folders(node)
    xml_files = [os.path.join(xml_folder, f'{name}.xml') for name in names]
    missing = set((yield from records.check_missing(xml_files, 'annotation files', file, node.key)))
    present = set(os.listdir(image_folder))
    least = (node.config.get('filter_cfg') or {}).get('bbox_min_size')
    images = []
    for name, xml_file in zip(names, xml_files, strict=True):
        image = Image(
            find_image(
                os.path.join(image_folder, name),
                lambda path: os.path.basename(path) in present or os.path.isfile(path),
            )
        )
        images.append(image)
        if xml_file not in missing:
            try:
                yield from _read_objects(image, xml_file, classes, least)
            except DataError as fault:
                yield caught('broken annotation', fault)
    likeness = _LIKENESS_IN_TRAINING if training else records.LIKENESS
    yield from raised('classes', _match_names, node, classes, images, file, likeness)
    yield from records.check_names(images, classes, records.count_others(images), records.LIKENESS)
    return Reading(images)


def _folders(node: Node) -> tuple[str, str]:
    """The folders of the images and of the annotation files."""
    key = 'data_prefix.sub_data_root'
    root = (node.option('data_prefix') or {}).get('sub_data_root')
    if root is not None:
        root = node.existing(key, root)
    elif node.config.get('data_root'):
        raise DataError(
            f'it is not set, and without it {node.name} does not look below data_root',
            f'{node.key}.{key}',
            "set it, '' for data_root itself: data_prefix=dict(sub_data_root='')",
        )
    images, annotations = (
        node.existing(key, node.option(key), root or '') for key in ('img_subdir', 'ann_subdir')
    )
    return images, annotations


def _read_objects(
    image: Image, xml_file: str, classes: Sequence[str], least: float | None
) -> Iterator[Finding]:
    """Gives an image its size and objects; ``least`` px is the shortest side that is trained on."""
    try:
        with open(xml_file, 'rb') as stream:
            content = stream.read()
    except OSError as fault:
        raise DataError(f'it cannot be read ({fault.strerror})', xml_file, 'replace it') from fault
    size, objects = read_voc(content, xml_file)
    if size is None and os.path.isfile(image.file):
        check_pixels(image.file, image.file)
        decoded = mmcv.imread(image.file)
        size = None if decoded is None else decoded.shape[1::-1]
    image.width, image.height = size or (0, 0)
    if any(obj.corners != obj.box for obj in objects):
        yield warning(
            'fractional coordinates', xml_file, 'mmdet cuts the fractions off VOC coordinates'
        )
    for i, obj in enumerate(objects, 1):
        if obj.name not in classes:
            image.other_classes[obj.name] += 1
            continue
        box = x1, y1, x2, y2 = tuple(side - 1 for side in obj.box)  # VOC counts pixels from 1
        reason = records.box_fault(box, image)
        if reason is None and obj.difficult:
            reason = 'difficult'
        if reason is None and least is not None and min(x2 - x1, y2 - y1) < least:
            reason = f'under {least} px'
        item = Object(obj.name, box, f'object {i}', reason)
        image.objects.append(item)
        yield from records.check_border(image, item)


def _match_names(
    node: Node, classes: Sequence[str], images: Sequence[Image], file: str, likeness: float
) -> None:
    """Raises a DataError if the objects have none of the classes, or one is misspelt."""
    found = {item.name for image in images for item in image.objects}
    others = records.count_others(images)
    shown = listed((f'{name} ({count:,})' for name, count in others.most_common()), 10)
    if others and not found:
        raise DataError(
            f'no object of its annotation files has a name of {node.classes_key}='
            f'{tuple(classes)}; theirs are {shown}',
            file,
            _CLASSES_REMEDY,
        )
    for name in classes:
        likely = None if name in found else nearest(name, others, likeness)
        if likely:
            raise DataError(
                f'no object of its annotation files is named {name!r}, as {node.classes_key} has '
                f'it, but {others[likely]:,} are named {likely!r} (did you mean that?); names that '
                f'are no class: {shown}',
                file,
                _CLASSES_REMEDY,
            )


def _parse(content: bytes, file: str) -> ElementTree.Element:
    declared = _ENCODING.match(content)
    encoding = declared[1].decode() if declared else 'utf-8'
    try:
        try:
            return ElementTree.fromstring(content)
        except (ValueError, LookupError):  # several bytes per character, or unknown to the parser
            return ElementTree.fromstring(content.decode(encoding))
    except ElementTree.ParseError as fault:
        raise DataError(f'it is not valid XML ({fault})', file, 'write it again') from fault
    except (ValueError, LookupError) as fault:
        raise DataError(
            f'it cannot be read in its encoding {encoding!r} ({fault})', file, 'write it in UTF-8'
        ) from fault


def _object(element: ElementTree.Element, position: int, file: str) -> VocObject:
    name = (element.findtext('name') or '').strip()
    if not name:
        raise DataError(f'object {position} has no <name>', file, 'add it or remove the object')
    title = f'object {position} ({name}): '
    x1, y1, x2, y2 = (
        _number(element, f'bndbox/{side}', file, title=title)
        for side in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    return VocObject(name, (x1, y1, x2, y2), bool(_number(element, 'difficult', file, 0, title)))


def _number(
    element: ElementTree.Element, tag: str, file: str, default: int | None = None, title: str = ''
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
    what = f'<{tag}> is {shown!r}, not a number' if text else f'it has no <{tag}>'
    raise DataError(title + what, file, 'correct it or remove the object')
