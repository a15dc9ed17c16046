"""Converts annotations of other formats to COCO json: Pascal VOC, YOLO, labelme, masks.

Whatever cannot be used is left out and reported with its reason.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from ...checks import check_choice
from ..errors import DataError
from ..findings import ERROR, REMEDIES
from ..sets.coco import written_as_corners
from ..sets.images import check_pixels, read_header, size_fault
from ..sets.label_maps import INVERTED, inverted, open_map
from ..sets.voc import find_image, read_voc
from .writer import Conversion, image_files

IGNORED = 255  # the value in label maps that mmseg ignores by default
_FARTHEST_SHARE = 2  # YOLO coordinates beyond this many image sides are taken for pixels
_YAMLS = 'data.yaml', 'data.yml'
_FAR_OUTSIDE = 0.04  # of the image's longer side by which a box must leave it to be suspicious


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
) -> Conversion:
    """Writes a Pascal VOC set as COCO json.

    The boxes are the ones that mmdet makes from the xml, except that fractions stay: the corner is
    (xmin - 1, ymin - 1), width and height are xmax - xmin and ymax - ymin, one less than the
    pixels that VOC counts. So no box is shifted between training on one format and testing on the
    other. Difficult objects become ``iscrowd: 1``: mmdet ignores them, as it does in the xml, and
    COCO's evaluation counts them neither as missed nor as wrong (it would overwrite
    ``ignore: 1``).

    Args:
        root: The folder of the set, with the folders ``images`` and ``annotations``.
        out, classes, merge, force: See :class:`Conversion`.
        names: A file of image names, one per line, such as ``ImageSets/Main/train.txt``, below
            ``root`` or anywhere; by default all annotation files, sorted by name.

    Raises:
        DataError: A file or folder is missing, or nothing can be used.
    """
    root = Path(root)
    coco = Conversion(out, classes, force, merge)
    image_folder, xml_folder = root / images, root / annotations
    for folder in (image_folder, xml_folder):
        if not folder.is_dir():
            raise DataError(f'there is no folder {folder}; name it with --images, --annotations')
    stems = sorted(path.stem for path in xml_folder.glob('*.xml'))
    if names is not None:
        stems = text_lines(root / names if (root / names).is_file() else Path(names))
    pairs = {}
    for stem in stems:
        xml = xml_folder / f'{stem}.xml'
        image = Path(find_image(str(image_folder / stem), os.path.isfile))
        if image in pairs:
            coco.left_out.add('image that is listed before', stem)
        elif not xml.is_file():
            coco.left_out.add('image without annotation file', xml)
        elif not image.is_file():
            coco.left_out.add('annotation file without image', image)
        else:
            pairs[image] = xml
    return convert_files(coco, 'voc', pairs.items(), image_folder, f'voc2coco of {root}')


def yolo2coco(
    root: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    images: str = 'images',
    labels: str = 'labels',
    force: bool = False,
) -> Conversion:
    """Writes a set of YOLO label files as COCO json.

    A line of a label file is a class number starting at 0, and either a box (centre x and y,
    width, height) or a polygon of at least three points, as shares of the image's width and
    height. Objects are cut at the image's border. An image without a label file has no objects.

    Args:
        root: The folder of the set. Its folders ``images`` and ``labels`` may have subfolders.
        out, force: See :class:`Conversion`.
        classes: The names; by default those in ``data.yaml``, or else in ``classes.txt``, in
            ``root`` or in the folder of the labels.

    Raises:
        DataError: A folder is missing, there are no class names, or nothing can be used.
    """
    root = Path(root)
    image_folder, label_folder = root / images, root / labels
    if not label_folder.is_dir():
        raise DataError(f'there is no folder {label_folder}; name it with --labels')
    coco = Conversion(out, list(classes or yolo_classes(root, label_folder)), force)
    yamls = [root / name for name in _YAMLS if (root / name).is_file()]
    coco.keypoints = keypoint_numbers(yamls[0]) if yamls else 0
    pairs = {
        image: (label_folder / image.relative_to(image_folder)).with_suffix('.txt')
        for image in image_files(image_folder)
    }
    unused = {*label_folder.rglob('*.txt')} - {*pairs.values(), label_folder / 'classes.txt'}
    for file in sorted(unused):
        coco.left_out.add('label file without image', file)
    return convert_files(coco, 'yolo', pairs.items(), image_folder, f'yolo2coco of {root}')


def convert_files(
    coco: Conversion, kind: str, files: Iterable[tuple[Path, Path]], root: Path, title: str = ''
) -> Conversion:
    """Writes images with an annotation file each as COCO json.

    A file that cannot be used takes its image out, which would seem to have no objects.

    Args:
        coco: The json to write. For YOLO, it needs classes, and its ``keypoints`` if it has some.
        kind: ``voc`` or ``yolo``, as :func:`voc2coco` and :func:`yolo2coco` read them, or
            ``labelme``: rectangles, circles, polygons and masks are objects, shapes of one label
            and ``group_id`` are one object, lines and points are left out.
        files: Images below ``root`` and their files; a missing one is an image without objects.
        root: The json's file names are relative to it.
        title: Its description.

    Raises:
        DataError: Nothing can be used, or YOLO's boxes are written as corners.
    """
    files, readers = [*files], dict(voc=_read_voc, labelme=_read_labelme, yolo=_read_yolo)
    for image, file in tqdm(files, kind, leave=False, disable=None):
        size = coco.image(image, root)
        if not (size and file.is_file()):
            continue
        before = len(coco.annotations)
        try:
            readers[kind](coco, image, file, size)
        except (DataError, OSError) as error:
            coco.left_out.add('annotation file that cannot be used', str(error))
            coco.images.pop()
            del coco.annotations[before:]
    if written_as_corners(coco.yolo):
        raise DataError(
            f'{coco.yolo["corners"]:,} of its {coco.yolo["boxes"]:,} boxes would be in their '
            f'images as x1 y1 x2 y2, but as centre and size {coco.yolo["beyond"]:,} go beyond them',
            os.path.commonpath([file.parent for _, file in files]),
            'write them as YOLO does',
        )
    return coco.write(title or f'{kind} files of {root}')


def _read_voc(coco: Conversion, image: Path, xml: Path, size: tuple[int, int]) -> None:
    def leave_out(error: DataError) -> None:
        coco.left_out.add('object without a name, or whose numbers are none', str(error))

    written_size, objects = read_voc(xml.read_bytes(), str(xml), leave_out)
    _check_size(coco, image, written_size, size, [obj.corners for obj in objects])
    for obj in objects:
        x1, y1, x2, y2 = obj.corners
        width, height = x2 - x1, y2 - y1
        box, crowd = [x1 - 1, y1 - 1, width, height], int(obj.difficult)
        coco.add(obj.name, box, width * height, f'{xml} {obj.corners}', iscrowd=crowd)


def _check_size(
    coco: Conversion, image: Path, written: tuple | None, size: tuple, boxes: list | None = None
) -> None:
    """Raises a DataError if an image is not of the size that was annotated; see size_fault."""
    if written in (None, size):
        return
    found = size_fault(str(image), written, size, read_header(image), boxes)
    if found.severity == ERROR:
        raise DataError(found.what, found.file, REMEDIES[found.kind])
    coco.notes.add('width and height swapped in the annotation file', image)


def _read_yolo(coco: Conversion, image: Path, file: Path, size: tuple[int, int]) -> None:
    lines = [*_yolo_lines(coco, file)]
    if lines and all(max(map(abs, shares)) > _FARTHEST_SHARE for _, (_, *shares) in lines):
        raise DataError('all of its coordinates are in pixels', str(file))
    for where, (label, *shares) in lines:
        points = np.reshape(shares, (-1, 2)) * size  # (N, 2) px: of a polygon, or centre and size
        is_box, more = len(points) == 2, {}
        if max(map(abs, shares)) > _FARTHEST_SHARE:
            reason = 'coordinates in pixels, where YOLO has shares of the image from 0 to 1'
            coco.left_out.add(f'object with {reason}', where)
            continue
        if label not in range(len(coco.classes)):
            reason = f'object of class {label:g}, of {len(coco.classes)} from 0'
            coco.left_out.add(reason, where)
            continue
        if is_box:
            centre, extent = points
            coco.yolo['boxes'] += 1
            within = min(shares) >= 0 and max(shares) <= 1
            coco.yolo['corners'] += bool(within and (extent > centre).all())
            points = np.stack([centre - extent / 2, centre + extent / 2])
        cut = points.clip(0, size)
        beyond = np.abs(points - cut).max()
        if beyond >= 1:
            coco.notes.add('object that reached over the border of its image', where)
            coco.yolo['beyond'] += bool(is_box and beyond > _FAR_OUTSIDE * max(size))
        width, height = np.ptp(cut, 0).tolist()
        if is_box and (points[0] >= points[1]).any():
            width = height = 0  # a negative width or height
        area = width * height
        if not is_box:
            area, more = _polygon_area(cut), dict(segmentation=[cut.ravel().tolist()])
        box = [*cut.min(0).tolist(), width, height]
        coco.add(coco.classes[int(label)], box, area, where, **more)


def _yolo_lines(coco: Conversion, file: Path) -> Iterator[tuple[str, list[float]]]:
    """Where each object is, and its numbers."""
    seen = set()
    lines = file.read_text(encoding='utf-8-sig', errors='replace').splitlines()
    for i, line in enumerate(lines, 1):
        words = tuple(line.split())
        where = f'{file} line {i}'
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = [0]
        if words in seen:
            coco.left_out.add('line that is there before', where)
        elif coco.keypoints and words and len(numbers) != 5 + coco.keypoints:
            coco.left_out.add('line that is no class with a box and keypoints', where)
        elif (
            words
            and not coco.keypoints
            and (len(numbers) < 5 or len(numbers) == 6 or len(numbers) % 2 == 0)
        ):
            coco.left_out.add('line that is no class with a box or polygon', where)
        elif not all(map(math.isfinite, numbers)):
            coco.left_out.add('box that is not finite', where)
        elif words:
            seen.add(words)
            yield where, numbers[:5] if coco.keypoints else numbers
    if not seen and any(map(str.strip, lines)):
        raise DataError('none of its lines is an object', str(file))


def yolo_classes(root: Path, label_folder: Path) -> list[str]:
    """The class names of a YOLO set."""
    files = [root / name for name in (*_YAMLS, 'classes.txt')]
    for file in (*files, label_folder / 'classes.txt'):
        if file.is_file():
            return class_lines(file) if file.suffix == '.txt' else yaml_classes(file)
    remedy = 'name the classes with --classes, in the order of their numbers'
    raise DataError('it has no data.yaml and no classes.txt', str(root), remedy)


def yaml_classes(file: Path) -> list[str]:
    """The class names in a YOLO set's yaml."""
    try:
        names = read_yaml(file)['names']
        names = [] if isinstance(names, str) else [names[i] for i in range(len(names))]
    except (KeyError, TypeError):
        names = []
    # writing out nested lists that refer to each other could take more than all memory
    if not names or any(isinstance(name, list | dict) for name in names):
        raise DataError('it has no names of classes, numbered from 0', str(file))
    return [str(name) for name in names]


