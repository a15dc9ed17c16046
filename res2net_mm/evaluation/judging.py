"""Detections and objects judged: right, or which kind of error.

Kinds of errors as in TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", arXiv 2008.08115, section 2.2): from the overlap of a false detection with the objects, at
IoU 0.5 (foreground) and 0.1 (background).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from .coco import MAX_DETS, as_rle

FOREGROUND, BACKGROUND = 0.5, 0.1
RIGHT, IGNORED = 'right', 'ignored'
# in the order in which they are looked for
FALSE = ('localisation', 'class', 'duplicate', 'background', 'class and localisation')
MISSED = 'missed'
_CODES = {name: code for code, name in enumerate((RIGHT, IGNORED, *FALSE))}


@dataclass(frozen=True)
class Judged:
    """Every detection and object of a set, judged at IoU 0.5.

    Images are in the order of their ids; in each, detections are by score, best first.

    Attributes:
        images: Image ids.
        classes: Category ids, ascending.
        sources: (D,) position of each detection in the results.
        image: (D,) index of its image; likewise ``label`` of its class, ``score``.
        verdict: (D,) index in ``('right', 'ignored', *FALSE)``; ignored are those on crowds.
        target: (D,) the object that it finds, or would but for its one fault; else -1.
        confused: (D,) the object that it stands for whatever the class, one to one; else -1.
        object_sources: (G,) position of each object in the annotations.
        object_image: (G,) index of its image; likewise ``object_label`` of its class.
        counted: (G,) False for crowds.
        found: (G,) whether a detection is right about it.
        missed: (G,) neither found nor the target of an error of localisation or class.
    """

    images: list[int]
    classes: list[int]
    sources: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    verdict: np.ndarray
    target: np.ndarray
    confused: np.ndarray
    object_sources: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    counted: np.ndarray
    found: np.ndarray
    missed: np.ndarray

    def are(self, verdict: str) -> np.ndarray:
        """Which detections have a verdict: (D,) of bool."""
        return self.verdict == _CODES[verdict]

    @property
    def false(self) -> np.ndarray:
        """Which detections are errors of any kind: (D,) of bool."""
        return self.verdict > _CODES[IGNORED]

    def counts(self) -> dict[str, int]:
        """How many errors there are of each kind."""
        counts = {kind: int(self.are(kind).sum()) for kind in FALSE}
        return {**counts, MISSED: int(self.missed.sum())}

    def ap(self, fixed: str | None = None) -> float:
        """AP at IoU 0.5, the mean of all classes, as if there were no error of one kind.

        An error of localisation or of class becomes right if its object is not found otherwise; of
        several with one object the best scored; the rest, and errors of the other kinds, are
        gone; missed objects are no longer asked for.

        Args:
            fixed: A kind of error; None leaves all.

        Returns:
            0 to 1; -1 where there is no object.
        """
        right = self.are(RIGHT)
        kept = self.verdict != _CODES[IGNORED]
        label = self.label
        objects = np.bincount(self.object_label[self.counted], minlength=len(self.classes))
        asked = objects
        if fixed == MISSED:
            asked = objects - np.bincount(self.object_label[self.missed], minlength=len(objects))
        elif fixed is not None:
            errors = self.are(fixed)
            kept = kept & ~errors
            if fixed in FALSE[:2]:
                errors[errors] = ~self.found[self.target[errors]]  # each has a target
                best = _first_of_each(self.target, self.score, errors)
                right, kept, label = right.copy(), kept.copy(), label.copy()
                right[best] = kept[best] = True
                label[best] = self.object_label[self.target[best]]
        aps = []
        for k in np.flatnonzero(objects):
            mine = np.flatnonzero(kept & (label == k))
            order = mine[np.argsort(-self.score[mine], kind='stable')]
            aps.append(_interpolated(right[order], int(asked[k])))
        return float(np.mean(aps)) if aps else -1.0

    def confusion(self) -> np.ndarray:
        """(K + 1, K + 1) of counts: rows the class of the object, columns the predicted one.

        The last row is false detections on background, the last column objects not detected.
        Detections of the right class come first, then what is left, whatever its class, best
        scored first; each at IoU 0.5 or more, one object a detection.
        """
        size = len(self.classes)
        table = np.zeros((size + 1, size + 1), dtype=int)
        use = self.verdict != _CODES[IGNORED]
        known = use & (self.confused >= 0)
        np.add.at(table, (self.object_label[self.confused[known]], self.label[known]), 1)
        np.add.at(table[size], self.label[use & ~known], 1)
        left = self.counted.copy()
        left[self.confused[known]] = False
        np.add.at(table[:, size], self.object_label[left], 1)
        return table

    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """How many objects are not found and how many detections false, by image: (I,) each."""
        size = len(self.images)
        lost = np.bincount(self.object_image[self.counted & ~self.found], minlength=size)
        return lost, np.bincount(self.image[self.false], minlength=size)


def judge(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    *,
    score: float = 0.0,
    max_dets: int = MAX_DETS[-1],
) -> Judged:
    """Judges detections and objects.

    Args:
        annotations: Content of a COCO annotation file.
        results: In COCO's result format.
        kind: ``'bbox'`` or ``'segm'``.
        score: Detections below it do not exist.
        max_dets: How many detections of an image and class count.
    """
    sizes = {image['id']: image for image in annotations['images']}
    images = sorted(sizes)
    classes = sorted(category['id'] for category in annotations['categories'])
    label = {key: k for k, key in enumerate(classes)}
    objects, detections = defaultdict(list), defaultdict(list)
    for i, annotation in enumerate(annotations['annotations']):
        if annotation['category_id'] in label:
            objects[annotation['image_id']].append(i)
    for i, result in enumerate(results):
        if result['score'] >= score and result['category_id'] in label:
            detections[result['image_id']].append(i)

    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    start = 0
    for number, image in enumerate(images):
        theirs = [annotations['annotations'][i] for i in objects[image]]
        truth = np.array([label[a['category_id']] for a in theirs], dtype=int)
        crowd = np.array([bool(a.get('iscrowd')) for a in theirs], dtype=bool)
        ours = [results[i] for i in detections[image]]
        scores = np.array([r['score'] for r in ours], dtype=float)
        labels = np.array([label[r['category_id']] for r in ours], dtype=int)
        order = _best(labels, scores, max_dets)
        overlaps = _overlaps([ours[i] for i in order], theirs, crowd, kind, sizes[image])
        verdict, target, confused, found, missed = _judge(overlaps, labels[order], truth, crowd)
        columns['sources'].append(np.array(detections[image], dtype=int)[order])
        columns['image'].append(np.full(len(order), number))
        columns['label'].append(labels[order])
        columns['score'].append(scores[order])
        columns['verdict'].append(verdict)
        columns['target'].append(np.where(target >= 0, target + start, -1))
        columns['confused'].append(np.where(confused >= 0, confused + start, -1))
        columns['object_sources'].append(np.array(objects[image], dtype=int))
        columns['object_image'].append(np.full(len(truth), number))
        columns['object_label'].append(truth)
        columns['counted'].append(~crowd)
        columns['found'].append(found)
        columns['missed'].append(missed)
        start += len(truth)
    return Judged(images, classes, **{key: np.concatenate(v) for key, v in columns.items()})


def _best(labels: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Indices by score, best first, at most so many of a class."""
    order = np.argsort(-scores, kind='stable')
    if len(order) <= most:
        return order
    kept = [order[labels[order] == k][:most] for k in np.unique(labels)]
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.concatenate(kept)] = True
    return order[mask[order]]


