"""What makes a training run easy to watch: progress, validation loss, report, best checkpoint."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process, master_only
from mmengine.hooks import EarlyStoppingHook, Hook, IterTimerHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn import MultiheadAttention
from tqdm import tqdm

from ..backbones.layers import BATCH_NORMS
from ..checks import check_positive
from ..data.check.survey import SplitSummary
from ..data.sets.nodes import type_name
from ..evaluation.tables import main_metric
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
_DROPS = re.compile('Drop|StochasticDepth')  # class names of what leaves out values by chance
_TRAINING_LINE = re.compile(r'(Epoch|Iter)\(train\)|Exp name:')


def watch_run(
    cfg: Config,
    summaries: Sequence[SplitSummary],
    early_stop: int | None = None,
    log: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> list[str]:
    """Puts what this module has into a config, and says in one line each what it changed.

    Args:
        cfg: A config from :func:`~.runner.prepare_config`.
        summaries: Of its data.
        early_stop: Validations without a better measure after which training stops.
        log: Names of ``BACKENDS``.
        given: Keys that the command line sets; these stay.

    Raises:
        ToolError: A package is missing, or early stopping has nothing to go by.
        ValueError: ``early_stop`` is not positive.
    """
    images = {s.split: s.images for s in summaries if not s.unchecked}
    given, hooks, lines = given or {}, [dict(type=f'{SCOPE}.ProgressHook')], []
    batch = (cfg.train_dataloader.get('batch_size') or 1) * get_world_size()
    steps = -(-images.get('train', 0) // batch)  # of an epoch; wrappers may repeat it
    default_hooks = cfg.get('default_hooks') or {}
    validates = cfg.get('val_cfg') is not None and cfg.get('val_dataloader')
    if validates:
        hooks += [dict(type=f'{SCOPE}.{name}') for name in ('ValLossHook', 'ReportHook')]
        if 'train_cfg.val_interval' not in given:
            lines += _validate_often(cfg, images, steps)
        if default_hooks.get('checkpoint'):
            lines += _keep_best(default_hooks['checkpoint'])
    if early_stop is not None:
        check_positive('--early-stop', early_stop)
        if not validates:
            raise ToolError('--early-stop needs a validation set in the config, and there is none')
        hooks.append(dict(type=f'{SCOPE}.EarlyStopHook', patience=early_stop))
        lines.append(f'early stop: after {early_stop} validations without a better main measure')
    ours = {hook['type'] for hook in hooks}
    others = [hook for hook in cfg.get('custom_hooks') or () if hook.get('type') not in ours]
    cfg.custom_hooks = others + hooks
    logger = default_hooks.get('logger')
    if logger and _name(logger) == 'LoggerHook':
        if logger.get('log_metric_by_epoch'):
            lines.append('measures are logged by iterations, as losses are, not by epochs')
        logger['log_metric_by_epoch'] = False
    if logger and steps and 'default_hooks.logger.interval' not in given:
        logger['interval'] = min(logger.get('interval', 10), -(-steps // _LINES))
    _log_to(cfg, log)
    return lines


def _validate_often(cfg: Config, images: Mapping[str, int], steps: int) -> list[str]:
    """Validates each epoch, or every tenth of a run by iterations, if that costs little."""
    loop, here, by_steps = cfg.train_cfg, images.get('val', 0), 'max_iters' in cfg.train_cfg
    new = max(steps, -(-loop.max_iters // _VALIDATIONS)) if by_steps else 1
    old = loop.get('val_interval', 1000 if by_steps else 1)
    if old <= new or not 0 < here <= min(_SMALL, images.get('train', 0) // 2):
        return []
    loop.val_interval = new
    every = f'every {new} iterations' if by_steps else 'each epoch'
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


def _log_to(cfg: Config, names: Sequence[str]) -> None:
    cfg.visualizer = cfg.get('visualizer') or dict(type='mmengine.Visualizer')
    backends = cfg.visualizer.get('vis_backends') or []
    for kind, package in [('LocalVisBackend', 'mmengine'), *(BACKENDS[name] for name in names)]:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ToolError(f'--log {package} needs the package of that name, which is missing')
        if not any(_name(part) == kind for part in backends):
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
        self.bar = tqdm(disable=True)
        self.images: list[int] = []  # of the last steps

    def before_train(self, runner: Runner) -> None:
        if is_main_process() and sys.stderr.isatty():
            self.bar = tqdm(
                total=runner.max_iters, initial=runner.iter, miniters=1, dynamic_ncols=True
            )
            for handler in runner.logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.addFilter(self._make_room)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        images = len(data_batch.get('inputs', ())) if isinstance(data_batch, Mapping) else 0
        hub, shown = runner.message_hub, {}
        if 'loss' in (outputs or {}) and not self.bar.disable:
            shown['loss'] = float(torch.as_tensor(outputs['loss']).detach())
        if 'train/lr' in hub.log_scalars:
            shown['lr'] = hub.get_scalar('train/lr').current()
        if images and 'train/time' in hub.log_scalars:
            # of as many steps as the logged time is the mean of: loading comes in bursts
            self.images = [*self.images, images][-runner.log_processor.window_size :]
            seconds = hub.get_scalar('train/time').mean(len(self.images))
            mean = sum(self.images) / len(self.images)
            rate = mean * get_world_size() / max(float(seconds), 1e-9)
            hub.update_scalar('train/images_per_s', rate)
            shown['images_per_s'] = rate
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.bar.set_description(f'epoch {runner.epoch + 1}/{runner.max_epochs}', refresh=False)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def after_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        self.bar.set_postfix_str(f'validating {batch_idx + 1}/{len(runner.val_dataloader)}')

    def after_val(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, IterTimerHook):  # the next step is not slower for a validation
                hook.t = time.time()

    def after_train(self, runner: Runner) -> None:
        self.bar.close()

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows a line of the log, for which the live one makes room."""
        if self.bar.disable:  # as it is after it was closed
            return True
        shown = not _TRAINING_LINE.match(record.getMessage())
        if shown:
            self.bar.clear()
        return shown


