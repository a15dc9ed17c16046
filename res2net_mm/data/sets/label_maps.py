"""Semantic segmentation sets: their files, and the values in a sample of their label maps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.fileio import list_dir_or_file
from PIL import Image as PillowImage

from ...checks import listed, nearest
from ..errors import DataError
from .limits import check_pixels
from .nodes import STRICT, Image, Node, Reading, Watch, read_list
from .readers import report_missing

#: Label maps looked into, spread over the set.
SAMPLE = 16
_READABLE = ('.png', '.bmp', '.tif', '.tiff')


def read_semantic(node: Node, classes: Sequence[str], watch: Watch = STRICT) -> Reading:
    """The images of a dataset that mmseg's ``BaseSegDataset`` lists, and their label maps.

    Args:
        node: the dataset.
        classes: the names it is used with.
        watch: what is done at a fault.

    Raises:
        DataError: a file or folder is missing, or the dataset's type does not know a class.
    """
    own = getattr(node.cls, 'METAINFO', {}).get('classes')
    unknown = [name for name in classes if own and name not in own]
    with watch.guard('classes', node.key):
        if unknown:
            likely = nearest(unknown[0], own)
            raise DataError(
                f'{node.key}.metainfo.classes: {node.name} has no class {unknown[0]!r}'
                + (f' (did you mean {likely!r}?)' if likely else '')
                + f'; choose among {listed(own, 20)}, or use type BaseSegDataset'
            )
    image_suffix, map_suffix = node.option('img_suffix'), node.option('seg_map_suffix')
    folder, map_folder = node.prefix('img_path'), node.prefix('seg_map_path')
    if node.config.get('ann_file'):
        source = node.annotation_file()
        names = [line.strip() for line in read_list(source)]
    else:
        source = folder
        try:
            found = [*list_dir_or_file(folder, list_dir=False, recursive=True)]
        except OSError as error:  # a link to itself
            raise DataError(
                f'{node.key}: {folder} cannot be listed ({error}); remove what is broken'
            ) from error
        names = sorted(n[: -len(image_suffix)] for n in found if n.endswith(image_suffix))
        for name in found:
            if name.lower().endswith(image_suffix.lower()) and not name.endswith(image_suffix):
                watch.warn(
                    'suffix in another case',
                    os.path.join(folder, name),
                    f'it does not end in img_suffix={image_suffix!r}, so that it is not used',
                    'rename it',
                )
    if not names:
        there = Counter(
            os.path.splitext(name)[1] for name in list_dir_or_file(folder, False, recursive=True)
        )
        raise DataError(
            f'{node.key}: {source} gives no image ending in img_suffix={image_suffix!r}; '
            f'{folder} holds {listed(f"{n} {s}" for s, n in there.most_common()) or "nothing"}; '
            f'set it, for example --cfg-options {node.key}.img_suffix=.png'
        )
    images = [
        Image(
            os.path.join(folder, name + image_suffix),
            label_map=os.path.join(map_folder, name + map_suffix),
        )
        for name in names
    ]
    report_missing(node, [image.label_map for image in images], 'label maps', source, watch)
    return Reading(images)


def check_values(
    node: Node, files: Sequence[str], classes: Sequence[str], ignored: Mapping[str, Any]
) -> None:
    """Look for values that are no class in a sample of label maps, and for a class at all.

    Args:
        node: the dataset, for ``reduce_zero_label`` and messages.
        files: its label maps.
        classes: names; value i of the map is class i.
        ignored: where the model and the metrics say which value is ignored -> the value.

    Raises:
        DataError: a map does not decode, is no map of one value a pixel, or has a value that is
            neither a class nor ignored; or all of the maps have one and the same class.
    """
    readable = [file for file in files if file.lower().endswith(_READABLE)]
    if not readable or not values_are_labels(node, classes):
        return
    sample = readable[:: max(1, len(readable) // SAMPLE)]
    seen: set[int] = set()
    for i, file in enumerate(dict.fromkeys([*sample, *readable])):
        if i >= len(sample) and len(seen) > 1:
            return
        seen |= check_map(file, count_values(node, file), classes, ignored)
    check_variety(node, len(readable), seen, classes, ignored)


def values_are_labels(node: Node, classes: Sequence[str]) -> bool:
    """Whether the values in the label maps can be held against the numbers of ``classes``."""
    own = getattr(node.cls, 'METAINFO', {}).get('classes')
    # with a single class, what stands for the background is the loss's affair
    return len(classes) > 1 and not (own and list(own) != list(classes))


def check_variety(
    node: Node, maps: int, seen: set[int], classes: Sequence[str], ignored: Mapping[str, Any]
) -> None:
    """Raise a DataError unless the set's ``maps`` hold more than one class, by what was seen."""
    if len(seen) < 2:
        only = [classes[label] for label in seen if label < len(classes)]
        raise DataError(
            f'{node.key}: the {maps:,} label maps hold '
            f'{f"only class {only[0]!r}" if only else "no class"}, all else is ignored '
            f'({_told(ignored)}); write them with values 0 to {len(classes) - 1}, one a class'
        )


def check_map(
    file: str, counts: np.ndarray, classes: Sequence[str], ignored: Mapping[str, Any]
) -> set[int]:
    """The classes in one label map, of which every value is a class or ignored.

    Args:
        file: its name, for messages.
        counts: (256,) pixels of each value.
        classes: names; value i of the map is class i.
        ignored: where the model and the metrics say which value is ignored -> the value. Where
            they differ none is.

    Raises:
        DataError: another value is in it.
    """
    agreed = len(set(ignored.values())) == 1
    values = set(np.flatnonzero(counts).tolist()) - set(ignored.values() if agreed else ())
    wrong = {value for value in values if value >= len(classes)}
    if wrong:
        value = max(wrong, key=lambda value: counts[value])
        remedy = 'write the map again, name the class, or ignore the value'
        if not agreed and value in ignored.values():
            remedy = f'set all of these to {value}'
        elif wrong == {len(classes)}:
            remedy += (
                ', or set reduce_zero_label=True of the data set if classes count from 1 and 0 is '
                'none'
            )
        raise DataError(
            f'{file} holds the value {value} ({counts[value] / counts.sum():.1%} of it), but the '
            f'{len(classes)} classes are 0 to {len(classes) - 1} and what is ignored is '
            f'{_told(ignored)}; {remedy}'
        )
    return values


def count_values(node: Node, file: str) -> np.ndarray:
    """(256,) pixels of each value in a label map, as a dataset of mmseg loads it.

    Raises:
        DataError: the map does not decode, or has not one value a pixel.
    """
    return _value_counts(file, bool(node.option('reduce_zero_label')))


def _value_counts(file: str, reduce_zero_label: bool) -> np.ndarray:
    """(256,) pixels of each value, read as mmseg reads it."""
    check_pixels(file, f'label map {file}')
    try:
        with PillowImage.open(file) as image:
            values = np.array(image).squeeze()
    except (OSError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise DataError(f'label map {file} does not decode ({error}); replace it') from error
    if values.ndim != 2:
        raise DataError(
            f'label map {file} is of shape {values.shape}, as a coloured picture is; write one '
            'value a pixel, the number of its class'
        )
    counts = np.bincount(values.astype(np.uint8).ravel(), minlength=256)
    if reduce_zero_label:  # 0 and 255 become 255, every other value one less
        counts = np.concatenate([counts[1:255], [0], counts[:1] + counts[255:]])
    return counts


def _told(ignored: Mapping[str, Any]) -> str:
    return listed(f'{key}={value}' for key, value in ignored.items()) or 'nothing'