def _overlaps(
    ours: list[Mapping], theirs: list[Mapping], crowd: np.ndarray, kind: str, image: Mapping
) -> np.ndarray:
    """(D, G): IoU; with a crowd the part of the detection that is in it."""
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    if kind == 'bbox':
        shapes = [np.array([entry['bbox'] for entry in part], float) for part in (ours, theirs)]
    else:
        shapes = [[as_rle(e['segmentation'], image) for e in part] for part in (ours, theirs)]
    return np.asarray(coco_mask.iou(*shapes, crowd.astype(int).tolist()))


def _judge(
    overlaps: np.ndarray, labels: np.ndarray, truth: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Verdict, target and confused object of the detections of an image; found, missed objects."""
    verdict = np.full(len(labels), _CODES['background'])
    target = np.full(len(labels), -1)
    found = np.zeros(len(truth), dtype=bool)
    same = labels[:, None] == truth
    real = same & ~crowd
    near = overlaps >= FOREGROUND
    for d in np.flatnonzero((near & same).any(1)):  # as COCO matches
        free = _nearest(overlaps[d], near[d] & real[d] & ~found)
        if free >= 0:
            verdict[d], target[d], found[free] = _CODES[RIGHT], free, True
        elif (near[d] & same[d] & crowd).any():
            verdict[d] = _CODES[IGNORED]
    confused = target.copy()
    taken = found | crowd
    for d in np.flatnonzero((verdict > _CODES[IGNORED]) & (near & ~taken).any(1)):
        free = _nearest(overlaps[d], near[d] & ~taken)
        if free >= 0:
            confused[d], taken[free] = free, True

    open_ = verdict > _CODES[IGNORED]
    if len(truth):
        own = np.where(real, overlaps, -1.0)
        other = np.where(~same & ~crowd, overlaps, -1.0)
        own_most, other_most = own.max(1), other.max(1)
        for name, applies, objects in (
            ('localisation', (own_most >= BACKGROUND) & (own_most < FOREGROUND), own.argmax(1)),
            ('class', other_most >= FOREGROUND, other.argmax(1)),
            ('duplicate', own_most >= FOREGROUND, None),
            ('class and localisation', other_most >= BACKGROUND, None),
        ):
            chosen = open_ & applies
            verdict[chosen] = _CODES[name]
            if objects is not None:
                target[chosen] = objects[chosen]
            open_ &= ~applies
    missed = ~crowd & ~found
    missed[target[target >= 0]] = False
    return verdict, target, confused, found, missed


def _nearest(overlaps: np.ndarray, allowed: np.ndarray) -> int:
    """The allowed object of most overlap, the last of equal ones as with COCO; -1 if none is."""
    choices = np.flatnonzero(allowed)
    if not len(choices):
        return -1
    values = overlaps[choices][::-1]
    return int(choices[len(choices) - 1 - values.argmax()])


def _first_of_each(target: np.ndarray, score: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Indices of the best scored detection of each target."""
    chosen = np.flatnonzero(among)
    chosen = chosen[np.argsort(-score[chosen], kind='stable')]
    return chosen[np.unique(target[chosen], return_index=True)[1]]


def _interpolated(right: np.ndarray, objects: int) -> float:
    """COCO's AP: the mean of the best precision at a recall of at least 0, 0.01, ... 1."""
    if not objects or not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(hits / objects, np.linspace(0, 1, 101))].mean())
