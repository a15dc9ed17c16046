"""What is wrong with the objects of a data set: boxes, masks, classes, anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...checks import listed
from ..findings import Finding, error, of_split, warning
from ..sets.masks import MASK_ERRORS, mask_fault
from ..sets.nodes import type_name
from ..sets.records import IGNORED, ZERO_SIZE, Image, Object
from .pixels import CheckedSet, progress

_LEAST_IOU = 0.3  # with which mmdet's RPN gives an object an anchor (min_pos_iou)
_MOST_WITHOUT_ANCHOR = 0.1  # share of the boxes
_MOST_NAMES = 3  # classes that get a finding each
_REASONS = {  # why an object is not trained on -> kind of the finding, and what is wrong
    'not finite': ('box not finite', 'a side is infinite or no number'),
    ZERO_SIZE: ('zero-size box', 'it has no width or height'),
    'outside the image': ('box outside the image', 'it is completely outside the image'),
    'under 1 px': ('box under 1 px', 'a side is under 1 px'),
    'without area': ('object without area', "its 'area' is 0"),
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
                )


def _check_box(voc: bool, image: Image, item: Object) -> Iterator[Finding]:
    x1, y1, x2, y2 = item.box
    if item.reason == ZERO_SIZE and (x2 < x1 or y2 < y1):
        kind = 'swapped corners' if voc else 'negative size'
        what = 'its corners are swapped' if voc else 'its width or height is negative'
        yield warning(kind, image.file, f'{item}: {what}, so the object is trained as background')
    elif item.reason in _REASONS:
        kind, what = _REASONS[item.reason]
        yield warning(kind, image.file, f'{item}: {what}, so it is not trained on')


def _check_mask(image: Image, item: Object) -> Iterator[Finding]:
    fault = mask_fault(item.segmentation, item.box, int(image.width), int(image.height))
    if fault:
        kind, what = fault
        make = error if kind in MASK_ERRORS else warning
        yield make(kind, image.file, f'{item.where} ({item.name}): {what}')


def check_classes(parts: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Classes that the training set has nothing of, and those of them that are measured."""
    found = {split: count_classes(parts, split) for split in ('train', 'val', 'test')}
    thing = 'pixel' if any(part.maps for part in parts) else 'object'
    empty = [name for name, count in found['train'].items() if not count]
    what = f'the training set has no {thing} of it'
    yield from _name_classes('train', f'class without {thing}s', empty, what)
    for split in ('val', 'test'):
        measured = [name for name in empty if found[split].get(name)]
        what = f'there are {thing}s of it here, none in the training set'
        yield from _name_classes(split, 'class never trained', measured, what)


def _name_classes(split: str, kind: str, names: list[str], what: str) -> Iterator[Finding]:
    """A warning for each of ``names`` if they are few, else one for all."""
    key = f'{split}_dataloader.dataset.metainfo.classes'
    if len(names) > _MOST_NAMES:
        names = [f'{len(names):,} classes ({listed(names, 10)})']
    return of_split(split, (warning(kind, key, f'{name}: {what}') for name in names))


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
    """Objects, (N, 2) px as trained, that no anchor, (M, 2) px and set in ``key``, resembles."""
    missed = best_ious(boxes, anchors) < _LEAST_IOU
    if missed.mean() > _MOST_WITHOUT_ANCHOR:
        sides = np.sqrt(anchors.prod(1))
        yield warning(
            'objects without anchor',
            key,
            f'{missed.mean():.0%} of {len(boxes):,} boxes have no anchor with an IoU of '
            f'{_LEAST_IOU} or more: as trained they have '
            f'{np.median(np.sqrt(boxes[missed].prod(1))):.0f} px (median), the anchors '
            f'{sides.min():.0f} to {sides.max():.0f} px',
        )


def anchor_sizes(model: Mapping) -> tuple[str, np.ndarray] | None:
    """Where a model's config sets its anchors, and their (N, 2) widths and heights in px.

    None if objects do not get their anchors by IoU.
    """
    from mmdet.registry import TASK_UTILS

    training = model.get('train_cfg') or {}
    for name, own in (('rpn_head', training.get('rpn') or {}), ('bbox_head', training)):
        head = model.get(name)
        generator = head.get('anchor_generator') if isinstance(head, Mapping) else None
        if generator and type_name(own.get('assigner')).endswith('MaxIoUAssigner'):
            # with the scope of an earlier run of this process, mmdet's generators are unknown
            levels = TASK_UTILS.build(dict(generator, _scope_='mmdet')).base_anchors
            corners = np.concatenate([level.numpy() for level in levels])
            return f'model.{name}.anchor_generator', corners[:, 2:4] - corners[:, :2]
    return None


def resize_factors(pipeline: Sequence, sizes: np.ndarray) -> np.ndarray:
    """By how much a training pipeline enlarges images: the middle of what it may do.

    Args:
        pipeline: Configs of transforms; the first that resizes counts.
        sizes: (N, 2) widths and heights of the images in px.

    Returns:
        (N, 2) factors of the width and the height.
    """
    sizes = np.asarray(sizes, np.float64)
    step = next(_resizes(pipeline), None)
    if step is None:
        return np.ones_like(sizes)
    scale = step.get('scale', step.get('scales'))
    if scale is None:
        return np.ones_like(sizes) * step['scale_factor']
    wanted = np.ones(2) * np.mean(step.get('ratio_range') or 1)
    # several scales count with their mean
    wanted *= np.mean(scale, axis=0) if np.ndim(scale) == 2 else scale
    if not step.get('keep_ratio', False):
        return wanted / sizes
    # the largest factor with which neither side is too long
    factors = np.minimum(wanted.max() / sizes.max(1), wanted.min() / sizes.min(1))
    return np.repeat(factors[:, None], 2, axis=1)


def best_ious(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(N,) IoU of boxes (N, 2) with the best of anchors (M, 2), both with the same centre."""
    best = np.zeros(len(boxes))
    for anchor in np.unique(anchors, axis=0):
        shared = np.minimum(boxes, anchor).prod(1)
        best = np.maximum(best, shared / (boxes.prod(1) + anchor.prod() - shared))
    return best


def _resizes(pipeline: Sequence) -> Iterator[Mapping]:
    for step in pipeline:
        if isinstance(step, list | tuple):
            yield from _resizes(step)
        elif isinstance(step, Mapping):
            if 'Resize' in type_name(step) and {'scale', 'scales', 'scale_factor'} & set(step):
                yield step
            yield from _resizes(step.get('transforms') or ())
