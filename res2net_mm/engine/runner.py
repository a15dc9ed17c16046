"""Building a Runner from a config and a tool's arguments."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import re
from pathlib import Path
from typing import Any

import mmengine.hooks
import mmengine.runner
import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import get_rank, init_dist, master_only, sync_random_seed
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from ..backbones.base import CONVENTION
from ..data.naming import name_failures
from ..data.transforms import harden_dataset, harden_pipeline
from ..evaluation import ignored_label, use_our_metrics
from ..files import writing
from ..ops.internals import onednn_computes
from ..weights import (
    CheckpointError,
    DownloadError,
    constants,
    conventions_of,
    describe_partial_load,
    locate,
    not_finite,
    read_checkpoint,
    say_not_finite,
    say_unknown_rules,
)
from .checkpoints import CheckpointHook, find_newest
from .classes import SameClassesHook
from .config import dataloaders, images_per_step, our_networks, pretrained
from .config_checks import check_model
from .config_keys import check_arguments
from .errors import NO_ROOM, ToolError
from .pictures import use_our_pictures
from .resuming import check_resumption, fit_checkpoint, model_differences, run_facts
from .safety import check_arrays, keep_files_of_others, use_safe_loading
from .seeding import SeededDataset, SeededInfiniteSampler, SeededSampler
from .terminal import plain_record

_FILE_ONLY = re.compile(
    r'\s*(-+\s+System environment|Config:|Hooks will be executed|Distributed training is not used'
    r'|"FileClient" will be|"HardDiskBackend" is the alias)'
)
_FROM_SCRATCH = dict(init_cfg=None, frozen_stages=-1, norm_eval=False)
HOOKS = (
    'StepSeedHook',
    'FiniteLossHook',
    'FiniteWeightsHook',
    'FrozenNormHook',
    'Float32BoxHook',
)


class Runner(mmengine.runner.Runner):
    """mmengine's Runner with seeds that survive resuming and checkpoints that are never half."""

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Builds the model; SyncBN becomes BN where there is one process or no GPU."""
        built = super().build_model(model)
        self.constants = constants(built)
        if torch.cuda.is_available():
            return built if self.distributed else revert_sync_batchnorm(built)
        # what oneDNN's convolutions and RoIAlign take without a copy
        built = revert_sync_batchnorm(built).to(memory_format=torch.channels_last)
        return built

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training; mmengine's default needs a CUDA device."""
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            unused = self.cfg.get('find_unused_parameters', False)
            return MMDistributedDataParallel(
                module=model, broadcast_buffers=False, find_unused_parameters=unused
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: Any) -> Any:
        """Builds the training loop on a data loader whose samples carry their seeds."""
        given = self._train_dataloader
        if isinstance(given, dict) and 'num_batch_per_epoch' not in given:
            self._train_dataloader = self._seeded_loader(given)
        try:
            return super().build_train_loop(loop)
        finally:
            self._train_dataloader = given  # mmengine reads the batch size from it

    def _seeded_loader(self, cfg: dict) -> torch.utils.data.DataLoader:
        cfg = copy.deepcopy(cfg)
        dataset = DATASETS.build(cfg['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        # one order for all ranks, also where each rank has a seed of its own
        order = self.seed
        if self._randomness_cfg.get('diff_rank_seed'):
            order -= get_rank()
        sampler = DATA_SAMPLERS.build(
            cfg['sampler'], default_args=dict(dataset=dataset, seed=order)
        )
        endless = isinstance(sampler, InfiniteSampler) and hasattr(sampler, 'skip')
        wrapper = SeededInfiniteSampler if endless else SeededSampler
        cfg['dataset'] = SeededDataset(dataset)
        cfg['sampler'] = wrapper(sampler, self.seed, get_rank())
        return self.build_dataloader(cfg, seed=self.seed)

    def train(self) -> nn.Module:
        """Trains; weights of the same classes in another order are an error."""
        self.register_hook(SameClassesHook('train'))
        return super().train()

    def val(self) -> dict:
        """Validates; predictions get the data's labels where the checkpoint numbers others."""
        self.register_hook(SameClassesHook('val'))
        return super().val()

    def test(self) -> dict:
        """Tests; likewise."""
        self.register_hook(SameClassesHook('test'))
        return super().test()

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Builds a data loader whose pipelines name the image that a transform fails at."""
        loader = mmengine.runner.Runner.build_dataloader(*args, **kwargs)
        name_failures(loader.dataset)
        return loader

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scales learning rates to the images of a step; mmengine leaves accumulation out."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        several = isinstance(optim_wrapper, OptimWrapperDict)
        for name, wrapper in optim_wrapper.items() if several else [(None, optim_wrapper)]:
            batch = images_per_step(self.cfg, name)
            for group in wrapper.param_groups:  # with the one that mmengine logs as base_lr
                group['lr'] *= batch / auto_scale_lr['base_batch_size']

    loads_exactly = False  # weights that are missing or left over are an error
    goes_on = False

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Goes on from a checkpoint that has to fit, see :mod:`.resuming`."""
        self.loads_exactly = self.goes_on = True
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, **kwargs: Any
    ) -> dict:
        """Loads weights as mmengine does; with ``loads_exactly`` all of them or none."""
        strict = strict or self.loads_exactly
        try:
            checkpoint = super().load_checkpoint(filename, map_location, strict, **kwargs)
        except RuntimeError as error:
            if not strict:
                raise
            raise CheckpointError(
                f'checkpoint {filename} does not fit the model of the config: '
                f'{" ".join(str(error).split())[:600]}. Give the config that it was trained with'
            ) from error
        model = self.model.module if is_model_wrapper(self.model) else self.model
        broken = not_finite(model.state_dict(), self.constants)
        if self.goes_on:
            parts = {key: checkpoint.get(key) for key in ('ema_state_dict', 'optimizer')}
            broken += not_finite(parts, [f'ema_state_dict.module.{key}' for key in self.constants])
        if broken:
            raise CheckpointError(f'checkpoint {filename}: {say_not_finite(broken)}')
        say_unknown_rules(self.model, checkpoint)
        keep_files_of_others(self, checkpoint)
        if not strict:
            weights = checkpoint.get('state_dict', checkpoint)
            weights = {key.removeprefix('module.'): value for key, value in weights.items()}
            line = describe_partial_load(model, weights, filename)
            if line:
                self.logger.warning(line)
        if self.goes_on:
            fit_checkpoint(self, checkpoint)
        elif strict and (line := model_differences(self.cfg, checkpoint.get('meta'), filename)):
            self.logger.warning(line)
        return checkpoint

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """mmengine's, with this package's :class:`CheckpointHook` for mmengine's."""
        theirs = ('CheckpointHook', 'mmengine.CheckpointHook', mmengine.hooks.CheckpointHook)
        if isinstance(hook, dict) and hook.get('type') in theirs:
            hook = {**hook, 'type': CheckpointHook}
        super().register_hook(hook, priority)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves whole or not at all; ``meta`` holds the backbones' conventions."""
        conventions = {CONVENTION: conventions_of(self.model)}
        kwargs['meta'] = {**(kwargs.get('meta') or {}), **conventions, **run_facts(self)}
        backends = (*args[:1], kwargs.get('file_client_args'), kwargs.get('backend_args'))
        if '://' in str(out_dir) or any(backends):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        target = Path(out_dir, filename)
        try:
            with writing(target) as partial:
                super().save_checkpoint(str(partial.parent), partial.name, *args, **kwargs)
        except RuntimeError as error:
            if not NO_ROOM.search(str(error)):
                raise
            raise ToolError(f'{target} could not be written: {error}') from error

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's logger; its long dumps and its own deprecations go to the log file alone."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            handler.addFilter(plain_record)
            if type(handler) is logging.StreamHandler:
                handler.addFilter(lambda record: not _FILE_ONLY.match(record.getMessage()))
        return logger


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

    Args:
        cfg: The config.
        work_dir: Folder of the run; None is the config's, else ``work_dirs/<config>``.
        launcher: ``'none'`` or one of mmengine's, such as ``'pytorch'`` for torchrun.
        amp: Train with automatic mixed precision.
        auto_scale_lr: Scale the learning rate to the effective batch.
        resume: Checkpoint to go on from, or ``'auto'`` for the latest of the folder.
        from_scratch: Start from random weights: nothing pretrained, nothing frozen.
        trust: Read checkpoints with pickle.

    Raises:
        ToolError: An argument does not fit the config or the machine.
        FileNotFoundError: A checkpoint is not there.
    """
    check_arguments(cfg)
    check_model(cfg)
    cfg = copy.deepcopy(cfg)
    name = Path(cfg.filename).stem if cfg.filename else 'run'
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', name))
    cfg.launcher = launcher
    if launcher != 'none':
        _init_distributed(cfg, launcher)
    wrapper = cfg.get('optim_wrapper')
    asked = isinstance(wrapper, dict) and wrapper.get('type') == 'AmpOptimWrapper'
    if amp or (asked and get_device() == 'cpu'):  # where mmengine's fails
        _use_amp(cfg)
    checkpoint = _checkpoint_to_resume(cfg, resume, trust)
    ours = our_networks(cfg)
    other = cfg.get('model', {}).get('backbone')  # mmdet's or mmseg's own
    if from_scratch and isinstance(other, dict) and other not in ours:
        accepted = {*other, *_arguments(other, cfg.get('default_scope'))}
        other.update({k: v for k, v in _FROM_SCRATCH.items() if k in accepted})
    if from_scratch and cfg.get('model', {}).get('pretrained'):
        cfg.model.pretrained = None  # mmseg's older way
    for part in ours:
        if from_scratch:
            part.update(_FROM_SCRATCH)
        elif checkpoint is not None and pretrained(part):
            part.init_cfg = None  # the checkpoint holds all weights
        elif trust:
            for init_cfg in pretrained(part):
                init_cfg.trust = True
    if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ToolError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, the batch that '
                'its learning rate is meant for; there is none'
            )
        cfg.auto_scale_lr.enable = True
    for loader in dataloaders(cfg).values():
        if isinstance(loader.get('dataset'), dict):
            loader.dataset = harden_dataset(loader.dataset)
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            cfg[key] = use_our_metrics(cfg[key], ignored_label(cfg.get('model')))
    use_our_pictures(cfg)
    hooks = list(cfg.get('custom_hooks') or ())
    for hook in hooks:
        if 'switch_pipeline' in hook:
            hook.switch_pipeline = harden_pipeline(hook.switch_pipeline)
    own_hooks = [dict(type=f'res2net_mm.{hook}') for hook in HOOKS]
    cfg.custom_hooks = [hook for hook in hooks if hook not in own_hooks] + own_hooks
    _set_seed(cfg, checkpoint, trust)
    return cfg


def _arguments(part: dict, scope: str | None) -> set[str]:
    """Names of the arguments of what a config builds, those of base classes included."""
    kind = part.get('type')
    if isinstance(kind, str):
        kind = MODELS.get(kind if '.' in kind or not scope else f'{scope}.{kind}')
    classes = kind.__mro__[:-1] if isinstance(kind, type) else ()
    return {name for base in classes for name in inspect.signature(base).parameters}


def check_weights(cfg: Config) -> None:
    """Downloads the pretrained weights of a config's backbones before anything else is done.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A name is not known, or a download fails.
        ToolError: A config of pretrained weights names none.
    """
    for init_cfg in [cfg for part in our_networks(cfg) for cfg in pretrained(part)]:
        source = init_cfg.get('checkpoint')
        if not isinstance(source, str):
            raise ToolError(f'init_cfg of type Pretrained needs a checkpoint, but has {source!r}')
        try:
            path, _ = locate(source)
        except DownloadError as error:
            raise DownloadError(
                f'{error}; or train without pretrained weights by --from-scratch'
            ) from error
        if not path.exists():
            raise FileNotFoundError(f'init_cfg.checkpoint {path} of the config does not exist')


def build_runner(cfg: Config, trust: bool = False) -> Runner:
    """Builds the Runner of a config from :func:`prepare_config`."""
    use_safe_loading(trust)
    if not trust:
        check_arrays(cfg)
    return Runner.from_cfg(cfg)


def _checkpoint_to_resume(cfg: Config, resume: str | None, trust: bool) -> str | None:
    given = cfg.get('load_from')
    if resume is None and given and '://' not in given and not Path(given).exists():
        raise FileNotFoundError(f'load_from {given} of the config does not exist')
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume == 'auto':
        resume = find_newest(cfg, trust)
        if resume is None:
            cfg.resume = False
            print(f'nothing to resume in {cfg.work_dir}: training starts from the beginning')
    if resume is not None:
        cfg.resume = True
        cfg.load_from = resume
    return resume


def _set_seed(cfg: Config, checkpoint: str | None, trust: bool) -> None:
    """A resumed run has the seed of its checkpoint, known before samplers and workers start."""
    randomness = dict(cfg.get('randomness') or dict(seed=None))
    if checkpoint is not None:
        meta = read_checkpoint(checkpoint, trust=trust).get('meta')
        meta = meta if isinstance(meta, dict) else {}
        for line in check_resumption(cfg, meta, checkpoint):
            _warn(line)
        if isinstance(meta.get('seed'), int):
            randomness['seed'] = meta['seed']
    if randomness.get('seed') is None:
        randomness['seed'] = sync_random_seed()
    cfg.randomness = randomness


def _use_amp(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        raise ToolError('--amp needs an optim_wrapper in the config, and there is none')
    kind = wrapper.get('type', 'OptimWrapper')  # the default of mmengine
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ToolError(f'--amp needs optim_wrapper.type OptimWrapper, but the config has {kind}')
    device = get_device()
    if device == 'cuda':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    if device != 'cpu':
        raise ToolError(f'--amp is for CUDA devices and CPUs, and the device here is {device}')
    wrapper.type = 'res2net_mm.CPUAmpOptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):  # of AmpOptimWrapper alone
        if wrapper.pop(key, None) is not None:
            _warn(f'mixed precision on a CPU is bfloat16: optim_wrapper.{key} is left out')
    if not onednn_computes(torch.bfloat16):
        _warn('mixed precision is slow here: this processor lacks instructions for bfloat16')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _init_distributed(cfg: Config, launcher: str) -> None:
    """Starts the process group, which the seed and the report need before there is a Runner."""
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ToolError('--launcher pytorch needs torchrun: torchrun --nproc_per_node N tools/...')
    env = cfg.get('env_cfg') or {}
    set_multi_processing(**(env.get('mp_cfg') or {}), distributed=True)
    if torch.cuda.is_available():
        init_dist(launcher, **(env.get('dist_cfg') or {}))
    elif launcher == 'pytorch':
        # mmengine sets a CUDA device before it starts a group
        torch.distributed.init_process_group('gloo')
    else:
        raise ToolError(f'--launcher {launcher} needs CUDA devices; without them use pytorch')
