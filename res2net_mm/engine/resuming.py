"""Resuming from a checkpoint with a config that has changed since it was saved.

The checkpoint gives the weights, the optimizer's state, the place in the run and the seed. The
config gives everything else: each difference is reported, and learning rates and schedules become
those of a run that had this config from the start. What cannot be taken over is an error. With an
unchanged config nothing here changes anything.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Set
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..checks import listed
from ..data.sets.nodes import type_name
from ..registry import SCOPE
from .errors import ToolError

FACTS = 'res2net_mm_run'  # key in a checkpoint's meta for facts that its config does not hold
_PARTS = (
    'model data_preprocessor train_dataloader train_cfg optim_wrapper param_scheduler '
    'auto_scale_lr custom_hooks'
).split()
# training does not depend on these
_IDLE = set(
    'init_cfg pretrained test_cfg num_workers persistent_workers pin_memory prefetch_factor '
    'backend_args val_interval val_begin dynamic_intervals'.split()
)
# nor do the predictions of a trained model depend on these
_TRAINED_BY = _IDLE | set(
    'train_cfg frozen_stages norm_eval with_cp requires_grad batch_augments loss_weight'.split()
)
_BATCH_NORMS = {'BN', 'SyncBN', 'MMSyncBN'}  # equal once trained
_SCHEDULE = ('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'train_cfg.max_')
_ANEW = 'start anew from its weights with load_from, without --resume'
_MOST_SHOWN = 20


def run_facts(runner: Runner) -> dict[str, Any]:
    """What a checkpoint's ``meta`` holds for the run that resumes from it."""
    return {FACTS: dict(epoch_length=len(runner.train_dataloader), world_size=get_world_size())}


