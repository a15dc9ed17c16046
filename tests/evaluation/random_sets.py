"""Random ground truth and detections with everything that COCO's rules are about."""

from __future__ import annotations

import functools
import json

import numpy as np
from pycocotools import mask as coco_mask

NAMES = {7: 'kite', 3: 'a cat', 90: 'dog', 1: 'person'}  # 90 has no object
SIDE = 320
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] + 0.5


def random_set(seed: int = 0) -> tuple[dict, dict[str, list[dict]]]:
    """An annotation file's content, and results by type.

    Crowds, ignored objects, all sizes, equal scores, an image without objects, one without
    detections, and one with 130 detections of a class.
    """
    annotations, results = json.loads(_made(seed))
    return annotations, results


@functools.cache
def _made(seed: int) -> str:
    rng = np.random.default_rng(seed)
    images = [
        dict(id=i, file_name=f'{i}.png', height=SIDE, width=SIDE) for i in (9, 2, 5, 30, 31, 4)
    ]
    annotations, results = [], dict(bbox=[], segm=[])
    for image in images:
        for _ in range(0 if image['id'] == 5 else 14):
            box = _box(rng)
            crowd = bool(rng.random() < 0.15)
            mask = _ellipse(box)
            rle = coco_mask.encode(mask)
            counts = rle['counts'].decode() if not crowd else _runs(mask)
            entry = dict(
                id=len(annotations) + 1,
                image_id=image['id'],
                category_id=int(rng.choice([7, 3, 1])),
                bbox=box,
                area=float(coco_mask.area(rle)),
                iscrowd=int(crowd),
                segmentation=dict(size=[SIDE, SIDE], counts=counts),
            )
            if not crowd and rng.random() < 0.5:
                x, y, w, h = box
                entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                entry['area'] = w * h
            if rng.random() < 0.1:
                entry['ignore'] = 1
            annotations.append(entry)
        if image['id'] != 31:
            near = [a for a in annotations if a['image_id'] == image['id']]
            boxes = [_moved(a['bbox'], rng) for a in near for _ in range(3)]
            labels = [
                a['category_id'] if rng.random() < 0.8 else int(rng.choice([7, 3, 90, 1]))
                for a in near
                for _ in range(3)
            ]
            more = 130 if image['id'] == 30 else 5
            boxes += [_box(rng) for _ in range(more)]
            labels += [3] * more
            for box, label in zip(boxes, labels, strict=True):
                score = round(float(rng.random()), 2)  # equal ones among them
                rle = coco_mask.encode(_ellipse(box))
                common = dict(image_id=image['id'], category_id=label, score=score)
                results['bbox'].append(dict(common, bbox=box))
                results['segm'].append(
                    dict(common, segmentation=dict(rle, counts=rle['counts'].decode()))
                )
    categories = [dict(id=key, name=name) for key, name in NAMES.items()]
    return json.dumps(
        [dict(images=images, annotations=annotations, categories=categories), results]
    )


def _box(rng: np.random.Generator) -> list[float]:
    width, height = np.exp(rng.uniform(np.log(6), np.log(200), 2))
    x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
    return [float(v) for v in (x, y, width, height)]


def _moved(box: list[float], rng: np.random.Generator) -> list[float]:
    x, y, width, height = box
    x, y = x + rng.normal(0, 0.12) * width, y + rng.normal(0, 0.12) * height
    scale = np.exp(rng.normal(0, 0.1))
    width, height = min(width * scale, SIDE), min(height * scale, SIDE)
    return [float(v) for v in (max(x, 0.0), max(y, 0.0), width, height)]


def _ellipse(box: list[float]) -> np.ndarray:
    x, y, width, height = box
    across, down = (_COLUMNS - x) / width * 2 - 1, (_ROWS - y) / height * 2 - 1
    inside = across**2 + down**2 <= 1
    return np.asfortranarray(inside.astype(np.uint8))


def _runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths, column by column, zeros first."""
    flat = np.concatenate([[0], mask.ravel(order='F'), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(ends, prepend=0).tolist()
