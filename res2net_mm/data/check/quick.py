"""The quick look at a config's data before a run: paths, classes, boxes, images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mmengine import Config

from ...checks import alike, listed
from ..errors import DataError
from ..sets.label_maps import SAMPLE, check_values, read_semantic
from ..sets.nodes import Image, Node, Reading, Watch, find_nodes
from ..sets.readers import OTHER_CLASSES, ZERO_SIZE, read_coco, read_voc_set, report_missing
from ..sets.sizes import RESIZE_REMEDY, is_unseen_turn, read_header, resize_faults, unseen_turn
from ..transforms import CheckLabelMap, is_known_loader, loader_of
from .agreement import (
    check_evaluators,
    check_num_classes,
    check_same_classes,
    evaluators_of,
    ignored_by_metrics,
    ignored_labels,
    measured_by_file,
    model_of,
)

_MOST_CLASSES_SHOWN = 12
_ADJECTIVES = ('crowd', 'difficult')

# gets a dataset, its classes, all its images and those that the run uses
Look = Callable[[Node, tuple[str, ...], list[Image], list[Image]], None]


@dataclass
class SplitSummary:
    """What one split's data comes to.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        dataset: the dataset's type.
        images: how many the run uses, after ``filter_cfg`` and ``indices``.
        boxes: usable boxes on them.
        dropped: why other boxes are not usable -> how many.
        kept: whether these boxes nevertheless stay in the ground truth that is measured by.
        other_classes: names in the annotations that are not among the classes -> objects; these
            too count in ``dropped``, as ``other classes``, and are in no ground truth.
        left_out: why ``filter_cfg`` leaves images out -> how many.
        classes: class names, in the order of the labels.
        per_class: class name -> usable boxes; empty for semantic segmentation.
        examples: names of the first three images with a box of no size.
        unchecked: types of the datasets that were not looked into.
        same_as: an earlier split whose data this is.
        warnings: lines on what the run goes on with, and should not without somebody's look.
    """

    split: str
    dataset: str = ''
    images: int = 0
    boxes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    kept: bool = False
    other_classes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    per_class: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    same_as: str | None = None
    warnings: list[str] = field(default_factory=list)


class _Noter(Watch):
    """Lets a fault end the reading, and counts warnings by split and kind."""

    def __init__(self) -> None:
        self.split = ''
        self.found: dict[str, dict[str, list]] = {}

    def begin(self, split: str) -> None:
        self.split = split

    def warn(self, kind: str, file: str, what: str, remedy: str) -> None:
        first = [0, f'{file}: {what}', remedy]
        self.found.setdefault(self.split, {}).setdefault(kind, first)[0] += 1

    def lines(self, split: str) -> list[str]:
        """One line a kind."""
        return [
            f'{kind}: {what}{f", and {count - 1:,} more" if count > 1 else ""}; {remedy}'
            for kind, (count, what, remedy) in self.found.get(split, {}).items()
        ]


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[SplitSummary]:
    """Check the data of an mmdet or mmseg config without building its datasets.

    Reads annotation files and lists image folders; of images and label maps, a sample is decoded.
    Boxes are counted as training uses them with pipelines that
    :func:`~res2net_mm.data.transforms.harden_dataset` has been over.

    Args:
        cfg: the config.
        splits: which of its dataloaders; those it does not have are passed over.

    Returns:
        One summary a split, in the order asked for. Datasets of types that read in a way of their
        own, or from elsewhere than a local file system, are named in ``unchecked``.

    Raises:
        DataError: files are missing or do not parse; the classes of the config, of the
            annotations, of the splits and of the model disagree; or there is no usable box.
    """
    model = model_of(cfg)

    watch = _Noter()
    trained: set[str] = set()

    def look(node: Node, classes: tuple[str, ...], images: list[Image], used: list[Image]) -> None:
        report_missing(node, [image.file for image in used], 'images', source_of(node))
        _check_resizing(node, used)
        _warn_of_overlap(watch, trained, used, node.kind != 'coco')
        _load_sample(watch, node, used)
        if node.kind == 'semantic' and model.get('decode_head'):
            maps = [image.label_map for image in used]
            split = node.key.partition('_')[0]
            ignored = {**dict(ignored_labels(model)), **dict(ignored_by_metrics(cfg, split))}
            check_values(node, maps, classes, ignored)

    summaries = walk(cfg, splits, watch, look)
    for summary in summaries:
        summary.warnings = watch.lines(summary.split)
    return summaries


def walk(cfg: Config, splits: Sequence[str], watch: Watch, look: Look) -> list[SplitSummary]:
    """Read the annotations of a config's datasets and hold them against each other and the model.

    Args:
        cfg: the config.
        splits: which of its dataloaders.
        watch: what is done at a fault.
        look: called for every dataset once it is read.

    Returns:
        What :func:`check_data` does.

    Raises:
        DataError: as ``watch`` lets it.
    """
    model = model_of(cfg)
    summaries = []
    first: tuple[str, tuple[str, ...]] | None = None
    seen: list[tuple[Any, SplitSummary]] = []
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if dataset is None:
            continue
        watch.begin(split)
        key = f'{split}_dataloader.dataset'
        evaluators = list(evaluators_of(cfg, split))
        compared = (dataset, split == 'train', [config for _, config in evaluators])
        summary = next((known for data, known in seen if data == compared), None)
        if summary is None:
            nodes = list(find_nodes(dataset, key, cfg.get('default_scope')))
            summary, classes = _check_split(split, nodes, evaluators, watch, look)
            seen.append((compared, summary))
            for node_key, names in classes:
                first = first or (node_key, names)
                with watch.guard('classes', node_key):
                    check_same_classes(first, (node_key, names))
        else:
            summary = replace(summary, split=split, same_as=summary.split)
        summaries.append(summary)
    if first:
        watch.begin('')
        with watch.guard('classes', 'model'):
            check_num_classes(model, *first)
    return summaries


def format_summary(summaries: Sequence[SplitSummary]) -> str:
    """The summaries as text, one line a split."""
    lines = []
    for summary in summaries:
        twin = any(earlier.split == summary.same_as for earlier in summaries)
        text = f'the same as {summary.same_as}' if twin else _describe(summary)
        lines.append(f'{summary.split}: {text}')
        lines += [f'WARNING: {summary.split}: {warning}' for warning in summary.warnings]
    return '\n'.join(lines)


def _check_split(
    split: str,
    nodes: list[Node],
    evaluators: list[tuple[str, Mapping]],
    watch: Watch,
    look: Look,
) -> tuple[SplitSummary, list[tuple[str, tuple[str, ...]]]]:
    summary = SplitSummary(split, dataset=', '.join(dict.fromkeys(node.name for node in nodes)))
    # results are only written, not measured: a test set without ground truth will do
    annotated = split == 'train' or not any(e.get('format_only') for _, e in evaluators)
    all_classes = []
    left_out: Counter[str] = Counter()
    used: list[Image] = []
    stray = read = 0
    for node in nodes:
        if node.kind is None or node.remote:
            summary.unchecked.append(node.name)
            with watch.guard('files', node.key):
                if node.family in ('coco', 'voc') and not node.remote:
                    node.annotation_file()
            continue
        with watch.guard('files', node.key):
            with watch.guard('classes', node.key):
                classes = ()
                classes = node.classes()
            if not classes:
                continue
            for group in alike(classes):
                watch.warn(
                    'classes alike',
                    f'{node.key}.metainfo.classes',
                    f'{listed(map(repr, group))} differ only in case, blanks or Unicode form',
                    'make them one, if they are meant to be: voc2coco does with --merge',
                )
            summary.classes = classes
            all_classes.append((node.key, classes))
            reading = _read(node, classes, annotated, split == 'train', watch)
            read += 1
            images = _used(reading, node, left_out)
            used += images
            stray += reading.stray
            look(node, classes, reading.images, images)
    if read:
        detection = any(node.kind in ('coco', 'voc') for node in nodes)
        _sum_up(summary, used, stray, left_out, detection)
        summary.kept = any(
            node.config.get('test_mode') and (node.kind == 'voc' or measured_by_file(evaluators))
            for node in nodes
        )
        with watch.guard('nothing usable', nodes[0].key):
            if not used or (detection and annotated and not summary.boxes):
                raise DataError(_unusable(summary, nodes))
    with watch.guard('metric', f'{split}_evaluator'):
        check_evaluators(nodes, evaluators)
    return summary, all_classes


def _read(
    node: Node, classes: tuple[str, ...], annotated: bool, training: bool, watch: Watch
) -> Reading:
    if node.kind == 'coco':
        return read_coco(node, classes, annotated, watch)
    if node.kind == 'voc':
        return read_voc_set(node, classes, training, watch)
    return read_semantic(node, classes, watch)


def _used(reading: Reading, node: Node, left_out: Counter[str]) -> list[Image]:
    """The images that mmengine's dataset would hold; counts what ``filter_cfg`` leaves out."""
    images = reading.images
    filters = {} if node.config.get('test_mode') else node.config.get('filter_cfg') or {}
    if filters and node.kind != 'semantic':
        least = filters.get('min_size', 0)
        images = []
        for image in reading.images:
            if filters.get('filter_empty_gt', False) and not image.has_objects:
                left_out['without objects'] += 1
            elif min(image.width, image.height) < least:
                left_out[f'under {least} px'] += 1
            else:
                images.append(image)
    indices = node.config.get('indices')
    if isinstance(indices, int):
        return images[:indices] if indices >= 0 else images[indices:]
    return images if indices is None else [images[i] for i in indices if i < len(images)]


