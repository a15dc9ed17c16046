"""Resuming from a checkpoint with a config that has changed since it was saved.

The checkpoint gives the weights, the optimizer's state, the place in the run and the seed. The
config gives everything else: each difference is reported, and learning rates and schedules become
those of a run that had this config from the start. What cannot be taken over is an error. With an
unchanged config nothing here changes anything.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Set
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import ParamSchedulerHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..data.sets.nodes import type_name
from ..registry import SCOPE
from .config_checks import schedules
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
_UNSET = 'not set'


def run_facts(runner: Runner) -> dict[str, Any]:
    """What a checkpoint's ``meta`` holds for the run that resumes from it."""
    facts = dict(epoch_length=len(runner.train_dataloader), world_size=get_world_size())
    if hasattr(runner.train_loop, 'within'):  # an epoch, whose length samplers may miscount
        facts['within'] = runner.train_loop.within
    earlier = getattr(runner, 'earlier_lengths', [])
    return {FACTS: dict(facts, earlier_lengths=earlier) if earlier else facts}


def check_resumption(cfg: Config, meta: Mapping[str, Any], checkpoint: str) -> list[str]:
    """Compares a config with the one that a checkpoint was saved with.

    Schedules that ended with the run then end with the run as it is now; ``cfg`` is changed.

    Returns:
        One line for each difference.

    Raises:
        ToolError: A run of this config cannot resume from this checkpoint.
    """
    saved = read_config_text(meta.get('cfg'))
    way = f'start anew from its weights with load_from={checkpoint} and without --resume'
    if not all(isinstance(meta.get(key), int) for key in ('epoch', 'iter')):
        raise ToolError(
            f'{checkpoint} holds weights and no training to resume: {way.split(" and ")[0]}'
        )
    unit, length = _length(cfg), _run_length(cfg)
    if saved and _length(saved) != unit:
        raise ToolError(
            f'{checkpoint} was trained by {_length(saved)}s and the config trains by {unit}s '
            f'(train_cfg): {way}'
        )
    _follow_length(cfg, unit, length, _earlier_lengths(meta, saved, length))
    changed = dict(_changes(cfg, saved))
    kinds = changed.get('optim_wrapper.optimizer.type')
    if kinds:
        raise ToolError(
            f'optim_wrapper.optimizer.type is {kinds[1]}, but {checkpoint} holds the state of '
            f'{kinds[0]}: {way}'
        )
    if _averages(saved) and not _averages(cfg):
        raise ToolError(
            f'{checkpoint} holds averaged weights of an EMAHook and the config has no such hook: '
            f'put it back, or {way}'
        )
    lines = [f'{key}: {_short(old)} -> {_short(new)}' for key, (old, new) in changed.items()]
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
    now = cfg.to_dict()
    old, new = (
        {'data_preprocessor': c.get('data_preprocessor'), **c['model']} for c in (saved, now)
    )
    found = [
        f'{key}={_short(value[1])}, trained with {_short(value[0])}'
        for key, value in _differences(old, new, 'model', _TRAINED_BY)
        if not _BATCH_NORMS.issuperset(map(str, value))
    ]
    if not found:
        return None
    more = f'; and {len(found) - _MOST_SHOWN} more' if len(found) > _MOST_SHOWN else ''
    return (
        f'the model of the config is not the one that {checkpoint} was trained with, and its '
        f'weights may not suit it: {"; ".join(found[:_MOST_SHOWN])}{more}'
    )


