"""What a detector gets wrong: kinds of errors, confusions, AP by object size, the worst images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco import Scores, evaluate
from .judging import FALSE, MISSED, Judged, judge

# square roots of areas, in pixels: COCO's small, medium and large, each cut in two
_EDGES = (0, 16, 32, 64, 96, 192, 1e5)
SIZE_BINS = {
    (f'{low} to {high}' if high < 1e5 else f'from {low}'): (low**2, high**2)
    for low, high in zip(_EDGES, _EDGES[1:], strict=False)
}


@dataclass(frozen=True)
class Analysis:
    """All that :func:`analyse` finds.

    Attributes:
        scores: AP and recall; its size ranges are ``SIZE_BINS``.
        every: All detections judged.
        confident: Those judged that have the least score.
        least: That score.
        sizes: How many objects each size range has.
    """

    scores: Scores
    every: Judged
    confident: Judged
    least: float
    sizes: dict[str, int]

    @property
    def names(self) -> list[str]:
        """Class names in the order of the confusion matrix, without ``background``."""
        return list(self.scores.categories.values())

    def gains(self) -> dict[str, float]:
        """What AP at IoU 0.5 gains without the errors of each kind."""
        now = self.every.ap()
        return {kind: self.every.ap(kind) - now for kind in (*FALSE, MISSED)}

    def worst(self, most: int) -> list[int]:
        """Indices of the images with most missed objects and false detections, worst first."""
        total = np.add(*self.confident.by_image())
        order = np.argsort(-total, kind='stable')[:most]
        return [int(i) for i in order if total[i]]

    def rows(self, files: Mapping[int, str]) -> Iterator[tuple[str, str, str, float]]:
        """All figures as (table, row, column, value); AP that has no ground truth is left out.

        Args:
            files: File name of each image id.
        """
        every = {'all': None} | {name: key for key, name in self.scores.categories.items()}
        for name, key in every.items():
            for figure in ('AP', 'AP50', 'AP75'):
                value = self.scores.figures(key)[figure]
                if value >= 0:
                    yield 'ap', name, figure, value
        for size, count in self.sizes.items():
            yield 'ap_by_size', size, 'objects', count
            if self.scores.ap(size=size) >= 0:
                yield 'ap_by_size', size, 'AP', self.scores.ap(size=size)
        gains, total = self.gains(), self.every.counts()
        confident = self.confident.counts()
        for kind in (*FALSE, MISSED):
            yield 'errors', kind, 'count', total[kind]
            yield 'errors', kind, f'count from score {self.least:g}', confident[kind]
            yield 'errors', kind, 'AP50 gained without', gains[kind]
        names = [*self.names, 'background']
        table = self.confident.confusion()
        for i, j in np.argwhere(table):
            yield 'confusion', names[i], names[j], int(table[i, j])
        for image, lost, false in zip(
            self.confident.images, *self.confident.by_image(), strict=True
        ):
            yield 'images', files[image], 'missed', int(lost)
            yield 'images', files[image], 'false', int(false)
        for iou, curve in self.curves().items():
            for i, value in enumerate(curve):
                yield 'precision', f'IoU {iou:.2f}', f'recall {i / 100:.2f}', value

    def curves(self) -> dict[float, np.ndarray]:
        """Precision (101,) at recalls 0 to 1 by IoU threshold, the mean of classes that exist."""
        part = self.scores.precision[..., 0, -1]  # (T, 101, K)
        part = part[..., (part > -1).all((0, 1))]
        means = part.mean(-1) if part.shape[-1] else np.zeros(part.shape[:2])
        return {float(iou): mean for iou, mean in zip(self.scores.iou_thrs, means, strict=True)}


def analyse(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    score: float = 0.3,
) -> Analysis:
    """Scores and judges the detections of a set.

    Args:
        annotations: Content of a COCO annotation file.
        results: In COCO's result format.
        kind: ``'bbox'`` or ``'segm'``.
        score: Least score of the detections that confusions and worst images are about.
    """
    scores = evaluate(annotations, results, kind, sizes=SIZE_BINS)
    images = {image['id'] for image in annotations['images']}
    classes = scores.categories
    areas = np.array(
        [
            a.get('area') if a.get('area') is not None else a['bbox'][2] * a['bbox'][3]
            for a in annotations['annotations']
            if not a.get('iscrowd') and a['image_id'] in images and a['category_id'] in classes
        ]
    )
    counts = {
        name: int(((areas >= low) & (areas < high)).sum())
        for name, (low, high) in SIZE_BINS.items()
    }
    every = judge(annotations, results, kind)
    confident = judge(annotations, results, kind, score=score)
    return Analysis(scores, every, confident, score, counts)
