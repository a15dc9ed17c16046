"""Judges detections and objects: right, or which kind of error.

The kinds of errors are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", arXiv 2008.08115, section 2.2). They follow from the overlap of a false detection
with the objects, at IoU 0.5 (foreground) and 0.1 (background).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from .coco import MAX_DETS, shape_of

FOREGROUND, BACKGROUND = 0.5, 0.1
RIGHT, IGNORED = 'right', 'ignored'
# in the order in which they are looked for
FALSE = ('localisation', 'class', 'duplicate', 'background', 'class and localisation')
MISSED = 'missed'


@dataclass(slots=True, eq=False)
class Object:
    """An object of the ground truth."""

    source: int  # position in the annotations
    image: int  # index in Judged.images
    label: int  # index in Judged.classes
    crowd: bool  # nothing has to find it
    found: bool = False
    missed: bool = False  # neither found nor the target of an error of localisation or class


@dataclass(slots=True, eq=False)
class Detection:
    """A detection."""

    source: int  # position in the results
    image: int  # index in Judged.images
    label: int  # index in Judged.classes
    score: float
    verdict: str = 'background'  # RIGHT, IGNORED (it is on a crowd) or one of FALSE
    target: Object | None = None  # what it finds, or would find but for its one fault
    confused: Object | None = None  # what it stands for, whatever the class, one to one

    @property
    def false(self) -> bool:
        """Whether it is an error of any kind."""
        return self.verdict in FALSE


@dataclass(frozen=True)
class Judged:
    """Every detection and object of a set, judged."""

    images: list[int]  # ids, ascending
    classes: list[int]  # category ids, ascending
    detections: list[Detection]  # by image, then by score, best first
    objects: list[Object]  # by image

    def counts(self) -> dict[str, int]:
        """How many errors there are of each kind."""
        counts = Counter(d.verdict for d in self.detections)
        counts[MISSED] = sum(o.missed for o in self.objects)
        return {kind: counts[kind] for kind in (*FALSE, MISSED)}

    def ap(self, fixed: str | None = None) -> float:
        """AP at IoU 0.5, 0 to 1, the mean of all classes; -1 if there is no object.

        With a kind of error as ``fixed``, as if there were none of that kind. An error of
        localisation or class becomes right if its object is not found otherwise; of several with
        one object, the best scored one does. The rest of them, and all errors of the other kinds,
        are removed; missed objects are no longer asked for.
        """
        ordered = sorted(self.detections, key=lambda d: -d.score)
        best: dict[Object, Detection] = {}
        for d in ordered:
            if d.verdict == fixed and d.target is not None and not d.target.found:
                best.setdefault(d.target, d)
        right: dict[int, list[bool]] = defaultdict(list)  # by class, best scored first
        for d in ordered:
            if best.get(d.target) is d:
                right[d.target.label].append(True)
            elif d.verdict not in (IGNORED, fixed):
                right[d.label].append(d.verdict == RIGHT)
        objects = [o for o in self.objects if not o.crowd]
        asked = Counter(o.label for o in objects if not (fixed == MISSED and o.missed))
        labels = sorted({o.label for o in objects})
        aps = [_interpolated(right[label], asked[label]) for label in labels]
        return float(np.mean(aps)) if aps else -1.0

    def confusion(self) -> np.ndarray:
        """(K + 1, K + 1) of counts: rows are the object's class, columns the predicted one.

        The last row is false detections on background, the last column objects not detected.
        Detections of the right class come first, then the others, best scored first; each at IoU
        0.5 or more, one object a detection.
        """
        table = np.zeros((len(self.classes) + 1,) * 2, dtype=int)
        for d in self.detections:
            if d.verdict != IGNORED:
                table[d.confused.label if d.confused else -1, d.label] += 1
        seen = {d.confused for d in self.detections}
        for o in self.objects:
            if not o.crowd and o not in seen:
                table[o.label, -1] += 1
        return table

    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of objects not found and of false detections by image: (I,) each."""
        lost = [o.image for o in self.objects if not (o.crowd or o.found)]
        false = [d.image for d in self.detections if d.false]
        size = len(self.images)
        return tuple(np.bincount(np.array(part, int), minlength=size) for part in (lost, false))


