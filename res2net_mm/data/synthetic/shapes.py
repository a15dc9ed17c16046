"""Writes the synthetic set: each scene as COCO, Pascal VOC and a label map."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from .scenes import CLASSES, SIZE_BINS, Scene, draw_scene, tight_box

SPLITS = ('train', 'val')
MANIFEST = 'shapes.json'
VERSION = 2

# Image ids and file names of the second split start here: the VOC layout has all images in one
# folder, so no two may share a name.
_IDS_PER_SPLIT = 100_000
_MIN_SIZE = 224  # px, room for an object of 200 px


@dataclass(frozen=True)
class ShapesSet:
    """A set on disk; as text, a line for each split."""

    root: Path
    reused: bool  # whether it was there already
    images: dict[str, int]  # split -> number of images
    objects: dict[str, dict[str, int]]  # split -> class -> number of objects

    def __str__(self) -> str:
        lines = []
        for split, found in self.objects.items():
            counts = ', '.join(f'{name} {number}' for name, number in found.items())
            total = sum(found.values())
            lines.append(f'{split}: {self.images[split]} images, {total} objects ({counts})')
        return '\n'.join(lines)


def make_shapes(
    root: str | Path,
    train: int = 400,
    val: int = 100,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    overwrite: bool = False,
) -> ShapesSet:
    """Makes a detection and segmentation set of discs, squares, triangles and stars.

    Every image has 1 to 8 objects whose longest side is 12 to 200 px, in random colours and
    textures; at least half of each is visible. A split of 12 images or more has every class in
    small, medium and large. Annotations cover the visible part and agree to the pixel::

        root/train/000001.jpg, root/val/100001.jpg
        root/annotations/instances_{train,val}.json    COCO: a polygon along the pixels' edges for
                                                       an object in one piece, RLE for others
        root/voc/{JPEGImages,Annotations,ImageSets/Main}
        root/semseg/{train,val}/*.png                  0 background, 1.. classes, single channel
        root/classes.txt
        root/shapes.json                               the arguments

    The same arguments give the same bytes (with the same NumPy and OpenCV). An image depends only
    on seed, split and position. A run that fails leaves nothing behind.

    Args:
        root: Folder to make. If it has exactly this set already, that is reused.
        train, val: Numbers of images.
        size: Width and height of the images in px, at least 224 each.
        seed: Any integer from 0.
        overwrite: Replace a set that was made with other arguments. A folder that has anything
            else in it is never touched.

    Raises:
        ValueError: An argument is out of range.
        FileExistsError: ``root`` has something else in it.
    """
    for name, value, low, high in (
        ('train', train, 1, _IDS_PER_SPLIT - 1),
        ('val', val, 1, _IDS_PER_SPLIT - 1),
        ('width in size', size[0], _MIN_SIZE, 4096),
        ('height in size', size[1], _MIN_SIZE, 4096),
        ('seed', seed, 0, 2**63 - 1),
    ):
        if not low <= value <= high:
            raise ValueError(f'{name} must be from {low} to {high}, got {value}')
    root = Path(root).resolve()
    counts = {'train': train, 'val': val}
    manifest = json.dumps({'version': VERSION, **counts, 'size': list(size), 'seed': seed}) + '\n'
    file = root / MANIFEST
    found = file.read_text() if file.is_file() else ''
    if found == manifest and not overwrite:
        return _summarise(root, reused=True)
    empty = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if not empty and not found.startswith('{"version": '):
        what = f'{root} exists and is not a set of make_shapes'
        raise FileExistsError(f'{what}: give another folder or remove it')
    if not empty and not overwrite:
        what = f'{root} holds a set with {found.strip()}, not {manifest.strip()}'
        raise FileExistsError(f'{what}: give another folder, or overwrite=True (--force)')

    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as folder:
        work = Path(folder, 'new')
        stems = [_write_split(work, split, counts[split], size, seed) for split in SPLITS]
        (work / 'voc/ImageSets/Main/trainval.txt').write_text(''.join(stems))
        (work / 'classes.txt').write_text(''.join(f'{name}\n' for name in CLASSES))
        (work / MANIFEST).write_text(manifest)
        if root.exists():
            root.rename(Path(folder, 'old'))
        work.rename(root)
    return _summarise(root, reused=False)


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> str:
    """Draws the scenes of a split and writes them in every layout; returns its list for VOC."""
    layout = f'{split} annotations semseg/{split} voc/JPEGImages voc/Annotations voc/ImageSets/Main'
    for folder in layout.split():
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations, bins = [], [], list(SIZE_BINS)
    number = SPLITS.index(split)
    for index in tqdm(range(count), split, unit='image', disable=None):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, index)))
        label, first_bin = index % len(CLASSES), bins[index // len(CLASSES) % len(bins)]
        scene = draw_scene(rng, *size, label, first_bin)

        image_id = number * _IDS_PER_SPLIT + index + 1
        picture = root / split / f'{image_id:06d}.jpg'
        images.append(dict(id=image_id, file_name=picture.name, width=size[0], height=size[1]))
        found = _annotate(scene, image_id, len(annotations) + 1)
        annotations += found
        _write_image(picture, scene.image)
        shutil.copyfile(picture, root / 'voc/JPEGImages' / picture.name)
        _write_voc(root / f'voc/Annotations/{picture.stem}.xml', scene, found)
        classes = np.array([0] + [thing.label + 1 for thing in scene.objects], np.uint8)
        _write_image(root / f'semseg/{split}/{picture.stem}.png', classes[scene.instances])

    coco = {
        'info': {'description': f'synthetic shapes, {split}', 'version': str(VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': i, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(CLASSES, 1)
        ],
    }
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(coco))
    stems = ''.join(f'{info["id"]:06d}\n' for info in images)
    (root / f'voc/ImageSets/Main/{split}.txt').write_text(stems)
    return stems


def _annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of the visible parts; ``visibility`` is our own entry."""
    annotations = []
    for number, thing in enumerate(scene.objects):
        mask = scene.mask(number)
        area = int(mask.sum())
        annotation = {'id': first_id + number, 'image_id': image_id}
        annotation |= {'category_id': thing.label + 1, 'bbox': list(tight_box(mask))}
        annotation |= {'area': area, 'iscrowd': 0, 'segmentation': _segmentation(mask)}
        annotation['visibility'] = round(area / thing.full_area, 4)
        annotations.append(annotation)
    return annotations


def _segmentation(mask: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """A polygon if the mask is in one piece and has no hole, otherwise compressed RLE.

    The polygon runs along the pixels' edges, so rasterising it gives exactly the mask. OpenCV
    connects the centres of border pixels, so it gets the image at twice the size, where both
    sides of an edge become the edge when halved.
    """
    x, y, width, height = tight_box(mask)
    crop = mask[y : y + height, x : x + width].astype(np.uint8)
    doubled = np.pad(crop.repeat(2, 0).repeat(2, 1), 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) == 1:
        points = contours[0][:, 0] // 2 + (x, y)
        points = points[(points != np.roll(points, 1, 0)).any(1)]
        before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
        corners = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
        return [points[corners].ravel().tolist()]
    counts = rle.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
    return {'size': list(mask.shape), 'counts': counts}


def _write_voc(path: Path, scene: Scene, annotations: list[dict[str, Any]]) -> None:
    """Pascal VOC xml: pixels count from 1, and a box includes its last row and column."""
    height, width = scene.instances.shape
    root = ElementTree.Element('annotation')
    size = {'width': width, 'height': height, 'depth': 3}
    head = {'folder': 'voc', 'filename': f'{path.stem}.jpg', 'size': size, 'segmented': 0}
    _add(root, head)
    for thing, ann in zip(scene.objects, annotations, strict=True):
        x, y, w, h = ann['bbox']
        fields = {
            'name': CLASSES[thing.label],
            'pose': 'Unspecified',
            'truncated': int(thing.inside_area < thing.full_area),
            'occluded': int(ann['area'] < thing.inside_area),
            'difficult': 0,
            'bndbox': {'xmin': x + 1, 'ymin': y + 1, 'xmax': x + w, 'ymax': y + h},
        }
        _add(root, {'object': fields})
    ElementTree.indent(root)
    path.write_text(ElementTree.tostring(root, encoding='unicode') + '\n')


def _add(node: ElementTree.Element, fields: dict[str, Any]) -> None:
    for tag, value in fields.items():
        child = ElementTree.SubElement(node, tag)
        if isinstance(value, dict):
            _add(child, value)
        else:
            child.text = str(value)


def _write_image(path: Path, image: np.ndarray) -> None:
    # cv2.imwrite returns False on a full disk; write_bytes raises
    path.write_bytes(cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def _summarise(root: Path, reused: bool) -> ShapesSet:
    """Counts what the json files hold."""
    images, objects = {}, {}
    for split in SPLITS:
        coco = json.loads((root / f'annotations/instances_{split}.json').read_text())
        found = Counter(annotation['category_id'] for annotation in coco['annotations'])
        images[split] = len(coco['images'])
        objects[split] = {name: found[i] for i, name in enumerate(CLASSES, 1)}
    return ShapesSet(root, reused, images, objects)
