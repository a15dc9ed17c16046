"""Setting images aside for validation, so that no copy of a training image is among them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

from scipy.cluster.hierarchy import DisjointSet

from .errors import DataError

# what tools append to the names of copies: Roboflow's hash, a number in brackets, the change
_COPY = re.compile(
    r'(\.rf\.\w+|[ _-]*\(\d+\)|[ _-]+(copy|aug\w*|flip\w*|rot|rotated|mirror)[ _-]?\d*)+$',
    re.IGNORECASE,
)


def set_aside(images: Sequence[Path], share: float = 0.2, seed: int = 0) -> set[Path]:
    """Chooses images for validation.

    Images of equal bytes, and images whose names differ only in a suffix (``a.jpg`` and ``a.png``,
    ``a (1).jpg``, ``a_flip.jpg``, Roboflow's ``a_jpg.rf.0f3c.jpg``), stay together.

    The choice is about a ``share`` of the images; the same seed and images give the same one.

    Raises:
        DataError: All images would have to stay together.
    """
    groups, first = DisjointSet(images), {}
    for image in images:
        for mark in (_name(image), _digest(image)):
            groups.merge(first.setdefault(mark, image), image)
    together = groups.subsets()
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


def _name(image: Path) -> str:
    """The name in lower case without what tools append to those of copies."""
    name = _COPY.sub('', str(image.with_suffix('')).casefold())
    return re.sub(r'_(jpg|jpeg|png)$', '', name)


def _digest(image: Path) -> str:
    try:
        return hashlib.blake2b(image.read_bytes(), digest_size=16).hexdigest()
    except OSError:  # whoever reads it reports that
        return str(image)
