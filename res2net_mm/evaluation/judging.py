"""Judges detections and objects: right, or which kind of error.

The kinds of errors are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", arXiv 2008.08115, section 2.2). They follow from the overlap of a false detection
with the objects, at IoU 0.5 (foreground) and 0.1 (background).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
    """An object of the ground truth.

    Attributes:
        source: Its position in the annotations.
        image: Index of its image; likewise ``label`` of its class.
        crowd: Whether it is a crowd, which nothing has to find.
        found: Whether a detection is right about it.
        missed: Neither found nor the target of an error of localisation or class.
    """

    source: int
    image: int
    label: int
    crowd: bool
    found: bool = False
    missed: bool = False


@dataclass(slots=True, eq=False)
class Detection:
    """A detection.

    Attributes:
        source: Its position in the results.
        image: Index of its image; likewise ``label`` of its class.
        score: Its score.
        verdict: ``'right'``, ``'ignored'`` (it is on a crowd) or one of ``FALSE``.
        target: The object it finds, or would find but for its one fault.
        confused: The object it stands for, whatever the class, one to one.
    """

    source: int
    image: int
    label: int
    score: float
    verdict: str = 'background'
    target: Object | None = None
    confused: Object | None = None

    @property
    def false(self) -> bool:
        """Whether it is an error of any kind."""
        return self.verdict in FALSE


@dataclass(frozen=True)
class Judged:
    """Every detection and object of a set, judged at IoU 0.5.

    Attributes:
        images: Image ids, ascending.
        classes: Category ids, ascending.
        detections: By image, then by score, best first.
        objects: By image.
    """

    images: list[int]
    classes: list[int]
    detections: list[Detection]
    objects: list[Object]

    def counts(self) -> dict[str, int]:
        """How many errors there are of each kind."""
        counts = Counter(d.verdict for d in self.detections)
        return {kind: counts[kind] for kind in FALSE} | {
            MISSED: sum(o.missed for o in self.objects)
        }

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
        best: dict[Object, Detection] = {}
        if fixed in FALSE[:2]:  # each has a target
            for d in sorted(self.detections, key=lambda d: -d.score):
                if d.verdict == fixed and not d.target.found:
                    best.setdefault(d.target, d)
        ranked: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        for d in self.detections:
            if d.target is not None and best.get(d.target) is d:
                ranked[d.target.label].append((d.score, True))
            elif d.verdict not in (IGNORED, fixed):
                ranked[d.label].append((d.score, d.verdict == RIGHT))
        objects = [o for o in self.objects if not o.crowd]
        asked = Counter(o.label for o in objects if not (fixed == MISSED and o.missed))
        aps = [
            _interpolated([right for _, right in sorted(ranked[k], key=lambda r: -r[0])], asked[k])
            for k in sorted({o.label for o in objects})
        ]
        return float(np.mean(aps)) if aps else -1.0

    def confusion(self) -> np.ndarray:
        """(K + 1, K + 1) of counts: rows are the object's class, columns the predicted one.

        The last row is false detections on background, the last column objects not detected.
        Detections of the right class come first, then the others, best scored first; each at IoU
        0.5 or more, one object a detection.
        """
        size = len(self.classes)
        table = np.zeros((size + 1, size + 1), dtype=int)
        for d in self.detections:
            if d.verdict != IGNORED:
                table[d.confused.label if d.confused else size, d.label] += 1
        seen = {d.confused for d in self.detections}
        for o in self.objects:
            if not o.crowd and o not in seen:
                table[o.label, size] += 1
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
    score: float = 0.0,
    max_dets: int = MAX_DETS[-1],
) -> Judged:
    """Judges detections and objects, given as for :func:`~.coco.evaluate`.

    Detections below ``score`` are left out.
    """
    entries = annotations['annotations']
    images = sorted(annotations['images'], key=lambda image: image['id'])
    number = {image['id']: i for i, image in enumerate(images)}
    classes = sorted(category['id'] for category in annotations['categories'])
    label = {key: k for k, key in enumerate(classes)}
    objects: list[list[Object]] = [[] for _ in images]
    for i, a in enumerate(entries):
        if a['category_id'] in label and a['image_id'] in number:
            image = number[a['image_id']]
            crowd = bool(a.get('iscrowd'))
            objects[image].append(Object(i, image, label[a['category_id']], crowd))
    detections: list[list[Detection]] = [[] for _ in images]
    counts: Counter[tuple[int, int]] = Counter()
    for i, r in sorted(enumerate(results), key=lambda item: -item[1]['score']):
        if r['score'] >= score and r['category_id'] in label and r['image_id'] in number:
            place = number[r['image_id']], label[r['category_id']]
            counts[place] += 1
            if counts[place] <= max_dets:
                detections[place[0]].append(Detection(i, *place, float(r['score'])))
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
    return Judged(ids, classes, [*chain(*detections)], [*chain(*objects)])


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
