"""Setting a config's schedule, batch and image size from a tool's arguments."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import get_world_size

from ..checks import check_positive
from ..data.check.inspection import check_data
from ..data.sets.nodes import type_name
from .checkpoints import check_new_run
from .config import dataloaders, walk_dicts
from .config_checks import repetitions, schedules
from .config_keys import TOP
from .errors import ToolError
from .own_data import OwnData

_OTHER_SIZES = 'img_scale', 'random_size_range'  # of mmdet's Mosaic, MixUp, batch augments
_PADS = 'Pad', 'BatchFixedSizePad'
_WARM_UP = 3  # warm-up takes at most one in so many steps


def adapt(cfg: Config, args: argparse.Namespace) -> list[str]:
    """Changes a config as ``--data``, ``--epochs``, ``--batch`` and ``--size`` say, and tells how.

    Raises:
        ToolError: An argument does not fit the config.
        DataError: ``--data`` cannot be used.
    """
    for name in ('epochs', 'batch'):
        if getattr(args, name) is not None:
            check_positive(f'--{name}', getattr(args, name))
    lines, images = [], 0
    if args.data is not None:
        name = f'{Path(cfg.filename).stem}_{Path(args.data).resolve().stem}'
        cfg.work_dir = args.work_dir or str(Path('work_dirs', name))
        probe = cfg.copy()
        if args.resume is not None:
            probe.resume, probe.load_from = True, None if args.resume == 'auto' else args.resume
        check_new_run(probe)
    if data := use_data(cfg, args, cfg.get('work_dir') or ''):
        lines, images = data.lines, data.images['train']
    if args.batch is not None:
        cfg.train_dataloader.batch_size = args.batch
    if args.batch is not None or data:
        absolute = any(type_name(s).endswith('OneCycleLR') for _, s in schedules(cfg))
        if absolute:
            lines.append('note: the learning rates of OneCycleLR are absolute, and stay')
        elif (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            cfg.auto_scale_lr.enable = True  # describe_batch says by how much
        else:
            lines.append('note: the learning rate stays: no auto_scale_lr.base_batch_size is given')
    if args.size is not None:
        set_size(cfg, *args.size)
    if args.epochs is not None or data:
        if not images and 'max_iters' in cfg.train_cfg:
            summary = check_data(cfg, ('train',))[0]
            images = 0 if summary.unchecked else summary.images
        lines += set_epochs(cfg, args.epochs, images)
    cfg.merge_from_dict(args.cfg_options or {})  # they have the last word
    return lines


def use_data(cfg: Config, args: argparse.Namespace, work_dir: str | Path) -> OwnData | None:
    """Sets a config to what ``--data`` names, with what is converted in ``work_dir``.

    Raises:
        ToolError: Options of ``--data`` are given without it, or the config has no such data.
        DataError: It cannot be used.
    """
    given = dict(form=args.data_format, classes=args.classes, ignored=args.ignore_label)
    if args.data is None:
        if any(value is not None for value in given.values()):
            raise ToolError('--classes, --data-format and --ignore-label belong to --data')
        return None
    data = OwnData(cfg, args.data, work_dir, kept=_kept_list(cfg, args, work_dir), **given)
    data.apply(cfg)
    for key in cfg.keys() - TOP:  # variables of the file, which say something else now
        cfg.pop(key)
    cfg.merge_from_dict(args.cfg_options or {})
    return data


def _kept_list(cfg: Config, args: argparse.Namespace, work_dir: str | Path) -> Path | None:
    """The list of images that a run to be resumed has set aside; None if there is none."""
    resume = getattr(args, 'resume', None)
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    folders = [Path(resume).parent] if resume not in (None, 'auto') else []
    folders += [] if resume is None else [Path(work_dir)]
    lists = (folder / 'data' / 'val.txt' for folder in folders)
    return next((file for file in lists if file.is_file()), None)


def set_epochs(cfg: Config, epochs: int | None, images: int) -> list[str]:
    """Makes training last ``epochs``, and all that is timed by them shorter or longer with it.

    Schedules keep their share of the run; validations and checkpoints become more frequent in a
    shorter one. A warm-up that takes most of the run becomes shorter, also if ``epochs`` is None.
    ``images`` are those of the training set, 0 if unknown: then a warm-up stays. Returns the new
    length in words, and which steps of the learning rate such a short run does not reach.

    Raises:
        ToolError: ``epochs`` cannot be iterations, as the number of images is unknown.
    """
    loop = cfg.train_cfg
    by_steps = 'max_iters' in loop
    key = 'max_iters' if by_steps else 'max_epochs'
    batch = cfg.train_dataloader.batch_size * get_world_size()
    images *= repetitions(cfg.train_dataloader.get('dataset'))
    an_epoch, notes = math.ceil(images / batch), []
    if epochs is not None:
        if by_steps and not images:
            raise ToolError(
                '--epochs: how many images the training set has is not known, and train_cfg counts '
                'iterations: set --cfg-options train_cfg.max_iters=N'
            )
        length = epochs * an_epoch if by_steps else epochs
        notes = _stretch(cfg, by_steps, length, length / loop[key])
        loop[key] = length
    steps = loop[key] if by_steps else loop[key] * an_epoch
    for _, schedule in schedules(cfg):
        if steps and not by_steps and not schedule.get('by_epoch', True):
            if type_name(schedule).endswith(('LinearLR', 'ConstantLR')) and schedule.get('end'):
                schedule.end = min(schedule.end, max(1, steps // _WARM_UP))
    lasting = steps / an_epoch if steps else loop[key]
    taken = f'{steps:,} steps of {batch} images, ' if steps else ''
    return [f'schedule: {taken}{lasting:.6g} epoch{"s" * (lasting != 1)}', *notes]


def _stretch(cfg: Config, by_steps: bool, length: int, factor: float) -> list[str]:
    """Scales what is timed; tells which steps of the learning rate do not fit any more."""

    def scaled(value: float) -> int:
        return max(1, min(length, round(value * factor)))

    notes: list[str] = []
    timed: list[tuple[dict, str]] = [(cfg.train_cfg, 'val_begin')]
    for _, schedule in schedules(cfg):
        if schedule.get('by_epoch', True) != by_steps:
            timed += [(schedule, k) for k in ('begin', 'end', 'T_max', 'milestones', 'step_size')]
    from_end = dict(switch_epoch=1, num_last_epochs=2)  # -> the epochs that come before
    timed += [(hook, key) for hook in cfg.get('custom_hooks') or () for key in from_end]
    if dynamic := cfg.train_cfg.get('dynamic_intervals'):
        cfg.train_cfg.dynamic_intervals = [(scaled(at), min(n, scaled(n))) for at, n in dynamic]
    for part, key in timed:
        value = part.get(key)
        if isinstance(value, (list, tuple)):  # each a step of its own, the last within the run
            new, most = [], length - 1
            for step in sorted(value, reverse=True):
                most = min(scaled(step), most)
                new.insert(0, most)
                most -= 1
            part[key] = [step for step in new if step > 0]
            if len(part[key]) < len(value):
                lost = f'of its steps at {list(value)}, {part[key] or "none"} are left'
                notes.append(f'note: the run is too short for all learning rates: {lost}')
        elif value:
            most = length - dict(from_end, begin=1).get(key, 0)
            part[key] = max(0, min(scaled(value), most))
        if key == 'T_max' and part.get(key):
            part[key] = max(1, min(part[key], length - (part.get('begin') or 0)))
    for _, schedule in schedules(cfg):
        if schedule.get('end') and schedule.get('by_epoch', True) != by_steps:
            schedule.end = max(schedule.end, (schedule.get('begin') or 0) + 1)
    # a longer run is not measured or saved less often
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    checkpoint = checkpoint if checkpoint.get('by_epoch', True) != by_steps else None
    for part, key in ((cfg.train_cfg, 'val_interval'), (checkpoint, 'interval')):
        if part and part.get(key):
            part[key] = min(part[key], scaled(part[key]))
    return notes


def set_size(cfg: Config, width: int, height: int) -> None:
    """Sets the size that images are resized to, in px; crops larger than it become smaller.

    Several scales keep their relation: the largest becomes this size.

    Raises:
        ToolError: The pipelines do not resize, or set sizes in ways that this does not know.
    """
    for name, value in (('width', width), ('height', height)):
        check_positive(f'--size {name}', value)
    batches = cfg.model.get('data_preprocessor') or {}
    resized, crops = set(), [(batches, 'size')]
    parts = {split: loader.dataset for split, loader in dataloaders(cfg).items()}
    others = dict(tta=cfg.get('tta_pipeline'), hooks=cfg.get('custom_hooks'), batches=batches)
    for split, part in (parts | others).items():
        for step in walk_dicts(part):
            kind = type_name(step).rpartition('.')[2]
            edges = isinstance(step.get('scales'), list) and isinstance(step['scales'][0], int)
            fixed = [key for key in _OTHER_SIZES if step.get(key)] + ['scales'] * edges
            if fixed := fixed + ['size'] * (kind in _PADS and bool(step.get('size'))):
                raise ToolError(
                    f'--size cannot set {fixed[0]}={step[fixed[0]]} of {kind}, which the config '
                    'has: write the sizes that you want into a config'
                )
            if kind in ('Resize', 'RandomResize', 'RandomChoiceResize'):
                for key in {'scale', 'scales'} & step.keys():
                    step[key] = _rescaled(step[key], width, height)
                    resized.add(split)
            elif kind == 'RandomResizedCrop':
                step.scale = (width, height)
                resized.add(split)
            elif kind.endswith('RandomCrop'):
                crops.append((step, 'crop_size'))
    needed = parts if cfg.get('default_scope') == 'mmpretrain' else ['train']
    if missing := [split for split in needed if split not in resized]:
        raise ToolError(
            f'--size: no Resize, RandomResize, RandomChoiceResize or RandomResizedCrop is in the '
            f'pipeline of {missing[0]}'
        )
    for part, key in crops:
        if isinstance(size := part.get(key), (list, tuple)):
            part[key] = (min(size[0], height), min(size[1], width))


def _rescaled(scale: Any, width: int, height: int) -> Any:
    if isinstance(scale, int) or not isinstance(scale[0], (list, tuple)):
        return (width, height)
    most = np.max(scale, axis=0)
    if (most[0] < most[1]) != (width < height):  # the config has the short side first
        width, height = height, width
    scaled = np.round(np.array(scale) * (width, height) / most)
    return [tuple(sides) for sides in scaled.clip(1).astype(int).tolist()]
