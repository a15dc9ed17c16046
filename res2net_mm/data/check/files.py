"""What the full check finds in the files of a data set: lists, images, label maps."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..sets.label_maps import check_map, check_variety, values_are_labels
from ..sets.nodes import Image
from ..sets.sizes import (
    RESIZE_KIND,
    RESIZE_REMEDY,
    is_unseen_turn,
    only_swapped,
    resize_faults,
    size_fault,
    unseen_turn,
)
from .findings import Collector
from .pixels import Part, Picture

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def check_files(watch: Collector, part: Part, everything: Sequence[Part]) -> None:
    """Images listed twice, and files that no list has.

    Args:
        watch: gets the findings.
        part: the dataset.
        everything: all datasets of the config, of which others may list what this one does not.
    """
    counts = Counter(os.path.normpath(image.file) for image in part.listed)
    for file in (file for file, count in counts.items() if count > 1):
        if part.node.kind != 'coco':  # of which the reader tells
            watch.warn(
                'image listed twice',
                file,
                f'it is {counts[file]} times in the list',
                'remove it there; as it is, it counts for more than others',
            )
    known = {
        os.path.normpath(file)
        for other in everything
        for image in other.listed
        for file in (image.file, image.label_map)
        if file
    }
    folders = {os.path.dirname(file) for file in counts}
    for file in _left_over(folders, known):
        watch.warn(
            'image not listed',
            file,
            'no split of the config lists it',
            'list and annotate it, if it was meant to be; as it is, it is not used',
        )
    maps = {os.path.dirname(os.path.normpath(i.label_map)) for i in part.listed if i.label_map}
    for file in _left_over(maps - folders, known):
        if file.endswith(part.node.option('seg_map_suffix')):
            watch.warn(
                'label map without image', file, 'it is not used', 'add its image, or remove it'
            )


def check_pictures(watch: Collector, part: Part) -> None:
    """Images that do not decode or resize, are of another size than annotated, or turned; uncommon
    modes."""
    sizes = (picture.size for picture in part.pictures.values() if picture.size)
    thin = resize_faults(part.node.config.get('pipeline') or (), sizes)
    for image in part.used:
        picture = part.pictures.get(image.file)
        if picture is None:
            continue
        if picture.fault:
            with watch.guard('image unreadable', image.file):
                raise picture.fault
            continue
        _check_size(watch, picture, image, part.node.kind == 'voc')
        if picture.size in thin:
            watch.error(RESIZE_KIND, image.file, thin[picture.size], RESIZE_REMEDY)
        if picture.deep:
            watch.warn(
                'image of 16 bits',
                image.file,
                f'its samples have more than 8 bits (mode {picture.mode}), of which training '
                'sees the upper 8',
                'look whether they show enough (contact sheet); if not, write 8 bits yourself',
            )
    by_content = defaultdict(dict)
    for image in part.used:
        picture = part.pictures.get(image.file)
        if picture and (content := picture.pixels or picture.digest):
            by_content[content][os.path.normpath(image.file)] = None
    for first, *others in by_content.values():
        for file in others:
            watch.warn(
                'same content twice',
                file,
                f'it is pixel for pixel {first}',
                'keep one of them; as it is, it counts for more than others',
            )


def _check_size(watch: Collector, picture: Picture, image: Image, voc: bool) -> None:
    annotated = image.width, image.height
    if all(annotated) and picture.size != annotated:
        boxes = [item.box for item in image.objects]
        if voc and only_swapped(annotated, picture.size, picture.stored, boxes):
            watch.warn(
                'width and height swapped',
                picture.file,
                f'it has {picture.size[0]} x {picture.size[1]} px, its xml file says '
                f'{annotated[0]} x {annotated[1]}; its boxes are used as they are',
                'correct <size>',
            )
            return
        fault = size_fault(annotated, picture.size, picture.stored, picture.orientation)
        watch.error(fault[0], picture.file, *fault[1:])
    elif is_unseen_turn(picture.orientation, picture.stored, picture.size):
        kind, what, remedy = unseen_turn(picture.orientation)
        watch.warn(kind, picture.file, what, remedy)


def check_maps(watch: Collector, part: Part, ignored: Mapping[str, Any]) -> None:
    """Label maps that do not decode, are coloured, of another size, or hold what is no class.

    Args:
        watch: gets the findings.
        part: the dataset.
        ignored: where the model says which value is ignored -> the value; empty without a model.
    """
    told = {**ignored, **part.ignored}
    agreed = len(set(told.values())) == 1
    held = values_are_labels(part.node, part.classes)
    seen: set[int] = set()
    readable = 0
    for image in part.used:
        file = image.label_map
        label_map = part.maps.get(file)
        if label_map is None:
            continue
        if label_map.fault:
            coloured = label_map.mode in ('RGB', 'RGBA', 'LA', 'CMYK', 'YCbCr')
            with watch.guard('coloured label map' if coloured else 'label map unreadable', file):
                raise label_map.fault
            continue
        readable += 1
        if label_map.deep:
            watch.warn(
                'label map of 16 bits',
                file,
                f'its mode is {label_map.mode}; of values from 256 on only the rest is loaded',
                'write it with 8 bits a pixel',
            )
        picture = part.pictures.get(image.file)
        if picture and picture.size and picture.size != label_map.size:
            size, wanted = (f'{w} x {h}' for w, h in (label_map.size, picture.size))
            watch.error(
                'label map of another size',
                file,
                f'it has {size} px, its image {wanted}',
                'write the map for the image as it is loaded',
            )
        if held and ignored:
            labels = set(np.flatnonzero(label_map.counts).tolist())
            seen |= labels - set(ignored.values())
            with watch.guard('value that is no class', file):
                check_map(file, label_map.counts, part.classes, told)
            if agreed and labels <= set(told.values()):
                watch.warn(
                    'label map all ignored',
                    file,
                    'all of its pixels are of the value that is ignored, so that nothing of it is '
                    'trained on or measured',
                    'label it, or take it out of the set',
                )
    if held and ignored and readable:
        with watch.guard('a single class', part.node.key):
            check_variety(part.node, readable, seen, part.classes, ignored)


def check_splits(watch: Collector, parts: Sequence[Part]) -> None:
    """Images of the training set that are in another split too, by path or by content.

    A copy that was written anew is found where that lost nothing, as in a PNG; one that was
    compressed again or resized is not.
    """
    trained: dict[str, str] = {}
    for part in parts:
        if part.split == 'train':
            trained |= {key: image.file for image in part.used for key in _marks(part, image.file)}
    for part in parts:
        if part.split == 'train':
            continue
        watch.begin(part.split)
        for image in part.used:
            twin = next((trained[k] for k in _marks(part, image.file) if k in trained), None)
            if twin:
                same = os.path.realpath(twin) == os.path.realpath(image.file)
                what = 'the same file' if same else f'pixel for pixel {twin}, which'
                watch.warn(
                    'split overlap',
                    image.file,
                    f'{"it is " if not same else ""}{what} is trained on: what is measured on it '
                    'says nothing',
                    'take it out of one of the two splits',
                )


def _marks(part: Part, file: str) -> list[str]:
    """What tells an image: its place, and where it can be read, its content."""
    picture = part.pictures.get(file)
    contents = (picture.digest, picture.pixels) if picture else ()
    return [os.path.realpath(file), *filter(None, contents)]


def _left_over(folders: set[str], known: set[str]) -> list[str]:
    """Pictures in ``folders`` that are not known."""
    found = []
    for folder in sorted(folders):
        try:
            names = sorted(os.listdir(folder or os.curdir))
        except OSError:
            continue
        # hidden ones are macOS's companions ._photo.jpg
        files = (os.path.normpath(os.path.join(folder, n)) for n in names if not n.startswith('.'))
        found += [f for f in files if f.lower().endswith(_SUFFIXES) and f not in known]
    return found
