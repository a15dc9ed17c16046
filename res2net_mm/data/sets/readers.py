"""What mmdet will make of a dataset's annotations, read without building the dataset."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from reprlib import repr as brief  # what a file holds may be long
from typing import Any

import mmcv

from ...checks import folded, listed, nearest
from ..errors import DataError
from .limits import check_pixels
from .nodes import STRICT, Image, Node, Object, Reading, Watch, missing_files, read_list
from .voc import find_image, read_voc

OTHER_CLASSES = 'other classes'
ZERO_SIZE = 'zero-size'

# Least likeness of a name to a class without objects to be called a misspelling. To train on a
# class without objects is a mistake anyway; to have none of it to evaluate on is common.
_LIKENESS_IN_TRAINING, LIKENESS = 0.6, 0.81
_IGNORED = ('crowd', 'difficult')  # neither trained on nor counted as missed
_FAR = 0.04  # share of the longer side that is no slip at the border any more
_BORDER = 1  # px by which a box may go beyond the image: rounding, and counting from 0 or 1
_MOST_SIDE = 10_000_000  # px of an image
_FEWEST = 5  # boxes that tell how boxes are written
# By how much an object may be larger than its box before it is told: rounding.
_MOST_AREA = 1.1


def read_coco(
    node: Node, classes: Sequence[str], annotated: bool = True, watch: Watch = STRICT
) -> Reading:
    """A dataset that mmdet's ``CocoDataset`` reads.

    Args:
        node: the dataset.
        classes: the names it is used with.
        annotated: False where the file may be without annotations.
        watch: what is done at a fault.

    Raises:
        DataError: a file or folder is missing, or what it holds cannot be used.
    """
    file = node.annotation_file()
    content = load_coco(file, annotated)
    category_names = {}
    for category in _check_unique(content['categories'], 'category', file, watch):
        with watch.guard('broken category', file):
            where = f'{file}: category {category["id"]}'
            category_names[category['id']] = _get(category, 'name', where)
    _match_categories(node, classes, list(category_names.values()), file, watch)
    images = _coco_images(content['images'], node.prefix('img'), file, watch)
    annotations = _check_unique(content.get('annotations') or [], 'annotation', file, watch)
    masks = loads_masks(node.config.get('pipeline') or ())
    reading = Reading(list(images.values()))
    formats: Counter[str] = Counter()
    for annotation in annotations:
        where = f'{file}: annotation {annotation["id"]}'
        with watch.guard('broken annotation', file):
            name = category_names.get(_key(annotation, 'category_id', where))
            image = images.get(_key(annotation, 'image_id', where))
            if image is None:
                _check_id_type(annotation, 'image_id', images, where)
                reading.stray += 1
                watch.warn(
                    'annotation of no image',
                    file,
                    f'annotation {annotation["id"]} is of an image that is not listed',
                    'add the image to the list, or remove the annotation; it is not used',
                )
                continue
            if annotation['category_id'] not in category_names:
                _check_id_type(annotation, 'category_id', category_names, where)
                watch.warn(
                    'annotation of no category',
                    file,
                    f'annotation {annotation["id"]} has category_id '
                    f'{brief(annotation["category_id"])}, which no category has',
                    'add the category, or correct the annotation; it is not used',
                )
            if name not in classes:
                image.other_classes[str(name)] += 1
                continue
            image.has_objects = True
            box, reason = _coco_box(annotation, image, where)
            if masks and reason in (None, 'crowd') and not annotation.get('segmentation'):
                raise DataError(
                    f'{where} has no segmentation, but the pipeline of {node.key} loads masks '
                    '(with_mask=True); add it, or use a detector without masks'
                )
            rle = annotation.get('segmentation') if masks else None
            if isinstance(rle, dict) and rle.get('size') != [image.height, image.width]:
                raise DataError(
                    f'{where}: its mask is for size {rle.get("size")}, but its image has '
                    f'[{image.height}, {image.width}]; write the mask again'
                )
            image.add(name, reason)
            if reason is None:
                _warn_of_area(annotation, image, watch)
            title = f'annotation {annotation["id"]}'
            if box:
                _count_formats(formats, annotation['bbox'], image)
                _warn_of_border(watch, image, f'{title} ({name})', box, reason)
            if watch.keeps_objects and box:
                segmentation = annotation.get('segmentation')
                image.objects.append(Object(name, box, title, reason, segmentation))
    with watch.guard('boxes written as corners', file):
        if written_as_corners(formats):
            raise DataError(
                f'{file}: all of its {formats["boxes"]:,} boxes would be in their images as '
                f'[x1, y1, x2, y2], but as [x, y, width, height] {formats["beyond"]:,} go beyond '
                'them; write them as [x, y, width, height]'
            )
    _check_doubled(list(images.values()), file, watch)
    others = sum((image.other_classes for image in reading.images), Counter())
    _warn_of_names(watch, reading.images, classes, others, likeness=1)
    return reading


def load_coco(file: str, annotated: bool = True) -> dict:
    """A COCO json with its lists of images, categories and, where ``annotated``, annotations."""
    try:
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise DataError(f'{file} is not valid JSON ({error}); write or copy it again') from error
    for part in ('images', 'annotations', 'categories') if annotated else ('images', 'categories'):
        values = content.get(part) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise DataError(
                f'{file} has no list of {part!r}, so it is no COCO annotation file; it needs '
                'images, annotations and categories'
            )
    return content


def loads_masks(pipeline: Sequence) -> bool:
    """Whether a transform of ``pipeline`` reads every object's segmentation."""
    return any(isinstance(step, Mapping) and step.get('with_mask') for step in pipeline)


