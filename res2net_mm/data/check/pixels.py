"""Images and label maps, decoded as training decodes them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from ..sets.label_maps import count_values
from ..sets.nodes import Image, Node, missing_files
from ..sets.sizes import read_header
from ..transforms import LoadImageFromFile, loader_of

_PNG_START, _PNG_DEPTH = b'\x89PNG\r\n\x1a\n', 24  # where a PNG tells its bits a sample


@dataclass(frozen=True)
class Picture:
    """What a file of pixels turned out to be.

    Attributes:
        file: its path.
        size: width and height in px as training gets them; None where it does not decode.
        stored: width and height before an EXIF tag turns the image.
        mode: Pillow's word for the channels (``RGB``, ``L``, ``RGBA``, ...), empty if not known.
        deep: whether a sample has more than 8 bits.
        orientation: value of the EXIF tag; 1 where there is none.
        digest: hash of the file's bytes.
        pixels: hash of what it decodes to; empty where it does not, and of a label map.
        fault: why it is not usable, and what to do; None where it is.
        counts: (256,) pixels of each value, of a label map alone.
    """

    file: str
    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    mode: str = ''
    deep: bool = False
    orientation: int = 1
    digest: str = ''
    pixels: str = ''
    fault: DataError | None = None
    counts: np.ndarray | None = None


@dataclass
class Part:
    """One dataset of a split as its annotations describe it, and what its files turned out to be.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        node: its config.
        classes: the names it is used with.
        listed: all its images.
        used: those that the run uses.
        masks: whether the run uses masks of its objects.
        ignored: where the metrics it is measured by say which label they ignore -> the label.
        pictures: what the images are, by path, those that are missing left out.
        maps: what the label maps are, likewise.
    """

    split: str
    node: Node
    classes: tuple[str, ...]
    listed: list[Image]
    used: list[Image]
    masks: bool
    ignored: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    maps: dict[str, Picture] = field(default_factory=dict)

    @property
    def loader(self) -> LoadImageFromFile:
        """Loads images as its pipeline does."""
        return loader_of(self.node.config.get('pipeline') or ())

    def class_pixels(self) -> np.ndarray:
        """(classes,) pixels of each class in the label maps."""
        counts = [picture.counts for picture in self.maps.values() if picture.counts is not None]
        total = np.sum(counts, axis=0) if counts else np.zeros(256, np.int64)
        return total[: len(self.classes)]


# way of loading -> path -> what is there
Known = dict[tuple, dict[str, Picture]]


def look_at_image(file: str, load: LoadImageFromFile) -> Picture:
    """Decode an image with ``load``, and read what its header tells."""
    facts = _header(file)
    try:
        image = load.transform({'img_path': file})['img']
    except DataError as fault:
        return Picture(file, fault=fault, **facts)
    hashed = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16)
    hashed.update(repr(image.shape).encode())
    return Picture(file, image.shape[1::-1], pixels=hashed.hexdigest(), **facts)


def look_at_map(file: str, node: Node) -> Picture:
    """Decode a label map as the dataset ``node`` does, and count its values."""
    facts = _header(file)
    try:
        counts = count_values(node, file)
    except DataError as fault:
        return Picture(file, fault=fault, **facts)
    return Picture(file, facts['stored'], counts=counts, **facts)


def look_at_pixels(part: Part, known: Known, workers: int | None = None) -> None:
    """Look at all image files and label maps of a dataset that are there, with a progress bar.

    Args:
        part: the dataset; its ``pictures`` and ``maps`` are set.
        known: what was looked at before in the same way, and is not again; it is added to.
        workers: threads; one a processor, but at most 16, by default.
    """
    load, node = part.loader, part.node
    part.pictures = _look_at_all(
        f'{part.split} images',
        [image.file for image in part.used],
        lambda file: look_at_image(file, load),
        known.setdefault((load.color_type, load.imdecode_backend), {}),
        workers,
    )
    part.maps = _look_at_all(
        f'{part.split} label maps',
        [image.label_map for image in part.used if image.label_map],
        lambda file: look_at_map(file, node),
        known.setdefault(('map', bool(node.option('reduce_zero_label'))), {}),
        workers,
    )


def progress(items: Iterable, title: str, total: int) -> Iterable:
    """``items``, with a bar while there are any."""
    # without a terminal: a line every ten seconds
    interval = 0.1 if sys.stderr.isatty() else 10
    return tqdm(items, title, total, leave=False, mininterval=interval, disable=not total)


def _look_at_all(
    title: str,
    files: list[str],
    look: Callable[[str], Picture],
    known: dict[str, Picture],
    workers: int | None,
) -> dict[str, Picture]:
    absent = set(missing_files(files))
    there = [file for file in dict.fromkeys(files) if file not in absent]
    new = [file for file in there if file not in known]
    # threads will do: decoding and hashing are done outside of Python
    pool = ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1))
    with pool, closing(pool.map(look, new)) as pictures:  # closed, it drops what is left to do
        for picture in progress(pictures, title, len(new)):
            known[picture.file] = picture
    return {file: known[file] for file in there}


def _header(file: str) -> dict[str, Any]:
    try:
        with open(file, 'rb') as stream:
            content = stream.read()
    except OSError:  # the one that decodes tells of it
        return {'stored': None}
    stored, mode, orientation = read_header(content)
    png_of_16_bits = content.startswith(_PNG_START) and content[_PNG_DEPTH:][:1] == b'\x10'
    return {
        'stored': stored,
        'mode': mode,
        'orientation': orientation,
        'digest': hashlib.blake2b(content).hexdigest(),
        'deep': stored is not None and (png_of_16_bits or mode.startswith(('I', 'F'))),
    }
