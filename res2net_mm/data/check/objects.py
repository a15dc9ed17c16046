"""What is wrong with the objects of a data set: boxes, masks, classes, anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...checks import listed
from ..errors import DataError, Finding, error, warning
from ..sets.masks import MASK_ERRORS, mask_fault
from ..sets.records import IGNORED, ZERO_SIZE, Image, Object
from .anchors import LEAST_IOU, best_ious, resize_factors
from .findings import of_split
from .pixels import CheckedSet, progress

_MOST_WITHOUT_ANCHOR = 0.1  # share of the boxes
_MOST_NAMES = 3  # classes that get a finding each
_ANNOTATE = 'annotate the object again, or remove it'
_REASONS = {  # why an object is not trained on -> kind, what, remedy
    'not finite': ('box not finite', 'a side is infinite or no number', _ANNOTATE),
    ZERO_SIZE: ('zero-size box', 'it has no width or height', _ANNOTATE),
    'outside the image': (
        'box outside the image',
        'it is completely outside the image',
        'look whether the image is the one that was annotated; if so, remove the object',
    ),
    'under 1 px': (
        'box under 1 px',
        'a side is under 1 px',
        'look whether coordinates are in pixels; if so, remove the object',
    ),
    'without area': ('object without area', "its 'area' is 0", "write its area in px to 'area'"),
}


def check_objects(part: CheckedSet) -> Iterator[Finding]:
    """Boxes and masks that are wrong, and objects annotated twice."""
    looked_at = (None, *IGNORED)
    for image in progress(part.used, f'{part.split} objects', len(part.used)):
        for item in image.objects:
            yield from _check_box(part.node.kind == 'voc', image, item)
            if part.masks and item.reason in looked_at and item.segmentation and image.width:
                yield from _check_mask(image, item)
        same: dict[tuple, list[str]] = {}
        for item in image.objects:
            if item.reason in looked_at:
                same.setdefault((item.name, item.box), []).append(item.where)
        for (name, _), titles in same.items():
            if len(titles) > 1:
                yield warning(
                    'object twice',
                    image.file,
                    f'{" and ".join(titles[:2])} are one box of class {name}',
                    'remove all but one; the others count as objects that are not found',
                )


def _check_box(voc: bool, image: Image, item: Object) -> Iterator[Finding]:
    x1, y1, x2, y2 = item.box
    if item.reason == ZERO_SIZE and (x2 < x1 or y2 < y1):
        kind = 'swapped corners' if voc else 'negative size'
        what = 'its corners are swapped' if voc else 'its width or height is negative'
        what += ', so the object is trained as background'
        remedy = 'write xmin < xmax and ymin < ymax' if voc else 'write the box as [x, y, w, h]'
    elif item.reason in _REASONS:
        kind, what, remedy = _REASONS[item.reason]
        what += ', so it is not trained on'
    else:
        return
    yield warning(kind, image.file, f'{item}: {what}', remedy)


def _check_mask(image: Image, item: Object) -> Iterator[Finding]:
    fault = mask_fault(item.segmentation, item.box, int(image.width), int(image.height))
    if fault:
        kind, what, remedy = fault
        what = f'{item.where} ({item.name}): {what}'
        if kind in MASK_ERRORS:
            yield error(kind, DataError(what, image.file, remedy))
        else:
            yield warning(kind, image.file, what, remedy)


def check_classes(parts: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Classes that the training set has nothing of, and those of them that are measured."""
    found = {split: count_classes(parts, split) for split in ('train', 'val', 'test')}
    thing = 'pixel' if any(part.maps for part in parts) else 'object'
    empty = [name for name, count in found['train'].items() if not count]
    yield from _name_classes(
        'train',
        f'class without {thing}s',
        empty,
        f'the training set has no {thing} of it',
        'add images of it, or remove it from the classes; as it is, it is not learnt',
    )
    for split in ('val', 'test'):
        yield from _name_classes(
            split,
            'class never trained',
            [name for name in empty if found[split].get(name)],
            f'there are {thing}s of it here, none in the training set',
            'move images of it to the training set; as it is, none of it will be found',
        )


