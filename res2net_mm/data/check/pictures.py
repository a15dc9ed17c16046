"""A picture of a data set: a sheet of its images with their annotations."""

from __future__ import annotations

import colorsys
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval.core import mask as coco_mask

from ..errors import DataError
from ..findings import ERROR, Finding
from ..sets.label_maps import map_reader
from ..sets.masks import read_mask
from ..sets.records import Image
from .inspection import Inspection
from .pixels import CheckedSet, spread

_TILE = (320, 240)  # px, width and height that an image is fitted into
_CAPTION, _EDGE = 34, 5  # px below an image, and around it
_COLUMNS, _TILES, _MOST_MARKED = 6, 24, 18
_WHITE, _BLACK, _RED, _ORANGE = (255, 255, 255), (0, 0, 0), (40, 40, 230), (0, 150, 255)
_MOST_NAMES = 15  # objects in an image, up to which each gets its class's name


def draw_inspection(inspection: Inspection, out: str | Path) -> np.ndarray:
    """Writes a sheet of images with their annotations, those with findings first.

    A red edge marks an image with an error, an orange one an image with a warning; the findings
    stand below it. Objects that are not trained on are red.

    Returns:
        (H, W, 3) the picture, in OpenCV's order of colours.
    """
    width, height = _TILE[0] + 2 * _EDGE, _TILE[1] + _CAPTION + 2 * _EDGE
    chosen = [*_chosen(inspection)]
    rows = max(1, math.ceil(len(chosen) / _COLUMNS))
    sheet = np.zeros((rows * height, _COLUMNS * width, 3), np.uint8)
    for i, (part, image, findings) in enumerate(chosen):
        y, x = i // _COLUMNS * height, i % _COLUMNS * width
        if findings:
            severe = any(finding.severity == ERROR for finding in findings)
            sheet[y : y + height, x : x + width] = _RED if severe else _ORANGE
        tile = sheet[y + _EDGE : y + height - _EDGE, x + _EDGE : x + width - _EDGE]
        tile[:] = 60
        _draw_image(tile[: _TILE[1]], part, image)
        kinds = dict.fromkeys(f.kind for f in sorted(findings))  # errors first
        _write(tile, f'{part.split}: {os.path.basename(image.file)[-34:]}', (3, _TILE[1] + 13))
        _write(tile, ', '.join(kinds)[:52], (3, _TILE[1] + 28))
    Path(out).write_bytes(cv2.imencode('.jpg', sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    return sheet


def _chosen(inspection: Inspection) -> Iterator[tuple[CheckedSet, Image, list[Finding]]]:
    """The images of the sheet: first those with findings, errors first, kinds by turns."""
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)  # split, name -> findings
    ranks: dict[Finding, tuple[bool, int]] = {}
    turns: Counter[str] = Counter()
    for finding in inspection.findings:
        found[finding.split, _name(finding.file)].append(finding)
        ranks[finding] = finding.severity != ERROR, turns[finding.kind]
        turns[finding.kind] += 1
    faulty, clean = [], []
    for part in inspection.sets:
        for image in part.used:
            xml = f'{os.path.splitext(os.path.basename(image.file))[0]}.xml'
            names = filter(None, (image.file, image.label_map, xml))
            findings = [f for name in names for f in found.get((part.split, name), ())]
            (faulty if findings else clean).append((part, image, findings))
    faulty.sort(key=lambda item: min(map(ranks.get, item[2])))
    others = spread(clean, _TILES - min(_MOST_MARKED, len(faulty)))
    yield from [*faulty[: _TILES - len(others)], *others]


def _name(file: str) -> str:
    """A VOC annotation file without its folder, as the images' names do not show that."""
    return os.path.basename(file) if file.endswith('.xml') else file


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """White letters with a black edge, their lower left corner at ``place`` in px."""
    for colour, thickness in ((_BLACK, 3), (_WHITE, 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)


def _draw_image(tile: np.ndarray, part: CheckedSet, image: Image) -> None:
    """Draws an image into the upper left corner of ``tile``, with its labels."""
    try:
        picture = part.loader.picture(image.file)
        labels = map_reader(part.node)(image.label_map) if image.label_map else None
    except (OSError, DataError):
        _write(tile, 'cannot be shown', (8, 20))
        return
    height, width = picture.shape[:2]
    scale = min(_TILE[0] / width, _TILE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = tile[: size[1], : size[0]]
    shown[:] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if labels is not None:
        colours = np.zeros((256, 3), np.uint8)  # what is no class is black
        colours[: len(part.classes)] = [_colour(i) for i in range(len(part.classes))]
        laid = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        shown[:] = shown // 2 + colours[laid] // 2
    for item in image.objects:
        colour = _RED if item.reason else _colour(part.classes.index(item.name))
        if part.masks and item.segmentation:
            with suppress(DataError):  # a finding says that the mask is broken
                mask = coco_mask.decode(read_mask(item.segmentation, width, height)[0])
                inside = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0
                shown[inside] = shown[inside] // 2 + np.array(colour, np.uint8) // 2
        if all(map(math.isfinite, item.box)):
            x1, y1, x2, y2 = (int(np.clip(round(side * scale), -9999, 9999)) for side in item.box)
            cv2.rectangle(shown, (x1, y1), (x2, y2), colour)
            if x2 - x1 < 2 or y2 - y1 < 2:  # else it could not be seen
                cv2.drawMarker(shown, (x1, y1), colour, cv2.MARKER_TILTED_CROSS, 12, 2)
            name = item.reason or (item.name if len(image.objects) <= _MOST_NAMES else '')
            _write(shown, name, (min(max(x1, 2), size[0] - 20), max(y1 - 3, 10)))


def _colour(label: int) -> tuple[int, int, int]:
    """A colour for each class, none of them red."""
    hue = 0.08 + 0.84 * (label * 0.618 % 1)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1)[::-1])
