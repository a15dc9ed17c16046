"""What the full check finds in the objects of a data set: boxes, masks, classes, anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..sets.masks import MASK_ERRORS, MASK_REMEDIES, check_mask
from ..sets.nodes import Image, Object
from ..sets.readers import ZERO_SIZE
from .anchors import LEAST_IOU, anchor_sizes, best_ious, resize_factors
from .findings import Collector
from .pixels import Part, progress

#: Share of the boxes without an anchor from which it is told.
MOST_WITHOUT_ANCHOR = 0.1
_USED = (None, 'crowd', 'difficult')
_REASONS = {  # training drops these: reason -> kind, what, remedy
    'not finite': (
        'box not finite',
        'a side is infinite or no number, so that it is not trained on',
        'annotate the object again, or remove it',
    ),
    ZERO_SIZE: (
        'zero-size box',
        'it has no width or height, so that it is not trained on',
        'annotate the object again, or remove it',
    ),
    'outside the image': (
        'box outside the image',
        'it lies wholly outside the image, so that it is not trained on',
        'look whether the image is the one that was annotated; if so, remove the object',
    ),
    'under 1 px': (
        'box under 1 px',
        'a side is under 1 px, so that it is not trained on',
        'look whether coordinates are pixels; if so, remove the object',
    ),
    'without area': (
        'object without area',
        "its 'area' is 0, so that it is not trained on",
        "write its area in pixels to 'area'",
    ),
}


def check_objects(watch: Collector, part: Part) -> None:
    """Boxes and masks that are wrong, and objects annotated twice."""
    for image in progress(part.used, f'{part.split} objects', len(part.used)):
        for item in image.objects:
            _check_box(watch, part, image, item)
            if part.masks and item.reason in _USED and item.segmentation and image.width:
                _check_object_mask(watch, image, item)
        counts = Counter((i.name, i.box) for i in image.objects if i.reason in _USED)
        for (name, box), count in counts.items():
            if count > 1:
                titles = [i.where for i in image.objects if (i.name, i.box) == (name, box)]
                watch.warn(
                    'object twice',
                    image.file,
                    f'{" and ".join(titles[:2])} are one box of class {name}',
                    'remove all but one; the others count as objects that are not found',
                )


def _check_box(watch: Collector, part: Part, image: Image, item: Object) -> None:
    x1, y1, x2, y2 = item.box
    shown = f'{item.where} ({item.name}), box {", ".join(f"{side:g}" for side in item.box)}'
    if item.reason == ZERO_SIZE and (x2 < x1 or y2 < y1):
        voc = part.node.kind == 'voc'
        watch.warn(
            'swapped corners' if voc else 'negative size',
            image.file,
            f'{shown}: {"its corners are swapped" if voc else "its width or height is negative"}, '
            'so that the object is trained as background',
            'write xmin < xmax and ymin < ymax' if voc else 'write the box again as [x, y, w, h]',
        )
    elif item.reason in _REASONS:
        kind, what, remedy = _REASONS[item.reason]
        watch.warn(kind, image.file, f'{shown}: {what}', remedy)


def _check_object_mask(watch: Collector, image: Image, item: Object) -> None:
    fault = check_mask(item.segmentation, item.box, int(image.width), int(image.height))
    if fault:
        kind, what = fault
        tell = watch.error if kind in MASK_ERRORS else watch.warn
        tell(kind, image.file, f'{item.where} ({item.name}): {what}', MASK_REMEDIES[kind])


def check_classes(watch: Collector, parts: Sequence[Part], unchecked: Sequence[str]) -> None:
    """Classes that the training set has nothing of, and those of them that are measured.

    Args:
        watch: gets the findings.
        parts: the datasets.
        unchecked: splits with datasets that were not looked into.
    """
    found = {split: count_classes(parts, split) for split in ('train', 'val', 'test')}
    trained = found['train']
    if not trained or 'train' in unchecked:
        return
    thing = 'pixel' if any(part.maps for part in parts) else 'object'
    key = 'train_dataloader.dataset.metainfo.classes'
    empty = [name for name, count in trained.items() if not count]
    watch.begin('train')
    watch.warn_of_names(
        f'class without {thing}s',
        key,
        empty,
        f'no {thing} of the training set is of it',
        'add images of it, or take it out of the classes; as it is, it is not learnt',
    )
    for split in ('val', 'test'):
        measured = [name for name in empty if found[split].get(name)]
        watch.begin(split)
        watch.warn_of_names(
            'class never trained',
            f'{split}_dataloader.dataset.metainfo.classes',
            measured,
            f'there are {thing}s of it here, none in the training set',
            'move images of it to the training set; as it is, none of it will be found',
        )


def count_classes(parts: Sequence[Part], split: str) -> dict[str, int]:
    """Class name -> usable objects in ``split``, or pixels where it is one of label maps."""
    counts: Counter[str] = Counter()
    for part in parts:
        if part.split == split:
            counts.update(dict.fromkeys(part.classes, 0))
            for name, pixels in zip(part.classes, part.class_pixels().tolist(), strict=True):
                counts[name] += pixels
            for image in part.used:
                counts.update(image.boxes)
    return dict(counts)


def object_sizes(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) widths and heights in px of the usable boxes, and of the images they are in."""
    sizes = [
        (x2 - x1, y2 - y1, image.width or x2, image.height or y2)
        for image in part.used
        for x1, y1, x2, y2 in (item.box for item in image.objects if item.reason is None)
    ]
    array = np.array(sizes, np.float64).reshape(-1, 4)
    return array[:, :2], array[:, 2:]


