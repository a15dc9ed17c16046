"""Pictures of a data set: a sheet of its images with what is annotated, and its sizes."""

from __future__ import annotations

import colorsys
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image as PillowImage

from ..errors import DataError
from ..sets.masks import check_mask
from ..sets.nodes import Image, Object
from .findings import ERROR, Findings
from .objects import count_classes, object_sizes
from .pixels import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .inspection import Inspection

_TILE = (320, 240)  # px, width and height that an image is fitted into
_CAPTION, _EDGE = 34, 5  # px below an image, and around it
_COLUMNS, _TILES, _MOST_MARKED = 6, 24, 18
_WHITE, _BLACK, _RED, _ORANGE = (255, 255, 255), (0, 0, 0), (40, 40, 230), (0, 150, 255)
_MOST_NAMES = 15  # objects on an image, of which each gets its class's name
#: px: the square roots of the areas between COCO's small, medium and large objects.
COCO_BINS = (32, 96)


def write_text(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """White letters with a black edge, their lower left corner at ``place`` in px."""
    for colour, thickness in ((_BLACK, 3), (_WHITE, 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)


def tile_up(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in rows, the last of them filled up with black."""
    tiles = [*tiles, *[np.zeros_like(tiles[0])] * (-len(tiles) % columns)]
    rows = (np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns))
    return np.vstack(list(rows))


def draw_inspection(inspection: Inspection, out: str | Path) -> np.ndarray:
    """Write a sheet of images with their annotations, those with findings first.

    A red edge marks an image with an error, an orange one an image with a warning; the findings
    stand below it. Objects that are not trained on are red.

    Args:
        inspection: what was found.
        out: the picture to write.

    Returns:
        (H, W, 3) the picture, in OpenCV's order of colours.

    Raises:
        OSError: it cannot be written.
    """
    tiles = []
    for part, image, severity, kinds in _chosen(inspection):
        colour = {ERROR: _RED, None: _BLACK}.get(severity, _ORANGE)
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
    """Histogram of the objects' sizes, or of label maps the share of each class.

    Sizes are square roots of the boxes' areas in px of the image file; COCO's limits of small and
    large objects and the anchors' sizes, at the median enlargement of training, are marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    splits = list(dict.fromkeys(part.split for part in inspection.parts))
    if any(part.maps for part in inspection.parts):
        for i, split in enumerate(splits):
            counts = count_classes(inspection.parts, split)
            shares = np.array(list(counts.values())) / max(1, sum(counts.values()))
            width = 0.8 / len(splits)
            axes.bar(np.arange(len(counts)) + i * width, shares, width, label=split)
        axes.set_xticks(range(len(counts)), counts, rotation=60, ha='right', fontsize=7)
        axes.set(title='classes', ylabel='share of the pixels')
    else:
        _draw_sizes(axes, inspection, splits)
    axes.grid(alpha=0.3)
    if splits:
        axes.legend(fontsize=7)
    return figure


def _draw_sizes(axes: object, inspection: Inspection, splits: Sequence[str]) -> None:
    sizes = {
        split: np.concatenate(
            [np.sqrt(object_sizes(p)[0].prod(1)) for p in inspection.parts if p.split == split]
        )
        for split in splits
    }
    everything = np.concatenate([*sizes.values(), COCO_BINS])
    edges = np.geomspace(max(everything.min(), 0.5), everything.max() * 1.01, 41)
    for split, values in sizes.items():
        axes.hist(values, edges, histtype='stepfilled', alpha=0.5, label=f'{split} {len(values):,}')
    for limit in COCO_BINS:
        axes.axvline(limit, color='black', linestyle='--', linewidth=1)
    if inspection.anchors:
        sides = np.unique(np.sqrt(inspection.anchors[1].prod(1)).round(1)) / inspection.factor
        for i, side in enumerate(sides):
            name = {'label': 'anchors'} if not i else {}
            axes.axvline(side, color='tab:red', linestyle=':', linewidth=1, **name)
    title = 'objects; dashed: 32 and 96 px, between small, medium and large of COCO'
    axes.set(title=title, xlabel='square root of the area, px', ylabel='objects')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')


def _chosen(inspection: Inspection) -> Iterator[tuple[Part, Image, str | None, list[str]]]:
    """The images of the sheet: one of every kind of finding by turns, then others."""
    place = {}
    for part in inspection.parts:
        for image in part.used:
            stem = os.path.splitext(os.path.basename(image.file))[0]
            for name in (image.file, image.label_map, f'{stem}.xml'):
                place.setdefault((part.split, name), (part, image))
    marked, severities = _marked(inspection.findings, place)
    others = [
        [(part, image) for image in part.used if (part.split, image.file) not in marked]
        for part in inspection.parts
    ]
    free = _TILES - min(_MOST_MARKED, len(marked))
    clean = [pair for turn in zip_longest(*map(_spread, others)) for pair in turn if pair][:free]
    for key in list(marked)[: _TILES - len(clean)]:
        yield *place[key], severities[key], marked[key]
    for part, image in clean:
        yield part, image, None, []


def _marked(
    findings: Findings, place: dict[tuple[str, str], tuple[Part, Image]]
) -> tuple[dict[tuple[str, str], list[str]], dict[tuple[str, str], str]]:
    """(split, image) -> the kinds of its findings, and -> the worst severity."""
    by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    severities: dict[tuple[str, str], str] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity != ERROR):
        name = finding.file
        if name.endswith('.xml'):
            name = os.path.basename(name)
        if (finding.split, name) not in place:
            continue
        key = finding.split, place[finding.split, name][1].file
        by_kind[finding.kind].append(key)
        severities.setdefault(key, finding.severity)
        if finding.kind not in kinds[key]:
            kinds[key].append(finding.kind)
    turns = (key for turn in zip_longest(*by_kind.values()) for key in turn if key)
    # sorting keeps the turns within a severity
    order = sorted(dict.fromkeys(turns), key=lambda key: severities[key] != ERROR)
    return {key: kinds[key] for key in order}, severities


def _spread(items: Sequence) -> list:
    """At most as many as a sheet holds, evenly from first to last."""
    step = max(1, len(items) / _TILES)
    return [items[int(i * step)] for i in range(min(_TILES, len(items)))]


def _draw_image(tile: np.ndarray, part: Part, image: Image) -> None:
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
    if x2 - x1 < 2 or y2 - y1 < 2:  # else not to be seen
        cv2.drawMarker(shown, (x1, y1), colour, cv2.MARKER_TILTED_CROSS, 12, 2)
    write_text(shown, name, (min(max(x1, 2), shown.shape[1] - 20), max(y1 - 3, 10)))


def _draw_mask(shown: np.ndarray, item: Object, size: tuple[int, int], colour: tuple) -> None:
    from pycocotools import mask as coco_mask

    fault = check_mask(item.segmentation, item.box, *size)
    if fault and fault[0] in ('mask broken', 'mask size'):
        return
    rle = item.segmentation
    if isinstance(rle, list):
        good = [part for part in rle if len(part) % 2 == 0 and len(part) >= 6]
        rle = coco_mask.merge(coco_mask.frPyObjects(good, size[1], size[0]))
    elif isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, size[1], size[0])
    mask = cv2.resize(coco_mask.decode(rle), shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    shown[mask > 0] = shown[mask > 0] // 2 + np.array(colour, np.uint8) // 2


def _draw_label_map(shown: np.ndarray, part: Part, file: str) -> None:
    label_map = part.maps.get(file)
    if label_map is None or label_map.fault:
        write_text(shown, 'no label map that can be shown', (8, 20))
        return
    with PillowImage.open(file) as image:
        values = np.array(image).squeeze().astype(np.uint8)
    if part.node.option('reduce_zero_label'):
        values = np.where(values == 0, 255, values - 1).astype(np.uint8)
    colours = np.zeros((256, 3), np.uint8)  # what is no class is black
    colours[: len(part.classes)] = [_colour(i) for i in range(len(part.classes))]
    laid = cv2.resize(values, shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    shown[:] = shown // 2 + colours[laid] // 2


def _colour(label: int) -> tuple[int, int, int]:
    """A colour of its own for each class, none of them red."""
    hue = 0.08 + 0.84 * (label * 0.618 % 1)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1)[::-1])
