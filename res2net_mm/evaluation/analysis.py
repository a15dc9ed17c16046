"""What a detector gets wrong: kinds of errors, confusions, AP by object size, the worst images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .coco import Scores, area_of, evaluate
from .judging import FALSE, IGNORED, MISSED, Judged, judge

# square roots of areas, in pixels: COCO's small, medium and large, each cut in two
_EDGES = (0, 16, 32, 64, 96, 192, 1e5)
SIZE_BINS = {
    (f'{low} to {high}' if high < 1e5 else f'from {low}'): (low**2, high**2)
    for low, high in pairwise(_EDGES)
}


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyse`."""

    scores: Scores  # their size ranges are SIZE_BINS
    every: Judged
    confident: Judged  # only the detections with at least the score least
    least: float
    sizes: dict[str, int]  # number of objects in each size range

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
        return order[total[order] > 0].tolist()

    def curves(self) -> dict[float, np.ndarray]:
        """Precision (101,) at recalls 0 to 1 by IoU threshold, the mean of classes with objects."""
        part = self.scores.precision[..., 0, -1]  # (T, 101, K)
        part = part[..., (part > -1).all((0, 1))]
        means = part.mean(-1) if part.shape[-1] else np.zeros(part.shape[:2])
        return dict(zip(self.scores.iou_thrs.tolist(), means, strict=True))

    def thresholds(self) -> list[tuple[str, int, float, float, float, float]]:
        """By class: name, objects, and the score from which F1 is best, with precision, recall, F1.

        Of equal F1 the highest score; NaN if nothing is right. Detections on crowds do not count.
        """
        found = []
        counts = Counter(o.label for o in self.every.objects if not o.crowd)
        for label, name in enumerate(self.names):
            scores, right = self._scored(label)
            hits, ranks, figures = np.cumsum(right), np.arange(1, len(right) + 1), [np.nan] * 4
            if right.any():
                last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
                f1 = np.where(last, 2 * hits / (ranks + counts[label]), 0)
                best = f1.argmax()
                precision, recall = hits[best] / ranks[best], hits[best] / counts[label]
                figures = [scores[best], precision, recall, f1[best]]
            found.append((name, counts[label], *map(float, figures)))
        return found

    def calibration(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """Mean score, precision and number of detections in each range of scores that has any."""
        scores, right = self._scored()
        places = (scores * bins).astype(int).clip(0, bins - 1)
        chosen = [places == k for k in np.unique(places)]
        return [(float(scores[c].mean()), float(right[c].mean()), int(c.sum())) for c in chosen]

    def _scored(self, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores, highest first, and which detections are right, of a class or of all."""
        chosen = [
            d for d in self.every.detections if d.verdict != IGNORED and label in (None, d.label)
        ]
        chosen.sort(key=lambda d: -d.score)
        return np.array([d.score for d in chosen]), np.array([not d.false for d in chosen], bool)

    def rows(self, files: Mapping[int, str]) -> Iterator[tuple[str, str, str, float]]:
        """All figures as (table, row, column, value); ``files`` has the file name of each image id.

        AP without ground truth is left out.
        """
        scores, confident = self.scores, self.confident
        for key, name in {None: 'all', **scores.categories}.items():
            for figure, value in list(scores.figures(key).items())[:3]:  # AP, AP50, AP75
                if value >= 0:
                    yield 'ap', name, figure, value
        for size, count in self.sizes.items():
            yield 'ap_by_size', size, 'objects', count
            if scores.ap(size=size) >= 0:
                yield 'ap_by_size', size, 'AP', scores.ap(size=size)
        gains, total, sure = self.gains(), self.every.counts(), confident.counts()
        for kind in (*FALSE, MISSED):
            yield 'errors', kind, 'count', total[kind]
            yield 'errors', kind, f'count from score {self.least:g}', sure[kind]
            yield 'errors', kind, 'AP50 gained without', gains[kind]
        for name, _, *figures in self.thresholds():
            columns = 'best score', 'precision', 'recall', 'F1'
            if not np.isnan(figures[0]):  # else nothing of this class is right
                yield from (('scores', name, *p) for p in zip(columns, figures, strict=True))
        for score, precision, count in self.calibration():
            yield 'calibration', f'mean score {score:.3f}', 'precision', precision
            yield 'calibration', f'mean score {score:.3f}', 'detections', count
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
    """Scores and judges detections; ``score`` is the least in confusions and worst images."""
    scores = evaluate(annotations, results, kind, sizes=SIZE_BINS)
    every = judge(annotations, results, kind)
    confident = judge(annotations, results, kind, score=score)
    objects = [annotations['annotations'][o.source] for o in every.objects if not o.crowd]
    images = {image['id']: image for image in annotations['images']}
    areas = [area_of(a, kind, images[a['image_id']]) for a in objects]
    counts, _ = np.histogram(areas, np.square(_EDGES))
    sizes = dict(zip(SIZE_BINS, counts.tolist(), strict=True))
    return Analysis(scores, every, confident, score, sizes)
