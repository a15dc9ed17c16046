"""Setting images aside for validation, so that no copy of a training image is among them."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

from scipy.cluster.hierarchy import DisjointSet

from .errors import DataError

# what tools append to the names of copies: a number in brackets, the change
_COPY = re.compile(
    r'[ _-]*\(\d+\)$|[ _-]+(copy|aug\w*|flip\w*|rot|rotated|mirror)[ _-]?\d*$', re.IGNORECASE
)

_FEW = 8  # changed images that are copies of one image, rather than a series, if that is gone


def set_aside(
    images: Sequence[Path], share: float = 0.2, seed: int = 0, kept: Sequence[Path] | None = None
) -> set[Path]:
    """Chooses images for validation.

    Images of equal bytes, images whose names differ only in the suffix (``a.jpg`` and ``a.png``,
    Roboflow's ``a_jpg.rf.0f3c.jpg``), and copies beside the original (``a (1).jpg``,
    ``a_flip.jpg``) stay together. Without ``a.jpg``, ``a (1).jpg`` is one of a series.

    The choice is about a ``share`` of the images; the same seed and images give the same one. With
    ``kept``, it is those of them that are there, and their copies.

    Raises:
        DataError: All images would have to stay together.
    """
    groups, first = DisjointSet(images), {}
    originals = _originals(images, max(_FEW, share * len(images)))
    for image in images:
        for mark in (originals[image], _digest(image)):
            groups.merge(first.setdefault(mark, image), image)
    together = groups.subsets()
    if kept is not None:
        return set().union(*(group for group in together if not group.isdisjoint(kept)))
    if len(together) < 2:
        raise DataError(
            f'its {len(images):,} images are one image or its copies, so none can be set aside',
            remedy='add images, or name those for validation',
        )
    Random(seed).shuffle(together)
    chosen: set[Path] = set()
    for group in together[1:]:  # at least one group is trained on
        if len(chosen) + len(group) <= max(1, share * len(images)):
            chosen |= group
    return chosen or min(together, key=len)


def _originals(images: Sequence[Path], most: float) -> dict[Path, str]:
    """The name of the image that each one is, or is a copy of.

    If that is not there, at most so many are copies of it rather than a series.
    """
    names = {image: _name(image) for image in images}
    there, changed = {*names.values()}, defaultdict(set)
    for name in there:
        shorter = name
        while mark := _COPY.search(shorter):
            shorter = shorter[: mark.start()]
            changed[shorter].add(name)
    found = {}
    for shorter in sorted(changed, key=len, reverse=True):  # the shortest has the last word
        brackets = any(name.endswith(')') for name in changed[shorter])
        if shorter in there or (len(changed[shorter]) <= most and not brackets):
            found |= dict.fromkeys(changed[shorter], shorter)
    return {image: found.get(name, name) for image, name in names.items()}


def _name(image: Path) -> str:
    """The name in lower case without its suffix and what Roboflow makes of that."""
    name = re.sub(r'\.rf\.\w+$', '', str(image.with_suffix('')).casefold())
    return re.sub(r'_(jpg|jpeg|png)$', '', name)


def _digest(image: Path) -> str:
    try:
        return hashlib.blake2b(image.read_bytes(), digest_size=16).hexdigest()
    except OSError:  # whoever reads it reports that
        return str(image)
