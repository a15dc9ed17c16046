"""What mmdet will make of a dataset's annotations, read without building the dataset."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
from mmengine.fileio import list_from_file

from .errors import DataError, listed, nearest
from .nodes import Image, Node, Reading, missing_files
from .voc import find_image, read_voc

OTHER_CLASSES = 'other classes'
ZERO_SIZE = 'zero-size'

# Least likeness of a name to a class without objects to be called a misspelling. To train on a
# class without objects is a mistake anyway; to have none of it to evaluate on is common.
_LIKENESS_IN_TRAINING, _LIKENESS = 0.6, 0.81


def read_coco(node: Node, classes: Sequence[str], annotated: bool = True) -> Reading:
    """A dataset that mmdet's ``CocoDataset`` reads.

    Args:
        node: the dataset.
        classes: the names it is used with.
        annotated: False where the file may be without annotations.

    Raises:
        DataError: a file or folder is missing, or what it holds cannot be used.
    """
    file = node.annotation_file()
    content = load_coco(file, annotated)
    _check_unique(content['categories'], 'category', file)
    category_names = {
        category['id']: _get(category, 'name', f'{file}: category {category["id"]}')
        for category in content['categories']
    }
    _match_categories(node, classes, list(category_names.values()), file)
    images = _coco_images(content['images'], node.prefix('img'), file)
    annotations = content.get('annotations') or []
    _check_unique(annotations, 'annotation', file)
    masks = loads_masks(node.config.get('pipeline') or ())
    reading = Reading(list(images.values()))
    for annotation in annotations:
        where = f'{file}: annotation {annotation["id"]}'
        name = category_names.get(_get(annotation, 'category_id', where))
        image = images.get(_get(annotation, 'image_id', where))
        if image is None:
            reading.stray += 1
        elif name not in classes:
            image.other_classes[str(name)] += 1
        else:
            image.has_objects = True
            reason = _coco_reason(annotation, image, where)
            if masks and reason in (None, 'crowd') and not annotation.get('segmentation'):
                raise DataError(
                    f'{where} has no segmentation, but the pipeline of {node.key} loads masks '
                    '(with_mask=True); add it, or use a detector without masks'
                )
            image.add(name, reason)
    return reading


def load_coco(file: str, annotated: bool = True) -> dict:
    """A COCO json with its lists of images, categories and, where ``annotated``, annotations."""
    try:
        with open(file, encoding='utf-8') as stream:
            content = json.load(stream)
    except ValueError as error:
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


def read_voc_set(node: Node, classes: Sequence[str], training: bool) -> Reading:
    """A dataset that mmdet's ``XMLDataset``, or ours, reads.

    Args:
        node: the dataset.
        classes: the names it is used with.
        training: whether it is trained on.

    Raises:
        DataError: a file or folder is missing, what it holds cannot be used, or a class is
            misspelt.
    """
    file = node.annotation_file()
    names = list_from_file(file)
    for i, name in enumerate(names, 1):
        if not name.strip() or name != name.strip():
            raise DataError(
                f'{file}: line {i} is {name!r}, but must be the name of an image without suffix; '
                'remove the blank'
            )
    root_key = 'data_prefix.sub_data_root'
    sub_root = (node.option('data_prefix') or {}).get('sub_data_root')
    root = '' if sub_root is None else node.existing(
        root_key, sub_root, node.path(sub_root), folder=True
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
    report_missing(node, xml_files, 'annotation files', file)
    present = set(os.listdir(image_folder))
    least = (node.config.get('filter_cfg') or {}).get('bbox_min_size')
    images = []
    for name, xml_file in zip(names, xml_files, strict=True):
        with open(xml_file, 'rb') as stream:
            size, objects = read_voc(stream.read(), xml_file)
        image = Image(
            find_image(
                os.path.join(image_folder, name),
                lambda path: os.path.basename(path) in present or os.path.isfile(path),
            )
        )
        if size is None and os.path.isfile(image.file):
            decoded = mmcv.imread(image.file)
            size = None if decoded is None else decoded.shape[1::-1]
        image.width, image.height = size or (0, 0)
        for obj in objects:
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
        images.append(image)
    _check_voc_names(node, classes, images, _LIKENESS_IN_TRAINING if training else _LIKENESS)
    return Reading(images)


def report_missing(node: Node, files: list[str], what: str, source: str) -> None:
    """Raises a DataError where ``files``, of which ``source`` tells, are not all there."""
    missing = missing_files(files)
    if not missing:
        return
    first = f'{listed(map(os.path.basename, missing), 3)} in {os.path.dirname(missing[0]) or "."}'
    if len(missing) == len(files):
        raise DataError(
            f'{node.key}: none of the {len(files):,} {what} of {source} is there ({first}); '
            f'correct data_root or data_prefix, for example --cfg-options '
            f'{node.key}.data_root=FOLDER'
        )
    raise DataError(
        f'{node.key}: {len(missing):,} of the {len(files):,} {what} of {source} are missing '
        f'({first}); add them or take them out of it'
    )


def _coco_images(infos: list[dict], folder: str, file: str) -> dict[Any, Image]:
    _check_unique(infos, 'image', file)
    images = {}
    for info in infos:
        where = f'{file}: image {info["id"]}'
        width, height = (_get(info, side, where) for side in ('width', 'height'))
        images[info['id']] = Image(
            os.path.join(folder, _get(info, 'file_name', where)), width, height
        )
    return images


def _coco_reason(annotation: dict, image: Image, where: str) -> str | None:
    """Why mmdet does not train on a box; None where it does."""
    if annotation.get('ignore'):
        return 'marked ignore'
    box = _get(annotation, 'bbox', where)
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError) as error:
        raise DataError(f'{where}: bbox is {box!r}; write it as [x, y, width, height]') from error
    reason = _box_reason(x, y, x + width, y + height, image)
    if reason is None and (width < 1 or height < 1):
        reason = 'under 1 px'
    if reason is None and _get(annotation, 'area', where) <= 0:
        reason = 'without area'
    return reason or ('crowd' if annotation.get('iscrowd') else None)


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


def _match_categories(node: Node, classes: Sequence[str], names: list[str], file: str) -> None:
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
        raise DataError(
            f'{what} are not among the categories of {file}: {shown}; it has {listed(names, 10)}; '
            f'write the names as it does in metainfo.classes'
        )
    used = [name for name in names if name in classes]
    twice = [name for name, count in Counter(used).items() if count > 1]
    if twice:
        raise DataError(f'{file} has more than one category named {listed(twice)}; give it one')
    if used != list(classes):
        raise DataError(
            f'{key} is in another order than the categories of {file}, whose order numbers the '
            f'labels, so that names would be swapped; write classes={tuple(used)}'
        )


def _check_voc_names(
    node: Node, classes: Sequence[str], images: list[Image], likeness: float
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


def _check_unique(items: list[dict], what: str, file: str) -> None:
    counts = Counter(_get(item, 'id', f'{file}: {what} number {i}') for i, item in enumerate(items))
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        raise DataError(f'{file}: {what} id {listed(twice)} occurs twice; number them anew')


def _get(item: dict, key: str, where: str) -> Any:
    if key not in item:
        raise DataError(f'{where} has no {key!r}; add it')
    return item[key]
