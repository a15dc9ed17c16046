"""The lines that a run starts with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from ..checks import check_positive
from ..data.check.survey import SplitSummary, format_summary
from ..data.sets.nodes import type_name
from ..ops.memory import keep_freed_memory
from ..ops.mmcv_ext import describe_ops
from ..registry import MODELS
from ..weights.sources import OPEN_MMLAB
from ..weights.zoo import IMAGENET_MEAN, IMAGENET_STD, SCHEME
from .config import images_per_step, our_networks, pretrained, require, timm_backbones
from .config_checks import check_training, schedules
from .errors import ToolError


def keep_memory() -> None:
    """Keeps freed memory in this process, and says so; on a GPU there is nothing to do."""
    if keep_freed_memory() and os.environ.get('RANK', '0') == '0':
        print('memory: what tensors free stays with this process, for the next ones', flush=True)


def describe_device() -> str:
    """One line: where the run computes."""
    world = get_world_size()
    if torch.cuda.is_available():
        return f'device: {world} x {torch.cuda.get_device_name()}'
    processes = f'{world} processes, ' if world > 1 else ''
    name = platform.processor() or platform.machine()
    return f'device: CPU ({processes}{torch.get_num_threads()} threads, {name})'


def describe_batch(cfg: Config) -> str:
    """One line: effective batch and learning rate, and whether they fit the schedule."""
    require(cfg, 'training', 'optim_wrapper', 'train_dataloader')
    if 'optimizer' not in cfg.optim_wrapper:
        raise ToolError('optim_wrapper of the config has no optimizer: training needs a single one')
    check_positive('train_dataloader.batch_size', cfg.train_dataloader.get('batch_size'))
    world, images, batch = get_world_size(), cfg.train_dataloader.batch_size, images_per_step(cfg)
    accumulated = batch // (images * world)
    lr = cfg.optim_wrapper.optimizer.get('lr')
    line = f'batch: {batch} images a step ({images} x {world} processes'
    line += f' x {accumulated} accumulated)' if accumulated > 1 else ')'
    if lr is None:
        return f"{line}; learning rate: the optimizer's own"
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if scaling.get('enable') and base:
        return f'{line}; learning rate {lr:g} x {batch}/{base} (scaled) = {lr * batch / base:g}'
    line += f'; learning rate {lr:g}'
    if base and base != batch:
        remedy = f'pass --auto-scale-lr, or set optim_wrapper.optimizer.lr to {lr * batch / base:g}'
        for name, schedule in schedules(cfg):
            if type_name(schedule).endswith('OneCycleLR'):  # whose rates are absolute
                remedy = f'multiply {name}.eta_max by {batch / base:g}'
        line += f'. WARNING: it is meant for {base} images; {remedy}'
    return line


def describe_run(cfg: Config, summaries: Sequence[SplitSummary]) -> str:
    """The lines of a training run, from its config and the results of the data check.

    Raises:
        ToolError: The schedule or the batch cannot train.
    """
    images = sum(s.images for s in summaries if s.split == 'train' and not s.unchecked)
    lines = [describe_device(), describe_batch(cfg), format_summary(summaries), describe_ops()]
    lines += preprocessing_warnings(cfg) + check_training(cfg, images)
    lines.append(f'seed: {cfg.randomness["seed"]}; everything goes to {cfg.work_dir}')
    return '\n'.join(lines)


def preprocessing_warnings(cfg: Config) -> list[str]:
    """Warnings if published weights get images that they were not trained on.

    Those of Res2Net need RGB with ImageNet's mean and std; with anything else detectors end up
    below a plain ResNet's accuracy. timm says what its weights need.
    """
    sources = [str(c.get('checkpoint')) for p in our_networks(cfg) for c in pretrained(p)]
    weights = [source for source in sources if source.startswith((SCHEME, *OPEN_MMLAB))]
    imagenet = dict(mean=[*IMAGENET_MEAN], std=[*IMAGENET_STD], bgr_to_rgb=True)
    needs = {source: imagenet for source in weights[:1]}
    for part in timm_backbones(cfg):
        if part.get('pretrained'):
            with torch.device('meta'):
                about = MODELS.build(part).timm_model.pretrained_cfg  # 0 to 1, RGB
            scaled = {key: [round(255 * v, 3) for v in about[key]] for key in ('mean', 'std')}
            needs[f'timm/{part.model_name}'] = dict(scaled, bgr_to_rgb=True)
    given = {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}
    lines = []
    for source, need in needs.items():
        for key, wanted in need.items():
            key = 'to_rgb' if key == 'bgr_to_rgb' and 'to_rgb' in given else key  # mmpretrain's
            value = [*given[key]] if isinstance(given.get(key), (list, tuple)) else given.get(key)
            if value != wanted:
                what = f'data_preprocessor.{key} is {value}'
                lines.append(f'WARNING: {what}, but {source} was trained with {wanted}')
    return lines
