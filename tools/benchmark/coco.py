"""COCO evaluation of detections by pycocotools and by what our metric calls.

Both do the same work in the measured time: read the json files of ground truth and results, match,
and give the 12 figures. What pycocotools prints is thrown away. The sets are random.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from res2net_mm.engine.errors import ToolError
from res2net_mm.evaluation.coco import FIELDS, evaluate

from .contenders import check_equal, require
from .measure import make_record, measure

BOUND = 1e-6
CLASSES = 80
SIZE = np.array([640, 480])  # width and height of the images
OBJECTS = 7  # an image, on average
DETECTIONS = 100  # an image, or three an object if that is more
# shares of objects that are small, medium, large, as in COCO, and ranges of their sides
SHARES = (0.41, 0.35, 0.24)
SIDES = np.array([(6, 31), (33, 94), (98, 400)])
CROWDS = 0.01
_ANGLES = np.linspace(0, 2 * np.pi, 12, endpoint=False)


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of the task."""
    text = 'of the random set (5000, as val2017 has)'
    parser.add_argument('--images', type=int, default=5000, help=text)
    parser.add_argument('--type', choices=FIELDS, default='bbox', help='what is matched (bbox)')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of both on one random set, after a comparison of their figures."""
    if args.images < 1:
        raise ToolError(f'--images must be at least 1, but is {args.images}')
    require('pycocotools')
    with tempfile.TemporaryDirectory() as folder:
        given = *write_set(Path(folder), args.images, args.type), args.type
        figures = [[torch.tensor(by(*given))] for by in (by_pycocotools, by_ours)]
        difference = check_equal('pycocotools', figures[0], 'ours', figures[1], BOUND)
        names = dict(pycocotools=False, ours=False)
        rows, _ = measure(names, prepare, *given, settings=args, warmup=0)
    for row in rows:
        row['difference'] = difference
    return make_record(args, f'COCO evaluation of {args.type}, {args.images} images', rows)


def prepare(name: str, *given: Any) -> partial:
    """One of the two evaluations."""
    return partial(by_ours if name == 'ours' else by_pycocotools, *given)


def by_pycocotools(truth: Path, results: Path, kind: str) -> list[float]:
    """AP, AP50, AP75, three of sizes, then recalls, from files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        found = COCOeval(coco, coco.loadRes(str(results)), kind)
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found.stats.tolist()


def by_ours(truth: Path, results: Path, kind: str) -> list[float]:
    """The same figures as :func:`by_pycocotools`, as our ``CocoMetric`` has them."""
    content = json.loads(truth.read_text())
    return list(evaluate(content, json.loads(results.read_text()), kind).metrics().values())


def write_set(folder: Path, images: int, kind: str) -> tuple[Path, Path]:
    """Writes a random set in COCO's format, and gives the paths of ground truth and results.

    Objects are of 80 classes, some much more frequent, and of small to large sizes; one in 100 is a
    crowd. Detections are objects that were moved a little, some with another class, and boxes with
    low scores that hit nothing. Masks are polygons of 12 corners, those of results and crowds
    run-length encoded.
    """
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        boxes = _boxes(rng, rng.poisson(OBJECTS))
        classes = rng.choice(CLASSES, len(boxes), p=frequency) + 1
        for box, label in zip(boxes, classes, strict=True):
            crowd = bool(rng.random() < CROWDS)
            area = float(box[2] * box[3])
            one = dict(id=len(truth) + 1, image_id=image, category_id=int(label))
            truth.append(one | dict(iscrowd=int(crowd), area=area) | _shape(box, kind, crowd))
            for _ in range(3):
                noise = rng.exponential(0.12)
                moved = box + noise * box[[2, 3, 2, 3]] * rng.standard_normal(4)
                guess = label if rng.random() < 0.9 else rng.integers(CLASSES) + 1
                score = np.exp(-3 * noise) * rng.uniform(0.5, 1)
                results.append(_detection(image, moved, guess, score, kind))
        missing = DETECTIONS - 3 * len(boxes)
        for box in _boxes(rng, max(missing, 0)):
            guess, score = rng.choice(CLASSES, p=frequency) + 1, 0.5 * rng.random() ** 2
            results.append(_detection(image, box, guess, score, kind))
    width, height = SIZE.tolist()
    content = dict(
        images=[dict(id=i, width=width, height=height) for i in range(1, images + 1)],
        categories=[dict(id=i, name=f'class {i}') for i in range(1, CLASSES + 1)],
        annotations=truth,
    )
    paths = folder / 'truth.json', folder / 'results.json'
    for path, value in zip(paths, (content, results), strict=True):
        path.write_text(json.dumps(value))
    return paths


def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes within the image, (number, 4): x, y, width, height."""
    ranges = SIDES[rng.choice(len(SHARES), number, p=SHARES)]
    sides = rng.uniform(*ranges.T[:, :, None], (number, 2))
    return np.concatenate([rng.random((number, 2)) * (SIZE - sides), sides], axis=1)


def _detection(image: int, box: np.ndarray, label: int, score: float, kind: str) -> dict[str, Any]:
    corner = np.clip(box[:2], 0, SIZE - 2)
    box = np.concatenate([corner, np.clip(box[2:], 2, SIZE - corner)])
    one = dict(image_id=image, category_id=int(label), score=round(float(score), 6))
    return one | _shape(box, kind, encoded=True)


def _shape(box: np.ndarray, kind: str, encoded: bool) -> dict[str, Any]:
    rounded = dict(bbox=[round(float(v), 2) for v in box])
    if kind == 'bbox':
        return rounded
    from pycocotools import mask

    x, y, width, height = box
    corners = np.stack([np.cos(_ANGLES) * width + width, np.sin(_ANGLES) * height + height], 1) / 2
    polygons = [(corners + (x, y)).round(2).ravel().tolist()]
    if not encoded:
        return dict(rounded, segmentation=polygons)
    rle = mask.frPyObjects(polygons, *SIZE[::-1].tolist())[0]
    return dict(segmentation=dict(size=rle['size'], counts=rle['counts'].decode()))
