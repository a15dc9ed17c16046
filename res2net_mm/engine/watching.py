"""What makes a training run easy to watch: progress, validation loss, report, best checkpoint."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import EarlyStoppingHook, Hook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from tqdm import tqdm

from ..checks import check_positive
from ..data.check.survey import SplitSummary
from ..data.sets.nodes import type_name
from ..evaluation import main_metric
from ..registry import HOOKS, SCOPE
from .arguments import BACKENDS
from .config import walk_dicts
from .errors import ToolError, one_line
from .loading import unwrapped
from .run_page import note_validation, write_report
from .seeding import generators_kept, seed_generators
from .terminal import warn

_LOSS = 3  # the key of random numbers, beside those of samples and steps
_SMALL = 1000  # images of a validation set
_VALIDATIONS, _LINES = 10, 10  # at least so many of a run by iterations, and of an epoch
_WORST, _SIDE = 8, 240  # label maps that a report shows, and their pixels
_TRAINING_LINE = re.compile(r'(Epoch|Iter)\(train\)|Exp name:')


def watch_run(
    cfg: Config,
    summaries: Sequence[SplitSummary],
    early_stop: int | None = None,
    log: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> list[str]:
    """Puts what this module has into the config of a training run.

    Args:
        cfg: A config from :func:`~.runner.prepare_config`; changed.
        summaries: Of its data.
        early_stop: Validations without a better measure after which training stops.
        log: Names of ``BACKENDS``.
        given: Keys that the command line sets; these stay.

    Returns:
        What it changed, one line each.

    Raises:
        ToolError: A package is missing, or early stopping has nothing to go by.
    """
    images = {s.split: s.images for s in summaries if not s.unchecked}
    given, hooks, lines = given or {}, [dict(type=f'{SCOPE}.ProgressHook')], []
    default_hooks = cfg.get('default_hooks') or {}
    if cfg.get('val_cfg') is not None and cfg.get('val_dataloader'):
        hooks += [dict(type=f'{SCOPE}.{name}') for name in ('ValLossHook', 'ReportHook')]
        lines += _validate_often(cfg, images, given)
        if 'checkpoint' in default_hooks:
            lines += _keep_best(default_hooks['checkpoint'])
    elif early_stop is not None:
        raise ToolError('--early-stop needs a validation set in the config, and there is none')
    if early_stop is not None:
        try:
            check_positive('--early-stop', early_stop)
        except ValueError as error:
            raise ToolError(str(error)) from error
        hooks.append(dict(type=f'{SCOPE}.EarlyStopHook', patience=early_stop))
        lines.append(f'early stop: after {early_stop} validations without a better main measure')
    ours = {hook['type'] for hook in hooks}
    others = [hook for hook in cfg.get('custom_hooks') or () if hook.get('type') not in ours]
    cfg.custom_hooks = others + hooks
    logger, steps = default_hooks.get('logger'), _steps(cfg, images)
    if logger and 'max_iters' in cfg.train_cfg:  # else validations are logged at epoch 0
        logger.setdefault('log_metric_by_epoch', False)
    if logger and steps and 'default_hooks.logger.interval' not in given:
        logger['interval'] = min(logger.get('interval', 10), -(-steps // _LINES))
    _log_to(cfg, log)
    return lines


def _validate_often(cfg: Config, images: Mapping[str, int], given: Mapping) -> list[str]:
    """Validates each epoch if that costs little, unless the command line says when."""
    loop, here = cfg.train_cfg, images.get('val', 0)
    unit, length = 'epoch', 1
    if 'max_iters' in loop:
        unit, length = 'iteration', max(_steps(cfg, images), -(-loop.max_iters // _VALIDATIONS))
    old = loop.get('val_interval', 1 if unit == 'epoch' else 1000)
    small = 0 < here <= min(_SMALL, images.get('train', 0) // 2)
    if not small or old <= length or 'train_cfg.val_interval' in given:
        return []
    loop.val_interval = length
    every = f'each {unit}' if length == 1 else f'every {length} {unit}s'
    return [
        f'validation: {every}, as the set has only {here} images (the config says {old}; '
        f'--cfg-options train_cfg.val_interval={old} keeps that)'
    ]


def _keep_best(hook: dict) -> list[str]:
    """Keeps the last two checkpoints and the best, unless the config says what to keep."""
    new = {k: v for k, v in dict(max_keep_ckpts=2, save_best='auto').items() if k not in hook}
    hook.update(new)
    kept = dict(max_keep_ckpts='the last two', save_best='the best by the main measure')
    return [f'checkpoints: {" and ".join(kept[key] for key in new)} are kept'] if new else []


def _steps(cfg: Config, images: Mapping[str, int]) -> int:
    """Steps of an epoch, about: wrappers that repeat data are not counted."""
    batch = cfg.train_dataloader.get('batch_size') or 1
    return math.ceil(images.get('train', 0) / batch / get_world_size())


def _log_to(cfg: Config, names: Sequence[str]) -> None:
    if not cfg.get('visualizer'):
        cfg.visualizer = dict(type='mmengine.Visualizer')
    backends = cfg.visualizer.get('vis_backends') or []
    for kind, package in [('LocalVisBackend', 'mmengine'), *(BACKENDS[name] for name in names)]:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ToolError(f'--log {package} needs the package of that name, which is missing')
        if not any(type_name(part).rpartition('.')[2] == kind for part in backends):
            backends.append(dict(type=kind))
            if package == 'mlflow':  # mmengine's backend would ignore the variable
                backends[-1]['tracking_uri'] = os.environ.get('MLFLOW_TRACKING_URI')
    cfg.visualizer.vis_backends = backends


@HOOKS.register_module(force=True)
class ProgressHook(Hook):
    """Shows a live line on a terminal, and adds images a second to what mmengine logs.

    On a terminal, mmengine's lines about training then go only to the log file.
    """

    priority = 55  # after IterTimerHook, before LoggerHook

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        if not (is_main_process() and sys.stderr.isatty()):
            return
        form = '{desc} |{bar}|{postfix}, {remaining} left'
        self.bar = tqdm(
            total=runner.max_iters, initial=runner.iter, dynamic_ncols=True, bar_format=form
        )
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(self._make_room)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        images = len(data_batch.get('inputs', ())) if isinstance(data_batch, Mapping) else 0
        hub, shown = runner.message_hub, []
        if images and 'train/time' in hub.log_scalars:
            rate = images * get_world_size() / max(hub.get_scalar('train/time').current(), 1e-9)
            hub.update_scalar('train/images_per_s', rate)
            shown = [f'{rate:.1f} images/s']
        if self.bar is None:
            return
        if 'train/lr' in hub.log_scalars:
            shown.insert(0, f'lr {hub.get_scalar("train/lr").current():.2e}')
        if 'loss' in (outputs or {}):
            shown.insert(0, f'loss {float(torch.as_tensor(outputs["loss"]).detach()):.3f}')
        place = f'step {runner.iter + 1}/{runner.max_iters}'
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            length = len(runner.train_dataloader)
            place = f'epoch {runner.epoch + 1}/{runner.max_epochs} step {batch_idx + 1}/{length}'
        self.bar.set_description_str(place, refresh=False)
        self.bar.set_postfix_str(', '.join(shown), refresh=False)
        self.bar.update()

    def after_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        if self.bar is not None:
            done = f'validating {batch_idx + 1}/{len(runner.val_dataloader)}'
            self.bar.set_postfix_str(done)

    def after_train(self, runner: Runner) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _make_room(self, record: logging.LogRecord) -> bool:
        if self.bar is None:
            return True
        if _TRAINING_LINE.match(record.getMessage()):
            return False
        self.bar.clear()
        return True


@HOOKS.register_module(force=True)
class ValLossHook(Hook):
    """Logs the loss on the validation set, ``val_loss``, after each validation.

    It is the training's loss, with the weights that were validated, batch norm by its running
    statistics, and no dropout. Images and annotations pass the transforms of validation, not the
    random ones of training. Samplers draw the same numbers each time. Buffers and generators are
    afterwards what they were. If a model or a data set cannot do this, one line says so and
    training goes on.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook puts the trained weights back

    def __init__(self) -> None:
        self.loader: Any = None
        self.wanted = False

    def before_train(self, runner: Runner) -> None:
        self.wanted = True

    @torch.no_grad()
    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        if not self.wanted:
            return
        total, why = None, 'another process failed'
        try:
            with generators_kept(), _buffers_kept(unwrapped(runner.model)):
                total = self._sum(runner)
        except Exception as error:
            why = one_line(error)
        parts = all_gather_object(total)
        if not all(parts):
            self.wanted = False
            warn(f'no validation loss: {why}; training goes on')
            return
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        images = sums.pop('')
        losses = {f'val_{name}': value / images for name, value in sums.items()}
        runner.logger.info('  '.join(f'{name}: {value:.4f}' for name, value in losses.items()))
        # not by the message hub, whose means are of several validations
        runner.visualizer.add_scalars({**losses, 'iter': runner.iter}, step=runner.iter)

    def _sum(self, runner: Runner) -> dict[str, float]:
        """The sum of each loss over the images, and under ``''`` their number."""
        if self.loader is None:
            self.loader = runner.build_dataloader(loss_loader(runner.cfg), seed=runner.seed)
        model = unwrapped(runner.model).eval()
        preprocessor, sums = model.data_preprocessor, Counter()
        augments = getattr(preprocessor, 'batch_augments', None)
        try:
            if augments is not None:
                preprocessor.batch_augments = None
            for i, batch in enumerate(self.loader):
                seed_generators(_LOSS, runner.seed, get_rank(), i)
                images = len(batch['inputs'])
                data = preprocessor(batch, True)
                _, losses = model.parse_losses(model(**data, mode='loss'))
                sums[''] += images
                for name, value in losses.items():
                    if 'loss' in name:
                        sums[name] += float(value) * images
        finally:
            if augments is not None:
                preprocessor.batch_augments = augments
        return dict(sums)