def read_voc_set(
    node: Node, classes: Sequence[str], training: bool, watch: Watch = STRICT
) -> Reading:
    """A dataset that mmdet's ``XMLDataset``, or ours, reads.

    Args:
        node: the dataset.
        classes: the names it is used with.
        training: whether it is trained on.
        watch: what is done at a fault.

    Raises:
        DataError: a file or folder is missing, what it holds cannot be used, or a class is
            misspelt.
    """
    file = node.annotation_file()
    names = read_list(file)
    for i, name in enumerate(names, 1):
        with watch.guard('blank in a list', file):
            if not name.strip() or name != name.strip():
                raise DataError(
                    f'{file}: line {i} is {name!r}, but must be the name of an image without '
                    'suffix; remove the blank'
                )
    names = [name.strip() for name in names if name.strip()]
    root_key = 'data_prefix.sub_data_root'
    sub_root = (node.option('data_prefix') or {}).get('sub_data_root')
    root = (
        ''
        if sub_root is None
        else node.existing(root_key, sub_root, node.path(sub_root), folder=True)
    )
    if sub_root is None and node.config.get('data_root'):
        raise DataError(
            f'{node.key}.{root_key} is not set, and without it {node.name} does not look below '
            f"data_root; set it, '' for data_root itself: data_prefix=dict(sub_data_root='')"
        )
    image_folder, xml_folder = (
        node.existing(key, node.option(key), os.path.join(root, node.option(key)), folder=True)
        for key in ('img_subdir', 'ann_subdir')
    )
    xml_files = [os.path.join(xml_folder, f'{name}.xml') for name in names]
    missing = set(report_missing(node, xml_files, 'annotation files', file, watch))
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
        if xml_file in missing:
            continue
        with watch.guard('broken annotation', xml_file):
            _read_voc_image(image, xml_file, classes, least, watch)
    with watch.guard('classes', file):
        likeness = _LIKENESS_IN_TRAINING if training else LIKENESS
        _check_voc_names(node, classes, images, likeness, watch)
    return Reading(images)


def report_missing(
    node: Node, files: list[str], what: str, source: str, watch: Watch = STRICT
) -> list[str]:
    """Raises a DataError where ``files``, of which ``source`` tells, are not all there.

    Returns:
        The missing ones, where ``watch`` goes on.
    """
    missing = missing_files(files)
    for batch in watch.batches(missing):
        with watch.guard(f'{what} missing', batch[0]):
            folder = os.path.dirname(batch[0]) or '.'
            first = f'{listed(map(os.path.basename, batch), 3)} in {folder}{_likely(batch[0])}'
            if len(missing) == len(files):
                raise DataError(
                    f'{node.key}: none of the {len(files):,} {what} of {source} is there '
                    f'({first}); correct data_root or data_prefix, for example --cfg-options '
                    f'{node.key}.data_root=FOLDER'
                )
            raise DataError(
                f'{node.key}: {len(missing):,} of the {len(files):,} {what} of {source} are '
                f'missing ({first}); add them or take them out of it'
            )
    return missing


