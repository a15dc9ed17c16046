"""Hooks that every training run of this package has."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ..backbones import Backbone
from ..backbones.frozen_norm import frozen_norm_warning
from ..registry import HOOKS
from ..weights import not_finite, say_not_finite
from .errors import ToolError
from .seeding import seed_step


@HOOKS.register_module(force=True)
class StepSeedHook(Hook):
    """Seeds the generators before each training step, so that a resumed run draws the same."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """On resuming: samples that are done need no loading."""
        loop, loader = runner.train_loop, runner.train_dataloader
        if not isinstance(loop, IterBasedTrainLoop):
            return
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        endless = isinstance(getattr(sampler, 'wrapped', None), InfiniteSampler)
        if endless and loader.batch_size and not getattr(loop, 'fast_forward_on_resume', False):
            sampler.pass_over(runner.iter * loader.batch_size)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        seed_step(runner.seed, get_rank(), runner.iter)


@HOOKS.register_module(force=True)
class FiniteLossHook(Hook):
    """Stops the run at a loss that is not finite, and names the images of the batch."""

    priority = 'VERY_HIGH'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        losses = {
            name: float(torch.as_tensor(value).detach())
            for name, value in (outputs or {}).items()
            if 'loss' in name and torch.as_tensor(value).numel() == 1
        }
        broken = [f'{name} = {value}' for name, value in losses.items() if value - value != 0]
        if not broken:
            return
        samples = (data_batch or {}).get('data_samples') or ()
        images = [str(getattr(sample, 'img_path', '?')) for sample in samples]
        raise ToolError(
            f'{", ".join(broken)} in iteration {runner.iter + 1}, epoch {runner.epoch + 1}; images '
            f'of the batch: {", ".join(images) or "unknown"}. Training stopped and the weights of '
            'this step were not saved: look at the boxes of these images, or lower the learning '
            'rate'
        )


@HOOKS.register_module(force=True)
class FiniteWeightsHook(Hook):
    """Stops the run before it saves, measures or trains weights that are not finite.

    The gradients of a step can be NaN where its loss is not. It comes after the hooks that put
    averaged weights in place.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        broken = not_finite(model.state_dict(), getattr(runner, 'constants', ()))
        if broken:
            raise ToolError(
                f'{say_not_finite(broken)} at epoch {runner.epoch}, iteration {runner.iter}: the '
                'gradients of an earlier step were not finite, or the pretrained weights are not'
            )

    before_val_epoch = before_test_epoch = before_train

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        known = list(getattr(runner, 'constants', ()))
        known = [f'{part}{name}' for part in _STATES for name in known]
        broken = not_finite({key: checkpoint.get(key) for key in _SAVED}, known)
        if broken:
            raise ToolError(
                f'{say_not_finite(broken)} after iteration {checkpoint["meta"].get("iter")}: the '
                'gradients of a step were not finite. Training stopped and the checkpoint was not '
                'saved: resume from an earlier one with a lower learning rate, or with '
                'optim_wrapper.clip_grad'
            )


_SAVED = ('state_dict', 'ema_state_dict', 'optimizer')
_STATES = ('state_dict.', 'ema_state_dict.module.')


@HOOKS.register_module(force=True)
class FrozenNormHook(Hook):
    """Warns before the first step of batch norm that stays as it was built, in any backbone."""

    def before_train(self, runner: Runner) -> None:
        """By now the weights are loaded; the loop will set the same mode."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for module in model.modules():
            if isinstance(module, Backbone):
                module.said_frozen_norm = True  # here, and it need not
        model.train()
        for name, module in model.named_modules():
            message = frozen_norm_warning(module, f'model.{name}.')
            if message is not None:
                runner.logger.warning(f'{message} (or train.py --from-scratch)')


@HOOKS.register_module(force=True)
class Float32BoxHook(Hook):
    """Keeps boxes in float32 under mixed precision.

    mmdet's RoI extractors cast the boxes to the features' type, and bf16 keeps 8 bits of a
    coordinate: at 1,000 px a box moves by up to 2 px. RoIAlign is given float32 features and boxes,
    and its output returns to the features' type. What dense heads predict goes into boxes and
    losses in float32, as mmdet's heads expect (VFNet's fails with anything else).
    """

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        use_float32_boxes(model)


def use_float32_boxes(model: nn.Module) -> None:
    """What :class:`Float32BoxHook` does, for a model outside of a run; twice is harmless."""
    for module in model.modules():
        if hasattr(module, '_res2net_mm_float32'):
            continue
        if hasattr(module, 'roi_layers'):
            module._res2net_mm_float32 = True
            module.register_forward_pre_hook(_cast_features)
            module.register_forward_hook(_cast_output)
        elif hasattr(module, 'prior_generator'):  # a dense head
            module._res2net_mm_float32 = True
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
