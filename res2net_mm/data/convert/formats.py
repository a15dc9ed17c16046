"""Annotations of other formats written as COCO json: Pascal VOC, YOLO, masks.

What cannot be used is left out and told, with its reason; nothing else changes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle

from ..errors import DataError
from ..sets.coco import written_as_corners
from ..sets.images import check_pixels
from ..sets.voc import find_image, read_voc
from .writer import CocoWriter, Converted, image_files

KINDS = ('instances', 'binary', 'labels')
_FARTHEST_SHARE = 2  # of the image's sides that a YOLO coordinate may be; beyond, it is in pixels


def voc2coco(
    root: str | Path,
    out: str | Path,
    names: str | Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    images: str = 'JPEGImages',
    annotations: str = 'Annotations',
    merge: bool = False,
    force: bool = False,
) -> Converted:
    """Write a Pascal VOC set as COCO json.

    Boxes are those that mmdet makes of the xml, but that fractions stay: (xmin - 1, ymin - 1) is
    the corner, and width and height are xmax - xmin and ymax - ymin, one less than the pixels that
    VOC counts. Whoever trains on one and measures on the other has no box shifted. Difficult
    objects become ``iscrowd: 1``: mmdet ignores them as it does in the xml, and COCO's evaluation
    counts them neither as missed nor as wrong (``ignore: 1`` it would overwrite).

    Args:
        root: the folder of the set.
        out: the json to write.
        names: a file of image names, one a line, such as ``ImageSets/Main/train.txt``, below
            ``root`` or anywhere; by default all annotation files in the order of their names.
        classes: see :class:`CocoWriter`; objects of other classes are left out.
        images: the folder of the images below ``root``; the json's file names start there.
        annotations: the folder of the xml files below ``root``.
        merge: make names that differ only in case, blanks and Unicode form one class: that of
            ``classes``, else the most frequent of them. Without it they are reported.
        force: replace ``out`` where it exists.

    Returns:
        What was written, and what was left out.

    Raises:
        DataError: a file or folder is missing, an xml file is none, or nothing can be used. An
            object that cannot be read is left out.
    """
    root = Path(root)
    writer = CocoWriter(out, force, classes, merge)
    image_folder, xml_folder = root / images, root / annotations
    for folder in (image_folder, xml_folder):
        if not folder.is_dir():
            raise DataError(f'there is no folder {folder}; name it with --images, --annotations')

    def leave_out(error: DataError) -> None:
        what = str(error).rpartition('; ')[0]
        writer.left_out.add('object without a name, or whose numbers are none', what)

    seen = set()
    for name in _voc_names(root, names, xml_folder):
        xml = xml_folder / f'{name}.xml'
        image = Path(find_image(str(image_folder / name), os.path.isfile))
        if name in seen:
            writer.left_out.add('image that is listed before', name)
        elif not xml.is_file():
            writer.left_out.add('image without annotation file', xml)
        elif not image.is_file():
            writer.left_out.add('annotation file without image', image)
        elif size := writer.image(image, image_folder):
            said, objects = read_voc(xml.read_bytes(), str(xml), leave_out)
            if said not in (None, size):
                writer.notes.add('size in the annotation file that is not of the image', xml)
            for obj in objects:
                x1, y1, x2, y2 = obj.corners
                width, height = x2 - x1, y2 - y1
                box = [x1 - 1, y1 - 1, width, height]
                crowd = int(obj.difficult)
                writer.add(obj.name, box, width * height, f'{xml} {obj.corners}', iscrowd=crowd)
        seen.add(name)
    return writer.write(f'voc2coco of {root}')


def _voc_names(root: Path, names: str | Path | None, xml_folder: Path) -> list[str]:
    if names is None:
        return sorted(path.stem for path in xml_folder.glob('*.xml'))
    file = next((path for path in (root / names, Path(names)) if path.is_file()), None)
    if file is None:
        raise DataError(f'there is no list of images {root / names}, nor {names}')
    return _lines(file)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in _text(file).splitlines() if line.strip()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{file} is no text in UTF-8 ({error}); write it again') from error


def yolo2coco(
    root: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    images: str = 'images',
    labels: str = 'labels',
    force: bool = False,
) -> Converted:
    """Write a set of YOLO label files as COCO json.

    A line of a label file is a class number from 0 and a box (centre x and y, width, height) or
    at least three points of a polygon, all as shares of the image's width and height. What
    reaches over the image's border is cut there. An image without a label file has no objects.

    Args:
        root: the folder of the set.
        out: the json to write.
        classes: the names; by default those of ``data.yaml``, else of ``classes.txt``, in ``root``
            or among the labels.
        images: the folder of the images below ``root``, with or without subfolders; the json's
            file names start there.
        labels: the folder of the label files below ``root``, with the same subfolders.
        force: replace ``out`` where it exists.

    Returns:
        What was written, and what was left out.

    Raises:
        DataError: a folder is missing, there are no class names, or nothing can be used.
    """
    root = Path(root)
    image_folder, label_folder = root / images, root / labels
    if not label_folder.is_dir():
        raise DataError(f'there is no folder {label_folder}; name it with --labels')
    names = list(classes) if classes else _yolo_classes(root, label_folder)
    writer = CocoWriter(out, force, names)
    read = {label_folder / 'classes.txt'}
    formats: Counter[str] = Counter()
    for image in image_files(image_folder):
        file = (label_folder / image.relative_to(image_folder)).with_suffix('.txt')
        size = writer.image(image, image_folder)
        read.add(file)
        if size and file.is_file():
            _read_yolo(writer, file, names, size, formats)
    if written_as_corners(formats):
        raise DataError(
            f'{label_folder}: all of its {formats["boxes"]:,} boxes would be in their images as x1 '
            f'y1 x2 y2, but as centre and size {formats["beyond"]:,} go beyond them; write them as '
            'YOLO does'
        )
    for file in sorted(set(label_folder.rglob('*.txt')) - read):
        writer.left_out.add('label file without image', file)
    return writer.write(f'yolo2coco of {root}')


def _read_yolo(
    writer: CocoWriter, file: Path, names: list[str], size: tuple[int, int], formats: Counter
) -> None:
    for where, numbers in _yolo_lines(writer, file):
        label = numbers[0]
        if max(map(abs, numbers[1:])) > _FARTHEST_SHARE:
            writer.left_out.add(
                'object with coordinates in pixels, where YOLO has shares of the image from 0 to 1',
                where,
            )
            continue
        if label not in range(len(names)):
            writer.left_out.add(f'object of class {label:g}, of {len(names)} from 0', where)
            continue
        values = [value * size[i % 2] for i, value in enumerate(numbers[1:])]
        more = {}
        if len(values) == 4:
            x, y, width, height = values
            formats['boxes'] += 1
            formats['corners'] += width > x and height > y and all(0 <= v <= 1 for v in numbers[1:])
            values = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        cut = [min(max(value, 0), size[i % 2]) for i, value in enumerate(values)]
        if max(abs(a - b) for a, b in zip(values, cut, strict=True)) >= 1:
            writer.notes.add('object that reached over the border of its image', where)
            far = max(abs(a - b) for a, b in zip(values, cut, strict=True)) > 0.04 * max(size)
            formats['beyond'] += far and len(values) == 4
        xs, ys = cut[::2], cut[1::2]
        left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
        area = width * height
        if len(values) == 4:
            if values[0] >= values[2] or values[1] >= values[3]:
                width = height = 0  # a negative one
        else:
            more['segmentation'] = [cut]
            area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
        writer.add(names[int(label)], [left, top, width, height], area, where, **more)


def _yolo_lines(writer: CocoWriter, file: Path) -> Iterator[tuple[str, list[float]]]:
    seen = set()
    lines = file.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    for i, line in enumerate(lines, 1):
        words = tuple(line.split())
        where = f'{file} line {i}'
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if not words:
            continue
        if words in seen:
            writer.left_out.add('line that is there before', where)
        elif len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
            writer.left_out.add('line that is no class with a box or polygon', where)
        elif not all(map(math.isfinite, numbers)):
            writer.left_out.add('box that is not finite', where)
        else:
            yield where, numbers
        seen.add(words)


def _yolo_classes(root: Path, label_folder: Path) -> list[str]:
    for name in ('data.yaml', 'data.yml'):
        if (root / name).is_file():
            return _yaml_classes(root / name)
    for file in (root / 'classes.txt', label_folder / 'classes.txt'):
        if file.is_file():
            return _lines(file)
    raise DataError(
        f'{root} has no data.yaml and no classes.txt; name the classes with --classes, in the '
        'order of their numbers'
    )


def _yaml_classes(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(_text(file))
        names = content['names']
        if isinstance(names, dict):
            names = [names[i] for i in range(len(names))]
    except (yaml.YAMLError, RecursionError) as error:
        why = ' '.join(str(error).split())
        raise DataError(f'{file} is not valid YAML ({why})') from error
    except (KeyError, TypeError) as error:
        raise DataError(f'{file} has no names of classes, numbered from 0') from error
    # lists in lists, named once each, are longer than any memory when they are written out
    if not isinstance(names, list) or not names or any(isinstance(n, list | dict) for n in names):
        raise DataError(f'{file} has no list of names of classes')
    return [str(name) for name in names]


def masks2coco(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    kind: str,
    *,
    classes: Sequence[str],
    first: int = 1,
    ignore: Sequence[int] = (255,),
    force: bool = False,
) -> Converted:
    """Write masks as COCO json: a compressed run-length code, its area and box for every object.

    Args:
        images: the folder of the images, with or without subfolders.
        masks: the folder of the masks, which bear the images' names and lie in the same
            subfolders.
        out: the json to write.
        kind: what a mask is. ``instances``: one png an image, whose pixels hold 0 or the number of
            their object. ``binary``: one folder an image, with one png an object, whose pixels
            are 0 elsewhere. ``labels``: one png an image, whose pixels hold their class; every
            piece that hangs together, corners included, is an object.
        classes: the names. For ``labels`` those of ``first`` and the following values, for the
            other kinds the one that all objects have.
        first: of ``labels``, the first class's value; lower ones are background.
        ignore: of ``labels``, values that are of no class.
        force: replace ``out`` where it exists.

    Returns:
        What was written, and what was left out.

    Raises:
        DataError: a folder is missing, a mask is none, an argument makes no sense, or nothing can
            be used.
    """
    images, masks = Path(images), Path(masks)
    if kind not in KINDS:
        raise DataError(f'kind must be one of {", ".join(KINDS)}, but got {kind!r}')
    if kind != 'labels' and len(classes) != 1:
        raise DataError(
            f'classes must be one name, that of all objects, for {kind}, but got {len(classes)}'
        )
    if not classes:
        raise DataError('classes must have a name or more')
    if not masks.is_dir():
        raise DataError(f'there is no folder {masks}')
    writer = CocoWriter(out, force, classes)
    for image in image_files(images):
        stem = masks / image.relative_to(images).with_suffix('')
        file = stem if kind == 'binary' else stem.with_name(f'{stem.name}.png')
        if not (file.is_dir() if kind == 'binary' else file.is_file()):
            writer.left_out.add('image without mask', file)
        elif size := writer.image(image, images):
            if kind == 'labels':
                _add_classes(writer, file, size, classes, first, ignore)
            elif kind == 'binary':
                for part in sorted(p for p in file.glob('*.png') if p.is_file()):
                    values = _values(writer, part, size)
                    if values is not None:
                        _add(writer, classes[0], values > 0, str(part))
            else:
                values = _values(writer, file, size)
                for number, mask in _each(values):
                    _add(writer, classes[0], mask, f'{file} object {number}')
    return writer.write(f'masks2coco of {masks}')


def _values(writer: CocoWriter, file: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The values of a mask (H, W); None where it is of another size than its image."""
    check_pixels(file, f'mask {file}')
    try:
        with Image.open(file) as image:
            values = np.array(image) if image.size == size else None
    # SyntaxError: Pillow's of a broken png
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{file} cannot be read ({error}); write it again') from error
    if values is None:
        writer.left_out.add('mask of another size than its image', file)
        return None
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]  # grey, written with three channels
    if values.ndim != 2:
        raise DataError(f'{file} is a colour image; a mask has one channel')
    return values


def _each(values: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
    """Every value above 0 and where it is."""
    if values is not None:
        for number in np.unique(values[values > 0]).tolist():
            yield number, values == number


def _add_classes(
    writer: CocoWriter,
    file: Path,
    size: tuple[int, int],
    classes: Sequence[str],
    first: int,
    ignore: Sequence[int],
) -> None:
    values = _values(writer, file, size)
    if values is None:
        return
    for value in np.unique(values).tolist():
        if value < first or value in ignore:
            continue
        if value >= first + len(classes):
            last = first + len(classes) - 1
            writer.left_out.add(f'class of value {value}, of {first} to {last}', file)
            continue
        _, pieces = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8)
        for number, mask in _each(pieces):
            _add(writer, classes[value - first], mask, f'{file} value {value} piece {number}')


def _add(writer: CocoWriter, name: str, mask: np.ndarray, where: str) -> None:
    code: dict[str, Any] = rle.encode(np.asfortranarray(mask, np.uint8))
    code['counts'] = code['counts'].decode('ascii')
    # Without a pixel the box is 0 0 0 0, and the writer leaves it out.
    writer.add(name, rle.toBbox(code).tolist(), int(rle.area(code)), where, segmentation=code)
