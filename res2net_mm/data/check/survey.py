"""Reading all data of a config, and comparing it with the rest of the config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmengine import Config

from ...checks import alike, listed
from ..errors import DataError, Finding, error, raised, warning
from ..sets.coco import loads_masks, read_coco
from ..sets.label_maps import read_semantic
from ..sets.nodes import Node, find_nodes
from ..sets.records import Image, Reading
from ..sets.voc import read_voc_set
from .agreement import (
    check_evaluators,
    check_num_classes,
    check_same_classes,
    evaluators_of,
    ignored_labels,
    measures_masks,
    model_of,
)
from .findings import of_split
from .pixels import CheckedSet
from .summary import SplitSummary, counted


class Survey:
    """The data of a config, as its annotations describe it.

    Attributes:
        model: The model's config.
        summaries: What each split amounts to, once it is read.
        sets: The datasets that could be read.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.model = model_of(cfg)
        self.summaries: list[SplitSummary] = []
        self.sets: list[CheckedSet] = []

    def read(self, splits: Sequence[str]) -> Iterator[Finding]:
        """Reads the annotations of ``splits``; those that the config does not have are skipped.

        Yields:
            What is wrong with the annotations, and what does not agree with them.
        """
        seen: list[tuple[Any, SplitSummary]] = []
        for split in splits:
            dataset = (self.cfg.get(f'{split}_dataloader') or {}).get('dataset')
            if dataset is None:
                continue
            evaluators = list(evaluators_of(self.cfg, split))
            data = dataset, split == 'train', [config for _, config in evaluators]
            twin = next((summary for other, summary in seen if other == data), None)
            if twin:
                self.summaries.append(replace(twin, split=split, same_as=twin.split))
                continue
            summary = SplitSummary(split)
            seen.append((data, summary))
            self.summaries.append(summary)
            nodes = list(
                find_nodes(dataset, f'{split}_dataloader.dataset', self.cfg.get('default_scope'))
            )
            yield from of_split(split, self._read_split(summary, nodes, evaluators))
        if self.sets:
            yield from raised('classes', check_num_classes, self.model, self.sets[0])

    def _read_split(
        self, summary: SplitSummary, nodes: list[Node], evaluators: list[tuple[str, Mapping]]
    ) -> Iterator[Finding]:
        split = summary.split
        summary.dataset = ', '.join(dict.fromkeys(node.name for node in nodes))
        # results that are only written, not measured, need no ground truth
        annotated = split == 'train' or not any(e.get('format_only') for _, e in evaluators)
        masks = measures_masks(evaluators)
        ignored = dict(ignored_labels(self.model, evaluators))
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
                yield error('classes', fault)
                continue
            for group in alike(summary.classes):
                yield warning(
                    'classes alike',
                    node.classes_key,
                    f'{listed(map(repr, group))} differ only in case, blanks or Unicode form',
                    'make them one, if they are meant to be: voc2coco does with --merge',
                )
            try:
                reading = yield from _read(node, summary.classes, annotated, split == 'train')
            except DataError as fault:
                yield error('files', fault)
                continue
            read += 1
            stray += reading.stray
            images = _used(reading.images, node, left_out)
            used += images
            loads = loads_masks(node.pipeline)
            part = CheckedSet(
                split, node, summary.classes, reading.images, images, masks or loads, dict(ignored)
            )
            self.sets.append(part)
            yield from raised('classes', check_same_classes, self.sets[0], part)
        if read:
            detection = any(node.kind in ('coco', 'voc') for node in nodes)
            summary.left_out = dict(left_out)
            summary.count(used, stray, detection)
            # whether the ground truth that is measured by comes from a file, not from the dataset
            by_file = any(config.get('ann_file') for _, config in evaluators)
            summary.kept = any(
                node.config.get('test_mode') and (node.kind == 'voc' or by_file) for node in nodes
            )
            if not used or (detection and annotated and not summary.boxes):
                yield error('nothing usable', _unusable(summary, nodes))
        yield from raised('metric', check_evaluators, nodes, evaluators)


def _read(
    node: Node, classes: tuple[str, ...], annotated: bool, training: bool
) -> Generator[Finding, None, Reading]:
    if node.kind == 'coco':
        return (yield from read_coco(node, classes, annotated))
    if node.kind == 'voc':
        return (yield from read_voc_set(node, classes, training))
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


def _unusable(summary: SplitSummary, nodes: list[Node]) -> DataError:
    return DataError(
        f'no usable {"box" if summary.images else "image"} (boxes: '
        f'{counted(summary.dropped) or "none"}; images left out by filter_cfg: '
        f'{counted(summary.left_out) or "none"})',
        ', '.join(f'{node.key}.ann_file' for node in nodes if node.kind),
        'give it annotations with boxes of some size, of the classes of the config',
    )
