"""COCO's average precision and recall, computed by faster-coco-eval from lists of dicts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

from ..data.errors import DataError
from ..data.sets.images import COCO_SIZES
from ..data.sets.masks import read_mask

MAX_DETS = (1, 10, 100)
# kind of result -> the key that holds its shape
FIELDS = {'bbox': 'bbox', 'segm': 'segmentation'}


@dataclass(frozen=True)
class Scores:
    """Precision and recall of a set of detections.

    Averages leave out what has no ground truth, and are -1 (as in COCO) if nothing has any. They
    use the largest of ``max_dets``, but ``AP`` of all classes uses 100 if there is, as pycocotools.
    """

    kind: str  # 'bbox' or 'segm'
    categories: Mapping[int, str]  # names by category id, in the order of axis K
    iou_thrs: np.ndarray  # (T,)
    sizes: tuple[str, ...]  # names of the size ranges, 'all' first; axis A
    max_dets: tuple[int, ...]  # detections that an image and class may have, ascending; axis M
    precision: np.ndarray  # (T, 101, K, A, M) at recalls 0, 0.01, ... 1; -1 without ground truth
    recall: np.ndarray  # (T, K, A, M)

    def ap(
        self,
        iou: float | None = None,
        category: int | None = None,
        size: str = 'all',
        max_dets: int | None = None,
    ) -> float:
        """Average precision, 0 to 1, as the mean over thresholds and classes that are None.

        ``max_dets`` None is the largest. -1 if ``iou`` is not among the thresholds.
        """
        thresholds = slice(None) if iou is None else np.isclose(self.iou_thrs, iou)
        return self._mean(self.precision[thresholds], category, size, max_dets)

    def ar(
        self, max_dets: int | None = None, category: int | None = None, size: str = 'all'
    ) -> float:
        """Average recall with at most ``max_dets`` detections an image; None is the largest."""
        return self._mean(self.recall, category, size, max_dets)

    def _mean(
        self, values: np.ndarray, category: int | None, size: str, max_dets: int | None
    ) -> float:
        k = slice(None) if category is None else list(self.categories).index(category)
        m = -1 if max_dets is None else self.max_dets.index(max_dets)
        values = values[..., k, self.sizes.index(size), m]
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0

    def figures(self, category: int | None = None) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, ..., AR_1, ..., AR_small, ... of all classes or of one."""
        headline = 100 if category is None and 100 in self.max_dets else None
        found = {
            'AP': self.ap(None, category, max_dets=headline),
            'AP50': self.ap(0.5, category),
            'AP75': self.ap(0.75, category),
        }
        found |= {f'AP_{size}': self.ap(None, category, size) for size in self.sizes[1:]}
        found |= {f'AR_{n}': self.ar(n, category) for n in self.max_dets}
        return found | {f'AR_{size}': self.ar(None, category, size) for size in self.sizes[1:]}

    def metrics(self) -> dict[str, float]:
        """The figures by mmdet's names: ``bbox_mAP``, ``bbox_mAP_s``, ``bbox_AR@100``, ..."""
        found = zip(metric_names(self.max_dets), self.figures().values(), strict=True)
        return {f'{self.kind}_{name}': value for name, value in found}

    def by_class(self) -> dict[str, float]:
        """AP by class by mmdet's names, ``cat_precision``; NaN without ground truth."""
        found = {name: self.ap(None, key) for key, name in self.categories.items()}
        return {f'{name}_precision': np.nan if ap < 0 else ap for name, ap in found.items()}


def metric_names(max_dets: Sequence[int]) -> list[str]:
    """mmdet's names of the figures of :class:`Scores` for COCO's sizes, in their order."""
    recalls = [f'AR@{n}' for n in max_dets] + [f'AR_{size}@{max_dets[-1]}' for size in 'sml']
    return ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', *recalls]