def _likely(file: str) -> str:
    """Why a file is missing that is there by another name."""
    if os.path.lexists(file):
        return ', which is there, but no file'
    if '\\' in file:
        return ', whose \\ separates no folders here: write /'
    folder, name = os.path.split(file)
    try:
        there = os.listdir(folder or os.curdir)
    except OSError:
        return ''
    stem = os.path.splitext(name)[0]
    names = [n for n in there if folded(n) == folded(name) or os.path.splitext(n)[0] == stem]
    return f', where {names[0]} is' if names else ''


def _read_voc_image(
    image: Image, xml_file: str, classes: Sequence[str], least: float | None, watch: Watch
) -> None:
    try:
        with open(xml_file, 'rb') as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f'{xml_file} cannot be read ({error.strerror}); replace it') from error
    size, objects = read_voc(content, xml_file)
    if size is None and os.path.isfile(image.file):
        check_pixels(image.file, f'image {image.file}')
        decoded = mmcv.imread(image.file)
        size = None if decoded is None else decoded.shape[1::-1]
    image.width, image.height = size or (0, 0)
    if any(obj.corners != obj.box for obj in objects):
        watch.warn(
            'fractional coordinates',
            xml_file,
            'mmdet cuts the fractions of VOC coordinates off',
            'nothing, where a pixel makes no difference; else train on what voc2coco writes, which '
            'keeps them',
        )
    for i, obj in enumerate(objects, 1):
        if obj.name not in classes:
            image.other_classes[obj.name] += 1
            continue
        image.has_objects = True
        x1, y1, x2, y2 = (side - 1 for side in obj.box)  # VOC counts pixels from 1
        reason = _box_reason(x1, y1, x2, y2, image)
        if reason is None and obj.difficult:
            reason = 'difficult'
        if reason is None and least is not None and min(x2 - x1, y2 - y1) < least:
            reason = f'under {least} px'
        image.add(obj.name, reason)
        _warn_of_border(watch, image, f'object {i} ({obj.name})', (x1, y1, x2, y2), reason)
        if watch.keeps_objects:
            image.objects.append(Object(obj.name, (x1, y1, x2, y2), f'object {i}', reason))


def _coco_images(infos: list[dict], folder: str, file: str, watch: Watch) -> dict[Any, Image]:
    images = {}
    for info in _check_unique(infos, 'image', file, watch):
        with watch.guard('broken image entry', file):
            where = f'{file}: image {info["id"]}'
            width, height = (_number(info, side, where) for side in ('width', 'height'))
            if not (1 <= width <= _MOST_SIDE and 1 <= height <= _MOST_SIDE):
                raise DataError(
                    f'{where} is {brief(width)} x {brief(height)} px, which no image is; write its '
                    'width and height'
                )
            name = _get(info, 'file_name', where)
            if not isinstance(name, str) or '\0' in name:
                raise DataError(f'{where}: file_name is {brief(name)}; write the name of its file')
            images[info['id']] = Image(os.path.join(folder, name), width, height)
    return images


def _check_doubled(images: Sequence[Image], file: str, watch: Watch) -> None:
    """Files that are more than one image: with other objects on each, they contradict."""
    by_file: dict[str, list[Image]] = {}
    for image in images:
        by_file.setdefault(os.path.normpath(image.file), []).append(image)
    for name, same in by_file.items():
        if len(same) == 1:
            continue
        kind = 'image listed twice'
        if all(Counter(image.boxes) == Counter(same[0].boxes) for image in same):
            watch.warn(
                kind,
                name,
                f'{len(same)} images of {file} are this file',
                'remove all but one; as it is, it counts for more than others',
            )
            continue
        with watch.guard(kind, name):
            raise DataError(
                f'{name}: {len(same)} images of {file} are this file: what is annotated on one is '
                'background on the other; give all annotations of the file one image_id, and '
                'remove the other images'
            )


def _beyond(box: Sequence[float], image: Image) -> float:
    """By how many px a box goes beyond its image."""
    return max(-box[0], -box[1], box[2] - image.width, box[3] - image.height)


