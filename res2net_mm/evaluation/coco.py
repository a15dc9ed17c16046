"""COCO's average precision and recall, computed by faster-coco-eval from lists of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

from ..checks import check_choice
from ..data.errors import DataError
from ..data.sets.images import COCO_SIZES

MAX_DETS = (1, 10, 100)
# kind of result -> the key that holds its shape
FIELDS = {'bbox': 'bbox', 'segm': 'segmentation'}
KINDS = tuple(FIELDS)


@dataclass(frozen=True)
class Scores:
    """Precision and recall of a set of detections.

    Averages leave out what has no ground truth, and are -1 (as in COCO) if nothing has any. They
    use the largest of ``max_dets``, except for ``AP`` of all classes, which uses 100 if that is
    among them, as pycocotools does (if it is not, pycocotools gives -1).

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
        """Average precision, 0 to 1, as the mean over thresholds and classes that are None.

        ``max_dets`` None is the largest. -1 if ``iou`` is not among the thresholds.
        """
        thresholds = self.iou_thrs >= 0 if iou is None else np.isclose(self.iou_thrs, iou)
        return _mean(self.precision[thresholds][self._where(category, size, max_dets)])

    def ar(
        self, max_dets: int | None = None, category: int | None = None, size: str = 'all'
    ) -> float:
        """Average recall with at most ``max_dets`` detections an image; None is the largest."""
        return _mean(self.recall[self._where(category, size, max_dets)])

    def _where(self, category: int | None, size: str, max_dets: int | None) -> tuple:
        """Index of the last three axes: K, A, M."""
        k = slice(None) if category is None else list(self.categories).index(category)
        m = -1 if max_dets is None else self.max_dets.index(max_dets)
        return ..., k, self.sizes.index(size), m

    def figures(self, category: int | None = None) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, ..., AR_1, ..., AR_small, ... of all classes or of one."""
        found = {
            'AP': self._headline() if category is None else self.ap(None, category),
            'AP50': self.ap(0.5, category),
            'AP75': self.ap(0.75, category),
        }
        found |= {f'AP_{size}': self.ap(None, category, size) for size in self.sizes[1:]}
        found |= {f'AR_{n}': self.ar(n, category) for n in self.max_dets}
        return found | {f'AR_{size}': self.ar(None, category, size) for size in self.sizes[1:]}

    def metrics(self) -> dict[str, float]:
        """The figures by mmdet's names: ``bbox_mAP``, ``bbox_mAP_s``, ``bbox_AR@100``, ..."""
        names = metric_names(self.max_dets, self.sizes[1:])
        values = self.figures().values()
        return {f'{self.kind}_{name}': v for name, v in zip(names, values, strict=True)}

    def by_class(self) -> dict[str, float]:
        """AP by class by mmdet's names, ``cat_precision``; NaN without ground truth."""
        found = {name: self.ap(None, key) for key, name in self.categories.items()}
        return {f'{name}_precision': np.nan if ap < 0 else ap for name, ap in found.items()}

    def _headline(self) -> float:
        return self.ap(max_dets=MAX_DETS[-1] if MAX_DETS[-1] in self.max_dets else None)


