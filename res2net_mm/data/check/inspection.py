"""The full check of a config's data before anyone trains: every fault, not only the first."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine import Config

from ...columns import side_by_side
from ...files import writing
from ..errors import DataError
from ..sets.nodes import Image, Node
from ..sets.readers import loads_masks, report_missing
from .agreement import evaluators_of, ignored_by_metrics, ignored_labels, model_of
from .files import check_files, check_maps, check_pictures, check_splits
from .findings import Collector, Findings
from .objects import (
    check_anchors,
    check_classes,
    check_most_objects,
    check_objects,
    count_classes,
    object_sizes,
)
from .pictures import COCO_BINS, draw_inspection, size_figure
from .pixels import Known, Part, look_at_pixels
from .quick import SplitSummary, format_summary, source_of, walk

SPLITS = ('train', 'val', 'test')
FILES = ('sheet.jpg', 'sizes.png', 'findings.csv')
_MOST_SHOWN = 3  # image sizes and modes of a split


@dataclass
class Inspection:
    """All that the full check found out.

    Attributes:
        findings: what is wrong.
        summaries: what each split comes to.
        parts: the datasets that were looked into; one of two splits that are the same.
        anchors: where the model's anchors are set and their (N, 2) sizes in px, if it has any.
        factor: by how much the training enlarges images, at the median.
    """

    findings: Findings
    summaries: list[SplitSummary]
    parts: list[Part]
    anchors: tuple[str, np.ndarray] | None = None
    factor: float = 1.0


def inspect_data(
    cfg: Config, splits: Sequence[str] = SPLITS, workers: int | None = None
) -> Inspection:
    """Look at all data of an mmdet or mmseg config: annotations, images, masks and label maps.

    Covers what the quick :func:`~res2net_mm.data.check.quick.check_data` covers, decodes every
    image and label map, and finds what only the whole set shows. A fault that ends training or
    teaches it something wrong is an error; one that training passes over safely is a warning.

    Args:
        cfg: the config.
        splits: which of its dataloaders.
        workers: threads that decode; by default as many as there are processors, at most 16.

    Returns:
        The findings, and what they were made of.

    Raises:
        DataError: the config has none of the dataloaders, or its model is none.
    """
    if not any((cfg.get(f'{split}_dataloader') or {}).get('dataset') for split in splits):
        wanted = ', '.join(f'{split}_dataloader' for split in splits)
        raise DataError(f'the config has no data to check ({wanted}); name splits that it has')
    model = model_of(cfg)
    watch = Collector()
    everything: list[Part] = []

    def look(node: Node, classes: tuple[str, ...], images: list[Image], used: list[Image]) -> None:
        report_missing(node, [image.file for image in used], 'images', source_of(node), watch)
        masks = loads_masks(node.config.get('pipeline') or ()) or _measures_masks(cfg, watch.split)
        part = Part(watch.split, node, classes, images, used, masks)
        part.ignored = dict(ignored_by_metrics(cfg, watch.split))
        twin = next((other for other in everything if _same(part, other)), None)
        if twin and twin.split in splits:
            twin.masks |= masks
            twin.ignored |= part.ignored
        else:
            everything.append(part)

    # all splits: an image that another one lists is not left over
    summaries = [summary for summary in walk(cfg, SPLITS, watch, look) if summary.split in splits]
    # where two splits are the same, the first is looked at, whichever was asked for
    asked = {'', *splits, *(summary.same_as for summary in summaries)}
    watch.findings[:] = [finding for finding in watch.findings if finding.split in asked]
    parts = [part for part in everything if part.split in asked]
    known: Known = {}
    for part in parts:
        watch.begin(part.split)
        look_at_pixels(part, known, workers)
        check_files(watch, part, everything)
        check_pictures(watch, part)
        if part.node.kind == 'semantic':
            check_maps(watch, part, dict(ignored_labels(model)))
        else:
            check_objects(watch, part)
    watch.begin('')
    check_splits(watch, parts)
    for summary in summaries:
        for name in dict.fromkeys(summary.unchecked if not summary.same_as else ()):
            watch.begin(summary.split)
            watch.warn(
                'not checked',
                f'{summary.split}_dataloader.dataset',
                f'{name} reads its annotations in a way of its own, or from elsewhere',
                'check this data yourself',
            )
    check_classes(watch, parts, [summary.split for summary in summaries if summary.unchecked])
    check_most_objects(watch, parts, model)
    anchors, factor = check_anchors(watch, parts, model)
    return Inspection(watch.findings.once(), summaries, parts, anchors, factor)


def format_inspection(inspection: Inspection) -> str:
    """The splits and their classes as tables, then the findings, errors first."""
    parts = inspection.parts
    splits = list(dict.fromkeys(part.split for part in parts))
    detection = any(part.node.kind != 'semantic' for part in parts)
    rows = [['split', 'images', *(['objects', *_size_names()] if detection else []), 'image sizes']]
    rows[0].append('modes')
    for split in splits:
        own = [part for part in parts if part.split == split]
        pictures = [picture for part in own for picture in part.pictures.values() if picture.size]
        objects = []
        if detection:
            sizes = np.concatenate([np.sqrt(object_sizes(part)[0].prod(1)) for part in own])
            bins = np.digitize(sizes, COCO_BINS)
            least = min(object_sizes(part)[0].min(initial=np.inf) for part in own)
            most = max((len(image.boxes) for part in own for image in part.used), default=0)
            objects = [f'{len(sizes):,}', *(f'{n:,}' for n in np.bincount(bins, minlength=3))]
            objects += [f'{least:.3g}' if len(sizes) else '', f'{most:,}']
        rows.append([
            split,
            f'{sum(len(part.used) for part in own):,}',
            *objects,
            _most_common(f'{picture.size[0]}x{picture.size[1]}' for picture in pictures),
            _most_common(picture.mode + ' 16 bits' * picture.deep for picture in pictures),
        ])  # fmt: skip
    blocks = [_table(rows)] if parts else []
    counts = {split: count_classes(parts, split) for split in splits}
    counts = {split: found for split, found in counts.items() if found}
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    if names:
        rows = [
            [name, *(_class_text(found, name, detection) for found in counts.values())]
            for name in names
        ]
        table = _table([['class', *counts], *rows])
        blocks.append('\n'.join(side_by_side(table.splitlines())))
    blocks.append(format_summary(inspection.summaries))
    blocks += map(str, inspection.findings.groups())
    return '\n\n'.join(blocks)


def make_folder(folder: str | Path) -> Path:
    """Make the folder for :func:`write_inspection`, before the work that its files come from.

    Raises:
        DataError: nothing can be written there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # which a full disk refuses
    except OSError as error:
        raise DataError(
            f'{folder} cannot be written to ({error.strerror}); name another folder with --out'
        ) from error
    return folder


def write_inspection(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Write ``sheet.jpg``, ``sizes.png`` and ``findings.csv`` into an existing folder.

    Raises:
        OSError: that is not possible.
    """
    sheet, sizes, findings = files = [Path(folder, name) for name in FILES]
    inspection.findings.write_csv(findings)
    with writing(sheet, durable=False) as partial:
        draw_inspection(inspection, partial)
    with writing(sizes, durable=False) as partial:
        size_figure(inspection).savefig(partial, dpi=120)
    return files


def _size_names() -> list[str]:
    low, high = COCO_BINS
    return [f'to {low} px', f'to {high} px', 'larger', 'least side', 'most on one']


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
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _same(part: Part, other: Part) -> bool:
    """Whether two splits to measure on, but by different metrics, have the same data."""
    measured = part.split != other.split and 'train' not in (part.split, other.split)
    return measured and part.node.config == other.node.config


def _measures_masks(cfg: Config, split: str) -> bool:
    metrics = (config.get('metric') or () for _, config in evaluators_of(cfg, split))
    return any('segm' in ([metric] if isinstance(metric, str) else metric) for metric in metrics)