def keypoint_numbers(file: Path) -> int:
    """How many numbers of keypoints follow each box of a YOLO set, by its yaml; 0 if none."""
    shape = read_yaml(file).get('kpt_shape')
    if shape is None:
        return 0
    if not (isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)):
        raise DataError(f'kpt_shape: {shape!r} is no list of numbers', str(file), 'correct it')
    return math.prod(shape)


def class_lines(file: Path) -> list[str]:
    """The names of classes in a file, one in each line.

    Raises:
        DataError: A line between them is blank, which would shift the numbers of the others.
    """
    lines = [line.strip() for line in _text(file).rstrip().splitlines()]
    if '' in lines:
        what = f'line {lines.index("") + 1} is blank, but each line is a class'
        raise DataError(what, str(file), 'remove it or name the class')
    return lines


def read_yaml(file: Path) -> dict[str, Any]:
    """The content of a yaml file; ``{}`` if it is no dict."""
    try:
        content = yaml.safe_load(_text(file))
    except (yaml.YAMLError, RecursionError) as error:
        what = f'it is not valid YAML ({" ".join(str(error).split())})'
        raise DataError(what, str(file)) from error
    return content if isinstance(content, dict) else {}


def text_lines(file: Path) -> list[str]:
    """The lines of a text file but for blank ones; a DataError if it is no UTF-8."""
    return [line.strip() for line in _text(file).splitlines() if line.strip()]


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f'there is no file {file}')
    try:
        return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'it is no text in UTF-8 ({error})', str(file), 'write it again') from error


