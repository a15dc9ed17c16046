"""The report of a full check: tables and findings as text, a picture and a list as files."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval.core import mask as coco_mask

from ...colours import class_colour, class_colours
from ...columns import aligned, side_by_side
from ...files import writing
from ..errors import DataError
from ..findings import ERROR
from ..sets.images import COCO_SIDES
from ..sets.label_maps import map_reader
from ..sets.masks import read_mask
from ..sets.records import Image
from ..transforms import loader_of
from .faults import count_classes
from .inspection import Inspection
from .pixels import CheckedSet, spread
from .survey import format_summary

_MOST_SHOWN = 3  # image sizes and modes of a split
_TILE = (320, 240)  # px, width and height that an image is fitted into
_CAPTION, _EDGE = 34, 5  # px below an image, and around it
_COLUMNS, _TILES, _MOST_MARKED = 6, 24, 18
_RED, _ORANGE = (40, 40, 230), (0, 150, 255)
_MOST_NAMES = 15  # objects in an image, up to which each gets its class's name


def format_inspection(inspection: Inspection) -> str:
    """The splits and their classes as tables, then the findings, errors first."""
    detection = any(part.node.kind in ('coco', 'voc') for part in inspection.sets)
    splits = dict.fromkeys(part.split for part in inspection.sets)
    rows = [_describe(inspection, split, detection) for split in splits]
    blocks = ['\n'.join(aligned([[*rows[0]], *map(dict.values, rows)]))] if rows else []
    counts = {split: count_classes(inspection.sets, split) for split in splits}
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    if names:
        rows = [['class', *counts]]
        for name in names:
            rows.append([name, *(_class_text(f, name, detection) for f in counts.values())])
        blocks.append('\n'.join(side_by_side(aligned(rows))))
    blocks.append(format_summary(inspection.summaries))
    return '\n\n'.join([*blocks, *map(str, inspection.findings.groups())])


def write_inspection(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Writes ``sheet.jpg`` and ``findings.csv`` into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(folder, name) for name in ('sheet.jpg', 'findings.csv')]
    inspection.findings.write_csv(files[1])
    with writing(files[0], durable=False) as partial:
        draw_inspection(inspection, partial)
    return files


def _describe(inspection: Inspection, split: str, detection: bool) -> dict[str, str]:
    """A row of the table of splits: head -> cell."""
    parts = [part for part in inspection.sets if part.split == split]
    images = [image for part in parts for image in part.used]
    pictures = [p.pictures[i.file] for p in parts for i in p.used if i.file in p.pictures]
    pictures = [picture for picture in pictures if picture.size]
    row = {'split': split, 'images': f'{len(images):,}'}
    if detection:
        boxes = [item.box for i in images for item in i.objects if item.reason is None]
        x1, y1, x2, y2 = np.array(boxes, float).reshape(-1, 4).T
        sides = np.array([x2 - x1, y2 - y1])
        bins = np.bincount(np.digitize(np.sqrt(sides.prod(0)), COCO_SIDES), minlength=3)
        low, high = COCO_SIDES
        row['objects'] = f'{len(boxes):,}'
        for head, count in zip((f'to {low} px', f'to {high} px', 'larger'), bins, strict=True):
            row[head] = f'{count:,}'
        row['least side'] = f'{sides.min():.3g}' if boxes else ''
        row['most on one'] = f'{max((len(image.boxes) for image in images), default=0):,}'
    row['image sizes'] = _most_common('{}x{}'.format(*picture.size) for picture in pictures)
    row['modes'] = _most_common(p.header.mode + ' 16 bits' * p.header.deep for p in pictures)
    return row


def _class_text(found: dict[str, int], name: str, detection: bool) -> str:
    count = found.get(name, 0)
    return f'{count:,}' if detection else f'{count / max(1, sum(found.values())):.2%}'


def _most_common(values: Iterable[str]) -> str:
    counts = Counter(values)
    shown = ', '.join(f'{value} ({n:,})' for value, n in counts.most_common(_MOST_SHOWN))
    more = len(counts) - _MOST_SHOWN
    return f'{shown}, {more:,} others' if more > 0 else shown


def draw_inspection(inspection: Inspection, out: str | Path) -> np.ndarray:
    """Writes a sheet of images with their annotations, those with findings first.

    A red edge marks an image with an error, an orange one an image with a warning; the findings
    stand below it. Objects that are not trained on are red.

    Returns:
        (H, W, 3) the picture, in OpenCV's order of colours.
    """
    width, height = _TILE[0] + 2 * _EDGE, _TILE[1] + _CAPTION + 2 * _EDGE
    chosen = _chosen(inspection)
    rows = max(1, math.ceil(len(chosen) / _COLUMNS))
    sheet = np.zeros((rows * height, _COLUMNS * width, 3), np.uint8)
    for i, (part, image, marks) in enumerate(chosen):
        y, x = i // _COLUMNS * height, i % _COLUMNS * width
        if marks:
            sheet[y : y + height, x : x + width] = _ORANGE if marks[0][0] else _RED
        tile = sheet[y + _EDGE : y + height - _EDGE, x + _EDGE : x + width - _EDGE]
        tile[:] = 60
        _draw_image(tile[: _TILE[1]], part, image)
        kinds = dict.fromkeys(finding.kind for _, _, finding in marks)
        _write(tile, f'{part.split}: {os.path.basename(image.file)[-34:]}', (3, _TILE[1] + 13))
        _write(tile, ', '.join(kinds)[:52], (3, _TILE[1] + 28))
    Path(out).write_bytes(cv2.imencode('.jpg', sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])
    return sheet


def _chosen(inspection: Inspection) -> list[tuple[CheckedSet, Image, list[tuple]]]:
    """The images of the sheet: first those with findings, errors first, kinds by turns."""
    found = defaultdict(list)  # split, name -> (whether it is no error, turn, finding)
    for group in inspection.findings.groups():
        for turn, finding in enumerate(group):
            # images do not say in which folder their VOC files are
            xml = finding.file.endswith('.xml')
            name = os.path.basename(finding.file) if xml else finding.file
            found[finding.split, name].append((finding.severity != ERROR, turn, finding))
    faulty, clean = [], []
    for part in inspection.sets:
        for image in part.used:
            xml = f'{os.path.splitext(os.path.basename(image.file))[0]}.xml'
            names = image.file, image.label_map, xml
            marks = sorted(mark for name in names for mark in found.get((part.split, name), ()))
            (faulty if marks else clean).append((part, image, marks))
    faulty.sort(key=lambda item: item[2][0][:2])
    others = spread(clean, _TILES - min(_MOST_MARKED, len(faulty)))
    return [*faulty[: _TILES - len(others)], *others]


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """White letters with a black edge, their lower left corner at ``place`` in px."""
    for grey, thickness in ((0, 3), (255, 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (grey,) * 3, thickness)


def _draw_image(tile: np.ndarray, part: CheckedSet, image: Image) -> None:
    """Draws an image into the upper left corner of ``tile``, with its labels."""
    try:
        picture = loader_of(part.node.pipeline).picture(image.file)
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
        colours[: len(part.classes)] = class_colours(len(part.classes))
        laid = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        shown[:] = shown // 2 + colours[laid][..., ::-1] // 2
    for item in image.objects:
        colour = _RED if item.reason else class_colour(part.classes.index(item.name))[::-1]
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
