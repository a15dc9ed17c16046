"""Reading all data of a config, comparing it with the rest of the config, and counting it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine import Config

from ...checks import listed
from ..errors import DataError
from ..findings import Finding, error, guarded, of_split
from ..sets.coco import loads_masks, read_coco
from ..sets.folders import read_folders
from ..sets.label_maps import read_semantic
from ..sets.nodes import Node, find_nodes
from ..sets.records import Image, count_others
from ..sets.voc import read_voc_set
from . import agreement
from .pixels import CheckedSet

_READERS = {
    'coco': read_coco, 'voc': read_voc_set, 'folders': read_folders, 'semantic': read_semantic,
}  # fmt: skip
_MOST_CLASSES = 12  # that are listed


@dataclass
class SplitSummary:
    """What the data of one split amounts to."""

    split: str  # train, val or test
    images: int = 0  # that the run uses, after filter_cfg and indices
    classes: tuple[str, ...] = ()  # in the order of the labels
    per_class: dict[str, int] = field(default_factory=dict)  # usable boxes; empty for label maps
    whole: bool = False  # whether an image has one class and no boxes; per_class counts images
    dropped: dict[str, int] = field(default_factory=dict)  # why a box is not usable -> how many
    # names that are no class -> objects; these are in no ground truth
    other_classes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # why filter_cfg does it -> images
    unchecked: list[str] = field(default_factory=list)  # types of datasets that were not read
    same_as: str | None = None  # an earlier split that has the same data
    warnings: list[str] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        """Usable ones in these images."""
        return sum(self.per_class.values())

    def count(self, images: Sequence[Image]) -> None:
        """Counts the objects, or classes, of the images that the run uses."""
        names = Counter(name for image in images for name in image.boxes)
        self.per_class = {name: names[name] for name in self.classes}
        reasons = (item.reason for image in images for item in image.objects if item.reason)
        self.dropped = dict(Counter(reasons))
        self.other_classes = dict(count_others(images).most_common())

    def __str__(self) -> str:
        own_way = [f'{", ".join(self.unchecked)} not checked'] if self.unchecked else []
        if not self.images:
            return own_way[0] if own_way else 'could not be read'
        text = f'{self.images:,} image{"s" * (self.images != 1)}'
        if not self.per_class:
            text += f' with label maps, {len(self.classes)} classes'
        elif not self.whole:
            text += f', {self.boxes:,} box{"es" * (self.boxes != 1)}'
        if len(self.per_class) > _MOST_CLASSES:
            empty = list(self.per_class.values()).count(0)
            text += f' ({len(self.per_class)} classes, {empty} of them without a box)'
        elif self.per_class:
            text += f' ({", ".join(f"{name} {n:,}" for name, n in self.per_class.items())})'
        others = [f'{name} {count:,}' for name, count in self.other_classes.items()]
        parts = {
            'other boxes': _counted(self.dropped),
            'objects of other classes': listed(others),
            'images left out': _counted(self.left_out),
        }
        return '; '.join([text, *(f'{k}: {v}' for k, v in parts.items() if v), *own_way])


def format_summary(summaries: Sequence[SplitSummary]) -> str:
    """The summaries as text: a line for each split, and for each of its warnings."""
    lines, splits = [], {summary.split for summary in summaries}
    for summary in summaries:
        twin = summary.same_as in splits
        lines.append(f'{summary.split}: {f"the same as {summary.same_as}" if twin else summary}')
        lines += [f'WARNING: {summary.split}: {warning}' for warning in summary.warnings]
    return '\n'.join(lines)


class Survey:
    """The data of a config, as its annotations describe it."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.model = cfg.get('model') if isinstance(cfg.get('model'), Mapping) else {}
        self.summaries: list[SplitSummary] = []  # one for each split that was read
        self.sets: list[CheckedSet] = []  # the datasets that could be read

    def read(self, splits: Sequence[str]) -> Iterator[Finding]:
        """Reads the annotations of those ``splits`` that the config has, and compares them."""
        seen: list[tuple[Any, SplitSummary]] = []
        for split in splits:
            dataset = (self.cfg.get(f'{split}_dataloader') or {}).get('dataset')
            if dataset is None:
                continue
            evaluators = dict(agreement.evaluators_of(self.cfg, split))
            metrics = evaluators.values()
            # results that are only written, not measured, need no ground truth
            annotated = split == 'train' or not any(m.get('format_only') for m in metrics)
            key, scope = f'{split}_dataloader.dataset', self.cfg.get('default_scope')
            nodes = list(find_nodes(dataset, key, scope))
            data = dataset, split == 'train', annotated
            twin = next((summary for other, summary in seen if other == data), None)
            summary = (
                replace(twin, split=split, same_as=twin.split) if twin else SplitSummary(split)
            )
            self.summaries.append(summary)
            if not twin:
                seen.append((data, summary))
                yield from of_split(split, self._read_split(summary, nodes, annotated))
            for part in self.sets:
                if part.split == (summary.same_as or split):
                    part.masks |= any('segm' in (m.get('metric') or ()) for m in metrics)
                    part.ignored |= agreement.ignored_labels(self.model, evaluators)
            fits = agreement.check_evaluators(nodes, evaluators)
            yield from of_split(split, guarded('metric', fits))
        if self.sets:
            yield from agreement.check_num_classes(self.model, self.sets[0])

    def _read_split(
        self, summary: SplitSummary, nodes: Sequence[Node], annotated: bool
    ) -> Iterator[Finding]:
        left_out: Counter[str] = Counter()
        parts = []
        for node in nodes:
            if node.kind is None:
                summary.unchecked = list(dict.fromkeys([*summary.unchecked, node.name]))
                if node.family in ('coco', 'voc') and not node.is_remote:
                    try:
                        node.annotation_file()
                    except DataError as fault:
                        yield error('files', fault.where, fault.what, fault.remedy)
                continue
            try:
                classes = node.classes()
            except DataError as fault:
                yield error('classes', fault.where, fault.what, fault.remedy)
                continue
            options = {'annotated': annotated} if node.kind in ('coco', 'semantic') else {}
            options |= {'several': len(nodes) > 1} if node.kind == 'voc' else {}
            images = yield from guarded('files', _READERS[node.kind](node, classes, **options))
            if images is None:
                continue
            used, masks = _used(images, node, left_out), loads_masks(node.pipeline)
            parts.append(CheckedSet(summary.split, node, classes, images, used, masks))
            self.sets.append(parts[-1])
            yield from agreement.check_same_classes(self.sets[0], parts[-1])
        if not parts:
            return
        images = [image for part in parts for image in part.used]
        kinds = {part.node.kind for part in parts}
        summary.classes, summary.images = parts[-1].classes, len(images)
        summary.whole, summary.left_out = 'folders' in kinds, dict(left_out)
        if kinds != {'semantic'}:
            summary.count(images)
        if not images or (kinds & {'coco', 'voc'} and annotated and not summary.boxes):
            files = ', '.join(repr(part.node.config.get('ann_file')) for part in parts)
            what = f'no usable {"box" if images else "image"} in {files} (boxes: '
            what += f'{_counted(summary.dropped) or "none"}; images left out by filter_cfg: '
            what += f'{_counted(summary.left_out) or "none"})'
            where = ', '.join(f'{part.node.key}.ann_file' for part in parts)
            yield error('nothing usable', where, what, 'annotate boxes of the classes')


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


def _counted(counts: Mapping[str, int]) -> str:
    """``'3 without objects, 1 under 32 px'``."""
    return ', '.join(f'{count:,} {what}' for what, count in counts.items())
