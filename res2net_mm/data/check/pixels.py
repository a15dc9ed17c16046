"""Images and label maps, decoded as training decodes them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from ..sets.images import Header, Size, read_header
from ..sets.label_maps import map_reader
from ..sets.nodes import Node
from ..sets.records import Image
from ..transforms import LoadImageFromFile, loader_of


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
    pictures: dict[str, Picture] = field(default_factory=dict)  # the images that exist, by path
    maps: dict[str, Picture] = field(default_factory=dict)  # the label maps, likewise

    @property
    def loader(self) -> LoadImageFromFile:
        """Loads images as its pipeline does."""
        return loader_of(self.node.pipeline)

    def count_values(self) -> np.ndarray:
        """(256,) pixels with each value in the label maps that were looked at."""
        counts = [map_.content for map_ in self.maps.values() if map_.fault is None]
        return np.sum([np.zeros(256, np.int64), *counts], axis=0)

    def labels(self) -> set[int]:
        """The values in these label maps that are not ignored."""
        return set(np.flatnonzero(self.count_values()).tolist()) - {*self.ignored.values()}

    def look(
        self,
        images: Sequence[str],
        maps: Sequence[str],
        workers: int | None = None,
        bar: bool = False,
    ) -> None:
        """Decodes the images and label maps that exist, and sets ``pictures`` and ``maps``.

        Args:
            images: Files.
            maps: Likewise.
            workers: Threads; by default one per processor, but at most 16.
            bar: Whether to show the progress.
        """
        loader = self.loader

        def load(file: str) -> np.ndarray | None:
            return (loader.transform({'img_path': file}) or {}).get('img')

        def look_at_all(what: str, files: Sequence[str], look: Callable) -> dict[str, Picture]:
            there = [file for file in dict.fromkeys(files) if os.path.isfile(file)]
            # threads are enough: decoding and hashing happen outside of Python
            pool = ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))
            with pool, closing(pool.map(look, there)) as pictures:  # closing drops what is not done
                shown = progress(pictures, f'{self.split} {what}', len(there) if bar else 0)
                return dict(zip(there, shown, strict=True))

        self.pictures = look_at_all('images', images, partial(_look, read=load, sum_up=_hash))
        read = map_reader(self.node)
        self.maps = look_at_all('label maps', maps, partial(_look, read=read, sum_up=_count))


def spread(items: Sequence, most: int) -> list:
    """At most ``most`` of ``items``, evenly from first to last."""
    step = max(1, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def progress(items: Iterable, title: str, total: int) -> Iterable:
    """``items``, with a bar if ``total`` is not 0."""
    # without a terminal: a line every ten seconds
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(items, title, total, leave=False, mininterval=interval, disable=not total)


def _look(file: str, read: Callable, sum_up: Callable[[np.ndarray], Any]) -> Picture:
    """One that ``read`` gives None for has neither size nor fault."""
    picture = Picture(read_header(file))
    try:
        values = read(file)
    except DataError as fault:
        picture.fault = fault
        return picture
    if values is not None:
        picture.size, picture.content = values.shape[1::-1], sum_up(values)
    return picture


def _hash(image: np.ndarray) -> str:
    hashed = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
    hashed.update(repr(image.shape).encode())
    return hashed.hexdigest()


def _count(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=256)
