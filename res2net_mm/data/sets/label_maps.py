"""Semantic segmentation sets: their files, and the values in their label maps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence

import numpy as np
from mmengine.fileio import list_dir_or_file
from PIL import Image as PillowImage

from ...checks import listed
from ..errors import DataError
from ..findings import Finding, error
from .images import check_pixels
from .nodes import Node, read_list, type_name
from .records import Image, check_missing


def read_semantic(
    node: Node, classes: Sequence[str], annotated: bool = True
) -> Generator[Finding, None, list[Image]]:
    """The images that mmseg's ``BaseSegDataset`` lists, and their label maps if ``annotated``."""
    own = node.own_classes or classes
    unknown = [repr(name) for name in classes if name not in own]
    if unknown:
        what = f'{node.name} has no class {listed(unknown)}'
        remedy = f'choose from {listed(own, 20)}, or use type BaseSegDataset'
        yield error('classes', node.classes_key, what, remedy)
    suffix, map_suffix = node.option('img_suffix'), node.option('seg_map_suffix')
    source = node.prefix('img_path')
    folder = source
    if node.config.get('ann_file'):
        source = node.annotation_file()
        names = [line.strip() for line in read_list(source)]
    else:
        files = [*list_dir_or_file(folder, list_dir=False, recursive=True)]
        names = sorted(file.removesuffix(suffix) for file in files if file.endswith(suffix))
        if not names:
            suffixes = Counter(os.path.splitext(file)[1] for file in files).most_common()
            shown = listed(f'{count} {other}' for other, count in suffixes) or 'no file'
            raise DataError(
                f'none of its files ends in img_suffix={suffix!r} ({shown})',
                folder,
                f'set the suffix, for example --cfg-options {node.key}.img_suffix=.png',
            )
    files = [os.path.join(folder, name + suffix) for name in names]
    if not annotated:
        return [*map(Image, files)]
    map_folder = node.prefix('seg_map_path')
    maps = [os.path.join(map_folder, name + map_suffix) for name in names]
    yield from check_missing(maps, 'label maps', source, node.key)
    return [Image(file, label_map=map_) for file, map_ in zip(files, maps, strict=True)]


def map_reader(node: Node) -> Callable[[str], np.ndarray]:
    """What gives the labels in a file, (H, W) of uint8, as the pipeline of a dataset loads them."""
    if any(type_name(step).endswith('LoadMaskAnnotations') for step in node.pipeline):
        return read_binary_mask
    table = np.arange(256, dtype=np.uint8)
    own, used = [*(node.own_classes or ())], [*node.classes()]
    for label, name in enumerate(own if own != used else ()):  # after the zero label was removed
        table[label] = used.index(name) if name in used else 255
    reduced = bool(node.option('reduce_zero_label'))
    return lambda file: table[read_map(file, reduced)]


def read_map(file: str, reduce_zero_label: bool) -> np.ndarray:
    """(H, W) of uint8: the labels in a file, as mmseg loads them; a DataError if it has none."""
    values = np.array(open_map(file)).squeeze()
    if values.ndim != 2:
        what = f'the label map has shape {values.shape}, like a coloured picture'
        raise DataError(what, file, 'write one value per pixel, the number of its class')
    values = values.astype(np.uint8)
    # 0 and 255 become 255, every other value one less
    return np.where(values == 255, values, values - 1) if reduce_zero_label else values


INVERTED = 'its palette shows 0 brighter than 1, so that either may be the object'


def read_binary_mask(file: str) -> np.ndarray:
    """(H, W) of uint8: 1 where a picture shows the object, 0 elsewhere; a DataError if it is none.

    The picture has the values 0 and 1, or grey levels: those above 128 are the object, as for
    PySODMetrics.
    """
    image, what = open_map(file), ''
    grey = np.array(image)
    if image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):  # 8 bits
        what = f'its mode is {image.mode}'
    elif image.mode != 'P' or grey.max() > 1:  # a palette may show 0 and 1 in any colours
        grey, green, blue, alpha = np.moveaxis(np.array(image.convert('RGBA')), 2, 0)
        if (grey != green).any() or (grey != blue).any() or alpha.min() < 255:
            what = 'it is coloured or transparent'
    elif inverted(image):
        what = INVERTED
    values = {*np.unique(grey).tolist()}
    if not what and 1 < max(values) <= 128:
        what = f'its largest value is {max(values)}'
    elif {1, 255} <= values <= {0, 1, 255}:
        what = 'it has 1 and 255, of which one may mean that a pixel does not count'
    if what:
        remedy = 'write the mask with 0 and 1, or in grey with the object above 128'
        raise DataError(what, file, remedy)
    return (grey > (128 if max(values) > 1 else 0)).astype(np.uint8)


def inverted(image: PillowImage.Image) -> bool:
    """Whether a palette of greys shows 0 brighter than 1."""
    colours = np.reshape((image.getpalette() or [])[:6], (-1, 3)).astype(int)
    return len(colours) == 2 and not np.ptp(colours, 1).any() and colours[0, 0] > colours[1, 0]


def open_map(file: str) -> PillowImage.Image:
    """A label map or mask, decoded; a DataError if it cannot be, or is too large."""
    check_pixels(file, file)
    try:
        with PillowImage.open(file) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as fault:
        raise DataError(f'it cannot be read ({fault})', file, 'write it again') from fault
    return image