def fit_checkpoint(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Changes a checkpoint into that of a run that had the runner's config from the start.

    Args:
        runner: A runner whose optimizer and schedulers are built and at the start.
        checkpoint: What mmengine resumes from; changed in place.

    Raises:
        ToolError: Its parameters are not the optimizer's, it was saved within an epoch of another
            length, or a schedule depends on results.
    """
    meta = checkpoint['meta']
    saved = read_config_text(meta.get('cfg'))
    runner.earlier_lengths = _earlier_lengths(meta, saved, _run_length(runner.cfg))
    changed = dict(_changes(runner.cfg, saved))
    _forget_scores(runner, checkpoint, saved)
    moved = _set_place(runner, meta, changed)
    wrapper, state = runner.optim_wrapper, _optimizer_state(runner, checkpoint)
    own, groups = wrapper.optimizer.param_groups, state['param_groups']
    rates, before = ([group.get('initial_lr') for group in g] for g in (own, groups))
    if rates == before and not moved and not any(key.startswith(_SCHEDULE) for key in changed):
        return
    _replay(runner, meta['epoch'], meta['iter'])
    checkpoint.pop('param_schedulers', None)
    had = groups[0]['lr']
    for group, new in zip(groups, own, strict=True):
        group.update({key: value for key, value in new.items() if key != 'params'})
    if 'base_param_settings' in state:
        state['base_param_settings'] = wrapper.base_param_settings
    now = f'{groups[0]["lr"]:g}'
    was = '' if now == f'{had:g}' else f' (the checkpoint had {had:g})'
    runner.logger.warning(
        f'learning rate {now}{was}: it and the schedules are those of a run that had this config '
        'from the start'
    )


def _forget_scores(runner: Runner, checkpoint: Mapping[str, Any], saved: Mapping) -> None:
    """Takes best scores out of a checkpoint if validation measured something else before."""
    now, info = runner.cfg.to_dict(), checkpoint.get('message_hub', {}).get('runtime_info', {})

    def tails(node: Any) -> Any:  # of paths: folders may have been moved
        if isinstance(node, dict):
            return {key: tails(part) for key, part in node.items() if key != 'data_root'}
        if isinstance(node, (list, tuple)):
            return [*map(tails, node)]
        return node.rstrip('/').rpartition('/')[2] if isinstance(node, str) else node

    def measured(cfg: Mapping[str, Any]) -> dict[str, Any]:
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        found = {key: hook.get(key) for key in ('save_best', 'rule')}
        dataset = (cfg.get('val_dataloader') or {}).get('dataset')
        return tails({'checkpoint': found, 'dataset': dataset, 'metric': cfg.get('val_evaluator')})

    keys = [key for key in info if key.startswith('best_') or key == 'early_stop']
    if saved and keys and any(True for _ in _differences(measured(saved), measured(now), 'val')):
        for key in keys:
            info.pop(key)
        runner.logger.warning('validation differs from that of the checkpoint: its best is unknown')


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


def _changes(cfg: Config, saved: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if not saved:
        return
    now = cfg.to_dict()
    for part in _PARTS:
        old, new = saved.get(part), now.get(part)
        if part == 'custom_hooks':
            old, new = _hooks(old), _hooks(new)
        if part == 'auto_scale_lr' and not any((d or {}).get('enable') for d in (old, new)):
            continue
        yield from _differences(old, new, part)


def _differences(
    old: Any, new: Any, key: str, idle: Set[str] = _IDLE
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in idle:
                values = old.get(name, _UNSET), new.get(name, _UNSET)
                yield from _differences(*values, f'{key}.{name}', idle)
        return
    lists = isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))
    if lists and len(old) == len(new):
        for i, values in enumerate(zip(old, new, strict=True)):
            yield from _differences(*values, f'{key}.{i}', idle)
        return
    if key.endswith('.type'):  # with or without its scope
        old, new = (str(kind).rpartition('.')[2] for kind in (old, new))
    if old != new and str(old) != str(new):
        yield key, (old, new)


def _hooks(hooks: Any) -> list[dict]:
    return [hook for hook in hooks or () if not str(hook.get('type')).startswith(f'{SCOPE}.')]


def _averages(cfg: Mapping[str, Any]) -> bool:
    return any(type_name(hook).endswith('EMAHook') for hook in cfg.get('custom_hooks') or ())


def _length(cfg: Mapping[str, Any]) -> str:
    """The unit of a run's length, as ``meta`` calls it."""
    loop = cfg.get('train_cfg') or {}
    return 'iter' if 'max_iters' in loop else 'epoch'


def _run_length(cfg: Mapping[str, Any]) -> int | None:
    return (cfg.get('train_cfg') or {}).get(f'max_{_length(cfg)}s')


def _earlier_lengths(meta: Mapping[str, Any], saved: Mapping, length: int | None) -> list[int]:
    """Lengths that the run had before: a config that was extended once still names the first."""
    known = {*meta.get(FACTS, {}).get('earlier_lengths', ()), _run_length(saved)}
    return sorted(known - {None, length})


def _follow_length(cfg: Config, unit: str, length: int | None, earlier: list[int]) -> None:
    """Moves the ends of schedules that ended with the run."""
    for _, scheduler in schedules(cfg):
        by_epoch = scheduler.get('by_epoch', True)
        if length is None or by_epoch is not (unit == 'epoch'):
            continue
        for key, begin in (('end', 0), ('T_max', scheduler.get('begin', 0))):
            if scheduler.get(key) in [before - begin for before in earlier]:
                scheduler[key] = length - begin


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def _set_place(runner: Runner, meta: dict[str, Any], changed: Mapping[str, Any]) -> bool:
    """Recounts the finished iterations if epochs have another length now; returns whether."""
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return False
    epoch, done, length = meta['epoch'], meta['iter'], len(runner.train_dataloader)
    facts = meta.get(FACTS, {})
    before = facts.get('epoch_length')
    whole = epoch > 0 and done % epoch == 0
    if before is None:  # another program's file
        other_data = any(key.startswith('train_dataloader') for key in changed)
        before = done // epoch if other_data and whole else length
    if done != epoch * before and FACTS not in meta and whole:
        raise ToolError(
            f'the checkpoint finished epochs of {done // epoch} iterations and the config makes '
            f'epochs of {before}: the processes, the batch or the data differ, and this file does '
            f'not say which. Set them back, or {_ANEW}'
        )
    within = facts.get('within', max(0, done - epoch * before))
    if within and before == length and ('within' in facts or within <= length):
        if hasattr(runner.train_loop, 'within'):
            runner.train_loop.within = within
        return False
    if within:
        raise ToolError(
            f'the checkpoint was saved at iteration {done}, within an epoch: its {epoch} epochs '
            f'have {before} iterations each, and now an epoch has {length}. Set the processes, the '
            f'batch and the data back, or resume from a checkpoint of the end of an epoch'
        )
    if before != length:
        meta['iter'] = epoch * length
        runner.logger.warning(
            f'an epoch has {length} iterations and had {before}: the run resumes at epoch '
            f'{epoch + 1}, iteration {meta["iter"] + 1} of {runner.max_iters}'
        )
    return before != length


def _optimizer_state(runner: Runner, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state in the checkpoint of the runner's optimizer, whose parameters it has to fit."""
    state = checkpoint.get('optimizer')
    if not state:
        raise ToolError(
            'the checkpoint holds no state of the optimizer to resume with (a published file, or '
            f'save_optimizer=False): {_ANEW}'
        )
    now, before = (
        [len(group['params']) for group in groups]
        for groups in (runner.optim_wrapper.optimizer.param_groups, state['param_groups'])
    )
    if now != before:
        raise ToolError(
            f'the optimizer of the checkpoint had {sum(before)} parameters in {len(before)} groups '
            f'and that of the config has {sum(now)} in {len(now)}: set '
            f'optim_wrapper.paramwise_cfg and the model back, or {_ANEW}'
        )
    return state


def _replay(runner: Runner, epochs: int, iterations: int) -> None:
    """Steps schedulers from the start to where the run is now."""
    if any(getattr(s, 'need_val_args', False) for s in runner.param_schedulers or ()):
        raise ToolError(
            'param_scheduler has a schedule that depends on results, which cannot be computed '
            f'again: set the config back, or {_ANEW}'
        )
    length = len(runner.train_dataloader)
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    hooks = [hook for hook in runner.hooks if isinstance(hook, ParamSchedulerHook)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer takes no steps in between
        for step in range(iterations):
            for hook in hooks:
                hook.after_train_iter(runner, step)
                if by_epoch and (step + 1) % length == 0 and (step + 1) // length <= epochs:
                    hook.after_train_epoch(runner)
        for hook in hooks * by_epoch:
            for _ in range(iterations // length, epochs):  # of fewer batches than the length says
                hook.after_train_epoch(runner)