def evaluate(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    *,
    max_dets: Iterable[int] = MAX_DETS,
    iou_thrs: Sequence[float] | None = None,
    categories: Collection[int] | None = None,
    sizes: Mapping[str, tuple[float, float]] = COCO_SIZES,
    images: Iterable[Any] | None = None,
    agnostic: bool = False,
) -> Scores:
    """Scores detections by COCO's rules, with the figures of pycocotools.

    Unlike with pycocotools, image ids may be names; annotation ids do not matter (there, an object
    with id 0 is never found); an annotation without ``area`` has that of its box or mask; and a
    mask in ``results`` has its own area even if there is a box beside it.

    Args:
        annotations: Content of an annotation file.
        results: Detections in COCO's result format.
        kind: ``'bbox'`` or ``'segm'``.
        max_dets: How many detections of an image and class count.
        iou_thrs: Thresholds; None is 0.5, 0.55, ... 0.95.
        categories, images: Ids to score; None is all. DataError if an image is not annotated.
        sizes: Ranges of object area by name, in square pixels.
        agnostic: Score all classes as one, pycocotools' ``useCats=0``.
    """
    limits = check_max_dets(max_dets)
    names = {c['id']: c['name'] for c in annotations['categories']}
    names = {key: names[key] for key in sorted(names) if categories is None or key in categories}
    entries = {image['id']: image for image in annotations['images']}
    scored = set(entries if images is None else images)
    if unknown := scored - set(entries):
        raise DataError(f'the annotations have no image with id {min(unknown, key=str)!r}')
    # faster-coco-eval only takes numbers, and VOC's images have names; ties follow this order
    numbers = {key: number for number, key in enumerate(sorted(scored), 1)}

    def entry(one: Mapping[str, Any]) -> dict[str, Any]:
        ids = dict(image_id=numbers[one['image_id']], category_id=one['category_id'])
        return ids | {FIELDS[kind]: shape_of(one, kind, entries[one['image_id']])}

    objects, detections = (
        [one for one in part or [] if one['image_id'] in scored and one['category_id'] in names]
        for part in (annotations.get('annotations'), results)
    )
    shapes = [entry(a) | dict(id=i) for i, a in enumerate(objects, 1)]
    for a, item in zip(objects, shapes, strict=True):
        area = area_of(a | item, kind, entries[a['image_id']])
        item.update(area=area, iscrowd=int(a.get('iscrowd') or 0))
    truth = COCO(
        dict(
            images=[{**entries[key], 'id': number} for key, number in numbers.items()],
            categories=[dict(id=key, name=name) for key, name in names.items()],
            annotations=shapes,
        )
    )
    run = COCOeval_faster(
        truth,
        truth.loadRes([dict(entry(r), score=r['score']) for r in detections]),
        kind,
        ranges={name: list(bounds) for name, bounds in sizes.items()},
        print_function=lambda *_: None,
    )
    run.params.catIds = list(names)
    run.params.useCats = int(not agnostic)
    run.params.imgIds = list(numbers.values())
    run.params.maxDets = list(limits)
    if iou_thrs is not None:
        run.params.iouThrs = np.atleast_1d(np.asarray(iou_thrs, dtype=float))
    run.evaluate()
    run.accumulate()
    return Scores(
        kind=kind,
        categories={1: 'all'} if agnostic else names,
        iou_thrs=run.params.iouThrs,
        sizes=('all', *sizes),
        max_dets=limits,
        precision=run.eval['precision'],
        recall=run.eval['recall'],
    )


def check_max_dets(max_dets: Iterable[int]) -> tuple[int, ...]:
    """``max_dets`` ascending, each once; ValueError if there is none or one is not positive."""
    limits = tuple(sorted({*max_dets}))
    if not limits or not all(isinstance(n, Integral) and n > 0 for n in limits):
        raise ValueError(f'max_dets must be positive integers, but is {limits}')
    return limits


def area_of(entry: Mapping[str, Any], kind: str, image: Mapping[str, Any]) -> float:
    """The area of an annotation: as it says, or else that of its box or mask."""
    if entry.get('area') is not None:
        return entry['area']
    shape = shape_of(entry, kind, image)
    return float(coco_mask.area(shape) if kind == 'segm' else shape[2] * shape[3])


def shape_of(entry: Mapping[str, Any], kind: str, image: Mapping[str, Any]) -> Any:
    """The box, or the mask as a compressed run-length encoding, of an annotation or result."""
    shape = entry.get(FIELDS[kind])
    compressed = isinstance(shape, Mapping) and isinstance(shape.get('counts'), str | bytes)
    if kind == 'bbox' or compressed:
        return shape
    try:
        return read_mask(shape, image['width'], image['height'])[0]
    except DataError as error:
        raise DataError(error.what, f'a mask in image {image["id"]}') from error