def judge(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    *,
    score: float = -math.inf,
) -> Judged:
    """Judges objects, and detections with at least ``score``, given as for :func:`~.coco.evaluate`.

    As in COCO, the best 100 detections of an image and class count.
    """
    entries = annotations['annotations']
    images = sorted(annotations['images'], key=lambda image: image['id'])
    number = {image['id']: i for i, image in enumerate(images)}
    label = {key: k for k, key in enumerate(sorted({c['id'] for c in annotations['categories']}))}

    def known(part: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[int, int, int], Mapping]]:
        """Positions, of entries, images and classes, and the entries."""
        for i, one in enumerate(part):
            if one['image_id'] in number and one['category_id'] in label:
                yield (i, number[one['image_id']], label[one['category_id']]), one

    objects: list[list[Object]] = [[] for _ in images]
    for places, a in known(entries):
        objects[places[1]].append(Object(*places, bool(a.get('iscrowd'))))
    detections: list[list[Detection]] = [[] for _ in images]
    counts: Counter[tuple[int, ...]] = Counter()
    for places, r in sorted(known(results), key=lambda item: -item[1]['score']):
        counts[places[1:]] += 1
        if r['score'] >= score and counts[places[1:]] <= MAX_DETS[-1]:
            detections[places[1]].append(Detection(*places, float(r['score'])))
    for image, ours, theirs in zip(images, detections, objects, strict=True):
        if ours and theirs:
            shapes = [
                [shape_of(table[one.source], kind, image) for one in part]
                for table, part in ((results, ours), (entries, theirs))
            ]
            if kind == 'bbox':
                shapes = [np.array(boxes, float) for boxes in shapes]
            # IoU; with a crowd, the part of the detection that is in it
            overlaps = np.asarray(coco_mask.iou(*shapes, [int(o.crowd) for o in theirs]))
            _judge(overlaps, ours, theirs)
        targets = {d.target for d in ours}
        for o in theirs:
            o.missed = not (o.crowd or o in targets)
    ids = [image['id'] for image in images]
    return Judged(ids, [*label], [*chain(*detections)], [*chain(*objects)])


def _judge(overlaps: np.ndarray, ours: list[Detection], theirs: list[Object]) -> None:
    """Sets verdict, target and confused object of the detections of an image, and found objects."""
    crowd = np.array([o.crowd for o in theirs])
    same = np.array([d.label for d in ours])[:, None] == np.array([o.label for o in theirs])
    near = overlaps >= FOREGROUND
    taken = crowd.copy()
    for d in np.flatnonzero((near & same).any(1)):  # matched as COCO does
        free = _nearest(overlaps[d], near[d] & same[d] & ~taken)
        if free is not None:
            taken[free] = theirs[free].found = True
            ours[d].verdict = RIGHT
            ours[d].target = ours[d].confused = theirs[free]
        elif (near[d] & same[d] & crowd).any():
            ours[d].verdict = IGNORED
    for d in np.flatnonzero((overlaps >= BACKGROUND).any(1)):
        detection = ours[d]
        if not detection.false:
            continue
        free = _nearest(overlaps[d], near[d] & ~taken)
        if free is not None:
            taken[free], detection.confused = True, theirs[free]
        own = np.where(same[d] & ~crowd, overlaps[d], -1)
        other = np.where(same[d] | crowd, -1, overlaps[d])
        if BACKGROUND <= own.max() < FOREGROUND:
            detection.verdict, detection.target = 'localisation', theirs[own.argmax()]
        elif other.max() >= FOREGROUND:
            detection.verdict, detection.target = 'class', theirs[other.argmax()]
        elif own.max() >= FOREGROUND:
            detection.verdict = 'duplicate'
        elif other.max() >= BACKGROUND:
            detection.verdict = 'class and localisation'


def _nearest(overlaps: np.ndarray, allowed: np.ndarray) -> int | None:
    """The allowed object with the largest overlap; the last of equal ones, as in COCO."""
    choices = np.flatnonzero(allowed)[::-1]
    return int(choices[overlaps[choices].argmax()]) if len(choices) else None


def _interpolated(right: Sequence[bool], objects: int) -> float:
    """COCO's AP: the mean of the best precision at a recall of at least 0, 0.01, ... 1."""
    if not objects or not right:
        return 0.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(hits / objects, np.linspace(0, 1, 101))].mean())