def _read_labelme(coco: Conversion, image: Path, file: Path, size: tuple[int, int]) -> None:
    try:
        content = json.loads(_text(file))
        shapes = [(shape['label'], shape.get('group_id'), shape) for shape in content['shapes']]
        if not all(isinstance(label, str | int) for label, *_ in shapes):
            raise TypeError('labels are texts')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError('it is no labelme file', str(file), 'write it again') from error
    sides = str(content.get('imageWidth')), str(content.get('imageHeight'))
    known = all(side.isdecimal() and int(side) for side in sides)
    _check_size(coco, image, tuple(map(int, sides)) if known else None, size)
    objects: dict[tuple, list[tuple]] = {}
    for i, (label, group, shape) in enumerate(shapes, 1):
        label = str(label)
        where = f'{file} shape {i} ({label})'
        try:
            part = _labelme_shape(shape, size)
        except (ValueError, KeyError, TypeError, IndexError, OSError, SyntaxError) as error:
            coco.left_out.add('shape whose points or mask cannot be read', f'{where}: {error}')
            continue
        if part is None:
            coco.left_out.add(f'{shape.get("shape_type")} without area', where)
        elif isinstance(part, np.ndarray):
            _add_mask(coco, label, part, where)
        else:
            key = (label, group) if group is not None else (where,)
            objects.setdefault(key, []).append((label, where, *part))
    for parts in objects.values():
        (label, *_), (where, *_), corners, areas, outlines = zip(*parts, strict=True)
        low, high = np.min(corners, 0)[:2], np.max(corners, 0)[2:]
        more = {} if None in outlines else dict(segmentation=list(outlines))
        coco.add(label, [*low.tolist(), *(high - low).tolist()], sum(areas), where, **more)


