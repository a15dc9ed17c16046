"""Images and label maps, decoded as training decodes them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from ..sets.images import IMAGE_SUFFIXES, Header, Size, read_header
from ..sets.label_maps import map_reader
from ..sets.nodes import Node
from ..sets.records import Image
from ..transforms import loader_of


@dataclass
class Picture:
    """What a file of pixels turned out to be."""

    header: Header
    size: Size | None = None  # as loaded; None if it does not load
    content: Any = None  # hash of a decoded image; (256,) pixels with each value in a label map
    fault: DataError | None = None  # why it is not usable


@dataclass
class CheckedSet:
    """One dataset of a split: what its annotations say, and what its files turned out to be."""

    split: str  # train, val or test
    node: Node
    classes: tuple[str, ...]
    listed: list[Image]  # all its images
    used: list[Image]  # those that the run uses
    masks: bool  # whether the run uses the masks of objects
    # where a segmentor or its metrics set the label that they ignore -> the label
    ignored: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)  # path -> image or label map

    @property
    def compared(self) -> bool:
        """Whether the values in its label maps can be compared with the numbers of its classes."""
        # with a single class, only the loss knows what stands for the background
        return bool(self.ignored) and len(self.classes) > 1

    @property
    def chosen(self) -> bool:
        """Whether its classes are a part of its data set's own."""
        return tuple(self.node.own_classes or self.classes) != self.classes

    def count_values(self) -> np.ndarray:
        """(256,) pixels with each value in the label maps that were looked at."""
        maps = [self.pictures.get(image.label_map) for image in self.used if image.label_map]
        counts = [map_.content for map_ in maps if map_ and not map_.fault]
        return np.sum([np.zeros(256, np.int64), *counts], axis=0)

    def labels(self) -> set[int]:
        """The values in these label maps that are not ignored."""
        return set(np.flatnonzero(self.count_values()).tolist()) - {*self.ignored.values()}

    def look(self, images: Iterable[Image], loads: bool = True, quick: bool = False) -> None:
        """Decodes label maps and, if it ``loads`` them, images, and sets their ``pictures``.

        A ``quick`` look leaves out label maps that may need a loader of the user's own.
        """
        read = {image.file: self._read_image for image in images if loads}
        maps = [image.label_map for image in images if image.label_map]
        known = (file for file in maps if not quick or file.lower().endswith(IMAGE_SUFFIXES))
        read |= dict.fromkeys(known, self._read_map)
        there = [file for file in read if os.path.isfile(file)]
        # threads are enough: decoding and hashing happen outside of Python
        pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
        found = pool.map(lambda file: _look(file, read[file]), there)
        with pool, closing(found):  # closing drops what is not yet done
            shown = tqdm(found, f'{self.split} files', len(there), leave=False, disable=None)
            self.pictures |= zip(there, shown, strict=True)

    def _read_image(self, file: str) -> tuple[Size | None, str]:
        image = (loader_of(self.node.pipeline).transform({'img_path': file}) or {}).get('img')
        if image is None:  # the pipeline leaves it out
            return None, ''
        hashed = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
        hashed.update(repr(image.shape).encode())
        return image.shape[1::-1], hashed.hexdigest()

    def _read_map(self, file: str) -> tuple[Size, np.ndarray]:
        labels = map_reader(self.node)(file)
        return labels.shape[::-1], np.bincount(labels.ravel(), minlength=256)


def spread(items: Sequence, most: int) -> list:
    """At most ``most`` of ``items``, evenly from first to last."""
    step = max(1, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def _look(file: str, read: Callable) -> Picture:
    picture = Picture(read_header(file))
    try:
        picture.size, picture.content = read(file)
    except DataError as fault:
        picture.fault = fault
    return picture
