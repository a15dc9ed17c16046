"""What is wrong with the files, the objects and the classes of a data set."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from ...checks import listed
from ..findings import Finding, error, warning
from ..sets.images import IMAGE_SUFFIXES, size_fault
from ..sets.masks import MASK_ERRORS, mask_fault
from ..sets.records import BORDER, IGNORED, ZERO_SIZE, Image, check_missing, places
from .pixels import CheckedSet

# why an object is not trained on, where that is a fault
_REASONS = ('not finite', ZERO_SIZE, 'outside the image', 'under 1 px', 'without area')


def check_files(part: CheckedSet) -> Iterator[Finding]:
    """Files that are missing, listed twice or, as far as they were looked at, not usable."""
    option = 'ann_file' if part.node.config.get('ann_file') else 'data_prefix.img_path'
    source, key = f'{part.node.key}.{option}', part.node.key
    yield from check_missing([image.file for image in part.used], 'images', source, key)
    by_place = defaultdict(list)
    for place, image in zip(places(part.listed), part.listed, strict=True):
        by_place[place].append(image)
    for same in by_place.values():
        what = f'{len(same)} images of the set are this file, by its list or by a link to a folder'
        if any(Counter(image.boxes) != Counter(same[0].boxes) for image in same):
            what += ', and what is annotated in one is background in another'
            yield error('image listed twice', same[-1].file, what, 'keep one, with all annotations')
        elif len(same) > 1:
            yield warning('image listed twice', same[-1].file, what)
    for image in part.used:
        yield from _check_picture(part, image)
        yield from _check_map(part, image)
    seen = [repr(part.classes[label]) for label in part.labels() if label < len(part.classes)]
    if part.compared and part.count_values().any() and len(seen) < 2 - part.chosen:
        maps = sum(image.label_map in part.pictures for image in part.used)
        what = f'the {maps:,} label maps hold only class {listed(seen) or "none"}; all else is '
        what += f'ignored ({_shown(part.ignored)})'
        remedy = f'write them with values 0 to {len(part.classes) - 1}, one for each class'
        yield error('a single class', key, what, remedy)


def _check_picture(part: CheckedSet, image: Image) -> Iterator[Finding]:
    """An image that does not decode, has another size than annotated, or more bits."""
    picture = part.pictures.get(image.file)
    if picture and picture.fault:
        yield error('image unreadable', image.file, picture.fault.what, picture.fault.remedy)
    if not (picture and picture.size):
        return
    header, size, annotated = picture.header, picture.size, (image.width, image.height)
    if all(annotated) and size != annotated:
        boxes = [item.box for item in image.objects] if part.node.kind == 'voc' else None
        yield size_fault(image.file, annotated, size, header, boxes)
    elif header.orientation > 1 and header.size == size == header.loaded:
        what = f'its EXIF tag ({header.orientation}) may turn it without changing its size'
        yield warning('image turned by EXIF', image.file, what)
    if header.deep:
        what = f'training sees the upper 8 of its bits (mode {header.mode})'
        yield warning('image of 16 bits', image.file, what)


def _check_map(part: CheckedSet, image: Image) -> Iterator[Finding]:
    """A label map that does not decode, has another size, or holds what is no class."""
    file, picture = image.label_map, part.pictures.get(image.file)
    label_map = part.pictures.get(file)
    if label_map is None:
        return
    header, fault = label_map.header, label_map.fault
    if fault:
        yield error('label map unreadable', file, fault.what, fault.remedy)
        return
    if header.deep:
        what = f'of values above 255, only the lower 8 bits are loaded (mode {header.mode})'
        yield warning('label map of 16 bits', file, what)
    if picture and picture.size and picture.size != label_map.size:
        size, wanted = (f'{w} x {h} px' for w, h in (label_map.size, picture.size))
        yield error('label map of another size', file, f'it has {size}, its image {wanted}')
    classes, counts, skipped = len(part.classes), label_map.content, {*part.ignored.values()}
    if len(skipped) == 1 and {*np.flatnonzero(counts).tolist()} <= skipped:
        shown = f'it holds only what is ignored ({_shown(part.ignored)})'
        yield warning('label map all ignored', file, shown)
    # where heads and metrics ignore different values, none counts as ignored
    wrong = [v for v in np.flatnonzero(counts) if v >= classes and {v} != skipped]
    if part.compared and wrong:
        value = max(wrong, key=lambda value: counts[value])
        remedy = 'write the map again, name the class, or ignore the value'
        if value in skipped:
            remedy = f'set all of these to {value}'
        elif wrong == [classes]:
            remedy += ', or set reduce_zero_label=True if classes count from 1 and 0 is none'
        yield error(
            'value that is no class',
            file,
            f'it holds the value {value} ({counts[value] / counts.sum():.1%} of it), but the '
            f'{classes} classes are 0 to {classes - 1} and what is ignored is '
            f'{_shown(part.ignored)}',
            remedy,
        )


def _shown(ignored: Mapping[str, int]) -> str:
    return listed(f'{key}={value}' for key, value in ignored.items())


def check_copies(parts: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Images that are in a split twice, or in the training set and another split.

    A copy that was written again is found if nothing was lost, as in a PNG; one that was compressed
    again or resized is not. Contents are compared only of images that were looked at.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}  # split, mark -> place, file
    for part in parts:
        for place, image in zip(places(part.used), part.used, strict=True):
            picture = part.pictures.get(image.file)
            marks = [place, picture.content] if picture and picture.content else [place]
            twins = [first[part.split, mark] for mark in marks if (part.split, mark) in first]
            if twins and twins[0][0] != place:
                what = f'it is pixel for pixel {twins[0][1]}'
                yield warning('same content twice', image.file, what)._replace(split=part.split)
            twins = [first['train', mark] for mark in marks if ('train', mark) in first]
            if twins and part.split != 'train':
                same = twins[0][0] == place
                copy = '' if same else f'pixel for pixel {twins[0][1]}, which is '
                what = f'it is {copy}trained on: what is measured on it says nothing'
                yield warning('split overlap', image.file, what)._replace(split=part.split)
            for mark in marks:
                first.setdefault((part.split, mark), (place, image.file))


def check_left_over(part: CheckedSet, everything: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Images and label maps in the folders of a dataset that none of ``everything`` lists."""
    listed = [image for other in everything for image in other.listed]
    known = {os.path.abspath(i.file) for i in listed}
    known |= {os.path.abspath(i.label_map) for i in listed if i.label_map}
    images = {os.path.dirname(os.path.abspath(i.file)) for i in part.listed}
    maps = {os.path.dirname(os.path.abspath(i.label_map)) for i in part.listed if i.label_map}
    for folder in sorted(filter(os.path.isdir, images | maps)):
        for name in sorted(os.listdir(folder)):
            file = os.path.join(folder, name)
            # hidden files are macOS's companions ._photo.jpg
            pictured = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
            if not pictured or file in known:
                continue
            if folder in images:
                yield warning('image not listed', file, 'no split of the config lists it')
            elif name.endswith(part.node.option('seg_map_suffix')):
                yield warning('label map without image', file, 'it is not used')


