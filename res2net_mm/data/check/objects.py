"""What is wrong with the objects of a data set: boxes, masks, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ...checks import listed
from ..findings import Finding, error, of_split, warning
from ..sets.masks import MASK_ERRORS, mask_fault
from ..sets.records import IGNORED, ZERO_SIZE, Image, Object
from .pixels import CheckedSet, progress

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
