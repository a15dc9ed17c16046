"""The report of a full check: tables and findings as text, pictures and a list as files."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...columns import side_by_side
from ...files import writing
from ..errors import DataError
from ..sets.sizes import COCO_SIDES
from .inspection import Inspection
from .objects import count_classes, object_sizes
from .pictures import draw_inspection, object_sides, size_figure
from .quick import format_summary

_MOST_SHOWN = 3  # image sizes and modes of a split


def format_inspection(inspection: Inspection) -> str:
    """The splits and their classes as tables, then the findings, errors first."""
    detection = any(part.node.kind in ('coco', 'voc') for part in inspection.sets)
    blocks = []
    if inspection.sets:
        low, high = COCO_SIDES
        objects = ['objects', f'to {low} px', f'to {high} px', 'larger', 'least side']
        objects = [*objects, 'most on one'] if detection else []
        rows = [['split', 'images', *objects, 'image sizes', 'modes']]
        blocks = [_table(rows + [_row(inspection, s, detection) for s in inspection.splits])]
    counts = {split: count_classes(inspection.sets, split) for split in inspection.splits}
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    if names:
        rows = [['class', *(split for split, found in counts.items() if found)]]
        for name in names:
            cells = (_class_text(found, name, detection) for found in counts.values() if found)
            rows.append([name, *cells])
        blocks.append('\n'.join(side_by_side(_table(rows).splitlines())))
    blocks.append(format_summary(inspection.summaries))
    return '\n\n'.join([*blocks, *map(str, inspection.findings.groups())])


def make_folder(folder: str | Path) -> Path:
    """Makes the folder for :func:`write_inspection`, before the work whose results it gets.

    Raises:
        DataError: Nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # which a full disk refuses
    except OSError as error:
        raise DataError(
            f'it cannot be written to ({error.strerror})',
            str(folder),
            'name another folder with --out',
        ) from error
    return folder


def write_inspection(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Writes ``sheet.jpg``, ``sizes.png`` and ``findings.csv`` into an existing folder.

    Raises:
        OSError: That is not possible.
    """
    files = [Path(folder, name) for name in ('sheet.jpg', 'sizes.png', 'findings.csv')]
    inspection.findings.write_csv(files[2])
    with writing(files[0], durable=False) as partial:
        draw_inspection(inspection, partial)
    with writing(files[1], durable=False) as partial:
        size_figure(inspection).savefig(partial, dpi=120)
    return files


def _row(inspection: Inspection, split: str, detection: bool) -> list[str]:
    parts = [part for part in inspection.sets if part.split == split]
    pictures = [picture for part in parts for picture in part.pictures.values() if picture.size]
    objects = []
    if detection:
        sides = object_sides(inspection, split)
        bins = np.bincount(np.digitize(sides, COCO_SIDES), minlength=3)
        least = min(object_sizes(part)[0].min(initial=np.inf) for part in parts)
        most = max((len(image.boxes) for part in parts for image in part.used), default=0)
        objects = [f'{len(sides):,}', *(f'{count:,}' for count in bins)]
        objects += [f'{least:.3g}' if len(sides) else '', f'{most:,}']
    return [
        split,
        f'{sum(len(part.used) for part in parts):,}',
        *objects,
        _most_common('{}x{}'.format(*picture.size) for picture in pictures),
        _most_common(p.header.mode + ' 16 bits' * p.header.deep for p in pictures),
    ]


def _class_text(found: dict[str, int], name: str, detection: bool) -> str:
    if detection:
        return f'{found.get(name, 0):,}'
    return f'{found.get(name, 0) / max(1, sum(found.values())):.2%}'


def _most_common(values: Iterable[str]) -> str:
    counts = Counter(values)
    shown = ', '.join(f'{value} ({n:,})' for value, n in counts.most_common(_MOST_SHOWN))
    more = len(counts) - _MOST_SHOWN
    return f'{shown}, {more:,} others' if more > 0 else shown


def _table(rows: list[list[str]]) -> str:
    """Left-justified columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