def _labelme_shape(shape: dict, size: tuple[int, int]) -> np.ndarray | tuple | None:
    """A mask (H, W), or corners in px, area and outline; None for what has no area."""
    points = np.asarray(shape['points'], float).reshape(-1, 2)
    kind = shape.get('shape_type') or 'polygon'
    if kind == 'mask':
        data = base64.b64decode(shape['mask'])
        check_pixels(data, 'mask')
        with Image.open(BytesIO(data)) as image:
            part = np.array(image) > 0
        whole = np.zeros(size[::-1], bool)
        x, y = points.min(0).round().astype(int).tolist()
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
        return whole
    if kind == 'circle':  # its centre, and a point on it
        radius = math.dist(*points[:2])
        return [*(points[0] - radius), *(points[0] + radius)], math.pi * radius**2, None
    corners = [*points.min(0), *points.max(0)]
    if kind == 'rectangle':
        return corners, float(np.ptp(points, 0).prod()), None
    if kind == 'polygon' and len(points) > 2:
        return corners, _polygon_area(points), points.ravel().tolist()
    return None


def _polygon_area(points: np.ndarray) -> float:
    xs, ys = points.T.tolist()
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def masks2coco(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    kind: str,
    *,
    classes: Sequence[str],
    first: int = 1,
    force: bool = False,
) -> Conversion:
    """Writes masks as COCO json: compressed run-length code, area and box for every object.

    Args:
        images: The folder of the images, with or without subfolders.
        masks: The folder of the masks, which have the images' names and the same subfolders.
        out, force: See :class:`Conversion`.
        kind: What a mask is. ``instances``: one png per image, whose pixels are 0 or the number of
            their object. ``binary``: one folder per image with one png per object, whose pixels
            are 0 outside the object. ``labels``: one png per image, whose pixels are their class;
            every connected piece (also by a corner) is an object.
        classes: The names. For ``labels``, those of the value ``first`` and the following ones;
            otherwise a single name, for all objects.
        first: For ``labels``, the value of the first class; lower values are background, and 255
            is ignored.

    Raises:
        DataError: A folder is missing, a mask cannot be read, or nothing can be used.
        ValueError: An argument is invalid.
    """
    images, masks = Path(images), Path(masks)
    check_choice('kind', kind, ('instances', 'binary', 'labels'))
    if not classes or (kind != 'labels' and len(classes) > 1):
        number = 'a name or more' if kind == 'labels' else 'one name, that of all objects'
        raise ValueError(f'for {kind}, classes must be {number}, but got {len(classes)}')
    if not masks.is_dir():
        raise DataError(f'there is no folder {masks}')
    coco = Conversion(out, classes, force)
    for image in image_files(images):
        suffix = '' if kind == 'binary' else '.png'
        file = masks / image.relative_to(images).with_suffix(suffix)
        if not (file.is_dir() if kind == 'binary' else file.is_file()):
            coco.left_out.add('image without mask', file)
        elif size := coco.image(image, images):
            before = len(coco.annotations)
            for png in sorted(file.glob('*.[pP][nN][gG]')) if kind == 'binary' else [file]:
                values = mask_values(png, kind == 'binary')
                if values.shape[1::-1] != size:  # without its objects, they would be background
                    coco.left_out.add('image with a mask of another size', png)
                    coco.images.pop()
                    del coco.annotations[before:]
                    break
                if kind == 'labels':
                    _add_classes(coco, png, values, first)
                elif kind == 'binary':
                    _add_mask(coco, classes[0], values > 0, png)
                else:
                    if np.unique(values[values > 0]).tolist() == [IGNORED]:
                        what = f'mask of 0 and {IGNORED}, which counts as one object'
                        coco.notes.add(f'{what} (each piece: --kind labels --first 255)', png)
                    _add_each(coco, classes[0], values, f'{png} object')
    return coco.write(f'masks2coco of {masks}')


