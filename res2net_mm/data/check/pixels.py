"""Images and label maps, decoded as training decodes them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from ..sets.images import Header, read_header
from ..sets.label_maps import map_reader
from ..sets.nodes import Node
from ..sets.records import Image, missing_files
from ..transforms import LoadImageFromFile, loader_of


@dataclass
class Picture:
    """What a file of pixels turned out to be."""

    file: str
    header: Header
    size: tuple[int, int] | None = None  # width and height as loaded; None if it does not load
    pixels: str = ''  # hash of the decoded image; empty for a label map
    counts: np.ndarray | None = None  # (256,) pixels with each value, for a label map
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
        counts = [picture.counts for picture in self.maps.values() if picture.counts is not None]
        return np.sum([np.zeros(256, np.int64), *counts], axis=0)

    def labels(self) -> set[int]:
        """The values in these label maps that are not ignored."""
        return set(np.flatnonzero(self.count_values()).tolist()) - set(self.ignored.values())


def look_at_image(file: str, load: LoadImageFromFile) -> Picture:
    """Decodes an image with ``load``; one that ``load`` leaves out has neither size nor fault."""
    picture = _look(file)
    try:
        results = load.transform({'img_path': file})
    except DataError as fault:
        picture.fault = fault
        return picture
    if results:
        image = results['img']
        picture.size = image.shape[1::-1]
        hashed = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
        hashed.update(repr(image.shape).encode())
        picture.pixels = hashed.hexdigest()
    return picture


def look_at_map(file: str, read: Callable[[str], np.ndarray]) -> Picture:
    """Decodes a label map with ``read``, and counts its values."""
    picture = _look(file)
    try:
        picture.counts = np.bincount(read(file).ravel(), minlength=256)
        picture.size = picture.header.size
    except DataError as fault:
        picture.fault = fault
    return picture


def look_at_pixels(
    part: CheckedSet,
    images: Sequence[str],
    maps: Sequence[str],
    workers: int | None = None,
    bar: bool = False,
) -> None:
    """Decodes images and label maps of a dataset, and sets its ``pictures`` and ``maps``.

    Files that do not exist are passed over.

    Args:
        part: The dataset.
        images: Files.
        maps: Likewise.
        workers: Threads; by default one per processor, but at most 16.
        bar: Whether to show the progress.
    """
    load, read = part.loader, map_reader(part.node)

    def look_at_all(
        what: str, files: Sequence[str], look: Callable[[str], Picture]
    ) -> dict[str, Picture]:
        absent = set(missing_files(files))
        there = [file for file in dict.fromkeys(files) if file not in absent]
        # threads are enough: decoding and hashing happen outside of Python
        pool = ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))
        with pool, closing(pool.map(look, there)) as pictures:  # closing drops what is not yet done
            shown = progress(pictures, f'{part.split} {what}', len(there)) if bar else pictures
            return {picture.file: picture for picture in shown}

    part.pictures = look_at_all('images', images, lambda file: look_at_image(file, load))
    part.maps = look_at_all('label maps', maps, lambda file: look_at_map(file, read))


def spread(items: Sequence, most: int) -> list:
    """At most ``most`` of ``items``, evenly from first to last."""
    step = max(1, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def progress(items: Iterable, title: str, total: int) -> Iterable:
    """``items``, with a bar if there are any."""
    # without a terminal: a line every ten seconds
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(items, title, total, leave=False, mininterval=interval, disable=not total)


def _look(file: str) -> Picture:
    return Picture(file, read_header(file))
