"""Hooks that every training run of this package has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_reduce, broadcast, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from torch import nn

from ..backbones import Backbone
from ..backbones.frozen_norm import frozen_norm_warning
from ..evaluation.images_run import check_finite
from ..registry import HOOKS, OPTIM_WRAPPERS
from ..weights import not_finite, say_not_finite
from .checkpoints import CheckpointHook
from .errors import ToolError, deferral, one_line
from .loading import unwrapped
from .seeding import seed_step
from .terminal import warn


@HOOKS.register_module(force=True)
class StepSeedHook(Hook):
    """Seeds the generators before each training step, so that a resumed run draws the same."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """On resuming, samples that are done are not loaded again."""
        loop, loader = runner.train_loop, runner.train_dataloader
        if not isinstance(loop, IterBasedTrainLoop):
            return
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        endless = isinstance(getattr(sampler, 'wrapped', None), InfiniteSampler)
        if endless and loader.batch_size and not getattr(loop, 'fast_forward_on_resume', False):
            sampler.pass_over(runner.iter * loader.batch_size)

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        seed_step(runner.seed, get_rank(), runner.iter)


class InterruptHook(Hook):
    """Ends an interrupted run after its step, with a checkpoint that ``--resume`` goes on from.

    Needs :func:`~.errors.interruptions`. Several processes end after the same step; they do not
    stop within a validation, as they may not have the same number of batches there.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        deferral.active = True

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        if runner.optim_wrapper.should_update():  # no gradients are kept for later
            self._end(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, **_: Any) -> None:
        if deferral.active and deferral.signal is not None and get_world_size() == 1:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # puts the trained weights back
                    hook.after_val_epoch(runner)
            self._end(runner, runner.iter)

    def _end(self, runner: Runner, done: int) -> None:
        asked = torch.tensor(deferral.signal is not None, dtype=torch.int32)
        all_reduce(asked, 'max')
        if not asked:
            return
        deferral.active = False
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                try:
                    file = hook.save_interrupted(runner, done)
                    runner.logger.info(
                        f'interrupted after {done} of {runner.max_iters} iterations: {file} holds '
                        'the run; train.py --resume goes on from there'
                    )
                except (OSError, ToolError) as error:
                    warn(f'interrupted, and this moment is not saved: {one_line(error)}')
        raise KeyboardInterrupt


@HOOKS.register_module(force=True)
class SharedBuffersHook(Hook):
    """Gives all processes the buffers of the first one, whose are saved, before they measure.

    The running statistics of batch norm differ between processes, each of which measures a part of
    the images. Without this, no checkpoint would give the scores that are logged.
    """

    priority = 'VERY_LOW'  # after EMAHook put averaged weights in place

    def before_val_epoch(self, runner: Runner) -> None:
        for buffer in unwrapped(runner.model).buffers() if get_world_size() > 1 else ():
            broadcast(buffer)

    before_test_epoch = before_val_epoch


@HOOKS.register_module(force=True)
class FiniteLossHook(Hook):
    """Stops the run at a loss or a class score that is NaN or infinite, and names the images."""

    priority = 'VERY_HIGH'

    def after_train_iter(
        self, runner: Runner, data_batch: dict | None = None, outputs: dict | None = None, **_: Any
    ) -> None:
        parts = {k: torch.as_tensor(v).detach() for k, v in (outputs or {}).items() if 'loss' in k}
        losses = {k: v.item() for k, v in parts.items() if v.numel() == 1}
        broken = [f'{k} = {v:g}' for k, v in losses.items() if not math.isfinite(v)]
        if broken:
            samples = (data_batch or {}).get('data_samples') or ()
            images = [str(getattr(sample, 'img_path', '?')) for sample in samples]
            raise ToolError(
                f'{", ".join(broken)} in iteration {runner.iter + 1}, epoch {runner.epoch + 1}; '
                f'images of the batch: {", ".join(images) or "unknown"}. Training stopped before '
                'it saved the weights: look at the boxes of these images, or lower the learning '
                'rate'
            )

    def after_val_iter(self, runner: Runner, outputs: Sequence | None = None, **_: Any) -> None:
        for sample in outputs if isinstance(outputs, list | tuple) else ():
            if isinstance(sample, BaseDataElement) and 'pred_score' in sample:
                check_finite(sample)  # mmpretrain's metrics do not look

    after_test_iter = after_val_iter


