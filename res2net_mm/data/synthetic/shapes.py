"""Writes the synthetic set: each scene as COCO, Pascal VOC and a label map."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
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
        for split, count in self.images.items():
            found = ', '.join(f'{name} {number}' for name, number in self.objects[split].items())
            total = sum(self.objects[split].values())
            lines.append(f'{split}: {count} images, {total} objects ({found})')
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
        train: Number of training images.
        val: Number of validation images.
        size: Width and height of the images in px, at least 224 each.
        seed: Any integer from 0.
        overwrite: Replace a set that was made with other arguments. A folder that has anything
            else in it is never touched.

    Returns:
        Where the set is and what is in it.

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
    manifest = {'version': VERSION, 'train': train, 'val': val, 'size': list(size), 'seed': seed}
    if _is_there(root, manifest, overwrite):
        return _summarise(root, reused=True)

    work = root.with_name(f'.{root.name}.{os.getpid()}.tmp')
    old = work.with_suffix('.old')
    work.mkdir(parents=True)
    try:
        for split in SPLITS:
            _write_split(work, split, manifest[split], size, seed)
        lists = work / 'voc/ImageSets/Main'
        both = ''.join((lists / f'{split}.txt').read_text() for split in SPLITS)
        (lists / 'trainval.txt').write_text(both)
        (work / 'classes.txt').write_text(''.join(f'{name}\n' for name in CLASSES))
        (work / MANIFEST).write_text(json.dumps(manifest) + '\n')
        if overwrite and root.exists():
            root.rename(old)
        work.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return _summarise(root, reused=False)


def _is_there(root: Path, manifest: dict[str, Any], overwrite: bool) -> bool:
    """Whether this set is in ``root``; raises if something else is that must not be replaced."""
    if not root.exists() or root.is_dir() and not any(root.iterdir()):
        return False
    try:
        found = dict(json.loads((root / MANIFEST).read_text()))
    except (OSError, TypeError, ValueError):
        raise FileExistsError(
            f'{root} exists and is not a set of make_shapes: give another folder or remove it'
        ) from None
    if overwrite:
        return False
    if found != manifest:
        remedy = 'give another folder, or overwrite it (overwrite=True, or --force)'
        differing = [key for key, value in manifest.items() if found.get(key) != value]
        has = ', '.join(f'{key}={found.get(key)}' for key in differing)
        asked = ', '.join(f'{key}={manifest[key]}' for key in differing)
        raise FileExistsError(f'{root} holds a set with {has}, not {asked}: {remedy}')
    return True


def _write_split(root: Path, split: str, count: int, size: tuple[int, int], seed: int) -> None:
    """Draws the scenes of a split and writes them in every layout."""
    layout = (split, 'annotations', f'semseg/{split}')
    layout += ('voc/JPEGImages', 'voc/Annotations', 'voc/ImageSets/Main')
    for folder in layout:
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    number = SPLITS.index(split)
    bins = list(SIZE_BINS)
    # without a terminal, a line every ten seconds
    interval = 0.1 if sys.stderr.isatty() else 10
    for index in tqdm(range(count), split, mininterval=interval, unit='image'):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, index)))
        label, first_bin = index % len(CLASSES), bins[index // len(CLASSES) % len(bins)]
        scene = draw_scene(rng, *size, label, first_bin)

        image_id = number * _IDS_PER_SPLIT + index + 1
        stem = f'{image_id:06d}'
        images.append(dict(id=image_id, file_name=f'{stem}.jpg', width=size[0], height=size[1]))
        found = _annotate(scene, image_id, len(annotations) + 1)
        annotations += found
        picture = root / split / f'{stem}.jpg'
        _write_image(picture, scene.image)
        shutil.copyfile(picture, root / 'voc/JPEGImages' / picture.name)
        _write_voc(root / f'voc/Annotations/{stem}.xml', picture.name, scene, found)
        classes = np.array([0] + [thing.label + 1 for thing in scene.objects], np.uint8)
        _write_image(root / f'semseg/{split}/{stem}.png', classes[scene.instances])

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


def _annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of the visible parts; ``visibility`` is our own entry."""
    annotations = []
    for index, thing in enumerate(scene.objects):
        mask = scene.mask(index)
        area = int(mask.sum())
        annotations.append(
            dict(
                id=first_id + index,
                image_id=image_id,
                category_id=thing.label + 1,
                bbox=list(tight_box(mask)),
                area=area,
                iscrowd=0,
                segmentation=_segmentation(mask),
                visibility=round(area / thing.full_area, 4),
            )
        )
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


def _write_voc(path: Path, name: str, scene: Scene, annotations: list[dict[str, Any]]) -> None:
    """Pascal VOC xml: pixels count from 1, and a box includes its last row and column."""
    height, width = scene.instances.shape
    root = ElementTree.Element('annotation')
    _add(root, {'folder': 'voc', 'filename': name})
    _add(ElementTree.SubElement(root, 'size'), {'width': width, 'height': height, 'depth': 3})
    _add(root, {'segmented': 0})
    for thing, ann in zip(scene.objects, annotations, strict=True):
        node = ElementTree.SubElement(root, 'object')
        _add(
            node,
            {
                'name': CLASSES[thing.label],
                'pose': 'Unspecified',
                'truncated': int(thing.inside_area < thing.full_area),
                'occluded': int(ann['area'] < thing.inside_area),
                'difficult': 0,
            },
        )
        x, y, w, h = ann['bbox']
        box = {'xmin': x + 1, 'ymin': y + 1, 'xmax': x + w, 'ymax': y + h}
        _add(ElementTree.SubElement(node, 'bndbox'), box)
    ElementTree.indent(root)
    path.write_text(ElementTree.tostring(root, encoding='unicode') + '\n')


def _add(node: ElementTree.Element, fields: dict[str, Any]) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(node, tag).text = str(value)


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
