"""Semantic segmentation sets: their files, and the values in their label maps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine.fileio import list_dir_or_file
from PIL import Image as PillowImage

from ...checks import listed, nearest
from ..errors import DataError
from ..findings import Finding, raised, warning
from .images import check_pixels
from .nodes import Node, read_list, type_name
from .records import Image, Reading, check_missing


def read_semantic(node: Node, classes: Sequence[str]) -> Generator[Finding, None, Reading]:
    """The images that mmseg's ``BaseSegDataset`` lists, and their label maps.

    Raises:
        DataError: A file or folder is missing, or there is no image.
    """
    yield from raised('classes', _check_own_classes, node, classes)
    image_suffix, map_suffix = node.option('img_suffix'), node.option('seg_map_suffix')
    folder, map_folder = node.prefix('img_path'), node.prefix('seg_map_path')
    if node.config.get('ann_file'):
        source = node.annotation_file()
        names = [line.strip() for line in read_list(source)]
    else:
        source = folder
        try:
            there = [*list_dir_or_file(folder, list_dir=False, recursive=True)]
        except OSError as fault:  # a link to itself
            what = f'it cannot be listed ({fault})'
            raise DataError(what, folder, 'remove what is broken') from fault
        names = sorted(n[: -len(image_suffix)] for n in there if n.endswith(image_suffix))
        for name in there:
            if name.lower().endswith(image_suffix.lower()) and not name.endswith(image_suffix):
                yield warning(
                    'suffix in another case',
                    os.path.join(folder, name),
                    f'it does not end in img_suffix={image_suffix!r}, so it is not used',
                )
        if not names:
            suffixes = Counter(os.path.splitext(name)[1] for name in there).most_common()
            shown = listed(f'{count} {suffix}' for suffix, count in suffixes)
            raise DataError(
                f'none of its files ends in img_suffix={image_suffix!r} ({shown or "no file"})',
                folder,
                f'set the suffix, for example --cfg-options {node.key}.img_suffix=.png',
            )
    images = [
        Image(
            os.path.join(folder, name + image_suffix),
            label_map=os.path.join(map_folder, name + map_suffix),
        )
        for name in names
    ]
    yield from check_missing([i.label_map for i in images], 'label maps', source, node.key)
    return Reading(images)


def _check_own_classes(node: Node, classes: Sequence[str]) -> None:
    own = getattr(node.cls, 'METAINFO', {}).get('classes')
    unknown = [name for name in classes if own and name not in own]
    if unknown:
        likely = nearest(unknown[0], own)
        raise DataError(
            f'{node.name} has no class {unknown[0]!r}'
            + (f' (did you mean {likely!r}?)' if likely else ''),
            node.classes_key,
            f'choose from {listed(own, 20)}, or use type BaseSegDataset',
        )


def values_are_labels(node: Node, classes: Sequence[str]) -> bool:
    """Whether the values in the label maps can be compared with the numbers of ``classes``."""
    own = getattr(node.cls, 'METAINFO', {}).get('classes')
    # with a single class, only the loss knows what stands for the background
    return len(classes) > 1 and not (own and list(own) != list(classes))


def check_variety(
    key: str, maps: int, seen: set[int], classes: Sequence[str], ignored: Mapping[str, Any]
) -> None:
    """Raises a DataError unless more than one class was ``seen`` in the ``maps`` of a dataset."""
    if len(seen) < 2:
        only = [classes[label] for label in seen if label < len(classes)]
        raise DataError(
            f'the {maps:,} label maps hold {f"only class {only[0]!r}" if only else "no class"}; '
            f'all else is ignored ({_shown(ignored)})',
            key,
            f'write them with values 0 to {len(classes) - 1}, one for each class',
        )


def check_map(
    file: str, counts: np.ndarray, classes: Sequence[str], ignored: Mapping[str, Any]
) -> None:
    """Raises a DataError if a label map holds a value that is neither a class nor ignored.

    Args:
        file: The label map.
        counts: (256,) number of pixels with each value.
        classes: Names; value i of the map is class i.
        ignored: Config key -> the value that the model or a metric ignores. If they differ, none
            counts as ignored.
    """
    agreed = len(set(ignored.values())) == 1
    values = set(np.flatnonzero(counts).tolist()) - set(ignored.values() if agreed else ())
    wrong = {value for value in values if value >= len(classes)}
    if not wrong:
        return
    value = max(wrong, key=lambda value: counts[value])
    remedy = 'write the map again, name the class, or ignore the value'
    if not agreed and value in ignored.values():
        remedy = f'set all of these to {value}'
    elif wrong == {len(classes)}:
        remedy += (
            ', or set reduce_zero_label=True of the data set if classes count from 1 and 0 is none'
        )
    raise DataError(
        f'it holds the value {value} ({counts[value] / counts.sum():.1%} of it), but the '
        f'{len(classes)} classes are 0 to {len(classes) - 1} and what is ignored is '
        f'{_shown(ignored)}',
        file,
        remedy,
    )


def map_reader(node: Node) -> Callable[[str], np.ndarray]:
    """What gives the labels in a file, (H, W) of uint8, as the pipeline of a dataset loads them."""
    if any(type_name(step).endswith('LoadMaskAnnotations') for step in node.pipeline):
        return read_binary_mask
    return partial(read_map, reduce_zero_label=bool(node.option('reduce_zero_label')))


def read_map(file: str, reduce_zero_label: bool) -> np.ndarray:
    """(H, W) of uint8: the labels in a file, as mmseg loads them.

    Raises:
        DataError: The map does not decode, or has more than one value per pixel.
    """
    values = np.array(_open(file)).squeeze()
    if values.ndim != 2:
        raise DataError(
            f'the label map has shape {values.shape}, like a coloured picture',
            file,
            'write one value per pixel, the number of its class',
        )
    values = values.astype(np.uint8)
    if reduce_zero_label:  # 0 and 255 become 255, every other value one less
        values = np.where(values == 0, np.uint8(255), values - (values < 255))
    return values


def read_binary_mask(file: str) -> np.ndarray:
    """(H, W) of uint8: 1 where a picture shows the object, 0 elsewhere.

    The picture has the values 0 and 1, or grey levels: those above 128 are the object, as for
    PySODMetrics.

    Raises:
        DataError: It does not decode, or is neither.
    """
    image = _open(file)
    grey, what = np.array(image), ''
    if image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):  # 8 bits
        what = f'its mode is {image.mode}'
    elif image.mode != 'P' or grey.max() > 1:  # a palette may show 0 and 1 in any colours
        grey, *others, alpha = np.moveaxis(np.array(image.convert('RGBA')), 2, 0)
        if any((grey != other).any() for other in others) or alpha.min() < 255:
            what = 'it is coloured or transparent'
    values = set(np.unique(grey).tolist())
    if not what and 1 < max(values) <= 128:
        what = f'its largest value is {max(values)}'
    elif {1, 255} <= values <= {0, 1, 255}:
        what = 'it has 1 and 255, of which one may mean that a pixel does not count'
    if what:
        remedy = 'write the mask with 0 and 1, or in grey with the object above 128'
        raise DataError(what, file, remedy)
    return (grey > (128 if max(values) > 1 else 0)).astype(np.uint8)


def _open(file: str) -> PillowImage.Image:
    check_pixels(file, file)
    try:
        with PillowImage.open(file) as image:
            image.load()
    except (OSError, SyntaxError, PillowImage.DecompressionBombError) as fault:
        raise DataError(f'the label map does not decode ({fault})', file, 'replace it') from fault
    return image


def _shown(ignored: Mapping[str, Any]) -> str:
    return listed(f'{key}={value}' for key, value in ignored.items()) or 'nothing'