def _warn_of_border(
    watch: Watch, image: Image, title: str, box: Sequence[float], reason: str | None
) -> None:
    if image.width and reason in (None, *_IGNORED) and _beyond(box, image) > _BORDER:
        watch.warn(
            'box beyond the border',
            image.file,
            f'{title}, box {", ".join(f"{side:g}" for side in box)}: it goes '
            f'{_beyond(box, image):g} px beyond the {image.width} x {image.height} px of the image',
            'nothing, if objects are cut by the border; else look whether boxes and image agree',
        )


def _count_formats(formats: Counter[str], bbox: Sequence[float], image: Image) -> None:
    """Whether a box fits its image as [x, y, width, height], and whether as [x1, y1, x2, y2]."""
    if all(map(math.isfinite, bbox)):
        x, y, width, height = bbox
        formats['boxes'] += 1
        # corners taken for sizes go far beyond the image; objects near its size a little
        far = _beyond((x, y, x + width, y + height), image)
        formats['beyond'] += far > max(_BORDER, _FAR * max(image.width or 0, image.height or 0))
        formats['corners'] += width > x and height > y and _beyond(bbox, image) <= _BORDER


def written_as_corners(formats: Mapping[str, int]) -> bool:
    """Whether boxes are written as corners x1, y1, x2, y2, not with a width and a height.

    Args:
        formats: how many ``boxes`` there are, how many go ``beyond`` their images as they should be
            written, and how many are within them as ``corners``.
    """
    boxes = formats['boxes']
    # a few boxes beyond the border are common, large objects about the middle fit both ways
    return boxes == formats['corners'] and boxes >= _FEWEST and 4 * formats['beyond'] > boxes


def _warn_of_names(
    watch: Watch,
    images: Sequence[Image],
    classes: Sequence[str],
    others: Mapping[str, int],
    likeness: float = LIKENESS,
) -> None:
    """Names that are nearly those of a class, and whose objects are passed over."""
    known = {name for image in images for name in image.boxes}
    for name, count in others.items():
        likely = nearest(name, classes, likeness)
        if likely in known:
            watch.warn(
                'name like a class',
                next(image.file for image in images if name in image.other_classes),
                f'{count:,} objects are named {name!r} (did you mean {likely!r}?), which is no '
                'class, so that they are not used',
                'write the name as the others are, or leave it, if it is meant',
            )


def _warn_of_area(annotation: dict, image: Image, watch: Watch) -> None:
    _, _, width, height = annotation['bbox']
    if not annotation['area'] <= _MOST_AREA * width * height:  # NaN is neither
        watch.warn(
            'area beyond its box',
            image.file,
            f'annotation {annotation["id"]} has area {brief(annotation["area"])}, its '
            f'box {width * height:g} px',
            'write the number of its pixels, by which AP by size is counted',
        )


def _coco_box(
    annotation: dict, image: Image, where: str
) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """Corners of a box, if it is looked at, and why mmdet does not train on it, if so."""
    if annotation.get('ignore'):
        return None, 'marked ignore'
    crowd = annotation.get('iscrowd', 0)
    if not isinstance(crowd, int | float):
        raise DataError(f'{where}: iscrowd is {brief(crowd)}; write 0 or 1')
    box = _get(annotation, 'bbox', where)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f'{where}: bbox is {brief(box)}; write it as [x, y, width, height]')
    x, y, width, height = box
    corners = (x, y, x + width, y + height)
    reason = _box_reason(*corners, image)
    if reason is None and (width < 1 or height < 1):
        reason = 'under 1 px'
    if reason is None and _number(annotation, 'area', where) <= 0:
        reason = 'without area'
    return corners, reason or ('crowd' if crowd else None)


def _box_reason(x1: float, y1: float, x2: float, y2: float, image: Image) -> str | None:
    """What ``DropEmptyBoxes``, and mmdet for COCO, drop; an image of unknown size holds any box."""
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return 'not finite'
    if x2 <= x1 or y2 <= y1:
        return ZERO_SIZE
    known = image.width and image.height
    if x2 <= 0 or y2 <= 0 or (known and (x1 >= image.width or y1 >= image.height)):
        return 'outside the image'
    return None


