"""A Runner from a config and a tool's arguments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process, sync_random_seed

from ..data.sets.nodes import type_name
from ..data.transforms import harden_dataset, harden_pipeline
from ..evaluation.tables import ignored_label, use_our_metrics
from ..ops.internals import onednn_computes
from ..weights import DownloadError, locate, read_checkpoint
from .checkpoints import find_newest
from .config import (
    dataloaders,
    drop_backbone_rates,
    our_networks,
    pretrained,
    walk_dicts,
)
from .config_checks import check_model, schedules
from .config_keys import arguments_of, check_arguments, classes_named
from .errors import ToolError, building_config
from .pictures import use_our_pictures
from .processes import start_processes
from .resuming import check_resumption
from .safe_runner import Runner
from .safety import check_arrays, use_safe_loading
from .terminal import warn

_FROM_SCRATCH = dict(init_cfg=None, pretrained=None, frozen_stages=-1, norm_eval=False)
HOOKS = ('StepSeedHook', 'FiniteLossHook', 'FiniteWeightsHook', 'FrozenNormHook', 'Float32BoxHook')
HOOKS += ('SharedBuffersHook',)


def prepare_config(
    cfg: Config,
    *,
    work_dir: str | None = None,
    launcher: str = 'none',
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    from_scratch: bool = False,
    trust: bool = False,
) -> Config:
    """A copy of a config with a tool's arguments and this package's safeguards in it.

    Prints what the safeguards change, one line each. Raises a ToolError if an argument does not fit
    the config or the machine, and FileNotFoundError if a checkpoint does not exist.

    Args:
        cfg: The config.
        work_dir: Folder of the run; None takes the config's, else ``work_dirs/<config>``.
        launcher: ``'none'`` or one of mmengine's, such as ``'pytorch'`` for torchrun.
        amp: Train with automatic mixed precision.
        auto_scale_lr: Scale the learning rate to the effective batch.
        resume: Checkpoint to resume from, or ``'auto'`` for the latest in the folder.
        from_scratch: Start from random weights: nothing pretrained, nothing frozen.
        trust: Read checkpoints with pickle.
    """
    check_arguments(cfg)
    check_model(cfg)
    cfg = copy.deepcopy(cfg)
    name = Path(cfg.filename).stem if cfg.filename else 'run'
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', name))
    start_processes(cfg, launcher)
    _set_precision(cfg, amp)
    checkpoint = _choose_checkpoint(cfg, resume, trust)
    _set_weights(cfg, from_scratch, resumed=checkpoint is not None, trust=trust)
    if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ToolError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, the batch that '
                'its learning rate is meant for; there is none'
            )
        absolute = [name for name, s in schedules(cfg) if type_name(s).endswith('OneCycleLR')]
        if absolute and auto_scale_lr:
            raise ToolError(f'--auto-scale-lr cannot scale {absolute[0]}: set its eta_max instead')
        cfg.auto_scale_lr.enable = not absolute
    changes = add_safeguards(cfg)
    if changes and is_main_process():
        print('safeguards in the config:', *changes, sep='\n  ', flush=True)
    _settle_seed(cfg, checkpoint, trust)
    return cfg


def build_runner(cfg: Config, trust: bool = False) -> Runner:
    """Builds the Runner of a config from :func:`prepare_config`."""
    use_safe_loading(trust)
    if not trust:
        check_arrays(cfg)
    kind = type_name(dict(type=cfg.get('runner_type') or 'Runner')).removeprefix('mmengine.')
    if kind != 'Runner' or cfg.get('strategy'):
        what = f'runner_type={cfg.get("runner_type")!r}, strategy={cfg.get("strategy")!r}'
        raise ToolError(f'the config has {what}, but these tools have a Runner of their own')
    cfg = cfg.copy()
    started_from = cfg.pop('started_from', None)
    with building_config():
        runner = Runner.from_cfg(cfg)
    runner.started_from = started_from
    return runner


@building_config('init_cfg')
def check_weights(cfg: Config) -> None:
    """Downloads the pretrained weights of a config's backbones before anything else is done."""
    parts = () if cfg.get('resume') else our_networks(cfg)  # then the checkpoint holds all weights
    for init_cfg in [init_cfg for part in parts for init_cfg in pretrained(part)]:
        try:
            path, _ = locate(str(init_cfg['checkpoint']))
        except DownloadError as error:
            raise DownloadError(
                f'{error}; or train without pretrained weights by --from-scratch'
            ) from error
        if not path.exists():
            raise FileNotFoundError(f'init_cfg.checkpoint {path} of the config does not exist')


def _set_precision(cfg: Config, amp: bool) -> None:
    """Puts the optimizer wrapper for mixed precision in, if the tool or the config asks for it."""
    wrapper = cfg.get('optim_wrapper')
    kind = None
    if isinstance(wrapper, dict):
        kind = (type_name(wrapper) or 'OptimWrapper').removeprefix('mmengine.')
    if kind and 'optimizer' not in wrapper:
        kind = 'several optimizers'
    device = get_device()
    if not amp and not (kind == 'AmpOptimWrapper' and device == 'cpu'):  # which fails on a CPU
        return
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ToolError(f'--amp needs optim_wrapper.type OptimWrapper, but the config has {kind}')
    if device == 'cuda':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    if device != 'cpu':
        raise ToolError(f'--amp is for CUDA devices and CPUs, and the device here is {device}')
    wrapper.type = 'res2net_mm.CPUAmpOptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):  # only AmpOptimWrapper takes these
        if wrapper.pop(key, None) is not None:
            warn(f'mixed precision on a CPU is bfloat16: optim_wrapper.{key} is left out')
    if not onednn_computes(torch.bfloat16):
        warn('mixed precision is slow here: this processor lacks instructions for bfloat16')