@HOOKS.register_module(force=True)
class FiniteWeightsHook(Hook):
    """Stops the run before it saves, measures or trains weights that are NaN or infinite.

    The gradients of a step can be NaN although its loss is finite. Runs after the hooks that put
    averaged weights in place.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        weights = unwrapped(runner.model).state_dict()
        if broken := not_finite(weights, getattr(runner, 'constants', ())):
            raise ToolError(
                f'{say_not_finite(broken)} at iteration {runner.iter}: the gradients of an earlier '
                'step were not finite, or the pretrained weights are not'
            )

    before_val_epoch = before_test_epoch = before_train

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        states = ('state_dict.', 'ema_state_dict.module.')
        known = [f'{part}{name}' for part in states for name in getattr(runner, 'constants', ())]
        saved = ('state_dict', 'ema_state_dict', 'optimizer')
        if broken := not_finite({key: checkpoint.get(key) for key in saved}, known):
            raise ToolError(
                f'{say_not_finite(broken)} after iteration {checkpoint["meta"].get("iter")}, so '
                'the checkpoint is not saved: resume from an earlier one with a lower learning '
                'rate, or with optim_wrapper.clip_grad'
            )


@HOOKS.register_module(force=True)
class FrozenNormHook(Hook):
    """Warns before the first step if batch norm stays as it was built, in any backbone."""

    def before_train(self, runner: Runner) -> None:
        """Runs when the weights are loaded, and sets the mode that the loop will set."""
        model = unwrapped(runner.model)
        for module in model.modules():
            if isinstance(module, Backbone):
                module.said_frozen_norm = True  # this hook says it, so the backbone need not
        model.train()
        for name, module in model.named_modules():
            message = frozen_norm_warning(module, f'model.{name}.')
            if message is not None:
                runner.logger.warning(f'{message} (or train.py --from-scratch)')


@HOOKS.register_module(force=True)
class Float32BoxHook(Hook):
    """Keeps boxes in float32 under mixed precision.

    mmdet's RoI extractors cast the boxes to the features' type, and bfloat16 keeps 8 bits of a
    coordinate: at 1,000 px a box moves by up to 2 px. RoIAlign gets float32 features and boxes
    here, and its output returns to the features' type. Dense heads return float32, as mmdet's
    losses and box coders expect (VFNet's fails otherwise).
    """

    def before_run(self, runner: Runner) -> None:
        for module in unwrapped(runner.model).modules():
            extracts, dense = hasattr(module, 'roi_layers'), hasattr(module, 'prior_generator')
            if hasattr(module, '_res2net_mm_float32') or not (extracts or dense):
                continue
            module._res2net_mm_float32 = True
            if extracts:
                module.register_forward_pre_hook(_cast_features)
                module.register_forward_hook(_cast_output)
            else:
                module.register_forward_hook(_as_float32)


def _cast_features(extractor: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    features, rois, *rest = args
    extractor._res2net_mm_dtype = features[0].dtype
    return tuple(level.float() for level in features), rois, *rest


def _cast_output(extractor: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return output.to(extractor._res2net_mm_dtype)


def _as_float32(head: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        half = output.dtype in (torch.float16, torch.bfloat16)
        return output.float() if half else output
    if isinstance(output, (tuple, list)):
        return type(output)(_as_float32(head, args, part) for part in output)
    return output


@OPTIM_WRAPPERS.register_module(force=True)
class CPUAmpOptimWrapper(OptimWrapper):
    """``AmpOptimWrapper`` for a CPU, which mmengine's refuses.

    Autocasts the forward pass to bfloat16, which has the range of float32: losses are not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a forward pass."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