def check_most_objects(watch: Collector, parts: Sequence[Part], model: Mapping) -> None:
    """Images to measure on with more objects than the detector gives."""
    test_cfg = model.get('test_cfg')
    if not isinstance(test_cfg, Mapping):
        return
    inner = test_cfg.get('rcnn') or test_cfg
    most = inner.get('max_per_img') if isinstance(inner, Mapping) else None
    if not isinstance(most, int) or most < 1:
        return
    key = f'model.test_cfg{".rcnn" if inner is not test_cfg else ""}.max_per_img'
    for part in parts:
        if part.split == 'train':
            continue
        watch.begin(part.split)
        for image in part.used:
            if len(image.boxes) > most:
                watch.warn(
                    'more objects than detections',
                    image.file,
                    f'it has {len(image.boxes):,} objects, the detector gives {most:,} at most '
                    f'({key})',
                    f'raise {key}, and the number that the metric counts (100 in COCO)',
                )


def check_anchors(
    watch: Collector, parts: Sequence[Part], model: Mapping
) -> tuple[tuple[str, np.ndarray] | None, float]:
    """Objects that no anchor is like, at the sizes that training gives them.

    Returns:
        Where the model's anchors are set and their (N, 2) sizes in px, and by how much training
        enlarges images, at the median.
    """
    boxes, factors = [], []
    for part in parts:
        if part.split == 'train' and part.node.kind in ('coco', 'voc'):
            sizes, images = object_sizes(part)
            factors.append(resize_factors(part.node.config.get('pipeline') or (), images))
            boxes.append(sizes * factors[-1])
    if not sum(map(len, boxes)):
        return None, 1.0
    trained = np.concatenate(boxes)
    factor = float(np.median(np.sqrt(np.concatenate(factors).prod(1))))
    anchors = anchor_sizes(model)
    if anchors is None:
        return None, factor
    key, sizes = anchors
    ious = best_ious(trained, sizes)
    share = float((ious < LEAST_IOU).mean())
    if share > MOST_WITHOUT_ANCHOR:
        missed = np.sqrt(trained[ious < LEAST_IOU].prod(1))
        sides = np.sqrt(sizes.prod(1))
        watch.begin('train')
        watch.warn(
            'objects without anchor',
            key,
            f'{share:.0%} of {len(trained):,} boxes have no anchor of IoU {LEAST_IOU} or more: as '
            f'trained they are {np.median(missed):.0f} px (median), the anchors {sides.min():.0f} '
            f'to {sides.max():.0f} px',
            f'set {key}.scales or ratios to the sizes of the objects (sizes.png), or the scale '
            'that training resizes to',
        )
    return anchors, factor
