"""mmengine's Runner, made safe to interrupt and to resume."""

from __future__ import annotations

import copy
import logging
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mmengine.hooks
import mmengine.runner
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, master_only
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import BatchSampler

from ..backbones.base import CONVENTION
from ..data.naming import name_failures
from ..files import writing
from ..weights import constants, conventions_of, describe_partial_load, say_unknown_rules
from .checkpoints import CheckpointHook
from .classes import SameClassesHook
from .config import drop_timm_weights, images_per_step, our_networks, pretrained
from .errors import building_config, deferral
from .hooks import InterruptHook
from .loading import check_finite, exact_fit, unwrapped, warn_of_differences
from .resuming import fit_checkpoint, run_facts
from .seeding import SeededDataset, SeededInfiniteSampler, SeededSampler
from .terminal import plain_record, warn

_FILE_ONLY = re.compile(
    r'\s*(-+\s+System environment|Config:|Hooks will be executed|Distributed training is not used'
    r'|"FileClient" will be|"HardDiskBackend" is the alias)'
)
_Base = mmengine.runner.Runner


class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, but a resumed run goes on within an epoch too."""

    within = 0  # batches of this epoch that are done

    def run_epoch(self) -> None:
        """Trains the rest of an epoch; batches that are done are not trained again."""
        done = self.within
        sampler = getattr(self.dataloader.batch_sampler, 'sampler', None)
        plain = type(self.dataloader.batch_sampler) is BatchSampler
        passes = done and plain and isinstance(sampler, SeededSampler)
        if passes:  # which need not load them
            sampler.pass_over(min(done * self.dataloader.batch_size, len(sampler)))
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for place, batch in enumerate(self.dataloader):
            if place >= done:
                self.within = place + 1
                self.run_iter(place, batch)
        if passes:  # after a short last batch, some are left, which are not of the next epoch
            sampler.pass_over(0)
        self.within = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class Runner(_Base):
    """mmengine's Runner with seeds that survive resuming and checkpoints that are never half."""

    loads_exactly = False  # whether weights that are missing or left over are an error
    goes_on = False  # whether it resumes a run
    started_from: str | None = None  # the config's load_from, if another checkpoint is resumed

    # built when the run starts, so mistakes in these parts of the config show up only then
    build_val_loop = building_config('validation of the config')(_Base.build_val_loop)
    build_test_loop = building_config('test of the config')(_Base.build_test_loop)
    build_optim_wrapper = building_config('optim_wrapper')(_Base.build_optim_wrapper)
    build_param_scheduler = building_config('param_scheduler')(_Base.build_param_scheduler)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Builds the model; SyncBN becomes BN if there is one process or no GPU."""
        if isinstance(model, dict) and self.cfg.get('resume'):  # the checkpoint holds all weights
            model = copy.deepcopy(model)
            drop_timm_weights(dict(model=model))
            for part in our_networks(dict(model=model)):
                part.update(dict(init_cfg=None) if pretrained(part) else {})
        built = super().build_model(model)
        self.constants = constants(built)
        if torch.cuda.is_available():
            return built if self.distributed else revert_sync_batchnorm(built)
        # oneDNN's convolutions and RoIAlign take channels_last without a copy
        return revert_sync_batchnorm(built).to(memory_format=torch.channels_last)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed training; mmengine's default needs a CUDA device."""
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            unused = self.cfg.get('find_unused_parameters', False)
            return MMDistributedDataParallel(
                module=model, broadcast_buffers=False, find_unused_parameters=unused
            )
        return super().wrap_model(model_wrapper_cfg, model)

    @building_config('training of the config')
    def build_train_loop(self, loop: Any) -> Any:
        """Builds the training loop on a data loader whose samples carry their seeds."""
        given = self._train_dataloader
        if isinstance(given, dict) and 'num_batch_per_epoch' not in given:
            differ = self._randomness_cfg.get('diff_rank_seed')
            # all ranks need the same order, even if each has a seed of its own
            order = self.seed - get_rank() if differ else self.seed
            self._train_dataloader = seeded_loader(given, self.seed, order)
        try:
            built = super().build_train_loop(loop)
        finally:
            self._train_dataloader = given  # mmengine reads the batch size from it
        if type(built) is EpochBasedTrainLoop:
            built.__class__ = EpochLoop
        return built

    def dump_config(self) -> None:
        """Nothing: only :meth:`train` writes it; that of a test would replace its run's."""

    def train(self) -> nn.Module:
        """Trains; raises ToolError if weights have the data's classes in another order."""
        resumes = self.cfg.get('resume'), self.cfg.get('load_from')
        if resumes[0]:  # what is written is the run, not how it was resumed
            self.cfg.resume, self.cfg.load_from = False, self.started_from
        super().dump_config()
        self.cfg.resume, self.cfg.load_from = resumes
        self.register_hook(SameClassesHook('train'))
        self.register_hook(InterruptHook())
        try:
            return super().train()
        finally:
            deferral.active = False

    def val(self) -> dict:
        """Validates; maps predictions to the data's labels if the checkpoint numbers others."""
        self.register_hook(SameClassesHook('val'))
        return super().val()

    def test(self) -> dict:
        """Tests; maps predictions as ``val`` does."""
        self.register_hook(SameClassesHook('test'))
        return super().test()

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Builds a data loader whose pipelines name the image at which a transform fails."""
        loader = _Base.build_dataloader(*args, **kwargs)
        name_failures(loader.dataset)
        return loader

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scales learning rates to the images of a step; mmengine ignores accumulated batches."""
        if not (auto_scale_lr or {}).get('enable'):
            return
        factor = images_per_step(self.cfg) / auto_scale_lr['base_batch_size']
        for group in optim_wrapper.param_groups:  # includes the one that mmengine logs as base_lr
            group['lr'] *= factor

    @building_config('resumed run')
    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resumes from a checkpoint, which has to fit; see :mod:`.resuming`."""
        self.loads_exactly = self.goes_on = True
        self.resumed_from = filename
        super().resume(filename, *args, **kwargs)

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = False, **kwargs: Any
    ) -> dict:
        """Loads weights as mmengine does; with ``loads_exactly`` all of them or none."""
        strict = strict or self.loads_exactly
        with exact_fit(filename) if strict else nullcontext():
            checkpoint = super().load_checkpoint(filename, map_location, strict, **kwargs)
        model = unwrapped(self.model)
        check_finite(model.state_dict(), filename, self.constants)
        if self.goes_on:
            say_unknown_rules(model, checkpoint)
            parts = {key: checkpoint.get(key) for key in ('ema_state_dict', 'optimizer')}
            known = [f'ema_state_dict.module.{key}' for key in self.constants]
            check_finite(parts, filename, known)
            fit_checkpoint(self, checkpoint)
        elif strict:
            warn_of_differences(model, checkpoint, self.cfg, filename)
        else:
            say_unknown_rules(model, checkpoint)
            weights = checkpoint.get('state_dict', checkpoint)
            weights = {key.removeprefix('module.'): value for key, value in weights.items()}
            if line := describe_partial_load(model, weights, filename):
                warn(line)
        return checkpoint

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Registers a hook; our :class:`CheckpointHook` replaces mmengine's."""
        theirs = ('CheckpointHook', 'mmengine.CheckpointHook', mmengine.hooks.CheckpointHook)
        if isinstance(hook, dict) and hook.get('type') in theirs:
            hook = {**hook, 'type': CheckpointHook}
        super().register_hook(hook, priority)

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Saves the whole file or nothing; ``meta`` holds the backbones' conventions."""
        conventions = {CONVENTION: conventions_of(self.model)}
        kwargs['meta'] = {**(kwargs.get('meta') or {}), **conventions, **run_facts(self)}
        if '://' in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        with writing(Path(out_dir, filename)) as partial:
            super().save_checkpoint(str(partial.parent), partial.name, *args, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's logger; long dumps and mmengine's deprecations go only to the log file."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            handler.addFilter(plain_record)
            if type(handler) is logging.StreamHandler:
                handler.addFilter(lambda record: not _FILE_ONLY.match(record.getMessage()))
        return logger


def seeded_loader(cfg: dict, seed: int, order: int) -> torch.utils.data.DataLoader:
    """A training loader from its config, whose samples carry their seeds.

    ``seed`` is for the samples, and each process may have its own; ``order`` is the same in all.
    """
    cfg = copy.deepcopy(cfg)
    dataset = DATASETS.build(cfg['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    sampler = DATA_SAMPLERS.build(cfg['sampler'], default_args=dict(dataset=dataset, seed=order))
    endless = isinstance(sampler, InfiniteSampler) and hasattr(sampler, 'skip')
    wrapper = SeededInfiniteSampler if endless else SeededSampler
    cfg['dataset'] = SeededDataset(dataset)
    cfg['sampler'] = wrapper(sampler, seed, get_rank())
    return Runner.build_dataloader(cfg, seed=seed)
