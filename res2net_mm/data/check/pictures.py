"""Pictures of a data set: a sheet of its images with their annotations, and its sizes."""

from __future__ import annotations

import colorsys
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..errors import DataError
from ..findings import ERROR, WARNING, Finding
from ..sets.label_maps import map_reader
from ..sets.masks import read_mask
from ..sets.records import Image, Object
from ..sets.sizes import COCO_SIDES
from .inspection import Inspection
from .objects import count_classes, object_sizes
from .pixels import CheckedSet, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TILE = (320, 240)  # px, width and height that an image is fitted into
_CAPTION, _EDGE = 34, 5  # px below an image, and around it
_COLUMNS, _TILES, _MOST_MARKED = 6, 24, 18
_WHITE, _BLACK, _RED, _ORANGE = (255, 255, 255), (0, 0, 0), (40, 40, 230), (0, 150, 255)
_MOST_NAMES = 15  # objects in an image, up to which each gets its class's name


def write_text(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """Writes white letters with a black edge, their lower left corner at ``place`` in px."""
    for colour, thickness in ((_BLACK, 3), (_WHITE, 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)


def tile_up(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in rows, the last of them filled up with black."""
    tiles = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % columns)]
    rows = (np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns))
    return np.vstack(list(rows))


def draw_inspection(inspection: Inspection, out: str | Path) -> np.ndarray:
    """Writes a sheet of images with their annotations, those with findings first.

    A red edge marks an image with an error, an orange one an image with a warning; the findings
    stand below it. Objects that are not trained on are red.

    Returns:
        (H, W, 3) the picture, in OpenCV's order of colours.
    """
    tiles = []
    for part, image, findings in _chosen(inspection):
        colour = _BLACK
        if findings:
            colour = _RED if any(f.severity == ERROR for f in findings) else _ORANGE
        kinds = dict.fromkeys(f.kind for f in sorted(findings, key=lambda f: f.severity))
        tile = np.full((_TILE[1] + _CAPTION, _TILE[0], 3), 60, np.uint8)
        _draw_image(tile[: _TILE[1]], part, image)
        write_text(tile, f'{part.split}: {os.path.basename(image.file)[-34:]}', (3, _TILE[1] + 13))
        write_text(tile, ', '.join(kinds)[:52], (3, _TILE[1] + 28))
        edges = (_EDGE,) * 4
        tiles.append(cv2.copyMakeBorder(tile, *edges, cv2.BORDER_CONSTANT, value=colour))
    empty = np.zeros((_TILE[1] + _CAPTION, _TILE[0], 3), np.uint8)
    sheet = tile_up(tiles or [empty], _COLUMNS)
    Path(out).write_bytes(cv2.imencode('.jpg', sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    return sheet


def size_figure(inspection: Inspection) -> Figure:
    """A histogram of the objects' sizes or, for label maps, the share of each class.

    Sizes are square roots of the boxes' areas in px of the image file. Lines mark COCO's limits of
    small and large objects, and the sizes of the anchors at the median enlargement of training.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    splits = inspection.splits
    if any(part.maps for part in inspection.sets):
        for i, split in enumerate(splits):
            counts = count_classes(inspection.sets, split)
            shares = np.array(list(counts.values())) / max(1, sum(counts.values()))
            width = 0.8 / len(splits)
            axes.bar(np.arange(len(counts)) + i * width, shares, width, label=split)
        axes.set_xticks(range(len(counts)), counts, rotation=60, ha='right', fontsize=7)
        axes.set(title='classes', ylabel='share of the pixels')
    else:
        _draw_sizes(axes, inspection)
    axes.grid(alpha=0.3)
    if splits:
        axes.legend(fontsize=7)
    return figure


def object_sides(inspection: Inspection, split: str) -> np.ndarray:
    """(N,) square roots of the areas of the usable boxes of a split, in px."""
    sizes = [object_sizes(part)[0] for part in inspection.sets if part.split == split]
    return np.sqrt(np.concatenate(sizes).prod(1))


def _draw_sizes(axes: object, inspection: Inspection) -> None:
    sizes = {split: object_sides(inspection, split) for split in inspection.splits}
    everything = np.concatenate([*sizes.values(), COCO_SIDES])
    edges = np.geomspace(max(everything.min(), 0.5), everything.max() * 1.01, 41)
    for split, values in sizes.items():
        axes.hist(values, edges, histtype='stepfilled', alpha=0.5, label=f'{split} {len(values):,}')
    for limit in COCO_SIDES:
        axes.axvline(limit, color='black', linestyle='--', linewidth=1)
    if inspection.anchors is not None:
        sides = np.unique(np.sqrt(inspection.anchors.prod(1)).round(1)) / inspection.factor
        for i, side in enumerate(sides):
            name = {'label': 'anchors'} if not i else {}
            axes.axvline(side, color='tab:red', linestyle=':', linewidth=1, **name)
    title = 'objects; dashed: {} and {} px, between small, medium and large of COCO'
    axes.set(title=title.format(*COCO_SIDES), xlabel='square root of the area, px')
    axes.set_ylabel('objects')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')


def _chosen(inspection: Inspection) -> Iterator[tuple[CheckedSet, Image, list[Finding]]]:
    """The images of the sheet: one of every kind of finding by turns, errors first, then others."""
    image_of: dict[tuple[str, str], tuple[CheckedSet, Image]] = {}
    for part in inspection.sets:
        for image in part.used:
            xml = f'{os.path.splitext(os.path.basename(image.file))[0]}.xml'
            for name in filter(None, (image.file, image.label_map, xml)):
                image_of.setdefault((part.split, name), (part, image))
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)  # split, image file -> findings
    by_kind: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for finding in inspection.findings:
        xml = finding.file.endswith('.xml')
        name = os.path.basename(finding.file) if xml else finding.file
        if (finding.split, name) in image_of:
            key = finding.split, image_of[finding.split, name][1].file
            found[key].append(finding)
            by_kind[finding.severity, finding.kind].append(key)
    faulty = dict.fromkeys(
        key
        for severity in (ERROR, WARNING)
        for key in _by_turns(keys for (s, _), keys in by_kind.items() if s == severity)
    )
    clean = [
        spread([(part, i, []) for i in part.used if (part.split, i.file) not in found], _TILES)
        for part in inspection.sets
    ]
    others = list(islice(_by_turns(clean), _TILES - min(_MOST_MARKED, len(faulty))))
    for key in islice(faulty, _TILES - len(others)):
        yield *image_of[key], found[key]
    yield from others


def _by_turns(lists: Iterable[Sequence]) -> Iterator:
    """The first of each, then the second of each, ..."""
    return filter(None, chain.from_iterable(zip_longest(*lists)))


def _draw_image(tile: np.ndarray, part: CheckedSet, image: Image) -> None:
    known = part.pictures.get(image.file)
    try:
        picture = None if known and known.fault else part.loader.picture(image.file)
    except DataError:
        picture = None
    if picture is None:
        write_text(tile, 'cannot be shown', (8, 20))
        return
    height, width = picture.shape[:2]
    scale = min(_TILE[0] / width, _TILE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if image.label_map:
        _draw_label_map(shown, part, image.label_map)
    for item in image.objects:
        colour = _RED if item.reason else _colour(part.classes.index(item.name))
        if part.masks and item.segmentation:
            _draw_mask(shown, item, (width, height), colour)
        if all(map(math.isfinite, item.box)):
            name = item.reason or (item.name if len(image.objects) <= _MOST_NAMES else '')
            _draw_box(shown, item.box, scale, colour, name)
    tile[: size[1], : size[0]] = shown


def _draw_box(
    shown: np.ndarray, box: Sequence[float], scale: float, colour: tuple, name: str
) -> None:
    x1, y1, x2, y2 = (int(np.clip(round(side * scale), -9999, 9999)) for side in box)
    cv2.rectangle(shown, (x1, y1), (x2, y2), colour)
    if x2 - x1 < 2 or y2 - y1 < 2:  # else it could not be seen
        cv2.drawMarker(shown, (x1, y1), colour, cv2.MARKER_TILTED_CROSS, 12, 2)
    write_text(shown, name, (min(max(x1, 2), shown.shape[1] - 20), max(y1 - 3, 10)))


def _draw_mask(shown: np.ndarray, item: Object, size: tuple[int, int], colour: tuple) -> None:
    from pycocotools import mask as coco_mask

    try:
        mask = coco_mask.decode(read_mask(item.segmentation, *size)[0])
    except DataError:
        return
    inside = cv2.resize(mask, shown.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    shown[inside] = shown[inside] // 2 + np.array(colour, np.uint8) // 2


def _draw_label_map(shown: np.ndarray, part: CheckedSet, file: str) -> None:
    try:
        values = map_reader(part.node)(file)
    except (OSError, DataError):
        write_text(shown, 'no label map that can be shown', (8, 20))
        return
    colours = np.zeros((256, 3), np.uint8)  # what is no class is black
    colours[: len(part.classes)] = [_colour(i) for i in range(len(part.classes))]
    laid = cv2.resize(values, shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    shown[:] = shown // 2 + colours[laid] // 2


def _colour(label: int) -> tuple[int, int, int]:
    """A colour for each class, none of them red."""
    hue = 0.08 + 0.84 * (label * 0.618 % 1)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1)[::-1])