def _sum_up(
    summary: SplitSummary, images: list[Image], stray: int, left_out: Counter, detection: bool
) -> None:
    summary.images = len(images)
    summary.left_out = dict(left_out)
    if not detection:
        return
    dropped, others, per_class = Counter(), Counter(), Counter(dict.fromkeys(summary.classes, 0))
    for image in images:
        dropped.update(image.dropped)
        others.update(image.other_classes)
        per_class.update(image.boxes)
        if image.dropped[ZERO_SIZE] and len(summary.examples) < 3:
            summary.examples.append(os.path.splitext(os.path.basename(image.file))[0])
    if stray:
        dropped['of images not listed'] = stray
    if others:
        dropped[OTHER_CLASSES] = sum(others.values())
    summary.dropped, summary.per_class = dict(dropped), dict(per_class)
    summary.other_classes = dict(others.most_common())
    summary.boxes = sum(per_class.values())


def _check_resizing(node: Node, images: Sequence[Image]) -> None:
    sizes = {(image.width, image.height) for image in images if image.width and image.height}
    faults = resize_faults(node.config.get('pipeline') or (), sizes)
    thin = [image for image in images if (image.width, image.height) in faults]
    if thin:
        raise DataError(
            f'{node.key}: {len(thin):,} image{"s" * (len(thin) > 1)} cannot be resized: '
            f'{thin[0].file}: {faults[thin[0].width, thin[0].height]}; {RESIZE_REMEDY}'
        )