def check_resumption(cfg: Config, meta: Mapping[str, Any], checkpoint: str) -> list[str]:
    """One line for each difference between a config and the one that a checkpoint was saved with.

    Raises a ToolError if a run of this config cannot resume from this checkpoint.
    """
    if not all(isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise ToolError(f'{checkpoint} holds weights and no training to resume: {_ANEW}')
    saved = read_config_text(meta.get('cfg'))
    unit, before = _unit(cfg), _unit(saved or cfg)
    if before != unit:
        raise ToolError(
            f'{checkpoint} was trained by {before}s and the config trains by {unit}s (train_cfg): '
            f'{_ANEW}'
        )
    changed = _changes(cfg, saved)
    if kinds := changed.get('optim_wrapper.optimizer.type'):
        raise ToolError(
            f'optim_wrapper.optimizer.type is {kinds[1]}, but {checkpoint} holds the state of '
            f'{kinds[0]}: {_ANEW}'
        )
    if _averages(saved) and not _averages(cfg):
        raise ToolError(
            f'{checkpoint} holds averaged weights of an EMAHook and the config has no such hook: '
            f'put it back, or {_ANEW}'
        )
    lines = [f'{key}: {old!s:.80} -> {new!s:.80}' for key, (old, new) in changed.items()]
    world = meta.get(FACTS, {}).get('world_size', get_world_size())
    if world != get_world_size():
        lines.append(f'processes: {world} -> {get_world_size()}')
    if len(lines) > _MOST_SHOWN:
        lines[_MOST_SHOWN:] = [f'and {len(lines) - _MOST_SHOWN} more']
    if lines:
        lines.insert(0, f'the config differs from that of {checkpoint}, and applies from here on:')
    seed, given = meta.get('seed'), (cfg.get('randomness') or {}).get('seed')
    if None not in (seed, given) and seed != given:
        lines.append(f'randomness.seed={given} is ignored: the seed stays {seed}')
    length = (cfg.get('train_cfg') or {}).get(f'max_{unit}s')
    if length is not None and meta[unit] >= length:
        lines.append(f'nothing left to train: {meta[unit]} of {length} {unit}s are done')
    return lines


def model_differences(cfg: Config, meta: Any, checkpoint: str) -> str | None:
    """One line on how a config's model differs from the one that a checkpoint was trained with.

    Weights also fit models that normalise images, place anchors or dilate convolutions in another
    way, and then predict wrongly. None if they agree, or the checkpoint holds no config.
    """
    saved = read_config_text(meta.get('cfg')) if isinstance(meta, Mapping) else {}
    if not isinstance(saved.get('model'), dict):
        return None
    old, new = (
        {'data_preprocessor': c.get('data_preprocessor'), **c['model']}
        for c in (saved, cfg.to_dict())
    )
    found = [
        f'{key}={now!s:.80}, trained with {before!s:.80}'
        for key, (before, now) in _differences(old, new, 'model', _TRAINED_BY).items()
        if not {str(before), str(now)} <= _BATCH_NORMS
    ]
    if not found:
        return None
    return (
        f'the model of the config is not the one that {checkpoint} was trained with, and its '
        f'weights may not suit it: {listed(found, _MOST_SHOWN)}'
    )


def fit_checkpoint(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Changes a checkpoint into that of a run that had the config from the start, in place.

    The runner's optimizer and schedulers are built and at the start. Raises a ToolError if the
    checkpoint cannot become one.
    """
    meta = checkpoint['meta']
    changed = _changes(runner.cfg, read_config_text(meta.get('cfg')))
    moved = _set_place(runner, meta)
    state, wrapper = checkpoint.get('optimizer'), runner.optim_wrapper
    if not state:
        raise ToolError(
            'the checkpoint holds no state of the optimizer to resume with (a published file, or '
            f'save_optimizer=False): {_ANEW}'
        )
    groups, now = state['param_groups'], wrapper.optimizer.param_groups
    same = [g.get('initial_lr') for g in groups] == [g.get('initial_lr') for g in now]
    if same and not moved and not any(key.startswith(_SCHEDULE) for key in changed):
        return
    _replay(runner, meta['epoch'], meta['iter'])
    checkpoint.pop('param_schedulers', None)
    before = groups[0]['lr']
    for group, new in zip(groups, now, strict=False):  # torch refuses other numbers of groups
        group.update({key: value for key, value in new.items() if key != 'params'})
    if 'base_param_settings' in state:
        state['base_param_settings'] = wrapper.base_param_settings
    runner.logger.warning(
        f'learning rate {groups[0]["lr"]:g} (the checkpoint had {before:g}): it and the schedules '
        'are those of a run that had this config from the start'
    )


def read_config_text(text: Any) -> dict[str, Any]:
    """The values in a config's text as mmengine writes it, without running any of it.

    Tuples become lists; ``{}`` if the text holds anything but values.
    """
    try:
        body = ast.parse(text).body if isinstance(text, str) and len(text) < 2**22 else []
        return {node.targets[0].id: _value(node.value) for node in body}
    except (AttributeError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
        parts = [*map(_value, node.args), {k.arg: _value(k.value) for k in node.keywords}]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(node, ast.Dict):
        return dict(zip(map(ast.literal_eval, node.keys), map(_value, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(part) for part in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    return float(node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)  # inf or nan


def _changes(cfg: Config, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that training depends on -> the values in the saved config and in this one."""
    old, new = ({part: c.get(part) for part in _PARTS} for c in (saved, cfg.to_dict()))
    for c in (old, new):
        hooks = c['custom_hooks'] or ()
        c['custom_hooks'] = [h for h in hooks if not type_name(h).startswith(f'{SCOPE}.')]
    if not any((c['auto_scale_lr'] or {}).get('enable') for c in (old, new)):
        old['auto_scale_lr'] = new['auto_scale_lr'] = None
    return _differences(old, new) if saved else {}


def _differences(
    old: Any, new: Any, key: str = '', idle: Set[str] = _IDLE
) -> dict[str, tuple[Any, Any]]:
    parts: Any = ()
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [name for name in {**old, **new} if name not in idle]
        old, new = ({name: c.get(name, 'not set') for name in parts} for c in (old, new))
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        parts = range(len(old)) if len(old) == len(new) else ()
    if parts:
        prefix = f'{key}.' if key else ''
        inner = (_differences(old[k], new[k], f'{prefix}{k}', idle) for k in parts)
        return {key: values for found in inner for key, values in found.items()}
    if key.endswith('.type'):  # with or without its scope
        old, new = (str(kind).rpartition('.')[2] for kind in (old, new))
    return {key: (old, new)} if old != new and str(old) != str(new) else {}


def _averages(cfg: Mapping[str, Any]) -> bool:
    return any(type_name(hook).endswith('EMAHook') for hook in cfg.get('custom_hooks') or ())


def _unit(cfg: Mapping[str, Any]) -> str:
    """The unit of a run's length, as ``meta`` calls it."""
    return 'iter' if 'max_iters' in (cfg.get('train_cfg') or {}) else 'epoch'


def _set_place(runner: Runner, meta: dict[str, Any]) -> bool:
    """Recounts the finished iterations if epochs have another length now; returns whether."""
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return False
    epoch, done, length = meta['epoch'], meta['iter'], len(runner.train_dataloader)
    before = meta.get(FACTS, {}).get('epoch_length', length)  # another program's file has none
    within = done - epoch * before
    if FACTS in meta and before == length and 0 < within <= length:
        return False  # the loop goes on there
    if within:
        raise ToolError(
            f'the checkpoint was saved at iteration {done}, which is no end of an epoch: its '
            f'{epoch} epochs have {before} iterations each, and now an epoch has {length}. Set the '
            f'processes, the batch and the data back, or {_ANEW}'
        )
    meta['iter'] = epoch * length
    if before != length:
        runner.logger.warning(
            f'an epoch has {length} iterations and had {before}: the run resumes at epoch '
            f'{epoch + 1}, iteration {meta["iter"] + 1} of {runner.max_iters}'
        )
    return before != length


def _replay(runner: Runner, epochs: int, iterations: int) -> None:
    """Steps schedules from the start to where the run is now."""
    schedules = sorted(runner.param_schedulers or (), key=lambda schedule: schedule.by_epoch)
    if any(getattr(schedule, 'need_val_args', False) for schedule in schedules):
        raise ToolError(
            'param_scheduler has a schedule that depends on results, which cannot be computed '
            f'again: set the config back, or {_ANEW}'
        )
    length = len(runner.train_dataloader)
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer takes no steps in between
        for step in range(1, iterations + 1):
            epoch_ends = by_epoch and step % length == 0 and step // length <= epochs
            for schedule in schedules:
                if epoch_ends or not schedule.by_epoch:
                    schedule.step()
