"""Class names of a checkpoint and of the data: label i must be the same class in both."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from ..backbones.base import CONVENTION
from ..checks import listed, nearest
from ..colours import class_colours
from ..data.check.agreement import class_counts
from ..data.errors import DataError
from ..data.sets.nodes import find_nodes, type_name
from ..weights.classifier import name_as_classifier
from .config import first_dataset
from .errors import ToolError
from .loading import unwrapped
from .terminal import warn

KEY = 'checkpoint_classes'
_HOW = (
    f'--cfg-options {KEY}=data if label i is the same class in both, or {KEY} to the names of the '
    "checkpoint's labels in order"
)
_NAMED_BY = {
    'checkpoint': "the config's classes differ from the checkpoint's, whose names are used",
    'config': "the checkpoint does not name the model's classes: the config's names are used",
    'model': "neither checkpoint nor config names the model's classes: numbers stand for them",
}
_PANOPTIC = 1000  # mmdet writes class + 1000 * instance into a panoptic map


def label_order(names: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """The label in ``data`` of each of ``names``; None unless both hold the same classes.

    A name that is not there exactly matches one that differs in case, blanks, ``_`` or ``-``.
    """
    if list(names) == list(data):  # ImageNet has two classes named crane
        return list(range(len(data)))
    same = [name if name in data else nearest(name, data, cutoff=1) for name in names]
    order = [data.index(name) for name in same if name is not None]
    return order if sorted(order) == list(range(len(data))) and None not in same else None


class SameClassesHook(Hook):
    """Compares the classes of a checkpoint with those of the data that it is used on.

    Raises a ToolError if labels would stand for other classes; in a test, predictions of the same
    classes in another order are mapped by name. The config's ``checkpoint_classes`` overrides what
    the checkpoint says: a list of names, ``'data'`` for the data set's own, ``'names'`` to trust
    the names in another program's file.
    """

    priority = 'VERY_HIGH'

    def __init__(self, split: str) -> None:
        self.split = split

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Runs before the weights are loaded."""
        name_as_classifier(unwrapped(runner.model), checkpoint)
        data = class_names(getattr(runner, f'{self.split}_dataloader').dataset)
        given, model = _given(runner.cfg), runner.cfg.get('model') or {}
        # labels of proposals, or of names in a text, are not those of the training
        free = 'language_model' in model or 'text_encoder' in model
        if not data or given == 'data' or free or type_name(model).endswith('RPN'):
            return
        training = self.split == 'train'
        fine_tuning = training and not runner.cfg.get('resume')
        names = tuple(given if _is_list(given) else _meta_of(checkpoint.get('meta'))['classes'])
        if not names:
            if not fine_tuning:
                warn(
                    'the checkpoint does not name its classes, so they are not compared and its '
                    f"labels count as the data set's, in order ({listed(data, 10)})"
                )
            return
        order = label_order(names, data)
        if order is None:
            differ = f"the checkpoint's classes are not the data set's ({_difference(names, data)})"
            if not fine_tuning:
                raise ToolError(f'{differ}; give it data of its classes, or set {_HOW}')
            if len(names) == len(data):
                warn(f'load_from: {differ}: the heads start from weights for other classes')
            return
        if order == sorted(order):
            return
        differ = (
            f"the checkpoint's classes ({listed(names, 10)}) are in another order than the data "
            f"set's ({listed(data, 10)})"
        )
        if training:
            raise ToolError(f'{differ}, so training would start with swapped classes; set {_HOW}')
        if not given and self._may_mislead(runner.cfg, checkpoint):
            raise ToolError(
                f'{differ}, and mmdet numbers labels by the categories of the annotation file, '
                f"whatever the names' order: set --cfg-options {KEY}=names if the names are in the "
                f"order of the checkpoint's labels, {KEY}=data if its labels are the data set's"
            )
        warn(f'{differ}: predictions are mapped by name')
        unwrapped(runner.model).register_forward_hook(partial(_map_labels, order))

    def _may_mislead(self, cfg: Config, checkpoint: Mapping) -> bool:
        """Whether the names may differ from those of the COCO file that numbered the labels."""
        if CONVENTION in (checkpoint.get('meta') or {}):  # our own training compares them
            return False
        dataset = cfg.get(f'{self.split}_dataloader', {}).get('dataset')
        nodes = find_nodes(dataset, self.split, cfg.get('default_scope'))
        return any(node.family == 'coco' for node in nodes)