def loss_loader(cfg: Config) -> dict[str, Any]:
    """The config of a loader of the validation set for its loss.

    Annotations are loaded before the image is resized, as in training. mmdet's pipelines of
    validation load them after that, because they measure in the original image. A batch has as many
    images as in training; for segmentors one, as their sizes differ.
    """
    loader = copy.deepcopy(cfg.val_dataloader)
    parts = [part for part in walk_dicts(cfg.train_dataloader) if 'pipeline' in part]
    training = [[(_name(step), step) for step in part['pipeline']] for part in parts]
    loads = [[step for name, step in steps if _loads(name)] for steps in training]
    packs = [step for steps in training for name, step in steps if name.startswith('Pack')]
    for part in list(walk_dicts(loader.dataset)):
        steps = part.get('pipeline') or []
        rest = [s for s in steps if not (_loads(_name(s)) or _name(s).startswith('Pack'))]
        if steps:
            part.pipeline = [*rest[:1], *next(filter(None, loads), []), *rest[1:], *packs[:1]]
    maps = any(_name(step) == 'PackSegInputs' for step in packs)
    loader.batch_size = 1 if maps else cfg.train_dataloader.get('batch_size') or 1
    return loader


def _name(step: Any) -> str:
    return type_name(step).rpartition('.')[2]


