"""Masks as people have them -> label maps as mmseg reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...checks import listed
from ...files import writing
from ..errors import DataError
from .formats import IGNORED, mask_values

Rule = Callable[[np.ndarray], np.ndarray]


def label_rule(
    masks: Sequence[Path], classes: Sequence[str], ignored: int | None = None
) -> tuple[Rule | None, str]:
    """How the values of masks become 0 to ``len(classes) - 1``, and 255 where nothing counts.

    Returns what to do with the values (None: nothing), and what that is in words. ``ignored`` is a
    value that is no class.

    Raises:
        DataError: The classes are not named, or values have no name.
    """
    folder = str(masks[0].parent)
    shown = tqdm(masks, 'values of masks', leave=False, disable=None)
    each = [_values(mask_values(file)) for file in shown]
    seen = set().union(*each)
    lossy = any(file.suffix.lower() in ('.jpg', '.jpeg', '.jfif') for file in masks)
    if not classes:
        what = f'its masks hold the values {listed(sorted(seen), 12)}, which nothing names'
        remedy = 'name them, from 0 on, with --classes, such as --classes background polyp'
        raise DataError(what, folder, f'{remedy} (0 and 255 are two classes)')
    if len(classes) == 2 and ignored is None and not lossy and 1 in seen:
        if any(IGNORED in values and 1 not in values for values in each):
            what = f'some masks hold 1, and others {IGNORED} but no 1: which is a class?'
            remedy = f'write it alike in all, or --ignore-label {IGNORED} if it is no class'
            raise DataError(what, folder, remedy)
    if len(classes) == 2 and ignored is None and (lossy or seen in ({0, 255}, {255})):
        return lambda values: values >= 128, '128 to 255 count as the second class'
    if lossy:
        raise DataError('JPEG does not keep the values of masks', folder, 'write them as PNG')
    strange = sorted(seen - {*range(len(classes)), IGNORED, ignored})
    if strange:
        left_out = f'leave one out by --ignore-label {strange[-1]}'
        if len(strange) > 9:  # grey levels
            left_out = 'write them with one value for each class'
        raise DataError(
            f'its masks hold the value{"s" * (len(strange) > 1)} {listed(strange)}, but '
            f'{len(classes)} classes are named ({listed(classes)})',
            folder,
            f'name them all with --classes, or {left_out}',
        )
    if ignored not in (None, IGNORED):
        return lambda values: np.where(values == ignored, IGNORED, values), f'{ignored} is ignored'
    if all(_channels(file) == 1 for file in masks):
        return None, ''
    return np.array, 'with one channel'


def _channels(file: Path) -> int:
    with Image.open(file) as image:
        return len(image.getbands())


def _values(mask: np.ndarray) -> set[int]:
    if mask.dtype == np.uint8:  # 20 times as fast as np.unique
        return {*np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()}
    return {*np.unique(mask).tolist()}


def place_maps(
    pairs: Sequence[tuple[Path, Path]], folder: Path, rule: Rule | None
) -> tuple[dict, list[str]]:
    """Arguments of mmseg's ``BaseSegDataset`` for images and masks, and the names for its list.

    Masks are written to ``folder`` if there is a ``rule`` for their values, or if the names of
    images and masks do not differ in the same ending everywhere.
    """
    roots = [Path(os.path.commonpath([pair[i].parent for pair in pairs])) for i in (0, 1)]
    names, maps = ([p[i].relative_to(roots[i]).as_posix() for p in pairs] for i in (0, 1))
    suffixes = {os.path.splitext(name)[1] for name in names}
    suffix = suffixes.pop() if len(suffixes) == 1 else ''
    names = [name.removesuffix(suffix) for name in names]
    matched = zip(names, maps, strict=True)
    endings = {file.removeprefix(name) if file.startswith(name) else '' for name, file in matched}
    if rule or len(endings) > 1 or '' in endings:
        roots[1], endings = folder, {'.png'}
        shown = tqdm(names, 'label maps', leave=False, disable=None)
        for name, (_, mask) in zip(shown, pairs, strict=True):
            values, target = mask_values(mask), folder / f'{name}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            with writing(target, durable=False) as partial:
                Image.fromarray((rule or np.array)(values).astype(np.uint8)).save(partial)
    prefix = dict(img_path=str(roots[0]), seg_map_path=str(roots[1]))
    return dict(data_prefix=prefix, img_suffix=suffix, seg_map_suffix=endings.pop()), names
