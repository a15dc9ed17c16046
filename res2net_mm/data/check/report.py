"""The report of a full check: tables and findings as text, a picture and a list as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...columns import aligned, side_by_side
from ...files import check_writable, writing
from ..sets.sizes import COCO_SIDES
from .faults import count_classes
from .inspection import Inspection
from .pictures import draw_inspection
from .survey import format_summary

_MOST_SHOWN = 3  # image sizes and modes of a split


def format_inspection(inspection: Inspection) -> str:
    """The splits and their classes as tables, then the findings, errors first."""
    detection = any(part.node.kind in ('coco', 'voc') for part in inspection.sets)
    splits = [_describe(inspection, split, detection) for split in inspection.splits]
    blocks = ['\n'.join(aligned([[*splits[0]], *map(dict.values, splits)]))] if splits else []
    counts = {split: count_classes(inspection.sets, split) for split in inspection.splits}
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    if names:
        rows = [['class', *counts]]
        for name in names:
            rows.append([name, *(_class_text(f, name, detection) for f in counts.values())])
        blocks.append('\n'.join(side_by_side(aligned(rows))))
    blocks.append(format_summary(inspection.summaries))
    return '\n\n'.join([*blocks, *map(str, inspection.findings.groups())])


def make_folder(folder: str | Path) -> Path:
    """Makes the folder for :func:`write_inspection`, before the work whose results it gets.

    Raises:
        OSError: Nothing can be written there.
    """
    check_writable(folder, '--out', folder=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def write_inspection(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Writes ``sheet.jpg`` and ``findings.csv`` into an existing folder.

    Raises:
        OSError: That is not possible.
    """
    files = [Path(folder, name) for name in ('sheet.jpg', 'findings.csv')]
    inspection.findings.write_csv(files[1])
    with writing(files[0], durable=False) as partial:
        draw_inspection(inspection, partial)
    return files


def _describe(inspection: Inspection, split: str, detection: bool) -> dict[str, str]:
    """A row of the table of splits: head -> cell."""
    parts = [part for part in inspection.sets if part.split == split]
    images = [image for part in parts for image in part.used]
    pictures = [picture for part in parts for picture in part.pictures.values() if picture.size]
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