def mask_values(file: Path, binary: bool = False) -> np.ndarray:
    """(H, W), the value of each pixel; raises DataError if it does not decode or has colours."""
    image = open_map(str(file))
    if binary and inverted(image):
        raise DataError(INVERTED, str(file), 'write the mask with 0 and 1, or in grey')
    values = np.array(image)
    if values.ndim == 3:
        colours = values[..., :1] if values.shape[2] == 2 else values[..., :3]  # without alpha
        if (colours == values[..., :1]).all():
            values = values[..., 0]  # grey, written with several channels
    if values.ndim != 2:
        raise DataError('it is a colour image', str(file), 'a mask has one channel')
    return values


def _add_classes(coco: Conversion, file: Path, values: np.ndarray, first: int) -> None:
    """Adds the connected pieces of each class in a label map."""
    last = first + len(coco.classes) - 1
    counts = (values >= first) & ((values != IGNORED) | (last >= IGNORED))
    if not counts.any() and first <= IGNORED and (values == IGNORED).any():
        coco.left_out.add(f'mask of {IGNORED}, which is no class (see --first)', file)
    for value in np.unique(values[counts]).tolist():
        if value > last:
            coco.left_out.add(f'class of value {value}, of {first} to {last}', file)
        else:
            _, pieces = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8)
            _add_each(coco, coco.classes[value - first], pieces, f'{file} value {value} piece')


def _add_each(coco: Conversion, name: str, values: np.ndarray, where: str) -> None:
    """Adds the pixels of each value above 0 as an object."""
    for number in np.unique(values[values > 0]).tolist():
        _add_mask(coco, name, values == number, f'{where} {number}')


def _add_mask(coco: Conversion, name: str, mask: np.ndarray, where: str | Path) -> None:
    code = rle.encode(np.asfortranarray(mask, np.uint8))
    code['counts'] = code['counts'].decode('ascii')
    # The box of an empty mask is 0 0 0 0, and the writer leaves it out.
    coco.add(name, rle.toBbox(code).tolist(), int(rle.area(code)), where, segmentation=code)
