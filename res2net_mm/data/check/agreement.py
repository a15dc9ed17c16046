"""What must agree with the data elsewhere in a config: other splits, the model, the metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine import Config

from ...checks import listed
from ..errors import DataError
from ..sets.coco import load_coco
from ..sets.nodes import Node, type_name
from .pixels import CheckedSet

# parts of a model whose classes are not those of the data set
_OTHER_CLASSES = {
    'backbone', 'data_preprocessor', 'init_cfg', 'neck', 'reid', 'rpn_head', 'semantic_head',
}  # fmt: skip


def check_same_classes(first: CheckedSet, other: CheckedSet) -> None:
    """Raises a DataError unless two datasets have the same classes."""
    if first.classes == other.classes:
        return
    only = [name for name in other.classes if name not in first.classes]
    lacking = [name for name in first.classes if name not in other.classes]
    parts = [f'has {listed(map(repr, only))}'] if only else []
    parts += [f'lacks {listed(map(repr, lacking))}'] if lacking else []
    remedy = 'give both the same'
    if not parts:
        parts = ['is in another order']
        remedy += ' (the categories of COCO files too, whose order numbers the labels)'
    raise DataError(
        f'it differs from {first.node.classes_key}: it {" and ".join(parts)}',
        other.node.classes_key,
        remedy,
    )


def check_num_classes(model: Mapping, part: CheckedSet) -> None:
    """Raises a DataError unless a model's heads are for as many classes as a dataset has."""
    names = part.classes
    wrong = [(at, count) for at, count in class_counts(model, 'model') if count != len(names)]
    if wrong:
        options = ' '.join(f'{at}={len(names)}' for at, _ in wrong)
        raise DataError(
            f'{listed(f"{at}={count}" for at, count in wrong)}, but {part.node.key} has '
            f'{len(names)} class{"es" if len(names) > 1 else ""} ({listed(names, 10)})',
            'model',
            f'set --cfg-options {options}',
        )


def class_counts(part: Any, key: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` of a model that must be the data set's, and its place."""
    if isinstance(part, list | tuple):
        for i, item in enumerate(part):
            yield from class_counts(item, f'{key}.{i}')
    if not isinstance(part, Mapping):
        return
    # STDC's edge head has its own classes; a detector with a language model finds names in a text
    if type_name(part).endswith('STDCHead') or 'language_model' in part:
        return
    if isinstance(part.get('num_classes'), int) and not part.get('class_agnostic'):
        yield f'{key}.num_classes', part['num_classes']
    if part.get('num_stuff_classes') == 0 and 'num_things_classes' in part:
        yield f'{key}.num_things_classes', part['num_things_classes']
    for name, value in part.items():
        if name not in _OTHER_CLASSES:
            yield from class_counts(value, f'{key}.{name}')


def ignored_labels(
    model: Mapping, evaluators: Sequence[tuple[str, Mapping]]
) -> Iterator[tuple[str, int]]:
    """Where a segmentor's heads and metrics set the label that they ignore, and the label.

    Nothing without a segmentor.
    """
    if not model.get('decode_head'):
        return
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        several = isinstance(heads, list | tuple)
        for i, head in enumerate(heads if several else [heads]):
            key = f'model.{name}.{i}' if several else f'model.{name}'
            if isinstance(head, Mapping):
                yield f'{key}.ignore_index', head.get('ignore_index', 255)
    for key, config in evaluators:
        if isinstance(config.get('ignore_index'), int):
            yield f'{key}.ignore_index', config['ignore_index']


def measures_masks(evaluators: Sequence[tuple[str, Mapping]]) -> bool:
    """Whether a metric compares masks."""
    metrics = (config.get('metric') or () for _, config in evaluators)
    return any('segm' in ([metric] if isinstance(metric, str) else metric) for metric in metrics)


def model_of(cfg: Config) -> Mapping:
    """The model's config, empty if there is none; raises a DataError if it is no config."""
    model = cfg.get('model') or {}
    if not isinstance(model, Mapping):
        raise DataError(f'{model!r} is no config of a model', 'model', 'write a dict with its type')
    return model


def evaluators_of(cfg: Config, split: str) -> Iterator[tuple[str, Mapping]]:
    """The configs of a split's metrics, and their places."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, list | tuple)
    for i, config in enumerate(evaluator if several else [evaluator]):
        if isinstance(config, Mapping):
            yield f'{split}_evaluator.{i}' if several else f'{split}_evaluator', config


def check_evaluators(nodes: Sequence[Node], evaluators: Sequence[tuple[str, Mapping]]) -> None:
    """Raises a DataError unless the annotation file of every metric fits the datasets."""
    for key, config in evaluators:
        file = config.get('ann_file')
        if not isinstance(file, str) or '://' in file:
            continue
        if not os.path.isfile(file):
            raise DataError(
                f'{file!r} does not exist: no file {os.path.abspath(file)}',
                f'{key}.ann_file',
                'set it to the annotation file of the dataset, for example --cfg-options '
                f'{key}.ann_file=FILE',
            )
        if type_name(config).endswith('CocoMetric'):
            for node in nodes:
                if node.kind == 'coco' and not node.remote:
                    _compare_files(f'{key}.ann_file', file, node)


def _compare_files(key: str, file: str, node: Node) -> None:
    """Raises a DataError unless a metric's ``file`` holds the images and labels of a dataset."""
    own = node.annotation_file()
    if os.path.samefile(own, file):
        return
    remedy = f'set --cfg-options {key}={own}'
    images, names = _images_and_categories(file)
    foreign = _images_and_categories(own)[0] - images
    if foreign:
        raise DataError(
            f'{file!r} does not hold {len(foreign):,} of the images of {node.key}.ann_file '
            f'({listed(sorted(name for _, name in foreign))})',
            key,
            remedy,
        )
    classes = node.classes()
    labels = [name for name in names if name in classes]
    if labels != list(classes):
        raise DataError(
            f'{file!r} has the categories {listed(labels, 10)}, but the labels of {node.key} are '
            f'{listed(classes, 10)}, so predictions would count as other classes',
            key,
            remedy,
        )


def _images_and_categories(file: str) -> tuple[set[tuple[str, str]], list[str]]:
    """Ids and names of images, and names of categories, as texts: their reader checks the rest."""
    content = load_coco(file, False)
    images = {(repr(image.get('id')), str(image.get('file_name'))) for image in content['images']}
    return images, [str(category.get('name')) for category in content['categories']]