def metric_names(max_dets: Sequence[int], sizes: Iterable[str] = COCO_SIZES) -> list[str]:
    """mmdet's names of the figures of :class:`Scores`, in their order."""
    initials = [size[0] for size in sizes]
    return [
        *('mAP', 'mAP_50', 'mAP_75'),
        *(f'mAP_{initial}' for initial in initials),
        *(f'AR@{n}' for n in max_dets),
        *(f'AR_{initial}@{max_dets[-1]}' for initial in initials),
    ]


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
    sizes: Mapping[str, tuple[float, float]] = COCO_SIZES,
    images: Iterable[Any] | None = None,
    agnostic: bool = False,
) -> Scores:
    """Scores detections by COCO's rules, with the figures of pycocotools.

    Unlike with pycocotools, image ids may be names; annotation ids do not matter (there, an object
    with id 0 is never found); an annotation without ``area`` has that of its box or mask; and a
    mask in ``results`` has its own area even if there is a box beside it.

    Args:
        annotations: Content of an annotation file; not changed.
        results: Detections in COCO's result format; not changed.
        kind: ``'bbox'`` or ``'segm'``.
        max_dets: How many detections of an image and class count.
        iou_thrs: Thresholds; None is 0.5, 0.55, ... 0.95.
        categories: Ids to score; None is all.
        sizes: Ranges of object area by name, in square pixels.
        images: Ids of the images to score, pycocotools' ``params.imgIds``; None is all.
        agnostic: Score all classes as one, pycocotools' ``useCats=0``.

    Raises:
        ValueError: An argument makes no sense.
        DataError: The annotations lack one of ``images``, or a mask cannot be read.
    """
    check_choice('metric', kind, KINDS)
    limits = check_max_dets(max_dets)
    wanted = set(categories) if categories is not None else None
    names = {c['id']: c['name'] for c in annotations['categories']}
    names = {key: names[key] for key in sorted(names) if wanted is None or key in wanted}
    entries = {image['id']: image for image in annotations['images']}
    if images is not None:
        scored = set(images)
        if unknown := scored - set(entries):
            raise DataError(f'the annotations have no image with id {min(unknown, key=str)!r}')
        entries = {key: image for key, image in entries.items() if key in scored}
    # faster-coco-eval only takes numbers, and VOC's images have names; ties follow this order
    numbers = {key: number for number, key in enumerate(sorted(entries), 1)}
    objects, results = (
        [e for e in part or [] if e['image_id'] in entries and e['category_id'] in names]
        for part in (annotations.get('annotations'), results)
    )
    truth = COCO(
        dict(
            images=[{**image, 'id': numbers[key]} for key, image in entries.items()],
            categories=[dict(id=key, name=name) for key, name in names.items()],
            annotations=[
                _annotation(a, kind, entries[a['image_id']])
                | dict(id=i, image_id=numbers[a['image_id']])
                for i, a in enumerate(objects, 1)
            ],
        )
    )
    kept = [
        {
            'image_id': numbers[r['image_id']],
            'category_id': r['category_id'],
            'score': r['score'],
            FIELDS[kind]: shape_of(r, kind, entries[r['image_id']]),
        }
        for r in results
    ]
    run = COCOeval_faster(
        truth,
        truth.loadRes(kept),
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
    """``max_dets`` ascending, each once.

    Raises:
        ValueError: There is none, or one is not a positive integer.
    """
    limits = list(max_dets)
    if not limits or any(not isinstance(n, (int, np.integer)) or n < 1 for n in limits):
        raise ValueError(f'max_dets must be positive integers, but is {limits}')
    return tuple(sorted({int(n) for n in limits}))


def shape_of(entry: Mapping[str, Any], kind: str, image: Mapping[str, Any]) -> Any:
    """The box, or the mask as a compressed run-length encoding, of an annotation or result.

    Raises:
        DataError: The segmentation is neither polygons nor a run-length encoding.
    """
    shape = entry.get(FIELDS[kind])
    if kind == 'bbox' or (
        isinstance(shape, Mapping) and isinstance(shape.get('counts'), str | bytes)
    ):
        return shape
    try:
        if isinstance(shape, Mapping):
            return coco_mask.frPyObjects(dict(shape), *shape['size'])
        size = image['height'], image['width']
        return coco_mask.merge(coco_mask.frPyObjects(list(shape), *size))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(
            f'a segmentation in image {image["id"]} is neither polygons nor a run-length encoding: '
            f'{str(shape)[:60]}'
        ) from error


def _annotation(annotation: Mapping, kind: str, image: Mapping) -> dict[str, Any]:
    shape, area = shape_of(annotation, kind, image), annotation.get('area')
    if area is None:
        area = float(coco_mask.area(shape) if kind == 'segm' else shape[2] * shape[3])
    return {
        'category_id': annotation['category_id'],
        'iscrowd': int(annotation.get('iscrowd') or 0),
        'bbox': annotation.get('bbox'),
        'area': area,
        FIELDS[kind]: shape,
    }