def _name_classes(
    split: str, kind: str, names: list[str], what: str, remedy: str
) -> Iterator[Finding]:
    """A warning for each of ``names`` if they are few, else one for all."""
    key = f'{split}_dataloader.dataset.metainfo.classes'
    if len(names) > _MOST_NAMES:
        names = [f'{len(names):,} classes ({listed(names, 10)})']
    found = (warning(kind, key, f'{name}: {what}', remedy) for name in names)
    return of_split(split, found)


def count_classes(parts: Sequence[CheckedSet], split: str) -> dict[str, int]:
    """Class name -> usable objects in ``split``, or pixels if it has label maps."""
    counts: Counter[str] = Counter()
    for part in parts:
        if part.split == split:
            # zip ends with the classes: values beyond are none
            counts.update(dict(zip(part.classes, part.count_values().tolist(), strict=False)))
            for image in part.used:
                counts.update(image.boxes)
    return dict(counts)


def object_sizes(part: CheckedSet) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) widths and heights in px of the usable boxes, and of the images that hold them."""
    sizes = [
        (x2 - x1, y2 - y1, image.width or x2, image.height or y2)
        for image in part.used
        for x1, y1, x2, y2 in (item.box for item in image.objects if item.reason is None)
    ]
    array = np.array(sizes, np.float64).reshape(-1, 4)
    return array[:, :2], array[:, 2:]


def check_most_objects(part: CheckedSet, model: Mapping) -> Iterator[Finding]:
    """Images with more objects than the detector returns."""
    key, config = 'model.test_cfg', model.get('test_cfg')
    if isinstance(config, Mapping) and config.get('rcnn'):
        key, config = f'{key}.rcnn', config['rcnn']
    most = config.get('max_per_img') if isinstance(config, Mapping) else None
    if part.split == 'train' or not isinstance(most, int) or most < 1:
        return
    key += '.max_per_img'
    for image in part.used:
        if len(image.boxes) > most:
            yield warning(
                'more objects than detections',
                image.file,
                f'it has {len(image.boxes):,} objects, the detector returns at most {most:,} '
                f'({key})',
                f'raise {key}, and the number that the metric counts (100 in COCO)',
            )


def trained_sizes(parts: Sequence[CheckedSet]) -> tuple[np.ndarray, float]:
    """(N, 2) sizes in px that training gives the objects, and the median enlargement of images."""
    boxes, factors = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for part in parts:
        if part.split == 'train' and part.node.kind in ('coco', 'voc'):
            sizes, images = object_sizes(part)
            factors.append(resize_factors(part.node.pipeline, images))
            boxes.append(sizes * factors[-1])
    enlarged = np.sqrt(np.concatenate(factors).prod(1))
    return np.concatenate(boxes), float(np.median(enlarged)) if len(enlarged) else 1.0


def check_anchors(boxes: np.ndarray, key: str, anchors: np.ndarray) -> Iterator[Finding]:
    """Objects that no anchor resembles.

    Args:
        boxes: (N, 2) sizes in px, as trained.
        key: Where the anchors are set.
        anchors: (M, 2) their sizes in px.
    """
    missed = best_ious(boxes, anchors) < LEAST_IOU
    if missed.mean() > _MOST_WITHOUT_ANCHOR:
        sides = np.sqrt(anchors.prod(1))
        yield warning(
            'objects without anchor',
            key,
            f'{missed.mean():.0%} of {len(boxes):,} boxes have no anchor with an IoU of '
            f'{LEAST_IOU} or more: as trained they have '
            f'{np.median(np.sqrt(boxes[missed].prod(1))):.0f} px (median), the anchors '
            f'{sides.min():.0f} to {sides.max():.0f} px',
            f'set {key}.scales or ratios to the sizes of the objects (sizes.png), or the scale '
            'that training resizes to',
        )
