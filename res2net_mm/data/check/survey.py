"""Reading all data of a config, comparing it with the rest of the config, and counting it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine import Config

from ...checks import alike, listed
from ..errors import DataError
from ..findings import Finding, caught, error, of_split, raised, warning
from ..sets.coco import loads_masks, read_coco
from ..sets.folders import read_folders
from ..sets.label_maps import read_semantic
from ..sets.nodes import Node, find_nodes
from ..sets.records import IGNORED, ZERO_SIZE, Image, Reading, count_others
from ..sets.voc import read_voc_set
from . import agreement
from .pixels import CheckedSet

_OTHER_CLASSES = 'other classes'
_MOST_CLASSES = 12  # that are listed
_MOST_EXAMPLES = 3


@dataclass
class SplitSummary:
    """What the data of one split amounts to."""

    split: str  # train, val or test
    dataset: str = ''  # the dataset's type
    images: int = 0  # that the run uses, after filter_cfg and indices
    boxes: int = 0  # usable ones in these images
    dropped: dict[str, int] = field(default_factory=dict)  # why a box is not usable -> how many
    kept: bool = False  # whether these boxes still are in the ground truth that is measured by
    # names that are no class -> objects; these are in no ground truth, and in dropped as well
    other_classes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # why filter_cfg does it -> images
    classes: tuple[str, ...] = ()  # in the order of the labels
    per_class: dict[str, int] = field(default_factory=dict)  # usable boxes; empty for label maps
    whole: bool = False  # whether an image has one class and no boxes; per_class counts images
    examples: list[str] = field(default_factory=list)  # first images with a box of no size
    unchecked: list[str] = field(default_factory=list)  # types of datasets that were not read
    same_as: str | None = None  # an earlier split that has the same data
    warnings: list[str] = field(default_factory=list)

    def count(self, images: Sequence[Image], stray: int, detection: bool) -> None:
        """Counts the images that the run uses and, for ``detection``, the boxes in them.

        ``stray`` objects belong to images that are not listed.
        """
        self.images = len(images)
        if not detection:
            return
        dropped, per_class = Counter(), Counter(dict.fromkeys(self.classes, 0))
        for image in images:
            reasons = Counter(item.reason for item in image.objects if item.reason)
            dropped.update(reasons)
            per_class.update(image.boxes)
            if reasons[ZERO_SIZE] and len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(os.path.splitext(os.path.basename(image.file))[0])
        others = count_others(images)
        dropped.update({'of images not listed': stray, _OTHER_CLASSES: others.total()})
        self.dropped, self.per_class = dict(+dropped), dict(per_class)
        self.other_classes = dict(others.most_common())
        self.boxes = per_class.total()

    def __str__(self) -> str:
        own_way = f'{", ".join(dict.fromkeys(self.unchecked))} not checked'
        if not self.images:
            return own_way if self.unchecked else 'could not be read'
        text = f'{self.images:,} image{"s" * (self.images != 1)}'
        if self.whole:
            text += f' ({_class_text(self.per_class)})'
        elif self.per_class:
            boxes = f'{self.boxes:,} box{"es" * (self.boxes != 1)}'
            text += f', {boxes} ({_class_text(self.per_class)})'
        else:
            text += f' with label maps, {len(self.classes)} classes'
        parts = [text]
        dropped = ', '.join(
            self._dropped_text(reason, count)
            for reason, count in self.dropped.items()
            if reason != _OTHER_CLASSES
        )
        if dropped:
            kept = f'{dropped} kept in the ground truth'
            parts.append(kept if self.kept else f'dropped {dropped}')
        if self.other_classes:
            names = listed(f'{name} {count:,}' for name, count in self.other_classes.items())
            parts.append(f'ignored objects of other classes ({names})')
        if self.left_out:
            parts.append(f'left out images: {_counted(self.left_out)}')
        if self.unchecked:
            parts.append(own_way)
        return '; '.join(parts)

    def _dropped_text(self, reason: str, count: int) -> str:
        boxes = 'box' if count == 1 else 'boxes'
        if reason == ZERO_SIZE:
            more = ', ...' * (count > len(self.examples))
            return f'{count:,} {reason} {boxes} ({listed(self.examples)}{more})'
        return f'{count:,} {reason} {boxes}' if reason in IGNORED else f'{count:,} {boxes} {reason}'


class Survey:
    """The data of a config, as its annotations describe it.

    Args:
        cfg: The config.
        asked: The splits whose metrics count.
    """

    def __init__(self, cfg: Config, asked: Sequence[str]) -> None:
        self.cfg, self.asked = cfg, asked
        self.model = agreement.model_of(cfg)
        self.summaries: list[SplitSummary] = []  # one for each split that was read
        self.sets: list[CheckedSet] = []  # the datasets that could be read

    def read(self, splits: Sequence[str]) -> Iterator[Finding]:
        """Reads the annotations of the ``splits`` that the config has.

        Yields:
            What is wrong with the annotations, and what does not agree with them.
        """
        seen: list[tuple[Any, SplitSummary]] = []
        for split in splits:
            dataset = (self.cfg.get(f'{split}_dataloader') or {}).get('dataset')
            if dataset is None:
                continue
            evaluators = list(agreement.evaluators_of(self.cfg, split))
            # results that are only written, not measured, need no ground truth
            annotated = split == 'train' or not any(e.get('format_only') for _, e in evaluators)
            # whether the ground truth that is measured by comes from a file, not from the dataset
            by_file = any(config.get('ann_file') for _, config in evaluators)
            key, scope = f'{split}_dataloader.dataset', self.cfg.get('default_scope')
            nodes = list(find_nodes(dataset, key, scope))
            data = dataset, split == 'train', annotated, by_file
            twin = next((summary for other, summary in seen if other == data), None)
            if twin:
                self.summaries.append(replace(twin, split=split, same_as=twin.split))
            else:
                summary = SplitSummary(split)
                seen.append((data, summary))
                self.summaries.append(summary)
                yield from of_split(split, self._read_split(summary, nodes, annotated, by_file))
            if split in self.asked:
                for part in self.sets:
                    if part.split == (twin.split if twin else split):
                        part.masks |= agreement.measures_masks(evaluators)
                        part.ignored |= dict(agreement.ignored_labels(self.model, evaluators))
            yield from of_split(
                split, raised('metric', agreement.check_evaluators, nodes, evaluators)
            )
        if self.sets:
            yield from raised('classes', agreement.check_num_classes, self.model, self.sets[0])

    def _read_split(
        self, summary: SplitSummary, nodes: list[Node], annotated: bool, by_file: bool
    ) -> Iterator[Finding]:
        split = summary.split
        summary.dataset = ', '.join(dict.fromkeys(node.name for node in nodes))
        left_out: Counter[str] = Counter()
        used: list[Image] = []
        stray = read = 0
        for node in nodes:
            if node.kind is None or node.remote:
                summary.unchecked.append(node.name)
                if node.family in ('coco', 'voc') and not node.remote:
                    yield from raised('files', node.annotation_file)
                continue
            try:
                summary.classes = node.classes()
            except DataError as fault:
                yield caught('classes', fault)
                continue
            for group in alike(summary.classes):
                yield warning(
                    'classes alike',
                    node.classes_key,
                    f'{listed(map(repr, group))} differ only in case, blanks or Unicode form',
                )
            try:
                reading = yield from _read(node, summary.classes, annotated, split == 'train')
            except DataError as fault:
                yield caught('files', fault)
                continue
            read += 1
            stray += reading.stray
            images = _used(reading.images, node, left_out)
            used += images
            masks = loads_masks(node.pipeline)
            part = CheckedSet(split, node, summary.classes, reading.images, images, masks)
            self.sets.append(part)
            yield from raised('classes', agreement.check_same_classes, self.sets[0], part)
        if read:
            detection = any(node.kind in ('coco', 'voc') for node in nodes)
            summary.whole = any(node.kind == 'folders' for node in nodes)
            summary.left_out = dict(left_out)
            summary.count(used, stray, detection or summary.whole)
            summary.kept = any(
                node.config.get('test_mode') and (node.kind == 'voc' or by_file) for node in nodes
            )
            if not used or (detection and annotated and not summary.boxes):
                yield _unusable(summary, nodes)


def _read(
    node: Node, classes: tuple[str, ...], annotated: bool, training: bool
) -> Generator[Finding, None, Reading]:
    if node.kind == 'coco':
        return (yield from read_coco(node, classes, annotated))
    if node.kind == 'voc':
        return (yield from read_voc_set(node, classes, training))
    if node.kind == 'folders':
        return (yield from read_folders(node, classes))
    return (yield from read_semantic(node, classes))


def _used(images: list[Image], node: Node, left_out: Counter[str]) -> list[Image]:
    """The images that mmengine's dataset would hold; counts those that ``filter_cfg`` drops."""
    filters = {} if node.config.get('test_mode') else node.config.get('filter_cfg') or {}
    if filters and node.kind != 'semantic':
        least, kept = filters.get('min_size', 0), []
        for image in images:
            if filters.get('filter_empty_gt', False) and not image.objects:
                left_out['without objects'] += 1
            elif min(image.width, image.height) < least:
                left_out[f'under {least} px'] += 1
            else:
                kept.append(image)
        images = kept
    indices = node.config.get('indices')
    if isinstance(indices, int):
        return images[:indices] if indices >= 0 else images[indices:]
    return images if indices is None else [images[i] for i in indices if i < len(images)]


def _unusable(summary: SplitSummary, nodes: list[Node]) -> Finding:
    read = [node for node in nodes if node.kind]
    files = ', '.join(repr(node.config.get('ann_file')) for node in read)
    return error(
        'nothing usable',
        ', '.join(f'{node.key}.ann_file' for node in read),
        f'no usable {"box" if summary.images else "image"} in {files} (boxes: '
        f'{_counted(summary.dropped) or "none"}; images left out by filter_cfg: '
        f'{_counted(summary.left_out) or "none"})',
        'give it annotations with boxes of some size, of the classes of the config',
    )


def _counted(counts: Mapping[str, int]) -> str:
    """``'3 without objects, 1 under 32 px'``."""
    return ', '.join(f'{count:,} {what}' for what, count in counts.items())


def _class_text(per_class: Mapping[str, int]) -> str:
    if len(per_class) <= _MOST_CLASSES:
        return ', '.join(f'{name} {count:,}' for name, count in per_class.items())
    empty = sum(1 for count in per_class.values() if not count)
    return f'{len(per_class)} classes' + (f', {empty} of them without a box' if empty else '')
