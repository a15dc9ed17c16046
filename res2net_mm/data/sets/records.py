"""What the readers give: the images of a dataset and their objects, and faults common to all."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...checks import folded, listed, nearest
from ..findings import Finding, error, warning

ZERO_SIZE = 'zero-size'
#: Reasons that keep an object from being trained on, but not from being looked at.
IGNORED = ('crowd', 'difficult')
#: How similar a name must be to that of a class to be called a misspelling.
LIKENESS = 0.81
#: Pixels by which a box may go beyond the image: rounding, and counting from 0 or 1.
BORDER = 1


@dataclass(frozen=True, slots=True)
class Object:
    """One annotated object of a known class."""

    name: str
    box: tuple[float, float, float, float]  # corners in px, counted from 0; NaN if not looked at
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

    def beyond(self, box: Sequence[float]) -> float:
        """By how many px a box (corners) goes beyond the image."""
        return max(-box[0], -box[1], box[2] - self.width, box[3] - self.height)


class Reading(NamedTuple):
    """The images of a dataset, and how many objects belong to images that it does not list."""

    images: list[Image]
    stray: int = 0


def box_fault(box: Sequence[float], image: Image) -> str | None:
    """Why ``DropEmptyBoxes``, and mmdet for COCO, drop a box; images of unknown size hold any."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return 'not finite'
    if x2 <= x1 or y2 <= y1:
        return ZERO_SIZE
    known = image.width and image.height
    if x2 <= 0 or y2 <= 0 or (known and (x1 >= image.width or y1 >= image.height)):
        return 'outside the image'
    return None


def check_border(image: Image, item: Object) -> Iterator[Finding]:
    """Warns of an object that goes beyond its image."""
    if image.width and item.reason in (None, *IGNORED) and image.beyond(item.box) > BORDER:
        yield warning(
            'box beyond the border',
            image.file,
            f'{item}: it goes {image.beyond(item.box):g} px beyond the {image.width} x '
            f'{image.height} px of the image',
        )


def check_names(
    images: Sequence[Image], classes: Sequence[str], others: Mapping[str, int], likeness: float
) -> Iterator[Finding]:
    """Warns of names of ``others``, which are no class, that are almost the name of a class."""
    known = {name for image in images for name in image.boxes} if others else ()
    for name, count in others.items():
        likely = nearest(name, classes, likeness)
        if likely in known:
            yield warning(
                'name like a class',
                next(image.file for image in images if name in image.other_classes),
                f'{count:,} objects are named {name!r} (did you mean {likely!r}?), which is no '
                'class, so they are not used',
            )


def count_others(images: Sequence[Image]) -> Counter[str]:
    """Names that are no class -> number of objects."""
    counts: Counter[str] = Counter()
    for image in images:
        counts.update(image.other_classes)
    return counts


def check_missing(
    files: Sequence[str], what: str, source: str, key: str
) -> Generator[Finding, None, list[str]]:
    """Every file that does not exist is an error.

    Args:
        files: Paths.
        what: What the files are, in the plural.
        source: The file or config key that lists them.
        key: The dataset's place in the config.

    Returns:
        The missing ones.
    """
    missing = missing_files(files)
    if len(missing) == len(files):
        count = f'all {len(files):,} {what} listed by {source}'
        remedy = (
            f'correct data_root or data_prefix, for example --cfg-options {key}.data_root=FOLDER'
        )
    else:
        count = f'{len(missing):,} of the {len(files):,} {what} listed by {source}'
        remedy = 'add them, or remove them from the list'
    names = listed(map(os.path.basename, missing), 3)
    for file in missing:
        reason = f'it is missing ({count}: {names}){_likely(file)}'
        yield error(f'{what} missing', file, reason, remedy)
    return missing


def missing_files(files: Sequence[str]) -> list[str]:
    """Those of ``files`` that are no files, in order; every folder is read only once."""
    by_folder = defaultdict(set)
    for file in files:
        by_folder[os.path.dirname(file)].add(os.path.basename(file))
    absent = set()
    for folder, names in by_folder.items():
        try:
            with os.scandir(folder or os.curdir) as entries:
                # links, pipes and folders have to show below what they are
                names -= {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except OSError:
            pass
        # a file system may ignore case, and a name may hold folders, which a listing does not
        absent.update(
            file
            for file in (os.path.join(folder, name) for name in names)
            if not os.path.isfile(file)
        )
    return [file for file in files if file in absent]


def _likely(file: str) -> str:
    """Why a file may be missing: it is there under another name."""
    if os.path.lexists(file):
        return ', though something of that name is there, but no file'
    if '\\' in file:
        return ': \\ separates no folders here, write /'
    folder, name = os.path.split(file)
    try:
        there = os.listdir(folder or os.curdir)
    except OSError:
        return ''
    stem = os.path.splitext(name)[0]
    names = [n for n in there if folded(n) == folded(name) or os.path.splitext(n)[0] == stem]
    return f', but {names[0]} is there' if names else ''
