"""Mistakes in configs that would stop a run later, far from their cause."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from ..data.check.agreement import configs_at, evaluators_of
from ..data.sets.nodes import Node, find_nodes, type_name
from ..registry import MODELS
from .config import dataloaders, our_backbones, timm_backbones
from .errors import ToolError, building_config

# heads that average over the image, so their batch norm sees one value per channel and image
_POOLING_HEADS = ('PSPHead', 'UPerHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'APCHead')


def check_model(cfg: Config) -> None:
    """Raises a ToolError if parts of the model, its input and the data sets do not fit."""
    model = cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    backbone = model.get('backbone')
    ours = isinstance(backbone, dict) and backbone in our_backbones(cfg) + timm_backbones(cfg)
    several = type_name(preprocessor).endswith('SegDataPreProcessor')  # any number of channels
    channels = backbone.get('in_channels', 3) if several and ours else 3
    for key in ('mean', 'std'):
        values = preprocessor.get(key)
        if several and not ours or not isinstance(values, Sequence):
            continue
        if len(values) not in (1, channels):
            raise ToolError(
                f'data_preprocessor.{key} has {len(values)} values: give {channels}, one per '
                'channel, or 1'
            )
    if ours:
        _check_channels(cfg, model, backbone)
        _check_top(cfg, model.get('head'))
        if backbone.get('in_channels', 3) == 1:
            _check_gray(cfg)
    _check_order(cfg)
    for node in _datasets(cfg):
        if node.family == 'semantic':
            _check_zero_label(node.key, node.config, bool(node.option('reduce_zero_label')))


def check_training(cfg: Config, images: int) -> list[str]:
    """Checks the schedules and the batches of a training run.

    Args:
        cfg: The config.
        images: Size of the training set; 0 if unknown.

    Returns:
        Warnings about what may be intended.

    Raises:
        ToolError: A schedule ends before it begins, or batch norm gets a single value.
    """
    loop, loader = cfg.get('train_cfg') or {}, cfg.train_dataloader
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    mine = math.ceil(images * repetitions(loader.get('dataset')) / get_world_size())
    batch, last = loader.get('batch_size', 1), 0
    if epochs and mine:
        last = mine % batch
        iterations = epochs * (mine // batch if loader.get('drop_last') else -(-mine // batch))
    smallest = last if last and not loader.get('drop_last') else batch
    if smallest == 1:
        _check_batch_norm(cfg, batch)
    warnings = []
    for name, schedule in schedules(cfg):
        begin = schedule.get('begin') or 0
        whole = schedule.get('T_max')
        ends = dict(end=schedule.get('end'), T_max=None if whole is None else begin + whole)
        ends = {key: value for key, value in ends.items() if value is not None}
        end = next(iter(ends.values()), math.inf)
        kind = f'{name} ({schedule.get("type")})'
        if end <= begin:
            raise ToolError(f'{kind} ends at {end}, before it begins at {begin}: set {name}.end')
        unit = 'epoch' if schedule.get('by_epoch', True) else 'iteration'
        length = epochs if unit == 'epoch' else iterations
        if length is None:
            continue
        if begin >= length:
            warnings.append(
                f'WARNING: {kind} never starts: it begins at {unit} {begin} of {length}'
            )
        elif late := {key: end for key, end in ends.items() if length < end < math.inf}:
            keys = ' and '.join(f'{name}.{key}' for key in late)
            warnings.append(
                f'WARNING: {kind} runs to {unit} {max(late.values())}, but training ends at '
                f'{length}: set {keys}, or learning rates never reach its end'
            )
    return warnings


def schedules(cfg: Config) -> list[tuple[str, dict]]:
    """The schedules of a config with their keys."""
    return [*configs_at(cfg.get('param_scheduler'), 'param_scheduler').items()]


def _check_channels(cfg: Config, model: dict, backbone: dict) -> None:
    """Compares ``in_channels`` of neck and heads with what the backbone, or an FPN, gives."""
    with torch.device('meta'), building_config():
        net = MODELS.build(dict(backbone, init_cfg=None))
    levels = list(net.out_channels)
    stem = ', with_stem=True' if backbone.get('with_stem') else ''
    gives = f'the backbone gives {levels} (out_indices={net.out_indices}{stem})'
    neck, head = model.get('neck'), model.get('head')
    pools = type_name(neck).endswith('GlobalAveragePooling')
    if pools and isinstance(head, dict) and 'in_channels' in head:
        _fit('model.head.in_channels', head['in_channels'], levels[-1], gives)
    if neck:
        several = isinstance(neck, (list, tuple))
        path, first = ('model.neck.0', neck[0]) if several else ('model.neck', neck)
        if isinstance(first.get('in_channels'), (list, tuple)):
            down = type_name(first) == 'YOLOV3Neck'  # lists the highest level first
            _fit(f'{path}.in_channels', first['in_channels'], levels[:: -1 if down else 1], gives)
        width = None if several or type_name(neck) != 'FPN' else neck.get('out_channels')
        for name in ('rpn_head', 'bbox_head'):
            taken = (model.get(name) or {}).get('in_channels')
            if isinstance(width, int) and isinstance(taken, int):
                _fit(f'model.{name}.in_channels', taken, width, f'the neck gives {width}')
        return
    for name in ('decode_head', 'auxiliary_head'):
        for path, head in configs_at(model.get(name), f'model.{name}').items():
            index = head.get('in_index')
            if index is None or 'in_channels' not in head:
                continue
            try:
                taken = levels[index] if isinstance(index, int) else [levels[k] for k in index]
            except IndexError:
                raise ToolError(f'{path}.in_index is {index}, but {gives}: set both') from None
            _fit(f'{path}.in_channels', head['in_channels'], taken, gives)


def _check_top(cfg: Config, head: Any) -> None:
    """Top-5 accuracy of three classes would stop the run after its first epoch."""
    classes = head.get('num_classes') if isinstance(head, dict) else None
    for split in ('val', 'test') if classes else ():
        for key, metric in evaluators_of(cfg, split):
            given = metric.get('topk', 1)
            most = max(given) if isinstance(given, Sequence) else given
            if type_name(metric).endswith('Accuracy') and most > classes:
                raise ToolError(
                    f'{key}.topk is {given}, but the model has {classes} classes: set {key}.topk=1'
                )


def _fit(key: str, given: Any, fitting: Any, reason: str) -> None:
    if (list(given) if isinstance(given, (list, tuple)) else given) != fitting:
        text = str(fitting).replace(' ', '')
        raise ToolError(f'{key} is {given}, but {reason}: set {key}={text}')


def _check_gray(cfg: Config) -> None:
    for node in _datasets(cfg):
        for i, step in enumerate(node.config.get('pipeline') or ()):
            loads = type_name(step).endswith('LoadImageFromFile')
            if loads and step.get('color_type', 'color') == 'color':
                raise ToolError(
                    f'model.backbone.in_channels is 1, but {node.key}.pipeline.{i} loads 3 '
                    "channels: set its color_type='grayscale', or in_channels=3"
                )


def _check_order(cfg: Config) -> None:
    """VOCMetric would compare boxes in the resized image with those in the original."""
    kinds = {s: [type_name(m) for _, m in evaluators_of(cfg, s)] for s in ('val', 'test')}
    by_voc = tuple(s for s, names in kinds.items() if any(n.endswith('VOCMetric') for n in names))
    for node in _datasets(cfg):
        kept = [step for step in node.pipeline if step.get('prob') != 0]
        steps = ' '.join(type_name(step).rpartition('.')[2] for step in kept)
        wrong = re.search(r'\bLoadAnnotations\b.* (\w*(Resize|Flip|Crop)\w*)', steps)
        if wrong and node.key.startswith(by_voc or ('-',)):
            raise ToolError(
                f'{node.key}.pipeline has {wrong[1]} after LoadAnnotations, so VOCMetric would '
                'compare boxes in different sizes: load the annotations after it'
            )


def _check_zero_label(key: str, dataset: dict, reduced: bool) -> None:
    for i, step in enumerate(dataset.get('pipeline') or ()):
        given = step.get('reduce_zero_label') if isinstance(step, dict) else None
        if given is not None and bool(given) is not reduced:
            raise ToolError(
                f'{key}.pipeline.{i}.reduce_zero_label is {given}, but the data set has '
                f'reduce_zero_label={reduced}: set {key}.reduce_zero_label={given} or take it out '
                'of the pipeline'
            )


def _check_batch_norm(cfg: Config, batch: int) -> None:
    for head in configs_at((cfg.get('model') or {}).get('decode_head'), '').values():
        kind = str(head.get('type')).rpartition('.')[2]
        norm = str((head.get('norm_cfg') or {}).get('type'))
        shared = norm == 'SyncBN' and get_world_size() > 1 and torch.cuda.is_available()
        if kind in _POOLING_HEADS and norm in ('BN', 'BN2d', 'SyncBN') and not shared:
            why = 'is 1' if batch == 1 else f'{batch} leaves a last batch of 1'
            raise ToolError(
                f'train_dataloader.batch_size {why}, and the batch norm of {kind} after pooling '
                'the whole image cannot train on one value: set it to 2 or more'
                + ('' if batch == 1 else ', or train_dataloader.drop_last=True')
            )


def repetitions(dataset: Any) -> int:
    """How often an epoch of a data set config goes through its images; 0 if that is unknown."""
    times = 1
    while isinstance(dataset, dict) and isinstance(dataset.get('dataset'), dict):
        balanced = type_name(dataset).endswith('ClassBalancedDataset')
        times *= 0 if balanced else dataset.get('times', 1)
        dataset = dataset['dataset']
    parts = dataset.get('datasets') or () if isinstance(dataset, dict) else ()
    return times * all(repetitions(part) == 1 for part in parts)


def _datasets(cfg: Config) -> Iterator[Node]:
    """The data sets of all splits, below their wrappers."""
    for split, loader in dataloaders(cfg).items():
        key = f'{split}_dataloader.dataset'
        yield from find_nodes(loader.get('dataset'), key, cfg.get('default_scope'))