def _match_categories(
    node: Node, classes: Sequence[str], names: list[str], file: str, watch: Watch
) -> None:
    key = f'{node.key}.metainfo.classes'
    missing = [name for name in classes if name not in names]
    if missing:
        if node.own_classes:
            what = f"{key} is not set, and of {node.name}'s own classes {len(missing)}"
        else:
            what = f'{key}: {len(missing)} of {len(classes)} classes'
        unused = [str(name) for name in names if name not in classes]
        likely = {name: nearest(name, unused) for name in missing}
        shown = listed(
            repr(name) + (f' (did you mean {likely[name]!r}?)' if likely[name] else '')
            for name in missing
        )
        with watch.guard('classes', file):
            raise DataError(
                f'{what} are not among the categories of {file}: {shown}; it has '
                f'{listed(names, 10)}; write the names as it does in metainfo.classes'
            )
        return
    used = [name for name in names if name in classes]
    twice = [name for name, count in Counter(used).items() if count > 1]
    with watch.guard('classes', file):
        if twice:
            raise DataError(f'{file} has more than one category named {listed(twice)}; give it one')
        if used != list(classes):
            raise DataError(
                f'{key} is in another order than the categories of {file}, whose order numbers '
                f'the labels, so that names would be swapped; write classes={tuple(used)} (test.py '
                'maps the labels of a checkpoint to that by name), and for training give all '
                'annotation files one order of categories'
            )


def _check_voc_names(
    node: Node, classes: Sequence[str], images: list[Image], likeness: float, watch: Watch
) -> None:
    found = Counter(name for image in images for name in (*image.boxes, *image.unusable))
    others = sum((image.other_classes for image in images), Counter())
    key = f'{node.key}.metainfo.classes'
    shown = listed((f'{name} ({count:,})' for name, count in others.most_common()), 10)
    if others and not found:
        raise DataError(
            f'{key}={tuple(classes)}: no object of the annotation files has one of these names; '
            f'theirs are {shown}; write the names as they do'
        )
    for name in classes:
        likely = None if name in found else nearest(name, others, likeness)
        if likely:
            raise DataError(
                f'{key}: no object of the annotation files is named {name!r}, but '
                f'{others[likely]:,} are named {likely!r} (did you mean that?); names that are no '
                f'class: {shown}; write the names as the files do'
            )
    _warn_of_names(watch, images, classes, others)


def _check_unique(items: list[dict], what: str, file: str, watch: Watch) -> list[dict]:
    """Those of ``items`` that have an id, of which each should be there once."""
    counts: Counter[Any] = Counter()
    numbered = []
    for i, item in enumerate(items):
        with watch.guard(f'broken {what}', file):
            counts[_key(item, 'id', f'{file}: {what} number {i}')] += 1
            numbered.append(item)
    for twice in watch.batches([number for number, count in counts.items() if count > 1]):
        with watch.guard('doubled id', file):
            raise DataError(f'{file}: {what} id {listed(twice)} occurs twice; number them anew')
    return numbered


def _get(item: dict, key: str, where: str) -> Any:
    if key not in item:
        raise DataError(f'{where} has no {key!r}; add it')
    return item[key]


def _key(item: dict, key: str, where: str) -> Any:
    """A value that others are found by."""
    value = _get(item, key, where)
    if isinstance(value, list | dict):
        raise DataError(f'{where}: {key} is {brief(value)}; write a number')
    return value


def _check_id_type(annotation: dict, key: str, known: Mapping, where: str) -> None:
    """Raises a DataError where an id is known as a number and written as a text, or vice versa."""
    value = annotation[key]
    try:
        twin = int(value) if isinstance(value, str) else str(value)
    except ValueError:
        return
    if twin in known:
        raise DataError(
            f'{where}: {key} is {brief(value)}, but what it is of has the id {brief(twin)}; write '
            'both as numbers'
        )


def _is_number(value: Any) -> bool:
    # True is no number, nor an integer beyond what a float holds
    return type(value) is float or (type(value) is int and abs(value) < 1e300)


def _number(item: dict, key: str, where: str) -> float:
    value = _get(item, key, where)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f'{where}: {key} is {brief(value)}; write a number')
    return value
