"""What must agree with the data elsewhere in a config: other splits, the model, the metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine import Config

from ...checks import listed
from ..findings import Finding, error
from ..sets.coco import load_coco
from ..sets.nodes import Node, type_name
from .pixels import CheckedSet

# parts of a model whose classes are not those of the data set
_OTHER_CLASSES = {
    'backbone', 'data_preprocessor', 'init_cfg', 'neck', 'reid', 'rpn_head', 'semantic_head',
}  # fmt: skip


def check_same_classes(first: CheckedSet, other: CheckedSet) -> Iterator[Finding]:
    """An error unless two datasets have the same classes."""
    if first.classes != other.classes:
        lacking = [repr(name) for name in first.classes if name not in other.classes]
        only = [repr(name) for name in other.classes if name not in first.classes]
        how = f'it lacks {listed(lacking) or "none"} and adds {listed(only) or "none"}'
        how = how if lacking or only else 'it is in another order'
        what = f'it differs from {first.node.classes_key}: {how}'
        remedy = 'give both the same (the categories of COCO files too, whose order is the labels)'
        yield error('classes', other.node.classes_key, what, remedy)


def check_num_classes(model: Mapping, part: CheckedSet) -> Iterator[Finding]:
    """An error unless a model's heads are for as many classes as a dataset has."""
    names = part.classes
    wrong = {at: count for at, count in class_counts(model, 'model') if count != len(names)}
    if wrong:
        yield error(
            'classes',
            'model',
            f'{listed(f"{at}={count}" for at, count in wrong.items())}, but {part.node.key} has '
            f'{len(names)} class{"es" if len(names) > 1 else ""} ({listed(names, 10)})',
            f'set --cfg-options {" ".join(f"{at}={len(names)}" for at in wrong)}',
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


def ignored_labels(model: Mapping, evaluators: Mapping[str, Mapping]) -> dict[str, int]:
    """Where a segmentor's heads and metrics set the label that they ignore -> the label.

    Nothing without a segmentor.
    """
    if not model.get('decode_head'):
        return {}
    heads = {}
    for name in ('decode_head', 'auxiliary_head'):
        heads |= configs_at(model.get(name), f'model.{name}')
    ignored = {key: head.get('ignore_index', 255) for key, head in heads.items()}
    ignored |= {key: config.get('ignore_index') for key, config in evaluators.items()}
    return {f'{key}.ignore_index': v for key, v in ignored.items() if isinstance(v, int)}


def evaluators_of(cfg: Config, split: str) -> list[tuple[str, Mapping]]:
    """The places and configs of a split's metrics."""
    return [*configs_at(cfg.get(f'{split}_evaluator'), f'{split}_evaluator').items()]


def check_evaluators(nodes: Sequence[Node], evaluators: Mapping[str, Mapping]) -> Iterator[Finding]:
    """Errors unless the annotation file of every metric fits the datasets."""
    for key, config in evaluators.items():
        file, where = config.get('ann_file'), f'{key}.ann_file'
        own = re.search(r'\.metrics\.(\d+)$', key)  # each has a data set of its own
        if not isinstance(file, str) or '://' in file:
            continue
        if not os.path.isfile(file):
            what = f'{file!r} does not exist: no file {os.path.abspath(file)}'
            yield error('metric', where, what, f'set it, such as --cfg-options {where}=FILE')
        elif type_name(config).endswith('CocoMetric'):
            for node in nodes[int(own[1]) :][:1] if own else nodes:
                if node.kind == 'coco':
                    yield from _compare_files(where, file, node)


def configs_at(value: Any, key: str) -> dict[str, Mapping]:
    """Place -> config, for a value of ``key`` that is one config or a list of them."""
    if isinstance(value, list | tuple):
        return {f'{key}.{i}': part for i, part in enumerate(value) if isinstance(part, Mapping)}
    if isinstance(value, Mapping) and 'metrics' in value:  # of MultiDatasetsEvaluator
        return configs_at(value['metrics'], f'{key}.metrics')
    return {key: value} if isinstance(value, Mapping) else {}


def _compare_files(key: str, file: str, node: Node) -> Iterator[Finding]:
    """Errors unless a metric's ``file`` holds the images and labels of a dataset."""
    own = node.annotation_file()
    if os.path.samefile(own, file):
        return
    classes = list(node.classes())
    content, wanted = load_coco(file, False), load_coco(own, False)
    images, foreign = (
        {(repr(image.get('id')), str(image.get('file_name'))) for image in part['images']}
        for part in (content, wanted)
    )
    labels = [c['name'] for c in content['categories'] if c.get('name') in classes]
    what = ''
    if foreign - images:
        names = listed(sorted(name for _, name in foreign - images))
        what = f'it does not hold {len(foreign - images):,} images of {node.key}.ann_file ({names})'
    elif labels != classes:
        what = f'it numbers the classes {listed(labels, 10)}, but {node.key} {listed(classes, 10)}'
    if what:
        yield error('metric', key, f'{file!r}: {what}', f'set --cfg-options {key}={own}')
