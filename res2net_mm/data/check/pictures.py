"""A picture of a data set: a sheet of its images with their annotations."""

from __future__ import annotations

import colorsys
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError
from ..findings import ERROR, Finding
from ..sets.label_maps import map_reader
from ..sets.masks import read_mask
from ..sets.records import Image, Object
from .inspection import Inspection
from .pixels import CheckedSet, spread

_TILE = (320, 240)  # px, width and height that an image is fitted into
_CAPTION, _EDGE = 34, 5  # px below an image, and around it
_COLUMNS, _TILES, _MOST_MARKED = 6, 24, 18
_WHITE, _BLACK, _RED, _ORANGE = (255, 255, 255), (0, 0, 0), (40, 40, 230), (0, 150, 255)
_MOST_NAMES = 15  # objects in an image, up to which each gets its class's name

Item = tuple[CheckedSet, Image, list[Finding]]


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
    empty = np.zeros((_TILE[1] + _CAPTION + 2 * _EDGE, _TILE[0] + 2 * _EDGE, 3), np.uint8)
    tiles = tiles or [empty]
    tiles += [empty] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    sheet = np.vstack(rows)
    Path(out).write_bytes(cv2.imencode('.jpg', sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    return sheet


def _chosen(inspection: Inspection) -> Iterator[Item]:
    """The images of the sheet: first those with findings, errors first, kinds by turns."""
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)  # split, name -> findings
    ranks: dict[int, tuple[bool, int]] = {}  # of each finding
    turns: Counter[str] = Counter()
    for finding in inspection.findings:
        found[finding.split, _name(finding.file)].append(finding)
        ranks[id(finding)] = finding.severity != ERROR, turns[finding.kind]
        turns[finding.kind] += 1
    faulty, clean = [], []
    for part in inspection.sets:
        for image in part.used:
            xml = f'{os.path.splitext(os.path.basename(image.file))[0]}.xml'
            names = filter(None, (image.file, image.label_map, xml))
            findings = [f for name in names for f in found.get((part.split, name), ())]
            (faulty if findings else clean).append((part, image, findings))
    faulty.sort(key=lambda item: min(ranks[id(finding)] for finding in item[2]))
    others = spread(clean, _TILES - min(_MOST_MARKED, len(faulty)))
    yield from [*faulty[: _TILES - len(others)], *others]


def _name(file: str) -> str:
    """A VOC annotation file without its folder, as the images' names do not show that."""
    return os.path.basename(file) if file.endswith('.xml') else file


def write_text(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """Writes white letters with a black edge, their lower left corner at ``place`` in px."""
    for colour, thickness in ((_BLACK, 3), (_WHITE, 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)


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
