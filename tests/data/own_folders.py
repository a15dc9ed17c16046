"""Folders of annotated images in every format, written from the same objects."""

import json
import random
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 100, 80
CLASSES = ('cat', 'dog')
SPLITS = {'train': 10, 'valid': 4, 'test': 3}


def scenes(count: int, seed: int = 0) -> dict[str, list[tuple]]:
    """Name of an image -> objects: class, and edges x1, y1, x2, y2 in px, counted from 0."""
    rng = random.Random(seed)
    found = {}
    for i in range(count):
        objects = []
        for _ in range(1 + i % 3):
            x, y = rng.randrange(0, 60), rng.randrange(0, 40)
            box = x, y, x + rng.randrange(10, 40), y + rng.randrange(10, 40)
            objects.append((rng.choice(CLASSES), *box))
        found[f'photo_{seed}{i:02}'] = objects
    return found


def write_images(folder: Path, objects: dict[str, list], suffix: str = '.jpg') -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.parts))
    for name, boxes in objects.items():
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
        for label, x1, y1, x2, y2 in boxes:
            image[y1:y2, x1:x2, CLASSES.index(label)] = 250
        cv2.imwrite(str(folder / f'{name}{suffix}'), image)


def write_voc(root: Path, objects: dict, images='images', annotations='annotations') -> None:
    """VOC counts pixels from 1, and the last one is inside."""
    write_images(root / images, objects)
    (root / annotations).mkdir(parents=True, exist_ok=True)
    for name, boxes in objects.items():
        parts = [
            f'<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>'
            f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
            for label, x1, y1, x2, y2 in boxes
        ]
        text = (
            f'<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>'
            f'{"".join(parts)}</annotation>'
        )
        (root / annotations / f'{name}.xml').write_text(text)


def write_yolo(images: Path, labels: Path, objects: dict) -> None:
    write_images(images, objects)
    labels.mkdir(parents=True, exist_ok=True)
    for name, boxes in objects.items():
        lines = [
            f'{CLASSES.index(label)} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} '
            f'{(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}\n'
            for label, x1, y1, x2, y2 in boxes
        ]
        (labels / f'{name}.txt').write_text(''.join(lines))


def write_roboflow_yolo(root: Path) -> dict[str, dict]:
    """As Roboflow exports: the yaml names ``../train/images``, but the folder is beside it."""
    written = {}
    for i, (split, count) in enumerate(SPLITS.items(), 1):
        written[split] = scenes(count, i)
        write_yolo(root / split / 'images', root / split / 'labels', written[split])
    (root / 'data.yaml').write_text(
        'train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n'
        f'nc: 2\nnames: {list(CLASSES)}\n\nroboflow:\n  license: CC BY 4.0\n'
    )
    return written


def write_labelme(root: Path, objects: dict, polygons: bool = True) -> None:
    write_images(root, objects)
    for name, boxes in objects.items():
        shapes = []
        for label, x1, y1, x2, y2 in boxes:
            points, kind = [[x2, y2], [x1, y1]], 'rectangle'
            if polygons:
                points, kind = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], 'polygon'
            shapes.append(
                dict(label=label, points=points, group_id=None, shape_type=kind, flags={})
            )
        content = dict(version='5.4.1', flags={}, shapes=shapes, imagePath=f'{name}.jpg',
                       imageData=None, imageHeight=HEIGHT, imageWidth=WIDTH)  # fmt: skip
        (root / f'{name}.json').write_text(json.dumps(content))


def coco(objects: dict, suffix: str = '.jpg', polygons: bool = False) -> dict:
    content = dict(images=[], annotations=[], categories=[])
    content['categories'] = [dict(id=i + 7, name=name) for i, name in enumerate(CLASSES)]
    for number, (name, boxes) in enumerate(objects.items(), 5):
        content['images'].append(
            dict(id=number, file_name=f'{name}{suffix}', width=WIDTH, height=HEIGHT)
        )
        for label, x1, y1, x2, y2 in boxes:
            annotation = dict(id=len(content['annotations']) + 1, image_id=number, iscrowd=0,
                              category_id=CLASSES.index(label) + 7, area=(x2 - x1) * (y2 - y1),
                              bbox=[x1, y1, x2 - x1, y2 - y1])  # fmt: skip
            if polygons:
                annotation['segmentation'] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            content['annotations'].append(annotation)
    return content


def write_coco(folder: Path, file: Path, objects: dict, **options) -> None:
    write_images(folder, objects)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco(objects, **options)))


def write_masks(folder: Path, objects: dict, ending: str = '.png', values=(0, 1, 2)) -> None:
    """One mask an image: background, cat, dog have these values."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in objects.items():
        mask = np.full((HEIGHT, WIDTH), values[0], np.uint8)
        for label, x1, y1, x2, y2 in boxes:
            mask[y1:y2, x1:x2] = values[1 + CLASSES.index(label)]
        cv2.imwrite(str(folder / f'{name}{ending}'), mask)