class _TrainingHook(Hook):
    """Knows whether a validation is one of a training run."""

    trains = False

    def before_train(self, runner: Runner) -> None:
        self.trains = True


@HOOKS.register_module(force=True)
class ValLossHook(_TrainingHook):
    """Logs the loss on the validation set, ``val_loss``, after each validation.

    It is the training's loss, as heads compute it in training, with the weights that were
    validated, batch norm by its running statistics, and no dropout. Images and annotations pass the
    transforms of validation, not the random ones of training. Samplers draw the same numbers each
    time. It is of a copy of the model, and generators are afterwards what they were. If a model or
    a data set cannot do this, one line says so and training goes on.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook puts the trained weights back
    loader: Any = None

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        if not self.trains:
            return
        total, why = None, 'another process failed'
        try:
            with generators_kept(), torch.no_grad():
                total = self._sum(runner)
        except Exception as error:
            why = one_line(error)
        parts = all_gather_object(total)
        if not all(parts):
            self.trains = False  # it is not tried again
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
        model, sums, seen = copy.deepcopy(unwrapped(runner.model)).train(), Counter(), 0
        for module in model.modules():
            drops = isinstance(module, MultiheadAttention) or _DROPS.search(type(module).__name__)
            if drops or isinstance(module, BATCH_NORMS):
                module.eval()
        model.__dict__.pop('forward', None)  # a compiled one is that of the model itself
        if hasattr(model.data_preprocessor, 'batch_augments'):
            model.data_preprocessor.batch_augments = None
        own = len(self.loader.dataset) - get_rank()
        own = -(-own // get_world_size()) if get_world_size() > 1 else math.inf
        for i, batch in enumerate(self.loader):
            seed_generators(_LOSS, runner.seed, get_rank(), i)
            images = min(len(batch['inputs']), max(own - seen, 0))
            seen += images
            if images:  # the sampler gives all processes equally many, some images twice
                batch = {key: part[:images] for key, part in batch.items()}
            data = model.data_preprocessor(batch, True)
            _, losses = model.parse_losses(model(**data, mode='loss'))
            sums[''] += images
            for name, value in losses.items():
                if 'loss' in name:
                    sums[name] += float(value) * images
        return dict(sums)


def loss_loader(cfg: Config) -> dict[str, Any]:
    """The config of a loader of the validation set for its loss.

    Annotations are loaded before the image is resized, as in training. mmdet's pipelines of
    validation load them after that, because they measure in the original image. A batch has as many
    images as in training; for segmentors one, as their sizes differ.
    """
    loader = copy.deepcopy(cfg.val_dataloader)
    parts = [part for part in walk_dicts(cfg.train_dataloader) if 'pipeline' in part]
    training = [step for part in parts for step in part['pipeline']]
    loads = [[step for step in part['pipeline'] if _loads(step)] for part in parts]
    packs = [step for step in training if _name(step).startswith('Pack')]
    targets = [step for step in training if _name(step) == 'GenerateTarget']  # mmpose's heatmaps
    for part in list(walk_dicts(loader.dataset)):
        steps = part.get('pipeline') or []
        rest = [s for s in steps if not (_loads(s) or _name(s).startswith('Pack'))]
        if steps:
            first = [*rest[:1], *next(filter(None, loads), []), *rest[1:]]
            part.pipeline = [*first, *targets[:1], *packs[:1]]
            if targets:  # detected persons have no keypoints to learn from
                part.pop('bbox_file', None)
    maps = any(_name(step) == 'PackSegInputs' for step in packs)
    loader.batch_size = 1 if maps else cfg.train_dataloader.get('batch_size') or 1
    return loader


def _name(step: Any) -> str:
    return type_name(step).rpartition('.')[2]


def _loads(step: Any) -> bool:
    """Whether a transform loads annotations, or makes them what training expects."""
    return re.fullmatch('Load.*Annotations|DropEmptyBoxes|CheckLabelMap', _name(step)) is not None


@HOOKS.register_module(force=True)
class EarlyStopHook(EarlyStoppingHook):
    """mmengine's hook by the main measure; its count survives resuming."""

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
        self.monitor = main_metric(metrics or {})
        if self.monitor is None:
            warn('--early-stop: the validation has no main measure to go by')
            return
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info('early_stop', [self.best_score, self.wait_count])


