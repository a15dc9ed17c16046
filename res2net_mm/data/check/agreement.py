"""What must agree with the data elsewhere in a config: other splits, the model, the metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import Config

from ...checks import listed
from ..errors import DataError
from ..sets.nodes import Node, type_name
from ..sets.readers import load_coco

# parts of a model whose classes are not the data set's
_OTHER_CLASSES = {
    'backbone',
    'data_preprocessor',
    'init_cfg',
    'neck',
    'reid',
    'rpn_head',
    'semantic_head',
}


def check_same_classes(
    first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]
) -> None:
    """Raise a DataError unless two datasets, (key, classes) each, have the same classes."""
    (key, classes), (other_key, others) = first, second
    if classes == others:
        return
    only = [name for name in others if name not in classes]
    lacking = [name for name in classes if name not in others]
    parts = [f'has {listed(map(repr, only))}'] if only else []
    parts += [f'lacks {listed(map(repr, lacking))}'] if lacking else []
    same = 'give both the same'
    if not parts:
        parts = ['is in another order']
        same += ' (the categories of COCO files too, whose order numbers the labels)'
    raise DataError(
        f'{other_key}.metainfo.classes differs from {key}.metainfo.classes: it '
        f'{" and ".join(parts)}; {same}'
    )


def check_num_classes(model: Mapping, key: str, classes: tuple[str, ...]) -> None:
    """Raise a DataError unless a model's heads are for as many classes as the dataset ``key``."""
    wrong = [(at, count) for at, count in class_counts(model, 'model') if count != len(classes)]
    if wrong:
        options = ' '.join(f'{at}={len(classes)}' for at, _ in wrong)
        raise DataError(
            f'{listed(f"{at}={count}" for at, count in wrong)}, but {key} has {len(classes)} '
            f'class{"es" if len(classes) > 1 else ""} ({listed(classes, 10)}); set --cfg-options '
            f'{options}'
        )


def class_counts(part: Any, key: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` of a model that is the data set's number of classes."""
    if isinstance(part, list | tuple):
        for i, item in enumerate(part):
            yield from class_counts(item, f'{key}.{i}')
    if not isinstance(part, Mapping):
        return
    # STDC's edge head has classes of its own; names in a text are what such a detector looks for
    if type_name(part).endswith('STDCHead') or 'language_model' in part:
        return
    if isinstance(part.get('num_classes'), int) and not part.get('class_agnostic'):
        yield f'{key}.num_classes', part['num_classes']
    if part.get('num_stuff_classes') == 0 and 'num_things_classes' in part:
        yield f'{key}.num_things_classes', part['num_things_classes']
    for name, value in part.items():
        if name not in _OTHER_CLASSES:
            yield from class_counts(value, f'{key}.{name}')


def ignored_labels(model: Mapping) -> Iterator[tuple[str, int]]:
    """Where a segmentor's heads say which label they ignore, and the label."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        several = isinstance(heads, list | tuple)
        for i, head in enumerate(heads if several else [heads]):
            key = f'model.{name}.{i}' if several else f'model.{name}'
            if isinstance(head, Mapping):
                yield f'{key}.ignore_index', head.get('ignore_index', 255)


def ignored_by_metrics(cfg: Config, split: str) -> Iterator[tuple[str, int]]:
    """Where the metrics of a split say which label they ignore, and the label."""
    for key, config in evaluators_of(cfg, split):
        if isinstance(config.get('ignore_index'), int):
            yield f'{key}.ignore_index', config['ignore_index']


def model_of(cfg: Config) -> Mapping:
    """The model's config, empty where there is none.

    Raises:
        DataError: it is no config.
    """
    model = cfg.get('model') or {}
    if not isinstance(model, Mapping):
        raise DataError(f'model={model!r} is no config of a model; write a dict with its type')
    return model


def evaluators_of(cfg: Config, split: str) -> Iterator[tuple[str, Mapping]]:
    """The metrics' configs of a split, and where they stand."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, list | tuple)
    for i, config in enumerate(evaluator if several else [evaluator]):
        if isinstance(config, Mapping):
            yield f'{split}_evaluator.{i}' if several else f'{split}_evaluator', config


def measured_by_file(evaluators: list[tuple[str, Mapping]]) -> bool:
    """Whether a metric takes the ground truth from a file, not from the dataset."""
    return any(config.get('ann_file') for _, config in evaluators)


def check_evaluators(nodes: list[Node], evaluators: list[tuple[str, Mapping]]) -> None:
    """Raise a DataError unless every metric's annotation file holds the datasets' images."""
    for key, config in evaluators:
        file = config.get('ann_file')
        if not isinstance(file, str) or '://' in file:
            continue
        if not os.path.isfile(file):
            raise DataError(
                f'{key}.ann_file={file!r}: there is no file {os.path.abspath(file)}; set it to '
                f'the annotation file of the dataset, for example --cfg-options {key}.ann_file=FILE'
            )
        sources = [node for node in nodes if node.kind == 'coco' and not node.remote]
        known = None
        for node in sources:
            own = node.annotation_file()
            if os.path.samefile(own, file) or not type_name(config).endswith('CocoMetric'):
                continue
            known = known or _images_and_categories(file)
            foreign = _images_and_categories(own)[0] - known[0]
            if foreign:
                names = listed(sorted(name for _, name in foreign))
                raise DataError(
                    f'{key}.ann_file={file!r} does not hold {len(foreign):,} of the images of '
                    f'{node.key}.ann_file ({names}); set --cfg-options {key}.ann_file={own}'
                )
            labels = [name for name in known[1] if name in node.classes()]
            if labels != list(node.classes()):
                raise DataError(
                    f'{key}.ann_file={file!r} has the categories {listed(labels, 10)}, but the '
                    f'labels of {node.key} are {listed(node.classes(), 10)}, so that predictions '
                    f'would count as other classes; set --cfg-options {key}.ann_file={own}'
                )


def _images_and_categories(file: str) -> tuple[set[tuple[str, str]], list[str]]:
    """Ids and names of images, as texts: what else stands there is the reader's affair."""
    content = load_coco(file, False)
    images = {(repr(image.get('id')), str(image.get('file_name'))) for image in content['images']}
    return images, [str(category.get('name')) for category in content['categories']]