def check_objects(part: CheckedSet, masks: bool) -> Iterator[Finding]:
    """Boxes and, if wanted and used, ``masks`` that are wrong, and objects annotated twice."""
    for image in tqdm(part.used, f'{part.split} objects', leave=False, disable=None):
        titles: dict[tuple, str] = {}
        for item in image.objects:
            x1, y1, x2, y2 = item.box
            if item.reason in _REASONS:
                kind = f'box {item.reason}'
                if item.reason == ZERO_SIZE:
                    kind = 'swapped corners' if x2 < x1 or y2 < y1 else 'zero-size box'
                yield warning(kind, image.file, f'{item}: it is not trained on')
            if item.reason not in (None, *IGNORED):
                continue
            beyond = max(-x1, -y1, x2 - image.width, y2 - image.height)
            if beyond > BORDER and image.width:
                what = f'{item}: {beyond:g} px beyond the {image.width} x {image.height} px of it'
                yield warning('box beyond the border', image.file, what)
            if masks and part.masks and item.segmentation and image.width:
                size = int(image.width), int(image.height)
                kind, what = mask_fault(item.segmentation, item.box, *size) or ('', '')
                make = error if kind in MASK_ERRORS else warning
                if kind:
                    yield make(kind, image.file, f'{item.where} ({item.name}): {what}')
            other = titles.setdefault((item.name, item.box), item.where)
            if other != item.where:
                what = f'{other} and {item.where} are one box of class {item.name}'
                yield warning('object twice', image.file, what)


def check_classes(parts: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Classes that the training set has nothing of, and those of them that are measured."""
    found = {split: count_classes(parts, split) for split in ('train', 'val', 'test')}
    thing = 'pixel' if any(part.node.kind == 'semantic' for part in parts) else 'object'
    empty = [name for name, count in found['train'].items() if not count]
    for split, counts in found.items():
        kind = 'class without objects' if split == 'train' else 'class never trained'
        names = [name for name in empty if split == 'train' or counts.get(name)]
        what = f'the training set has no {thing} of {len(names):,} classes: {listed(names, 10)}'
        if names:
            key = f'{split}_dataloader.dataset.metainfo.classes'
            yield warning(kind, key, what)._replace(split=split)


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


def check_limit(part: CheckedSet, model: Mapping) -> Iterator[Finding]:
    """Images to measure on with more objects than the detector returns."""
    config = model.get('test_cfg') or {}
    config = config.get('rcnn') or config
    most = config.get('max_per_img') if isinstance(config, Mapping) else None
    limited = isinstance(most, int) and most > 0 and part.split != 'train'
    for image in part.used if limited else ():
        if len(image.boxes) > most:
            what = f'it has {len(image.boxes):,} objects, model.test_cfg has max_per_img={most}'
            yield warning('more objects than detections', image.file, what)
