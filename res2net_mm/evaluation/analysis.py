"""What a detector gets wrong: kinds of errors, confusions, AP by object size, the worst images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .coco import Scores, evaluate
from .judging import FALSE, IGNORED, MISSED, Judged, judge

# square roots of areas, in pixels: COCO's small, medium and large, each cut in two
_EDGES = (0, 16, 32, 64, 96, 192, 1e5)
SIZE_BINS = {
    (f'{low} to {high}' if high < 1e5 else f'from {low}'): (low**2, high**2)
    for low, high in pairwise(_EDGES)
}


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyse`.

    Attributes:
        scores: AP and recall; its size ranges are ``SIZE_BINS``.
        every: All detections, judged.
        confident: The detections with at least the score ``least``, judged.
        least: That score.
        sizes: Number of objects in each size range.
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
        """How much AP at IoU 0.5 gains without the errors of each kind."""
        now = self.every.ap()
        return {kind: self.every.ap(kind) - now for kind in (*FALSE, MISSED)}

    def worst(self, most: int) -> list[int]:
        """Indices of the images with the most missed objects and false detections, worst first."""
        total = np.add(*self.confident.by_image())
        order = np.argsort(-total, kind='stable')[:most]
        return [int(i) for i in order if total[i]]

    def curves(self) -> dict[float, np.ndarray]:
        """Precision (101,) at recalls 0 to 1 by IoU threshold, the mean of classes with objects."""
        part = self.scores.precision[..., 0, -1]  # (T, 101, K)
        part = part[..., (part > -1).all((0, 1))]
        means = part.mean(-1) if part.shape[-1] else np.zeros(part.shape[:2])
        return {float(iou): mean for iou, mean in zip(self.scores.iou_thrs, means, strict=True)}

    def thresholds(self) -> list[tuple[str, int, float, float, float, float]]:
        """By class: name, objects, and the score from which F1 is best, with precision, recall, F1.

        Of equal F1 the highest score; NaN if nothing is right. Detections on crowds do not count.
        """
        found = []
        objects = Counter(o.label for o in self.every.objects if not o.crowd)
        for label, name in enumerate(self.names):
            scores, right = self._scored(label)
            hits, ranks = np.cumsum(right), np.arange(1, len(right) + 1)
            last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of equal scores
            f1 = np.where(last, 2 * hits / (ranks + objects[label]), 0)
            best = int(f1.argmax()) if f1.any() else None
            figures = (np.nan,) * 4
            if best is not None:
                recall = hits[best] / objects[label]
                figures = scores[best], hits[best] / ranks[best], recall, f1[best]
            found.append((name, objects[label], *map(float, figures)))
        return found

    def calibration(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """Mean score, precision and number of detections in each range of scores that has any."""
        scores, right = self._scored()
        places = np.minimum((scores * bins).astype(int), bins - 1)
        chosen = [places == k for k in range(bins) if (places == k).any()]
        return [(float(scores[c].mean()), float(right[c].mean()), int(c.sum())) for c in chosen]

    def _scored(self, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores, highest first, and which detections are right, of a class or of all."""
        chosen = [d for d in self.every.detections if d.verdict != IGNORED]
        chosen = [d for d in chosen if label is None or d.label == label]
        chosen.sort(key=lambda d: -d.score)
        scores, right = [d.score for d in chosen], [not d.false for d in chosen]
        return np.array(scores, float), np.array(right, bool)

    def rows(self, files: Mapping[int, str]) -> Iterator[tuple[str, str, str, float]]:
        """All figures as (table, row, column, value); AP without ground truth is left out.

        Args:
            files: File name of each image id.
        """
        scores, confident = self.scores, self.confident
        for name, key in {'all': None, **{n: k for k, n in scores.categories.items()}}.items():
            figures = scores.figures(key)
            for figure in ('AP', 'AP50', 'AP75'):
                if figures[figure] >= 0:
                    yield 'ap', name, figure, figures[figure]
        for size, count in self.sizes.items():
            yield 'ap_by_size', size, 'objects', count
            if scores.ap(size=size) >= 0:
                yield 'ap_by_size', size, 'AP', scores.ap(size=size)
        gains, total, sure = self.gains(), self.every.counts(), confident.counts()
        for kind in (*FALSE, MISSED):
            yield 'errors', kind, 'count', total[kind]
            yield 'errors', kind, f'count from score {self.least:g}', sure[kind]
            yield 'errors', kind, 'AP50 gained without', gains[kind]
        names, table = [*self.names, 'background'], confident.confusion()
        for i, j in np.argwhere(table):
            yield 'confusion', names[i], names[j], int(table[i, j])
        for image, lost, false in zip(confident.images, *confident.by_image(), strict=True):
            yield 'images', files[image], 'missed', int(lost)
            yield 'images', files[image], 'false', int(false)
        for iou, curve in self.curves().items():
            for i, value in enumerate(curve):
                yield 'precision', f'IoU {iou:.2f}', f'recall {i / 100:.2f}', value


def analyse(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    score: float = 0.3,
) -> Analysis:
    """Scores and judges detections, given as for :func:`~.coco.evaluate`.

    ``score`` is the least score of the detections in confusions and worst images.
    """
    scores = evaluate(annotations, results, kind, sizes=SIZE_BINS)
    images = {image['id'] for image in annotations['images']}
    areas = np.array(
        [
            a['area'] if a.get('area') is not None else a['bbox'][2] * a['bbox'][3]
            for a in annotations['annotations']
            if not a.get('iscrowd')
            and a['image_id'] in images
            and a['category_id'] in scores.categories
        ]
    )
    sizes = {
        name: int(((areas >= low) & (areas < high)).sum())
        for name, (low, high) in SIZE_BINS.items()
    }
    every = judge(annotations, results, kind)
    confident = judge(annotations, results, kind, score=score)
    return Analysis(scores, every, confident, score, sizes)
