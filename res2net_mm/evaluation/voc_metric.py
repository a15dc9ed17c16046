"""mmdet's VOCMetric by the rules of the VOC development kit, with AP by class.

A config's ``type`` names the class by its full path; only then is this module, and mmdet, imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from mmdet.evaluation import VOCMetric as MMDetVOCMetric

from ..checks import check_choice
from .images_run import ImagesRun, warn


class VOCMetric(ImagesRun, MMDetVOCMetric):
    """mmdet's ``VOCMetric``, but AP is the development kit's, and a class's AP is a metric too.

    Each image counts once. mmdet differs in three ways: in ``11points`` its steps 0.3, 0.6 and 0.7
    are a rounding error above the exact tenths used here, so that a recall of 3 in 5 does not reach
    0.6; it leaves the order of equal scores to chance; and its table names the 20 VOC classes for
    any data set below a folder ``VOC2007`` or ``VOC2012``.

    Args:
        eval_mode: ``'11points'`` (VOC 2007) or ``'area'`` (VOC 2010 and later); their figures do
            not compare. The default is mmdet's ``'11points'``, with a warning.
        kwargs: mmdet's, but for ``scale_ranges`` and ``metric='recall'``; ``table`` logs a table.
    """

    crops = True

    def __init__(self, *, eval_mode: str | None = None, **kwargs: Any) -> None:
        if eval_mode is None:
            warn(
                "eval_mode of VOCMetric is not set: it is '11points' (VOC 2007), mmdet's default; "
                "'area' is for VOC 2010 and later"
            )
        eval_mode = eval_mode or '11points'
        check_choice('eval_mode', eval_mode, ('11points', 'area'))
        super().__init__(eval_mode=eval_mode, **kwargs)
        if self.scale_ranges is not None or self.metric != 'mAP':
            raise ValueError(
                "scale_ranges and metric='recall' of VOCMetric are not supported: use CocoMetric, "
                "with metric='proposal' for recall"
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``mAP``, the mean of ``AP50`` and the like, and by class ``cat_AP50``."""
        self._seen = results
        results = self.each_once(results)
        means: dict[str, float] = {}
        by_class: dict[str, float] = {}
        for iou_thr in self.iou_thrs:
            suffix = f'AP{round(iou_thr * 100):02d}'
            aps = [
                average_precision(_of_class(results, label), self.eval_mode, iou_thr)
                for label in range(len(self.dataset_meta['classes']))
            ]
            known = [ap for ap in aps if not np.isnan(ap)]
            means[suffix] = float(np.mean(known)) if known else float('nan')
            names = (f'{name}_{suffix}' for name in self.dataset_meta['classes'])
            by_class.update(zip(names, aps, strict=True))
        found = {'mAP': float(np.mean(list(means.values()))), **means, **by_class}
        self.log_table(found)
        return found

    @property
    def examined(self) -> dict[str, Any]:
        """COCO's form of what was measured last; difficult objects are crowds."""
        names = self.dataset_meta['classes']
        images, annotations, results = [], [], []
        kept = {i if key is None else key: rest for i, (key, *rest) in enumerate(self._seen)}
        for i, (path, (truth, found)) in enumerate(kept.values()):
            images.append(dict(id=i, file_name=str(path), path=path))
            for end, crowd in (('', 0), ('_ignore', 1)):
                for box, label in zip(truth[f'bboxes{end}'], truth[f'labels{end}'], strict=True):
                    ids = dict(id=len(annotations), iscrowd=crowd)
                    annotations.append(ids | _entry(i, label, box))
            for label, boxes in enumerate(found):
                results += [_entry(i, label, box) | dict(score=float(box[4])) for box in boxes]
        categories = [dict(id=label, name=name) for label, name in enumerate(names)]
        return dict(images=images, annotations=annotations, results=results, categories=categories)


def _entry(image: int, label: int, box: np.ndarray) -> dict[str, Any]:
    x, y, right, bottom = map(float, box[:4])
    return dict(image_id=image, category_id=int(label), bbox=[x, y, right - x, bottom - y])


def _of_class(results: list, label: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detections, objects and which of them are difficult, of each image."""
    for truth, found in results:
        counted = truth['bboxes'][truth['labels'] == label]
        difficult = truth['bboxes_ignore'][truth['labels_ignore'] == label]
        flags = np.repeat([False, True], [len(counted), len(difficult)])
        yield found[label], np.concatenate([counted, difficult]), flags


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4) whose corners are pixels that belong to them."""
    sized = []
    for corners in (boxes, others):
        corners = np.array(corners, float)
        corners[:, 2:] += 1 - corners[:, :2]
        sized.append(corners)
    return coco_mask.iou(*sized, [0] * len(others))


def average_precision(
    images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    mode: str,
    iou_thr: float = 0.5,
) -> float:
    """AP of one class, 0 to 1; NaN if all objects are difficult or there is none.

    A detection belongs to the object that it overlaps most. It is right if that overlap is at least
    ``iou_thr`` and no better scored detection was there before. Objects marked difficult count
    neither as found nor as missed, and detections of them do not count.

    Args:
        images: For each image: detections (N, 5) of x1, y1, x2, y2 and score; objects (M, 4); and
            which of them are difficult, (M,) of bool.
        mode: ``'11points'``: the mean of the best precision at a recall of at least 0, 0.1, ... 1;
            ``'area'``: the area below the curve.
    """
    scores, right, wrong, objects = [], [], [], 0
    for found, boxes, difficult in images:
        found = np.asarray(found, dtype=float).reshape(-1, 5)
        difficult = np.asarray(difficult, dtype=bool)
        found = found[np.argsort(-found[:, 4], kind='stable')]
        objects += int((~difficult).sum())
        good, counted = np.zeros(len(found), dtype=bool), np.ones(len(found), dtype=bool)
        if len(difficult) and len(found):
            overlaps = box_overlaps(found[:, :4], boxes)
            nearest, near = overlaps.argmax(1), overlaps.max(1) >= iou_thr
            counted = ~(near & difficult[nearest])
            candidates = np.flatnonzero(near & counted)
            good[candidates[np.unique(nearest[candidates], return_index=True)[1]]] = True
        scores.append(found[:, 4])
        right.append(good)
        wrong.append(counted & ~good)
    if not objects:
        return float('nan')
    order = np.argsort(-np.concatenate(scores), kind='stable')
    hits = np.cumsum(np.concatenate(right)[order])
    precision = hits / np.maximum(hits + np.cumsum(np.concatenate(wrong)[order]), 1)
    if mode == '11points':
        # whole numbers: 0.1 * 6 is more than 0.6, and a recall of 3 in 5 would not reach it
        best = [precision[10 * hits >= k * objects].max(initial=0.0) for k in range(11)]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(hits, prepend=0) / objects * envelope).sum())