def _choose_checkpoint(cfg: Config, resume: str | None, trust: bool) -> str | None:
    """Decides which checkpoint the run resumes from, and returns it; None starts a new run."""
    given = cfg.get('load_from')
    if resume is None and given and '://' not in given and not Path(given).expanduser().exists():
        raise FileNotFoundError(f'load_from {given} of the config does not exist')
    if resume is None and cfg.get('resume'):
        resume = given or 'auto'
    if resume == 'auto':
        resume = find_newest(cfg, trust)
        if resume is None:
            cfg.resume = False
            print(f'nothing to resume in {cfg.work_dir}: training starts from the beginning')
    if resume is not None:
        # what the run started from is kept for the config that is written
        cfg.started_from = None if cfg.get('resume') else given
        cfg.resume, cfg.load_from = True, resume
    return resume


def _set_weights(cfg: Config, from_scratch: bool, resumed: bool, trust: bool) -> None:
    """Sets which weights the backbones start from."""
    model = cfg.get('model') or {}
    for part in our_networks(cfg) if trust else ():
        for init_cfg in pretrained(part):
            init_cfg.trust = True
    if from_scratch:
        if resumed:
            cfg.started_from = None
        if cfg.get('load_from') and not resumed:
            warn(f'--from-scratch: load_from {cfg.load_from} of the config is left out')
            cfg.load_from = None
        for part in walk_dicts(model):
            if pretrained(part):
                part['init_cfg'] = None
        if model.get('pretrained'):
            model.pretrained = None  # mmseg's older way
        backbone = model.get('backbone')  # may be mmdet's or mmseg's own
        for part in [*our_networks(cfg), *([backbone] if isinstance(backbone, dict) else [])]:
            classes = classes_named(part.get('type'), cfg.get('default_scope'))
            accepted = {*part, *arguments_of(*classes)}
            part.update({k: v for k, v in _FROM_SCRATCH.items() if k in accepted})
        if keys := drop_backbone_rates(cfg):
            warn(f'--from-scratch: learning rates of {", ".join(keys)} are those of the others')


def add_safeguards(cfg: Config) -> list[str]:
    """Replaces the parts of a config that hide errors, lose files or measure wrongly.

    Returns:
        What changed, one line each: the keys, the types that went and those that came.
    """
    splits = dataloaders(cfg)
    keys = [*(f'{split}_dataloader' for split in splits), 'val_evaluator', 'test_evaluator',
            'default_hooks', 'custom_hooks']  # fmt: skip
    before = {key: _types_in(cfg.get(key)) for key in keys}
    for loader in splits.values():
        if isinstance(loader.get('dataset'), dict):
            loader.dataset = harden_dataset(loader.dataset)
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            label = ignored_label(cfg.get('model'))
            cfg[key] = use_our_metrics(cfg[key], label, cfg.get('default_scope'))
    use_our_pictures(cfg)
    own_hooks = [dict(type=f'res2net_mm.{hook}') for hook in HOOKS]
    hooks = [hook for hook in cfg.get('custom_hooks') or () if hook not in own_hooks]
    for hook in hooks:
        if 'switch_pipeline' in hook:
            hook.switch_pipeline = harden_pipeline(hook.switch_pipeline)
    cfg.custom_hooks = hooks + own_hooks
    changes: dict[str, list[str]] = {}
    for key in keys:
        after = _types_in(cfg.get(key))
        gone, new = ', '.join(sorted(before[key] - after)), ', '.join(sorted(after - before[key]))
        if new:
            changes.setdefault(f'{gone} -> {new}' if gone else f'+ {new}', []).append(key)
    lines = [f'{", ".join(keys)}: {line}' for line, keys in changes.items()]
    if 'train' in splits and 'num_batch_per_epoch' not in cfg.train_dataloader:
        lines.append('train_dataloader: samples draw from seeds of their own (SeededSampler)')
    if 'train' in splits:
        lines.append('default_hooks.checkpoint: CheckpointHook -> res2net_mm CheckpointHook')
    return lines


def _types_in(node: Any) -> set[str]:
    return {type_name(part) for part in walk_dicts(node) if 'type' in part}


def _settle_seed(cfg: Config, checkpoint: str | None, trust: bool) -> None:
    """Fixes the seed before samplers and workers start; a resumed run keeps its checkpoint's."""
    randomness = dict(cfg.get('randomness') or dict(seed=None))
    if checkpoint is not None:
        meta = read_checkpoint(checkpoint, trust=trust).get('meta')
        meta = meta if isinstance(meta, dict) else {}
        for line in check_resumption(cfg, meta, checkpoint):
            warn(line)
        if isinstance(meta.get('seed'), int):
            randomness['seed'] = meta['seed']
    if randomness.get('seed') is None:
        randomness['seed'] = sync_random_seed()
    cfg.randomness = randomness
