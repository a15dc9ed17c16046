"""COCO's average precision and recall by faster-coco-eval, from files or from lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

MAX_DETS = (1, 10, 100)
KINDS = ('bbox', 'segm')
# areas in square pixels
SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}


@dataclass(frozen=True)
class Scores:
    """What COCO's evaluation comes to.

    Averages leave out what has no ground truth, and are COCO's -1 where nothing has any. They are
    at the largest of ``max_dets``, but for ``AP`` of all classes: as in pycocotools it is at 100
    where that is among them (where it is not, pycocotools says -1).

    Attributes:
        kind: ``'bbox'`` or ``'segm'``.
        categories: Names of the classes by category id, in the order of axis K.
        iou_thrs: Thresholds, (T,).
        sizes: Names of the size ranges, ``'all'`` first; axis A.
        max_dets: How many detections an image and class may have, ascending; axis M.
        precision: (T, 101, K, A, M) at recalls 0, 0.01, ... 1; -1 without ground truth.
        recall: (T, K, A, M).
    """

    kind: str
    categories: Mapping[int, str]
    iou_thrs: np.ndarray
    sizes: tuple[str, ...]
    max_dets: tuple[int, ...]
    precision: np.ndarray
    recall: np.ndarray

    def ap(
        self,
        iou: float | None = None,
        category: int | None = None,
        size: str = 'all',
        max_dets: int | None = None,
    ) -> float:
        """Average precision, 0 to 1, at one IoU threshold or the mean of all, likewise of classes.

        -1 as well where ``iou`` is not among the thresholds. ``max_dets`` None is the largest.
        """
        column = -1 if max_dets is None else self.max_dets.index(max_dets)
        part = self.precision[self._thresholds(iou), :, :, self.sizes.index(size), column]
        return _mean(part if category is None else part[..., self._column(category)])

    def ar(
        self, max_dets: int | None = None, category: int | None = None, size: str = 'all'
    ) -> float:
        """Average recall with at most ``max_dets`` detections an image; None is the largest."""
        column = -1 if max_dets is None else self.max_dets.index(max_dets)
        part = self.recall[:, :, self.sizes.index(size), column]
        return _mean(part if category is None else part[:, self._column(category)])

    def figures(self, category: int | None = None) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, ..., AR_1, ..., AR_small, ..., of all or of one class."""
        found = {
            'AP': self.ap(None, category) if category is not None else self._headline(),
            'AP50': self.ap(0.5, category),
            'AP75': self.ap(0.75, category),
        }
        found |= {f'AP_{size}': self.ap(None, category, size) for size in self.sizes[1:]}
        found |= {f'AR_{n}': self.ar(n, category) for n in self.max_dets}
        return found | {f'AR_{size}': self.ar(None, category, size) for size in self.sizes[1:]}

    def metrics(self) -> dict[str, float]:
        """The figures under mmdet's names: ``bbox_mAP``, ``bbox_mAP_s``, ``bbox_AR@100``, ..."""
        found = {'mAP': self._headline(), 'mAP_50': self.ap(0.5), 'mAP_75': self.ap(0.75)}
        found |= {f'mAP_{size[0]}': self.ap(size=size) for size in self.sizes[1:]}
        found |= {f'AR@{n}': self.ar(n) for n in self.max_dets}
        most = self.max_dets[-1]
        found |= {f'AR_{size[0]}@{most}': self.ar(size=size) for size in self.sizes[1:]}
        return {f'{self.kind}_{name}': value for name, value in found.items()}

    def by_class(self) -> dict[str, float]:
        """AP by class under mmdet's names, ``cat_precision``; NaN without ground truth."""
        found = {name: self.ap(None, key) for key, name in self.categories.items()}
        return {f'{name}_precision': np.nan if ap < 0 else ap for name, ap in found.items()}

    def _headline(self) -> float:
        return self.ap(max_dets=MAX_DETS[-1] if MAX_DETS[-1] in self.max_dets else None)

    def _thresholds(self, iou: float | None) -> np.ndarray:
        return np.isclose(self.iou_thrs, iou) if iou is not None else self.iou_thrs >= 0

    def _column(self, category: int) -> int:
        return list(self.categories).index(category)


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def evaluate(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    *,
    max_dets: Iterable[int] = MAX_DETS,
    iou_thrs: Sequence[float] | None = None,
    categories: Iterable[int] | None = None,
    sizes: Mapping[str, tuple[float, float]] = SIZES,
    images: Iterable[Any] | None = None,
    agnostic: bool = False,
) -> Scores:
    """Scores detections by COCO's rules, equal to pycocotools.

    Other than with pycocotools, the ids of images can be names; those of annotations do not matter
    (there, one with id 0 is never found); an annotation without ``area`` has that of its box or
    mask; and the area of a mask in ``results`` is its own even where a box is beside it.

    Args:
        annotations: Content of an annotation file; not changed.
        results: In COCO's result format; not changed.
        kind: ``'bbox'`` or ``'segm'``.
        max_dets: How many detections of an image and class count.
        iou_thrs: Thresholds; None is 0.5, 0.55, ... 0.95.
        categories: Ids to score; None is all.
        sizes: Ranges of object area by name, in square pixels.
        images: Ids of the images to score, pycocotools' ``params.imgIds``; None is all.
        agnostic: Score all classes as one, pycocotools' ``useCats=0``.

    Raises:
        ValueError: An argument does not make sense, or the annotations lack one of ``images``.
    """
    if kind not in KINDS:
        raise ValueError(f'metric must be bbox or segm, but is {kind!r}')
    limits = check_max_dets(max_dets)
    wanted = set(categories) if categories is not None else None
    names = {c['id']: c['name'] for c in annotations['categories']}
    names = {key: names[key] for key in sorted(names) if wanted is None or key in wanted}
    entries = {image['id']: image for image in annotations['images']}
    if images is not None:
        scored = set(images)
        if unknown := scored - set(entries):
            raise ValueError(f'the annotations have no image with id {min(unknown, key=str)!r}')
        entries = {key: image for key, image in entries.items() if key in scored}
    # faster-coco-eval takes numbers alone, VOC's images are named; equal scores go by this order
    numbers = {key: number for number, key in enumerate(sorted(entries), 1)}
    objects = [
        a
        for a in annotations.get('annotations') or []
        if a['image_id'] in entries and a['category_id'] in names
    ]
    results = [r for r in results if r['image_id'] in entries and r['category_id'] in names]
    if agnostic:  # pycocotools goes through one class after the other, and equal scores by that
        objects = _as_one_class(objects)
        results = _as_one_class(results)
        names = {1: 'all'}
    truth = COCO(
        dict(
            images=[{**image, 'id': numbers[key]} for key, image in entries.items()],
            categories=[dict(id=key, name=name) for key, name in names.items()],
            annotations=[
                {'image_id': numbers[a['image_id']], **_annotation(i, a, kind, entries)}
                for i, a in enumerate(objects, 1)
            ],
        )
    )
    field = 'bbox' if kind == 'bbox' else 'segmentation'
    kept = [
        {
            'image_id': numbers[r['image_id']],
            'category_id': r['category_id'],
            'score': r['score'],
            field: r['bbox']
            if kind == 'bbox'
            else as_rle(r['segmentation'], entries[r['image_id']]),
        }
        for r in results
    ]
    run = COCOeval_faster(
        truth,
        truth.loadRes(kept),
        kind,
        ranges={name: list(bounds) for name, bounds in sizes.items()},
        print_function=_say_nothing,
    )
    run.params.catIds = list(names)
    run.params.imgIds = list(numbers.values())
    run.params.maxDets = list(limits)
    if iou_thrs is not None:
        run.params.iouThrs = np.atleast_1d(np.asarray(iou_thrs, dtype=float))
    run.evaluate()
    run.accumulate()
    return Scores(
        kind=kind,
        categories=names,
        iou_thrs=run.params.iouThrs,
        sizes=('all', *sizes),
        max_dets=limits,
        precision=run.eval['precision'],
        recall=run.eval['recall'],
    )