@HOOKS.register_module(force=True)
class ReportHook(_TrainingHook):
    """Writes ``report.html`` after each validation and at the end; a failure is only said."""

    priority = 'LOW'  # after LoggerHook
    worst: Sequence[dict[str, Any]] = ()

    def before_val_epoch(self, runner: Runner) -> None:
        self.worst = []

    def after_val_iter(self, runner: Runner, outputs: Sequence | None = None, **_: Any) -> None:
        for sample in (outputs or ()) if self.trains else ():
            if 'pred_sem_seg' not in sample or 'gt_sem_seg' not in sample:
                continue
            truth, predicted = (
                part.data.squeeze().cpu() for part in (sample.gt_sem_seg, sample.pred_sem_seg)
            )
            named = (getattr(m, 'ignore_index', None) for m in runner.val_evaluator.metrics)
            ignored = truth == next((index for index in named if index is not None), 255)
            right = float((truth == predicted)[~ignored].float().mean().nan_to_num(1))
            step = -(-max(truth.shape) // _SIDE)
            maps = [m.long().masked_fill(ignored, 255) for m in (truth, predicted)]
            maps = [m[::step, ::step].numpy() for m in maps]
            found = dict(path=sample.img_path, accuracy=right, truth=maps[0], predicted=maps[1])
            self.worst = _worst([*self.worst, found])

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        if not self.trains:
            return
        found = {w['path']: w for part in all_gather_object(self.worst) for w in part}
        worst = _worst([*found.values()])
        self._write(runner, worst)

    def after_train(self, runner: Runner) -> None:
        self._write(runner)

    @master_only
    def _write(self, runner: Runner, worst: Sequence[dict] | None = None) -> None:
        """Writes the page; ``worst`` are the worst images of a new validation."""
        try:
            if worst is not None:
                examined = (getattr(m, 'examined', None) for m in runner.val_evaluator.metrics)
                note_validation(runner.work_dir, [*filter(None, examined)], worst)
            write_report(runner.work_dir)
        except Exception as error:
            warn(f'no report: {type(error).__name__}: {one_line(error)}; training goes on')


def _worst(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda image: image['accuracy'])[:_WORST]
