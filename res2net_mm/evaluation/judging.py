"""Judges detections and objects: right, or which kind of error.

The kinds of errors are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", arXiv 2008.08115, section 2.2). They follow from the overlap of a false detection
with the objects, at IoU 0.5 (foreground) and 0.1 (background).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from .coco import MAX_DETS, shape_of

FOREGROUND, BACKGROUND = 0.5, 0.1
RIGHT, IGNORED = 'right', 'ignored'
# in the order in which they are looked for
FALSE = ('localisation', 'class', 'duplicate', 'background', 'class and localisation')
MISSED = 'missed'
_CODES = {name: code for code, name in enumerate((RIGHT, IGNORED, *FALSE))}


@dataclass(frozen=True)
class Judged:
    """Every detection and object of a set, judged at IoU 0.5.

    Images are in the order of their ids; the detections of an image are ordered by score, best
    first.

    Attributes:
        images: Image ids.
        classes: Category ids, ascending.
        sources: (D,) position of each detection in the results.
        image: (D,) index of its image; likewise ``label`` of its class, ``score``.
        verdict: (D,) index in ``('right', 'ignored', *FALSE)``; those on crowds are ignored.
        target: (D,) the object it finds, or would find but for its one fault; else -1.
        confused: (D,) the object it stands for, whatever the class, one to one; else -1.
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

        An error of localisation or class becomes right if its object is not found otherwise; of
        several with one object, the best scored one does. The rest of them, and all errors of the
        other kinds, are removed; missed objects are no longer asked for.

        Args:
            fixed: A kind of error; None keeps all.

        Returns:
            0 to 1; -1 if there is no object.
        """
        right, kept, label = self.are(RIGHT), ~self.are(IGNORED), self.label.copy()
        objects = np.bincount(self.object_label[self.counted], minlength=len(self.classes))
        asked = objects
        if fixed == MISSED:
            asked = objects - np.bincount(self.object_label[self.missed], minlength=len(objects))
        elif fixed is not None:
            errors = self.are(fixed)
            kept &= ~errors
            if fixed in FALSE[:2]:  # each has a target
                errors = np.flatnonzero(errors)
                errors = errors[~self.found[self.target[errors]]]
                errors = errors[np.argsort(-self.score[errors], kind='stable')]
                best = errors[np.unique(self.target[errors], return_index=True)[1]]
                right[best] = kept[best] = True
                label[best] = self.object_label[self.target[best]]
        aps = []
        for k in np.flatnonzero(objects):
            mine = np.flatnonzero(kept & (label == k))
            order = mine[np.argsort(-self.score[mine], kind='stable')]
            aps.append(_interpolated(right[order], int(asked[k])))
        return float(np.mean(aps)) if aps else -1.0

    def confusion(self) -> np.ndarray:
        """(K + 1, K + 1) of counts: rows are the object's class, columns the predicted one.

        The last row is false detections on background, the last column objects not detected.
        Detections of the right class come first, then the others, best scored first; each at IoU
        0.5 or more, one object a detection.
        """
        size = len(self.classes)
        table = np.zeros((size + 1, size + 1), dtype=int)
        used, known = ~self.are(IGNORED), self.confused >= 0
        known &= used
        np.add.at(table, (self.object_label[self.confused[known]], self.label[known]), 1)
        np.add.at(table[size], self.label[used & ~known], 1)
        left = self.counted.copy()
        left[self.confused[known]] = False
        np.add.at(table[:, size], self.object_label[left], 1)
        return table

    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of objects not found and of false detections by image: (I,) each."""
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
        score: Detections with a lower score are left out.
        max_dets: How many detections of an image and class count.
    """
    entries = annotations['annotations']
    images = sorted(annotations['images'], key=lambda image: image['id'])
    classes = sorted(category['id'] for category in annotations['categories'])
    label_of = {key: k for k, key in enumerate(classes)}
    objects, detections = defaultdict(list), defaultdict(list)
    for i, annotation in enumerate(entries):
        if annotation['category_id'] in label_of:
            objects[annotation['image_id']].append(i)
    for i in sorted(range(len(results)), key=lambda i: -results[i]['score']):
        if results[i]['score'] >= score and results[i]['category_id'] in label_of:
            detections[results[i]['image_id']].append(i)

    parts, start = [], 0
    for number, image in enumerate(images):
        theirs = objects[image['id']]
        seen: Counter[int] = Counter()
        ours = []
        for i in detections[image['id']]:
            seen[results[i]['category_id']] += 1
            if seen[results[i]['category_id']] <= max_dets:
                ours.append(i)
        truth = np.array([label_of[entries[i]['category_id']] for i in theirs], dtype=int)
        crowd = np.array([bool(entries[i].get('iscrowd')) for i in theirs], dtype=bool)
        labels = np.array([label_of[results[i]['category_id']] for i in ours], dtype=int)
        overlaps = np.zeros((len(ours), len(theirs)))
        if overlaps.size:  # IoU; with a crowd, the part of the detection that is in it
            shapes = (
                [shape_of(table[i], kind, image) for i in which]
                for table, which in ((results, ours), (entries, theirs))
            )
            if kind == 'bbox':
                shapes = (np.array(boxes, float) for boxes in shapes)
            overlaps = np.asarray(coco_mask.iou(*shapes, crowd.astype(int).tolist()))
        verdict, target, confused, found, missed = _judge(overlaps, labels, truth, crowd)
        part = dict(
            sources=np.array(ours, dtype=int),
            image=np.full(len(ours), number),
            label=labels,
            score=np.array([results[i]['score'] for i in ours], dtype=float),
            verdict=verdict,
            target=np.where(target >= 0, target + start, -1),
            confused=np.where(confused >= 0, confused + start, -1),
            object_sources=np.array(theirs, dtype=int),
            object_image=np.full(len(theirs), number),
            object_label=truth,
            counted=~crowd,
            found=found,
            missed=missed,
        )
        parts.append(part)
        start += len(theirs)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Judged([image['id'] for image in images], classes, **joined)


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
    for d in np.flatnonzero((near & same).any(1)):  # matched as COCO does
        free = _nearest(overlaps[d], near[d] & real[d] & ~found)
        if free >= 0:
            verdict[d], target[d], found[free] = _CODES[RIGHT], free, True
        elif (near[d] & same[d] & crowd).any():
            verdict[d] = _CODES[IGNORED]
    confused = target.copy()
    taken = found | crowd
    left = verdict > _CODES[IGNORED]
    for d in np.flatnonzero(left):
        free = _nearest(overlaps[d], near[d] & ~taken)
        if free >= 0:
            confused[d], taken[free] = free, True

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
            chosen = left & applies
            verdict[chosen] = _CODES[name]
            if objects is not None:
                target[chosen] = objects[chosen]
            left &= ~applies
    missed = ~crowd & ~found
    missed[target[target >= 0]] = False
    return verdict, target, confused, found, missed


def _nearest(overlaps: np.ndarray, allowed: np.ndarray) -> int:
    """The allowed object with the largest overlap, the last of equal ones as in COCO, or -1."""
    choices = np.flatnonzero(allowed)[::-1]
    return int(choices[overlaps[choices].argmax()]) if len(choices) else -1


def _interpolated(right: np.ndarray, objects: int) -> float:
    """COCO's AP: the mean of the best precision at a recall of at least 0, 0.01, ... 1."""
    if not objects or not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(hits / objects, np.linspace(0, 1, 101))].mean())
