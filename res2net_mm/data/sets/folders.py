"""Images for classification, in a folder for each class or in a list."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

from ...checks import listed
from ..errors import DataError
from ..findings import Finding, error, warning
from .nodes import Node, read_list
from .records import Image


def read_folders(node: Node, classes: Sequence[str]) -> Generator[Finding, None, list[Image]]:
    """The images that mmpretrain's ``CustomDataset`` lists, with their classes."""
    if node.config.get('ann_file'):
        return (yield from _read_labels(node, classes))
    folders = node.class_folders()
    names, suffixes = [*folders], tuple(suffix.lower() for suffix in node.option('extensions'))
    pairs = zip(classes, names, strict=False)
    if len(classes) != len(names) or any(n in folders and n != there for n, there in pairs):
        raise DataError(
            f'it is {listed(classes, 10)}, but labels are numbered by the folders, in the order of '
            f'their names: {listed(names, 10)}',
            node.classes_key,
            'name the classes in the order of their folders, or leave the names out',
        )
    images = []
    for folder, label in zip(folders.values(), classes, strict=True):
        walk = os.walk(folder, followlinks=True)
        files = sorted(os.path.join(place, name) for place, _, found in walk for name in found)
        files = [f for f in files if f.lower().endswith(suffixes) and '/.' not in f[len(folder) :]]
        if not files:
            yield warning('class without images', folder, 'it holds no image')
        images += [Image(file, label=label) for file in files]
    return images


def _read_labels(node: Node, classes: Sequence[str]) -> Generator[Finding, None, list[Image]]:
    """The images of a list whose lines are a file and the number of its class."""
    file, folder, images = node.annotation_file(), node.image_folder(), []
    for i, line in enumerate(read_list(file), 1):
        name, _, label = line.strip().rpartition(' ')
        if name and label.isdecimal() and int(label) < len(classes):
            images.append(Image(os.path.join(folder, name), label=classes[int(label)]))
        else:
            what = f'line {i} is {line!r}, not a file and a number below {len(classes)}'
            yield error('broken label', file, what, 'correct it')
    if not images:
        yield error('no image', file, 'it lists no image')
    return images
