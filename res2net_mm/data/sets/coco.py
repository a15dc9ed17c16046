"""COCO annotation files: what mmdet makes of them, read without building the dataset."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief  # what a file holds may be long
from typing import Any

import numpy as np

from ...checks import listed, nearest
from ..errors import DataError
from ..findings import Finding, error, warning
from .nodes import Node
from .records import BORDER, Image, Object, check_missing

_MOST_SIDE = 10_000_000  # px of an image
_MOST_AREA = 1.1  # share of its box that an object may cover: rounding
_FAR = 0.04  # of the image's longer side: a box beyond the border by more is no slip
_FEWEST = 5  # boxes that show how boxes are written
_NEEDED = {
    'category': 'id and name',
    'image': 'id, file_name, width and height',
    'annotation': 'id, image_id, category_id, bbox [x, y, width, height] and area',
}


def read_coco(
    node: Node, classes: Sequence[str], annotated: bool = True
) -> Generator[Finding, None, list[Image]]:
    """What mmdet's ``CocoDataset`` reads; ``classes`` are those it is used with.

    Without ``annotated``, the file may lack annotations.
    """
    file = node.annotation_file()
    content = load_coco(file, annotated)
    reader = _Reader(node, classes, file)
    yield from reader.each(content['categories'], 'category', reader.category)
    yield from _check_categories(node, classes, list(reader.names.values()), file)
    yield from reader.each(content['images'], 'image', reader.image)
    yield from reader.each(content.get('annotations') or (), 'annotation', reader.annotation)
    yield from check_format(np.array(reader.boxes, float).reshape(-1, 6), file)
    folders = node.option('data_prefix') or {}
    loads = [isinstance(step, Mapping) and step.get('with_seg') for step in node.pipeline]
    if folders.get('seg') and any(loads):
        files = [os.path.relpath(image.file, reader.folder) for image in reader.images.values()]
        stems = [os.path.splitext(name)[0] for name in files]
        end, folder = node.option('seg_map_suffix'), node.prefix('seg')
        maps = [os.path.join(folder, f'{stem}{end}') for stem in stems]
        yield from check_missing(maps, 'semantic maps', file, node.key)
    return list(reader.images.values())


def load_coco(file: str, annotated: bool = True) -> dict:
    """A COCO json with lists of images, categories and, if ``annotated``, annotations."""
    content = read_json(file)
    for part in ('images', 'annotations', 'categories') if annotated else ('images', 'categories'):
        values = content.get(part) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise DataError(
                f'it has no list of {part!r}, so it is no COCO annotation file',
                file,
                'it needs images, annotations and categories',
            )
    return content


def read_json(
    file: str | Path, where: str | None = None, remedy: str = 'write or copy it again'
) -> Any:
    """The content of a JSON file; a DataError that names ``where``, or the file, if it is none."""
    try:
        return json.loads(Path(file).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as fault:  # RecursionError: lists in lists in lists
        if 'BOM' in str(fault):
            remedy = 'save it as UTF-8 without a byte order mark'
        raise DataError(f'it is not valid JSON ({fault})', where or str(file), remedy) from fault


def loads_masks(pipeline: Sequence) -> bool:
    """Whether a transform of ``pipeline`` reads the segmentation of every object."""
    return any(isinstance(step, Mapping) and step.get('with_mask') for step in pipeline)


def written_as_corners(formats: Mapping[str, int]) -> bool:
    """Whether boxes are written as corners x1, y1, x2, y2, not with width and height.

    ``formats`` has the numbers of all ``boxes``, of those that go ``beyond`` their images as they
    should be written, and of those that are inside them as ``corners``.
    """
    boxes = formats['boxes']
    # a few boxes beyond the border are common, large objects near the middle fit both ways
    fitting = 10 * formats['corners'] >= 9 * boxes
    return fitting and boxes >= _FEWEST and 4 * formats['beyond'] > boxes


class _Reader:
    """Takes up the items of a file one by one, and yields what is wrong with them."""

    def __init__(self, node: Node, classes: Sequence[str], file: str) -> None:
        self.classes, self.file = classes, file
        self.folder, self.masks = node.prefix('img'), loads_masks(node.pipeline)
        self.names: dict[Any, str] = {}
        self.images: dict[Any, Image] = {}
        self.boxes: list[tuple] = []  # as written, with the sizes of their images

    def each(self, items: Sequence[dict], what: str, read: Callable) -> Iterator[Finding]:
        """Whatever ``read`` yields for the items, and those that it cannot read."""
        ids = set()
        for i, item in enumerate(items):
            title = f'{what} {brief(item.get("id", f"number {i}"))}'
            try:
                if item['id'] in ids:
                    yield error('doubled id', self.file, f'{title} occurs twice')
                ids.add(item['id'])
                yield from read(item, title)
            except (KeyError, TypeError, ValueError, OverflowError) as fault:
                lacks = isinstance(fault, KeyError)
                said = f'it has no {fault}' if lacks else f'{fault}, in {str(item):.150}'
                yield error(f'broken {what}', self.file, f'{title}: {said}', _NEEDED[what])

    def category(self, item: dict, title: str) -> Sequence[Finding]:
        self.names[item['id']] = item['name']
        return ()

    def image(self, item: dict, title: str) -> Sequence[Finding]:
        width, height = _number(item, 'width'), _number(item, 'height')
        if not (1 <= width <= _MOST_SIDE and 1 <= height <= _MOST_SIDE):
            raise ValueError(f'no image has {width:g} x {height:g} px')
        file = os.path.join(self.folder, item['file_name'])
        self.images[item['id']] = Image(file, width, height)
        return ()

    def annotation(self, item: dict, title: str) -> Iterator[Finding]:
        for key, known in (('image_id', self.images), ('category_id', self.names)):
            if item[key] not in known:
                what = key.removesuffix('_id')
                said = f'{title} has {key} {brief(item[key])}, which no {what} has'
                if str(item[key]).isdecimal() and {int(item[key]), str(item[key])} & known.keys():
                    mixed = f'{key} {brief(item[key])}: numbers and texts are mixed'
                    raise TypeError(f'no {what} has {mixed}')
                yield warning(f'annotation of no {what}', self.file, said)
        image, name = self.images.get(item['image_id']), self.names.get(item['category_id'])
        if image is None:
            return
        if name not in self.classes:
            image.other_classes[str(name)] += 1
            return
        if item.get('ignore'):  # mmdet reads nothing else of it
            nowhere = (math.nan,) * 4
            image.objects.append(Object(name, nowhere, title, 'marked ignore'))
            return
        sides, crowd, area = item['bbox'], item.get('iscrowd', 0), _number(item, 'area')
        if not isinstance(sides, list) or len(sides) != 4:
            raise TypeError(f'bbox is {brief(sides)}, not [x, y, width, height]')
        if crowd not in (0, 1):
            raise TypeError(f'iscrowd is {brief(crowd)}')
        x, y, width, height = (_number(sides, i) for i in range(4))
        box, mask = (x, y, x + width, y + height), item.get('segmentation')
        reason = image.box_fault(box)
        if reason is None and (width < 1 or height < 1):
            reason = 'under 1 px'
        if reason is None and area <= 0:
            reason = 'without area'
        if reason is None and crowd:
            reason = 'crowd'
        if self.masks and reason in (None, 'crowd'):
            size = [image.height, image.width]
            if not (mask.get('size') == size if isinstance(mask, dict) else mask):
                raise ValueError(
                    f'it has no segmentation for size {size}, but {brief(mask)}, and the pipeline '
                    'loads masks (with_mask=True): use a detector without masks'
                )
        image.objects.append(Object(name, box, title, reason, mask))
        self.boxes.append((x, y, width, height, image.width, image.height))
        if reason is None and not area <= _MOST_AREA * width * height:  # nor is NaN
            what = f'{title} has area {area:g}, its box {width * height:g} px'
            yield warning('area beyond its box', image.file, what)


def _number(values: Mapping | Sequence, key: Any) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):  # True is a number to Python
        raise TypeError(f'{key if isinstance(key, str) else "bbox"} is {brief(value)}')
    float(value)  # raises at an integer with hundreds of digits
    return value


def _check_categories(
    node: Node, classes: Sequence[str], names: list[str], file: str
) -> Iterator[Finding]:
    what, used = '', [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    twice = [name for name, count in Counter(used).items() if count > 1]
    if missing:
        whose = f"{node.name}'s own" if node.given_classes is None else len(classes)
        likely = nearest(missing[0], [str(name) for name in names if name not in classes])
        first = repr(missing[0]) + (f' (did you mean {likely!r}?)' if likely else '')
        what = f'{len(missing)} of {whose} classes are not among its categories: '
        what += f'{listed([first, *missing[1:]])}; it has {listed(names, 10)}'
    elif twice:
        what = f'more than one category is named {listed(twice)}'
    elif used != list(classes):
        what = 'its categories, whose order numbers the labels, are in another order'
    if what:
        remedy = f'write classes={tuple(used)}' if used and not twice else 'make them the same'
        remedy += ', and give all annotation files the same order of categories'
        yield error('classes', file, f'{node.classes_key}: {what}', remedy)


def check_format(boxes: np.ndarray, file: str) -> Iterator[Finding]:
    """Finds boxes as corners: (N, 6) as written, with width and height of their images."""
    boxes = boxes[np.isfinite(boxes).all(1)]
    corner, extent, size = np.split(boxes, 3, axis=1)
    # corners taken for sizes go far beyond the image; objects near its size a little
    beyond = np.maximum(corner + extent - size, -corner).max(1)
    far = beyond > np.maximum(BORDER, _FAR * size.max(1))
    corners = (extent > corner) & (corner >= -BORDER) & (extent <= size + BORDER)
    counts = {'boxes': len(boxes), 'beyond': far.sum(), 'corners': corners.all(1).sum()}
    if written_as_corners(counts):
        yield error(
            'boxes written as corners',
            file,
            f'{counts["corners"]:,} of its {len(boxes):,} boxes would be inside their images as '
            f'[x1, y1, x2, y2], but as [x, y, width, height] {far.sum():,} go beyond them',
            'write them with width and height, and the sizes of the images as they are',
        )
