"""Mistakes in configs that would stop a run late or give wrong results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from ..data.check.agreement import evaluators_of
from ..data.sets.nodes import find_nodes, type_name
from ..registry import MODELS
from .config import dataloaders, our_backbones, timm_backbones
from .config_keys import walk
from .errors import ToolError, building_config


def check_model(cfg: Config) -> None:
    """Raises a ToolError if parts of the model, its metrics and the data sets do not fit."""
    model = cfg.get('model') or {}
    if model.get('backbone') in our_backbones(cfg) + timm_backbones(cfg):
        _check_channels(model)
    classes = (model.get('head') or {}).get('num_classes', math.inf)
    for key, metric in [*evaluators_of(cfg, 'val'), *evaluators_of(cfg, 'test')]:
        given = metric.get('topk', 1)
        if type_name(metric).endswith('Accuracy') and max(_listed(given)) > classes:
            raise ToolError(  # which would stop the run after its first epoch
                f'{key}.topk is {given}, but the model has {classes} classes: set {key}.topk=1'
            )
    for split, loader in dataloaders(cfg).items():
        key = f'{split}_dataloader.dataset'
        for node in find_nodes(loader.get('dataset'), key, cfg.get('default_scope')):
            if node.family == 'semantic':
                _check_zero_label(node.key, node.config, bool(node.option('reduce_zero_label')))


def check_training(cfg: Config, images: int) -> list[str]:
    """Warnings about schedules that do not fit the length of a training run.

    Raises a ToolError if one ends before it begins. ``images`` is the size of the training set, 0
    if it is unknown.
    """
    loop, loader = cfg.get('train_cfg') or {}, cfg.train_dataloader
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    if epochs and images:
        steps = images * _times(loader.get('dataset')) / get_world_size() / loader.batch_size
        iterations = epochs * (int(steps) if loader.get('drop_last') else math.ceil(steps))
    warnings = []
    for name, schedule in schedules(cfg):
        begin, end = schedule.get('begin') or 0, schedule.get('end')
        if end is None:
            end = begin + (schedule.get('T_max') or math.inf)
        kind = f'{name} ({schedule.get("type")})'
        if end <= begin:
            raise ToolError(f'{kind} ends at {end}, before it begins at {begin}: set {name}.end')
        unit = 'epoch' if schedule.get('by_epoch', True) else 'iteration'
        length = (epochs if unit == 'epoch' else iterations) or math.inf
        if begin >= length:
            warnings.append(
                f'WARNING: {kind} never starts: it begins at {unit} {begin} of {length}'
            )
        elif length < end < math.inf:
            warnings.append(
                f'WARNING: {kind} runs to {unit} {end}, but training ends at {length}: set '
                f'{name}.end, or learning rates never reach its end'
            )
    return warnings


def schedules(cfg: Config) -> Iterator[tuple[str, dict]]:
    """The schedules of a config with their keys."""
    given = cfg.get('param_scheduler') or []
    if isinstance(given, dict):
        yield 'param_scheduler', given
    else:
        yield from ((f'param_scheduler.{i}', schedule) for i, schedule in enumerate(given))


def _check_channels(model: Mapping) -> None:
    """Compares ``in_channels`` of the parts behind the backbone with what the backbone gives."""
    backbone = model['backbone']
    with torch.device('meta'), building_config():
        net = MODELS.build(dict(backbone, init_cfg=None))
    levels = list(net.out_channels)
    stem = ', with_stem=True' if backbone.get('with_stem') else ''
    gives = f'the backbone gives {levels} (out_indices={net.out_indices}{stem})'
    neck = model.get('neck')
    neck = neck[0] if isinstance(neck, (list, tuple)) else neck or {}
    if type_name(neck).endswith('GlobalAveragePooling'):
        _check_width('head', model.get('head') or {}, levels[-1], gives)
    elif isinstance(neck.get('in_channels'), (list, tuple)):
        down = type_name(neck) == 'YOLOV3Neck'  # lists the highest level first
        _check_width('neck', neck, levels[::-1] if down else levels, gives)
    for path, part in () if neck else walk(model):
        index = part.get('in_index') if isinstance(part, dict) else None
        if index is None:
            continue
        if max(_listed(index)) >= len(levels):
            raise ToolError(f'model.{path}.in_index is {index}, but {gives}: set both')
        wanted = [levels[k] for k in _listed(index)]
        _check_width(path, part, wanted if isinstance(index, Sequence) else wanted[0], gives)


def _check_width(path: str, part: Mapping, wanted: int | list[int], gives: str) -> None:
    given = part.get('in_channels')
    if given is not None and _listed(given) != _listed(wanted):
        text = str(wanted).replace(' ', '')
        raise ToolError(
            f'model.{path}.in_channels is {given}, but {gives}: set model.{path}.in_channels={text}'
        )


def _check_zero_label(key: str, dataset: Mapping, reduced: bool) -> None:
    for i, step in enumerate(dataset.get('pipeline') or ()):
        given = step.get('reduce_zero_label') if isinstance(step, dict) else None
        if given is not None and bool(given) is not reduced:
            raise ToolError(
                f'{key}.pipeline.{i}.reduce_zero_label is {given}, but the data set has '
                f'reduce_zero_label={reduced}: set {key}.reduce_zero_label={given} or take it out '
                'of the pipeline'
            )


def _times(dataset: Any) -> int:
    """How often wrappers repeat a data set."""
    inner = dataset.get('dataset') if isinstance(dataset, Mapping) else None
    return dataset.get('times', 1) * _times(inner) if inner else 1


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