def _loads(name: str) -> bool:
    """Whether a transform loads annotations, or makes them what training expects."""
    return name.startswith('Load') and name.endswith('Annotations') or name == 'DropEmptyBoxes'


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])


@HOOKS.register_module(force=True)
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's hook by the main measure; its count survives resuming.

    Args:
        patience: Validations without a better measure after which training stops.
    """

    priority = 'LOW'  # before the best checkpoint is saved, which holds the count

    def __init__(self, patience: int) -> None:
        # of equal measures the later is not better
        super().__init__('mAP', rule='greater', min_delta=1e-9, patience=patience)

    def before_run(self, runner: Runner) -> None:
        """Nothing: mmengine's builds the training loop even for a test."""

    def before_train(self, runner: Runner) -> None:
        state = runner.message_hub.runtime_info.get('early_stop')
        if state is not None:
            self.best_score, self.wait_count = float(state[0]), int(state[1])

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        main = main_metric(metrics or {})
        if main is None:
            warn('--early-stop: the validation has no main measure to go by')
            return
        self.monitor = main
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info('early_stop', [self.best_score, self.wait_count])


@HOOKS.register_module(force=True)
class ReportHook(Hook):
    """Writes ``report.html`` after each validation and at the end; a failure is only said."""

    priority = 'LOW'  # after LoggerHook

    def __init__(self) -> None:
        self.wanted = False
        self.worst: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        self.wanted = True

    def before_val_epoch(self, runner: Runner) -> None:
        self.worst = []

    def after_val_iter(self, runner: Runner, outputs: Sequence | None = None, **_: Any) -> None:
        """Keeps the worst label maps."""
        for sample in (outputs or ()) if self.wanted else ():
            if 'pred_sem_seg' not in sample or 'gt_sem_seg' not in sample:
                continue
            truth, predicted = (
                part.data.squeeze().cpu() for part in (sample.gt_sem_seg, sample.pred_sem_seg)
            )
            ignored = truth == getattr(runner.val_evaluator.metrics[0], 'ignore_index', 255)
            right = float((truth == predicted)[~ignored].float().mean().nan_to_num(1))
            step = -(-max(truth.shape) // _SIDE)
            maps = [m.masked_fill(ignored, 255)[::step, ::step].numpy() for m in (truth, predicted)]
            found = dict(path=sample.img_path, accuracy=right, truth=maps[0], predicted=maps[1])
            self.worst = sorted([*self.worst, found], key=lambda w: w['accuracy'])[:_WORST]

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        if not self.wanted:
            return
        worst = sum(all_gather_object(self.worst), [])
        worst.sort(key=lambda w: w['accuracy'])
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop) and any(
            isinstance(hook, LoggerHook) and hook.log_metric_by_epoch for hook in runner.hooks
        )
        step = len(runner.train_dataloader) if by_epoch else 1
        if is_main_process():
            with _only_said('report'):
                examined = (getattr(m, 'examined', None) for m in runner.val_evaluator.metrics)
                found = next(filter(None, examined), {})
                note_validation(runner.work_dir, step, found, worst[:_WORST])
                write_report(runner.work_dir)

    def after_train(self, runner: Runner) -> None:
        if is_main_process():
            with _only_said('report'):
                write_report(runner.work_dir)


@contextmanager
def _only_said(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        warn(f'no {what}: {type(error).__name__}: {one_line(error)}; training goes on')
