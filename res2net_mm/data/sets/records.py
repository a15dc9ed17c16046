"""What the readers give: the images of a dataset and their objects, and faults common to all."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...checks import folded, listed
from ..findings import Finding, error

ZERO_SIZE = 'zero-size'
#: Reasons that keep an object from being trained on, but not from being looked at.
IGNORED = ('crowd', 'difficult')
#: Pixels by which a box may go beyond the image: rounding, and counting from 0 or 1.
BORDER = 1


class Object(NamedTuple):
    """One annotated object of a known class."""

    name: str
    box: tuple[float, float, float, float]  # corners in px, counted from 0
    where: str  # which annotation of its file it is
    reason: str | None  # why it is not used; None if it is
    segmentation: Any = None  # COCO's polygons or run lengths

    def __str__(self) -> str:
        return f'{self.where} ({self.name}), box {", ".join(f"{side:g}" for side in self.box)}'


@dataclass
class Image:
    """One image of a dataset as its annotations describe it."""

    file: str
    width: int = 0  # in px; 0 if the annotations do not say
    height: int = 0
    label_map: str | None = None  # file of the labels for semantic segmentation
    label: str | None = None  # class of the whole image
    objects: list[Object] = field(default_factory=list)  # those of known classes
    other_classes: Counter[str] = field(default_factory=Counter)  # name -> objects

    @property
    def boxes(self) -> list[str]:
        """The class of every usable object, or of the whole image."""
        used = [item.name for item in self.objects if item.reason is None]
        return used if self.label is None else [self.label]

    def box_fault(self, box: Sequence[float]) -> str | None:
        """Why ``DropEmptyBoxes``, and mmdet for COCO, drop a box of this image."""
        x1, y1, x2, y2 = box
        if not all(map(math.isfinite, box)):
            return 'not finite'
        if x2 <= x1 or y2 <= y1:
            return ZERO_SIZE
        if x2 <= 0 or y2 <= 0 or x1 >= (self.width or math.inf) or y1 >= (self.height or math.inf):
            return 'outside the image'
        return None


def places(images: Sequence[Image]) -> list[str]:
    """The paths of images, links to folders resolved."""
    paths = [os.path.split(image.file) for image in images]
    real = {folder: os.path.realpath(folder) for folder, _ in set(paths)}
    return [os.path.join(real[folder], name) for folder, name in paths]


def count_others(images: Sequence[Image]) -> Counter[str]:
    """Names that are no class -> number of objects."""
    return Counter(name for image in images for name in image.other_classes.elements())


def check_missing(files: Sequence[str], what: str, source: str, key: str) -> Iterator[Finding]:
    """Every file that does not exist is an error; ``source`` is what lists them."""
    there: set[str] = set()
    # listing the folders is much faster than asking for every file, above all over a network
    for folder in filter(os.path.isdir, {os.path.dirname(file) for file in files}):
        entries = os.scandir(folder)
        there.update(entry.path for entry in entries if entry.is_file(follow_symlinks=False))
    missing = [file for file in files if file not in there and not os.path.isfile(file)]
    names = listed(map(os.path.basename, missing), 3)
    share = 'all' if len(missing) == len(files) else f'{len(missing):,} of the'
    remedy = f'add or unlist them, or correct folders, such as --cfg-options {key}.data_root=FOLDER'
    for file in missing:
        reason = f'it is missing ({share} {len(files):,} {what} listed by {source}: {names})'
        yield error(f'{what} missing', file, reason + _likely(file), remedy)


def _likely(file: str) -> str:
    """Why a file may be missing: it is there under another name."""
    if os.path.lexists(file):
        return ', though something of that name is there, but no file'
    folder, name = os.path.split(file)
    stem = folded(os.path.splitext(name)[0])
    there = os.listdir(folder) if os.path.isdir(folder) else ()
    found = [other for other in there if folded(os.path.splitext(other)[0]) == stem]
    return f', but {found[0]} is there' if found else ''