def _load_sample(watch: _Noter, node: Node, images: Sequence[Image]) -> None:
    """Load some images, spread over the set, as the run does: a fault of all shows before it."""
    pipeline = node.config.get('pipeline') or ()
    if not any(map(is_known_loader, pipeline)):
        return
    load = loader_of(pipeline)
    for image in images[:: max(1, len(images) // SAMPLE)][:SAMPLE]:
        results = {'img_path': image.file, 'width': image.width, 'height': image.height}
        if node.kind == 'voc':
            results['xml_path'] = ''
        loaded = load(results)
        if loaded is None:
            continue
        stored, orientation = _header(image.file)
        if is_unseen_turn(orientation, stored, loaded['img_shape'][::-1]):
            kind, what, remedy = unseen_turn(orientation)
            watch.warn(kind, image.file, what, remedy)
        size, _ = _header(image.label_map) if image.label_map else (None, 1)
        if size:
            about = {'seg_map_path': image.label_map, 'gt_seg_map': np.empty(size[::-1], bool)}
            CheckLabelMap()({**loaded, **about})


def _header(file: str) -> tuple[tuple[int, int] | None, int]:
    with open(file, 'rb') as stream:
        size, _, orientation = read_header(stream.read())
    return size, orientation


def _warn_of_overlap(
    watch: _Noter, trained: set[str], images: Sequence[Image], twice: bool
) -> None:
    """Images to measure on that are trained on as well, as far as their paths tell; and with
    ``twice`` those that the dataset has more than once."""
    folders: dict[str, str] = {}
    own: set[str] = set()
    for image in images:
        folder, name = os.path.split(image.file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        place = os.path.join(folders[folder], name)
        if twice and place in own:
            watch.warn(
                'image listed twice',
                image.file,
                'it is in the set more than once, by its list or by a link to a folder',
                'remove it there; as it is, it counts for more than others',
            )
        own.add(place)
        if watch.split == 'train':
            trained.add(place)
        elif place in trained:
            watch.warn(
                'split overlap',
                image.file,
                'it is trained on: what is measured on it says nothing',
                'take it out of one of the two splits',
            )


def source_of(node: Node) -> str:
    """The option that says which images a dataset has."""
    key = 'ann_file' if node.config.get('ann_file') else 'data_prefix.img_path'
    return f'{node.key}.{key}'


def _unusable(summary: SplitSummary, nodes: list[Node]) -> str:
    where = ', '.join(
        f'{node.key}.ann_file={node.config.get("ann_file")!r}' for node in nodes if node.kind
    )
    found = ', '.join(f'{count:,} {reason}' for reason, count in summary.dropped.items())
    left = _counted(summary.left_out)
    return (
        f'{where}: no usable {"box" if summary.images else "image"} '
        f'(boxes: {found or "none"}; images left out by filter_cfg: {left or "none"}); '
        'give it annotations with boxes of some size, of the classes of the config'
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{count:,} {what}' for what, count in counts.items() if count)


def _describe(summary: SplitSummary) -> str:
    own_way = f'{", ".join(dict.fromkeys(summary.unchecked))} not checked'
    if not summary.images:
        return own_way if summary.unchecked else 'could not be read'
    text = f'{summary.images:,} image{"s" * (summary.images != 1)}'
    if summary.per_class:
        boxes = f'{summary.boxes:,} box{"es" * (summary.boxes != 1)}'
        text += f', {boxes} ({_class_text(summary.per_class)})'
    else:
        text += f' with label maps, {len(summary.classes)} classes'
    parts = [text]
    dropped = ', '.join(
        _boxes_text(reason, count, summary.examples)
        for reason, count in summary.dropped.items()
        if reason != OTHER_CLASSES
    )
    if dropped:
        kept = f'{dropped} kept in the ground truth'
        parts.append(kept if summary.kept else f'dropped {dropped}')
    if summary.other_classes:
        names = listed(f'{name} {count:,}' for name, count in summary.other_classes.items())
        parts.append(f'ignored objects of other classes ({names})')
    if summary.left_out:
        parts.append(f'left out images: {_counted(summary.left_out)}')
    if summary.unchecked:
        parts.append(own_way)
    return '; '.join(parts)


def _boxes_text(reason: str, count: int, examples: Sequence[str]) -> str:
    boxes = 'box' if count == 1 else 'boxes'
    if reason == ZERO_SIZE:
        return f'{count:,} {reason} {boxes} ({listed(examples)}{", ..." * (count > len(examples))})'
    return f'{count:,} {reason} {boxes}' if reason in _ADJECTIVES else f'{count:,} {boxes} {reason}'


def _class_text(per_class: Mapping[str, int]) -> str:
    if len(per_class) <= _MOST_CLASSES_SHOWN:
        return ', '.join(f'{name} {count:,}' for name, count in per_class.items())
    empty = sum(1 for count in per_class.values() if not count)
    return f'{len(per_class)} classes' + (f', {empty} of them without a box' if empty else '')
