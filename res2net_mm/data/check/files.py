"""What is wrong with the files of a data set: images, label maps, copies, what no list has."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..findings import Finding, caught, error, of_split, raised, warning
from ..sets.images import IMAGE_SUFFIXES
from ..sets.label_maps import check_map, check_variety, values_are_labels
from ..sets.records import Image, check_missing
from ..sets.sizes import size_fault, unseen_turn
from .pixels import CheckedSet


def check_files(part: CheckedSet) -> Iterator[Finding]:
    """Files that are missing, listed twice or, as far as they were looked at, not usable."""
    option = 'ann_file' if part.node.config.get('ann_file') else 'data_prefix.img_path'
    source, key = f'{part.node.key}.{option}', part.node.key
    yield from check_missing([image.file for image in part.used], 'images', source, key)
    if part.node.kind != 'coco':  # whose reader reports it
        by_place = defaultdict(list)
        for place, image in _places(part.listed):
            by_place[place].append(image.file)
        for files in by_place.values():
            if len(files) > 1:
                yield warning(
                    'image listed twice',
                    files[-1],
                    f'the set has it {len(files)} times, by its list or by a link to a folder',
                )
    yield from _check_pictures(part)
    yield from _check_maps(part)


def _check_pictures(part: CheckedSet) -> Iterator[Finding]:
    """Images that do not decode, have another size than annotated, or more bits."""
    for image in part.used:
        picture = part.pictures.get(image.file)
        if picture and picture.fault:
            yield caught('image unreadable', picture.fault)
        if not (picture and picture.size):
            continue
        annotated = image.width, image.height
        if all(annotated) and picture.size != annotated:
            boxes = [item.box for item in image.objects] if part.node.kind == 'voc' else None
            yield size_fault(image.file, annotated, picture.size, picture.header, boxes)
        else:
            yield from unseen_turn(image.file, picture.header, picture.size)
        if picture.header.deep:
            yield warning(
                'image of 16 bits',
                image.file,
                f'its samples have more than 8 bits (mode {picture.header.mode}), of which '
                'training sees the upper 8',
            )


def _check_maps(part: CheckedSet) -> Iterator[Finding]:
    """Label maps that do not decode, have another size, or hold what is no class."""
    compared = bool(part.ignored) and values_are_labels(part.node, part.classes)
    agreed = len(set(part.ignored.values())) == 1
    for image in part.used:
        file = image.label_map
        label_map, picture = part.maps.get(file), part.pictures.get(image.file)
        if label_map is None:
            continue
        if label_map.fault:
            coloured = label_map.header.mode in ('RGB', 'RGBA', 'LA', 'CMYK', 'YCbCr')
            kind = 'coloured label map' if coloured else 'label map unreadable'
            yield caught(kind, label_map.fault)
            continue
        if label_map.header.deep:
            yield warning(
                'label map of 16 bits',
                file,
                f'its mode is {label_map.header.mode}; of values above 255, only the lower 8 bits '
                'are loaded',
            )
        if picture and picture.size and picture.size != label_map.size:
            size, wanted = (f'{w} x {h} px' for w, h in (label_map.size, picture.size))
            yield error('label map of another size', file, f'it has {size}, its image {wanted}')
        if compared:
            counts = label_map.counts
            yield from raised(
                'value that is no class', check_map, file, counts, part.classes, part.ignored
            )
            if agreed and set(np.flatnonzero(counts).tolist()) <= set(part.ignored.values()):
                yield warning(
                    'label map all ignored',
                    file,
                    'all of its pixels have the value that is ignored, so nothing of it is trained '
                    'on or measured',
                )
    readable = sum(label_map.fault is None for label_map in part.maps.values())
    if compared and readable:
        yield from raised(
            'a single class', check_variety, part.node.key, readable, part.labels(), part.classes,
            part.ignored,
        )  # fmt: skip


def check_copies(part: CheckedSet) -> Iterator[Finding]:
    """Images of a dataset with the same content."""
    first: dict[str, tuple[str, str]] = {}
    for place, image in _places(part.used):
        picture = part.pictures.get(image.file)
        if not picture or not picture.pixels:
            continue
        other, file = first.setdefault(picture.pixels, (place, image.file))
        if other != place:
            yield warning('same content twice', image.file, f'it is pixel for pixel {file}')


def check_left_over(part: CheckedSet, everything: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Images and label maps in the folders of a dataset that none of ``everything`` lists."""
    known = {
        os.path.normpath(file)
        for other in everything
        for image in other.listed
        for file in (image.file, image.label_map)
        if file
    }
    folders = {os.path.dirname(os.path.normpath(image.file)) for image in part.listed}
    for file in _left_over(folders, known):
        yield warning('image not listed', file, 'no split of the config lists it')
    maps = {os.path.dirname(os.path.normpath(i.label_map)) for i in part.listed if i.label_map}
    for file in _left_over(maps - folders, known):
        if file.endswith(part.node.option('seg_map_suffix')):
            yield warning('label map without image', file, 'it is not used')


def check_splits(parts: Sequence[CheckedSet]) -> Iterator[Finding]:
    """Images of the training set that are in another split too, by path or by content.

    A copy that was written again is found if nothing was lost, as in a PNG; one that was compressed
    again or resized is not. Contents are compared only of images that were looked at.
    """
    trained: dict[str, str] = {}
    for part in parts:
        if part.split == 'train':
            trained |= {mark: image.file for image, marks in _marks(part) for mark in marks}
    for part in parts:
        for image, marks in _marks(part) if part.split != 'train' else ():
            twin = next((mark for mark in marks if mark in trained), None)
            if twin:
                copy = '' if twin == marks[0] else f'pixel for pixel {trained[twin]}, which is '
                found = warning(
                    'split overlap',
                    image.file,
                    f'it is {copy}trained on: what is measured on it says nothing',
                )
                yield from of_split(part.split, [found])


def _marks(part: CheckedSet) -> Iterator[tuple[Image, list[str]]]:
    """What identifies each image: its place, and its content if it was looked at."""
    for place, image in _places(part.used):
        picture = part.pictures.get(image.file)
        yield image, [place, picture.pixels] if picture and picture.pixels else [place]


def _places(images: Iterable[Image]) -> Iterator[tuple[str, Image]]:
    """Images with their paths, links to folders resolved."""
    folders: dict[str, str] = {}
    for image in images:
        folder, name = os.path.split(image.file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield os.path.join(folders[folder], name), image


def _left_over(folders: set[str], known: set[str]) -> Iterator[str]:
    for folder in sorted(folders):
        try:
            names = sorted(os.listdir(folder or os.curdir))
        except OSError:
            continue
        for name in names:
            file = os.path.normpath(os.path.join(folder, name))
            # hidden files are macOS's companions ._photo.jpg
            pictured = name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
            if pictured and file not in known:
                yield file