def check_max_dets(max_dets: Iterable[int]) -> tuple[int, ...]:
    """``max_dets`` ascending, each once.

    Raises:
        ValueError: There is none, or one is not a positive integer.
    """
    limits = list(max_dets)
    if not limits or any(not isinstance(n, (int, np.integer)) or n < 1 for n in limits):
        raise ValueError(f'max_dets must be positive integers, but is {limits}')
    return tuple(sorted({int(n) for n in limits}))


def as_rle(segmentation: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """A compressed run-length encoding of polygons or of any run-length encoding.

    Raises:
        ValueError: It is neither.
    """
    try:
        if isinstance(segmentation, Mapping):
            if isinstance(segmentation['counts'], (str, bytes)):
                return dict(segmentation)
            return coco_mask.frPyObjects(dict(segmentation), *segmentation['size'])
        size = image['height'], image['width']
        return coco_mask.merge(coco_mask.frPyObjects(list(segmentation), *size))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f'a segmentation in image {image["id"]} is neither polygons nor a run-length encoding: '
            f'{str(segmentation)[:60]}'
        ) from error


def _annotation(number: int, annotation: Mapping, kind: str, images: Mapping) -> dict[str, Any]:
    new = {
        'id': number,
        'category_id': annotation['category_id'],
        'iscrowd': int(annotation.get('iscrowd') or 0),
        'bbox': annotation.get('bbox'),
        'area': annotation.get('area'),
    }
    if kind == 'segm':
        image = images[annotation['image_id']]
        new['segmentation'] = as_rle(annotation.get('segmentation'), image)
    if new['area'] is None:
        box = new['bbox']
        mask = new.get('segmentation')
        new['area'] = float(coco_mask.area(mask)) if mask else float(box[2] * box[3])
    return new


def _as_one_class(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ordered = sorted(entries, key=lambda entry: entry['category_id'])
    return [{**entry, 'category_id': 1} for entry in ordered]


def _say_nothing(*_: Any) -> None:
    pass