def prediction_meta(cfg: Config, meta: Mapping | None) -> dict[str, Any]:
    """``classes`` and ``palette`` for predictions, one of each per label of the model.

    Takes the names from the checkpoint, else from the config, else from its type of data set, if
    there are as many as the heads have classes; else numbers. Warns if the sources disagree.
    """
    count, given = _count_classes(cfg.get('model') or {}), _given(cfg)
    sources = dict(checkpoint=_meta_of(meta), config=_data_meta(cfg))
    if _is_list(given):
        sources['checkpoint'] = dict(classes=given)
    elif given == 'data':
        del sources['checkpoint']
    named = {}
    for who, source in sources.items():
        has = len(source['classes'])
        if has and count in (None, has):
            named[who] = source
        elif has and not named:
            warn(f'the {who} names {has} classes, but the model has {count}: they are not used')
    named = named or {'model': dict(classes=[str(i) for i in range(count or 1)])}
    who, chosen = next(iter(named.items()))
    classes, palette = tuple(chosen['classes']), chosen.get('palette')
    if who != 'checkpoint' or any(tuple(source['classes']) != classes for source in named.values()):
        warn(_NAMED_BY[who])
    if palette is None or len(palette) != len(classes):
        palette = class_colours(len(classes))
    return dict(classes=classes, palette=palette)


def class_names(dataset: Any) -> tuple[str, ...]:
    """Class names of a data set; () if there are none, or if joined sets have different ones."""
    metas = getattr(dataset, 'metainfo', None) or {}
    metas = metas if _is_list(metas) else [metas]  # of mmdet's ConcatDataset
    found = {tuple(meta.get('classes') or ()) for meta in metas}
    return found.pop() if len(found) == 1 else ()


def _meta_of(meta: Any) -> dict[str, Any]:
    """What a checkpoint says about its data set; old ones in capitals, in ``meta`` itself."""
    meta = meta if isinstance(meta, Mapping) else {}
    for source in (meta.get('dataset_meta') or {}, meta):
        lower = {str(key).lower(): value for key, value in source.items()}
        classes = lower.get('classes') or ()
        if classes:
            return dict(lower, classes=[classes] if isinstance(classes, str) else list(classes))
    return dict(classes=())


def _data_meta(cfg: Config) -> dict[str, Any]:
    node = first_dataset(cfg)
    with contextlib.suppress(DataError):
        meta = {**getattr(node.cls, 'METAINFO', {}), **(node.config.get('metainfo') or {})}
        return dict(meta, classes=node.classes())
    return dict(classes=())


def _count_classes(model: Mapping) -> int | None:
    """The number of a model's classes; None if its heads do not say, or disagree."""
    fusion = model.get('panoptic_fusion_head')
    if fusion:
        return fusion.get('num_things_classes', 80) + fusion.get('num_stuff_classes', 53)
    counts = {count for _, count in class_counts(model, 'model')}
    return counts.pop() if len(counts) == 1 else None


def _given(cfg: Config) -> Any:
    given = cfg.get(KEY)
    if not (given in (None, 'data', 'names') or _is_list(given)):
        raise ToolError(f"{KEY} must be a list of names, 'data' or 'names', but is {given!r}")
    return given


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _difference(names: Sequence[str], data: Sequence[str]) -> str:
    parts = [f'{len(names)} and {len(data)}']
    for who, own, others in (('checkpoint', names, data), ('data set', data, names)):
        only = [repr(name) for name in own if name not in others]
        parts += [f'only the {who} has {listed(only)}'] if only else []
    return '; '.join(parts)


def _map_labels(order: list[int], module: nn.Module, args: Any, output: Any) -> None:
    """A forward hook: predictions get the data set's labels, ``order[label]``, in place."""
    table = torch.arange(max(_PANOPTIC, len(order) + 1))
    table[: len(order)] = torch.tensor(order)
    for sample in output if isinstance(output, list | tuple) else ():
        if not isinstance(sample, BaseDataElement):
            continue
        if 'pred_score' in sample:  # of a classifier
            scores = sample.pred_score[np.argsort(order)]
            sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
            continue
        for name in [name for name in sample.keys() if name.startswith('pred_')]:
            part = sample.get(name)
            for key in {'labels', 'data', 'sem_seg'} & set(part.keys()):
                ids = part.get(key)
                # a panoptic map also holds instances; values above the labels mean ignored
                label = (ids % _PANOPTIC if name == 'pred_panoptic_seg' else ids).long()
                setattr(part, key, (ids - label + table.to(ids.device)[label]).to(ids.dtype))
        logits = sample.get('seg_logits')
        if logits is not None and len(logits.data) == 1:  # the probability of label 1
            logits.data = 1 - logits.data
        elif logits is not None and len(logits.data) == len(order):
            logits.data = logits.data[np.argsort(order)]
