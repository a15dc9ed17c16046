"""COCO annotation files: what mmdet makes of them, read without building the dataset."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from reprlib import repr as brief  # what a file holds may be long
from typing import Any

from ...checks import listed, nearest
from ..errors import DataError
from ..findings import Finding, error, raised, warning
from . import records
from .nodes import Node
from .records import Image, Object, Reading

_MOST_SIDE = 10_000_000  # px of an image
_MOST_AREA = 1.1  # share of its box that an object may cover: rounding
_FAR = 0.04  # of the image's longer side: a box beyond the border by more is no slip
_FEWEST = 5  # boxes that show how boxes are written


def read_coco(
    node: Node, classes: Sequence[str], annotated: bool = True
) -> Generator[Finding, None, Reading]:
    """A dataset that mmdet's ``CocoDataset`` reads; ``classes`` are those it is used with.

    Without ``annotated``, the file may lack annotations.

    Raises:
        DataError: A file or folder is missing, or the file is no COCO file.
    """
    file = node.annotation_file()
    content = load_coco(file, annotated)
    names = yield from _by_id(
        content['categories'], 'category', file, lambda item: _get(item, 'name')
    )
    yield from raised('classes', _match_categories, node, classes, list(names.values()), file)
    folder = node.prefix('img')
    images = yield from _by_id(
        content['images'], 'image entry', file, lambda item: _image(item, folder)
    )
    annotations = yield from _by_id(
        content.get('annotations') or [], 'annotation', file, lambda item: item
    )
    masks = loads_masks(node.pipeline)
    stray = 0
    formats: Counter[str] = Counter()
    for number, annotation in annotations.items():
        title = f'annotation {number}'
        try:
            image = _find(annotation, 'image_id', images)
            name = _find(annotation, 'category_id', names)
            if image is None:
                stray += 1
                yield warning(
                    'annotation of no image', file, f'{title} is of an image that is not listed'
                )
                continue
            if annotation['category_id'] not in names:
                yield warning(
                    'annotation of no category',
                    file,
                    f'{title} has category_id {brief(annotation["category_id"])}, which no '
                    'category has',
                )
            if name not in classes:
                image.other_classes[str(name)] += 1
                continue
            item = _object(annotation, name, title, image, masks)
        except DataError as fault:
            yield _broken('annotation', file, title, fault)
            continue
        image.objects.append(item)
        if item.reason is None:
            yield from _check_area(annotation, image, title)
        if item.reason != 'marked ignore':
            _count_formats(formats, annotation['bbox'], image)
            yield from records.check_border(image, item)
    if written_as_corners(formats):
        yield error(
            'boxes written as corners',
            file,
            f'all of its {formats["boxes"]:,} boxes would be inside their images as '
            f'[x1, y1, x2, y2], but as [x, y, width, height] {formats["beyond"]:,} go beyond them',
        )
    found = list(images.values())
    yield from _check_doubled(found, file)
    yield from records.check_names(found, classes, records.count_others(found), likeness=1)
    return Reading(found, stray)


def load_coco(file: str, annotated: bool = True) -> dict:
    """A COCO json with lists of images, categories and, if ``annotated``, annotations."""
    try:
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except (ValueError, RecursionError) as fault:  # RecursionError: lists in lists in lists
        raise DataError(
            f'it is not valid JSON ({fault})', file, 'write or copy it again'
        ) from fault
    for part in ('images', 'annotations', 'categories') if annotated else ('images', 'categories'):
        values = content.get(part) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise DataError(
                f'it has no list of {part!r}, so it is no COCO annotation file',
                file,
                'it needs images, annotations and categories',
            )
    return content


def loads_masks(pipeline: Sequence) -> bool:
    """Whether a transform of ``pipeline`` reads the segmentation of every object."""
    return any(isinstance(step, Mapping) and step.get('with_mask') for step in pipeline)


def written_as_corners(formats: Mapping[str, int]) -> bool:
    """Whether boxes are written as corners x1, y1, x2, y2, not with width and height.

    Args:
        formats: How many ``boxes`` there are, how many go ``beyond`` their images as they should be
            written, and how many are inside them as ``corners``.
    """
    boxes = formats['boxes']
    # a few boxes beyond the border are common, large objects near the middle fit both ways
    return boxes == formats['corners'] and boxes >= _FEWEST and 4 * formats['beyond'] > boxes


def _by_id(
    items: Sequence[dict], what: str, file: str, make: Callable[[dict], Any]
) -> Generator[Finding, None, dict]:
    """Id -> what ``make`` makes of the item; items that it refuses are left out."""
    made = {}
    counts: Counter[Any] = Counter()
    name = what.split()[0]
    for i, item in enumerate(items):
        title = f'{name} number {i}'
        try:
            number = _key(item, 'id')
            title = f'{name} {number}'
            counts[number] += 1
            made[number] = make(item)
        except DataError as fault:
            yield _broken(what, file, title, fault)
    for number in (number for number, count in counts.items() if count > 1):
        yield error('doubled id', file, f'{name} id {number} occurs twice')
    return made


def _broken(what: str, file: str, title: str, fault: DataError) -> Finding:
    return error(f'broken {what}', file, f'{title}: {fault.what}', fault.remedy)


def _image(entry: dict, folder: str) -> Image:
    width, height = _number(entry, 'width'), _number(entry, 'height')
    if not (1 <= width <= _MOST_SIDE and 1 <= height <= _MOST_SIDE):
        raise DataError(
            f'it is {brief(width)} x {brief(height)} px, which no image is',
            remedy='write its width and height',
        )
    name = _get(entry, 'file_name')
    if not isinstance(name, str) or '\0' in name:
        raise DataError(f'file_name is {brief(name)}', remedy='write the name of its file')
    return Image(os.path.join(folder, name), width, height)


def _object(annotation: dict, name: str, title: str, image: Image, masks: bool) -> Object:
    """An object, with the reason why mmdet does not train on it."""
    if annotation.get('ignore'):
        return Object(name, (math.nan,) * 4, title, 'marked ignore')
    crowd = annotation.get('iscrowd', 0)
    if not isinstance(crowd, int | float):
        raise DataError(f'iscrowd is {brief(crowd)}', remedy='write 0 or 1')
    box = _get(annotation, 'bbox')
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f'bbox is {brief(box)}', remedy='write it as [x, y, width, height]')
    x, y, width, height = box
    corners = (x, y, x + width, y + height)
    reason = records.box_fault(corners, image)
    if reason is None and (width < 1 or height < 1):
        reason = 'under 1 px'
    if reason is None and _number(annotation, 'area') <= 0:
        reason = 'without area'
    reason = reason or ('crowd' if crowd else None)
    mask = annotation.get('segmentation')
    if masks and reason in (None, 'crowd') and not mask:
        raise DataError(
            'it has no segmentation, but the pipeline loads masks (with_mask=True)',
            remedy='add it, or use a detector without masks',
        )
    if masks and isinstance(mask, dict) and mask.get('size') != [image.height, image.width]:
        raise DataError(
            f'its mask is for size {mask.get("size")}, but its image has '
            f'[{image.height}, {image.width}]',
            remedy='write the mask again',
        )
    return Object(name, corners, title, reason, mask)


def _count_formats(formats: Counter[str], bbox: Sequence[float], image: Image) -> None:
    """Whether a box fits its image as [x, y, width, height], and whether as [x1, y1, x2, y2]."""
    if all(map(math.isfinite, bbox)):
        x, y, width, height = bbox
        formats['boxes'] += 1
        # corners taken for sizes go far beyond the image; objects near its size a little
        far = image.beyond((x, y, x + width, y + height))
        formats['beyond'] += far > max(records.BORDER, _FAR * max(image.width, image.height))
        formats['corners'] += width > x and height > y and image.beyond(bbox) <= records.BORDER


def _check_area(annotation: dict, image: Image, title: str) -> Iterator[Finding]:
    _, _, width, height = annotation['bbox']
    if not annotation['area'] <= _MOST_AREA * width * height:  # nor is NaN
        yield warning(
            'area beyond its box',
            image.file,
            f'{title} has area {brief(annotation["area"])}, its box {width * height:g} px',
        )


def _check_doubled(images: Sequence[Image], file: str) -> Iterator[Finding]:
    """Files that are more than one image; if their objects differ, they contradict each other."""
    by_file: dict[str, list[Image]] = {}
    for image in images:
        by_file.setdefault(os.path.normpath(image.file), []).append(image)
    for name, same in by_file.items():
        if len(same) == 1:
            continue
        kind, what = 'image listed twice', f'{len(same)} images of {file} are this file'
        if all(Counter(image.boxes) == Counter(same[0].boxes) for image in same):
            yield warning(kind, name, what)
        else:
            what += ': what is annotated in one is background in the other'
            remedy = 'give all annotations of the file one image_id, and remove the other images'
            yield error(kind, name, what, remedy)


def _match_categories(node: Node, classes: Sequence[str], names: list[str], file: str) -> None:
    missing = [name for name in classes if name not in names]
    if missing:
        what = f'{len(missing)} of {len(classes)} classes'
        if node.own_classes:
            what = f"it is not set, and {len(missing)} of {node.name}'s own classes"
        unused = [str(name) for name in names if name not in classes]
        likely = {name: nearest(name, unused) for name in missing}
        shown = listed(
            repr(name) + (f' (did you mean {likely[name]!r}?)' if likely[name] else '')
            for name in missing
        )
        raise DataError(
            f'{node.classes_key}: {what} are not among its categories: {shown}; it has '
            f'{listed(names, 10)}',
            file,
            'write the names in metainfo.classes as the file does',
        )
    used = [name for name in names if name in classes]
    twice = [name for name, count in Counter(used).items() if count > 1]
    if twice:
        raise DataError(f'more than one category is named {listed(twice)}', file, 'keep one')
    if used != list(classes):
        raise DataError(
            f'{node.classes_key} is in another order than its categories, whose order numbers the '
            'labels, so names would be swapped',
            file,
            f'write classes={tuple(used)} (test.py maps the labels of a checkpoint to that by '
            'name), and for training give all annotation files the same order of categories',
        )


def _get(item: dict, key: str) -> Any:
    if key not in item:
        raise DataError(f'it has no {key!r}', remedy='add it')
    return item[key]


def _key(item: dict, key: str) -> Any:
    """A value that other items refer to."""
    value = _get(item, key)
    if isinstance(value, list | dict):
        raise DataError(f'{key} is {brief(value)}', remedy='write a number')
    return value


def _find(annotation: dict, key: str, known: Mapping) -> Any:
    """What an id refers to, or None; raises if it is a text for what is known by a number."""
    value = _key(annotation, key)
    if value in known:
        return known[value]
    try:
        twin = int(value) if isinstance(value, str) else str(value)
    except ValueError:
        return None
    if twin in known:
        raise DataError(
            f'{key} is {brief(value)}, but what it refers to has the id {brief(twin)}',
            remedy='write both as numbers',
        )
    return None


def _is_number(value: Any) -> bool:
    # True is no number, nor is an integer beyond the range of a float
    return type(value) is float or (type(value) is int and abs(value) < 1e300)


def _number(item: dict, key: str) -> float:
    value = _get(item, key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f'{key} is {brief(value)}', remedy='write a number')
    return value
