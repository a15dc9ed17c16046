"""Images for classification: one folder a class, or a list of files and labels."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

from ...checks import listed
from ..errors import DataError
from ..findings import Finding, warning
from .nodes import Node, read_list
from .records import Image, Reading


def read_folders(node: Node, classes: Sequence[str]) -> Generator[Finding, None, Reading]:
    """The images that mmpretrain's ``CustomDataset`` lists, with their labels.

    Raises:
        DataError: Folders or labels are not those of the classes, or there is no image.
    """
    root = node.image_folder()
    if node.config.get('ann_file'):
        return Reading(list(_read_list(node, root, classes)))
    folders = node.class_folders()
    if list(classes) != folders and (
        len(classes) != len(folders) or sorted(classes) == folders
    ):
        raise DataError(
            f'it is {listed(classes, 10)}, but labels are numbered by the folders of {root}, in '
            f'order: {listed(folders, 10)}',
            node.classes_key,
            'name the classes in the order of their folders, or leave the names out',
        )
    suffixes = tuple(suffix.lower() for suffix in node.option('extensions'))
    images = []
    for folder, label in zip(folders, classes, strict=True):
        walk = os.walk(os.path.join(root, folder), followlinks=True)
        files = sorted(os.path.join(place, name) for place, _, names in walk for name in names)
        used = [
            Image(file, label=label)
            for file in files
            if file.lower().endswith(suffixes) and not os.path.basename(file).startswith('.')
        ]
        if not used:
            yield warning('class without images', os.path.join(root, folder), 'it holds no image')
        images += used
    if not images:
        raise DataError(
            f'none of its folders ({listed(folders) or "it has none"}) holds an image that ends in '
            f'{listed(sorted(suffixes), 10)}',
            root,
            'put the images of each class into a folder of its name',
        )
    return Reading(images)


def _read_list(node: Node, root: str, classes: Sequence[str]) -> Generator[Image, None, None]:
    """The images of an annotation file, whose lines are a path, a blank and a label."""
    for number, line in enumerate(read_list(file := node.annotation_file()), 1):
        path, _, label = line.strip().rpartition(' ')
        if not (path and label.isdecimal() and int(label) < len(classes)):
            raise DataError(
                f'line {number} is {line!r}, not a path and a label from 0 to {len(classes) - 1}',
                file,
                'correct it, or the classes',
            )
        yield Image(os.path.join(root, path), label=classes[int(label)])
