"""Checkpoints of a training run: a complete one exists at every moment and is found again."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import mmengine.hooks
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..evaluation.tables import main_metric
from ..files import remove_partial, write_text
from ..weights import CheckpointError, read_checkpoint
from .errors import ToolError
from .terminal import warn

LAST = 'last_checkpoint'  # mmengine's note of the newest, in the work dir
INTERRUPTED = 'interrupted.pth'  # until the next checkpoint
_OUTDATED = 'outdated_ckpts'  # in a checkpoint: files that it replaces


class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook with its arguments, in an order that survives a kill and a full disk.

    mmengine removes outdated files and then saves. Here new files are complete before anything is
    removed. A run that was killed between saving and validating validates when it resumes, so it
    ends with the same best checkpoint as a run that was not killed.
    """

    _saved: int | None = None  # after how many iterations

    def before_train(self, runner: Runner) -> None:
        hub = runner.message_hub
        kept = hub.runtime_info.get('keep_ckpt_ids')
        name = Path(runner.work_dir).absolute().name
        folder = Path(self.out_dir, name) if self.out_dir else Path(runner.work_dir)
        source = str(getattr(runner, 'resumed_from', folder / LAST))
        moved = '://' not in source and Path(source).parent.resolve() != folder.resolve()
        if kept and (moved or not all(type(step) is int for step in kept)):  # parts of names
            hub.update_info('keep_ckpt_ids', [])
        self._forget_lost(runner, folder)
        super().before_train(runner)
        if is_main_process():
            remove_partial(self.out_dir, Path(self.filename_tmpl).suffix)
        left = hub.runtime_info.get(_OUTDATED)  # by a kill before the removal
        self.file_backend = _LateRemoval(self.file_backend, left if isinstance(left, list) else [])
        hub.update_info(_OUTDATED, self.file_backend.outdated)
        self._remove_outdated()
        if self._needs_scores(runner) and runner.iter and self._lacks_validation(runner):
            runner.logger.info('validating the resumed checkpoint, which may not have been')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """``save_best='auto'`` means :func:`~..evaluation.main_metric`, or else the first."""
        if 'auto' in (self.save_best or ()) and (main := main_metric(metrics or {})):
            self.greater_keys = [*self.greater_keys, main]
            metrics = {main: metrics[main], **metrics}
        try:
            super().after_val_epoch(runner, metrics)
        except ValueError as error:  # mmengine does not know whether more is better
            if self.save_best != ['auto']:
                raise
            warn(f'no best checkpoint is kept: {error}')
            self.save_best = None
        if self.save_best:
            self._remove_outdated()

    def save_interrupted(self, runner: Runner, done: int) -> str:
        """Saves a run after ``done`` iterations unless that was done, and returns the file."""
        if self._saved == done:
            return self.last_ckpt
        meta = dict(epoch=runner.epoch, iter=done)
        runner.save_checkpoint(
            self.out_dir, INTERRUPTED, meta=meta, backend_args=self.backend_args, **self.args
        )
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        if is_main_process():
            write_text(Path(runner.work_dir, LAST), path)
        return path

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._saved = meta['iter']
        self.file_backend.remove(self.file_backend.join_path(self.out_dir, INTERRUPTED))
        self._remove_outdated()

    @master_only
    def _remove_outdated(self) -> None:
        """Removes checkpoints, but only this run's: a resumed file can name any path."""
        backend, outdated = self.file_backend.backend, self.file_backend.outdated
        numbered = r'\d+'.join(map(re.escape, re.split('{.*?}', self.filename_tmpl)))
        for path in {path for path in outdated if isinstance(path, str)} - self._current():
            named = re.fullmatch(f'(best_.+_)?{numbered}|{INTERRUPTED}', Path(path).name)
            if named and Path(path).parent == Path(self.out_dir) and backend.isfile(path):
                backend.remove(path)
        outdated.clear()

    def _current(self) -> set[str | None]:
        """The newest and the best checkpoints."""
        best = getattr(self, 'best_ckpt_path_dict', {'': getattr(self, 'best_ckpt_path', None)})
        return {self.last_ckpt, *best.values()}

    def _forget_lost(self, runner: Runner, folder: Path) -> None:
        """Forgets the score of a best checkpoint that is gone, so that a new one is kept."""
        known = runner.message_hub.runtime_info
        for key in [key for key in known if key.startswith('best_ckpt')]:
            path = str(known[key])
            here = folder / Path(path).name
            if '://' not in path and not (Path(path).exists() or here.exists()):
                del known[key]
                known.pop(key.replace('best_ckpt', 'best_score'), None)

    def _needs_scores(self, runner: Runner) -> bool:
        """Whether the run depends on the scores of its validations."""
        plateau = any(getattr(s, 'need_val_args', False) for s in runner.param_schedulers or ())
        stops = any(isinstance(hook, mmengine.hooks.EarlyStoppingHook) for hook in runner.hooks)
        return bool(self.save_best) or plateau or stops

    def _lacks_validation(self, runner: Runner) -> bool:
        """Whether a validation is due now that the resumed checkpoint has no result of."""
        loop, done, end = runner.train_loop, runner.iter, runner.max_iters
        if runner.val_loop is None or not hasattr(loop, 'val_interval'):
            return False
        if isinstance(loop, EpochBasedTrainLoop):
            if getattr(loop, 'within', done != runner.epoch * len(loop.dataloader)):
                return False  # within an epoch, the validation before it is done
            done, end = runner.epoch, runner.max_epochs
        new = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        if any(str(path).endswith(f'_{new}') for path in self._current()):
            return False  # saved again after its validation
        return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


class _LateRemoval:
    """A file backend that notes what mmengine removes, until the new files are complete."""

    def __init__(self, backend: Any, outdated: list[str]) -> None:
        self.backend, self.outdated = backend, outdated

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def check_new_run(cfg: Config) -> None:
    """Raises ToolError if a run would write into the folder of one that it does not resume."""
    folder = Path(cfg.work_dir)
    there = [folder / LAST, *folder.glob('epoch_[0-9]*.pth'), *folder.glob('iter_[0-9]*.pth')]
    given = str(cfg.get('load_from') or '') if cfg.get('resume') else None
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    own = {folder.resolve(), Path(hook.get('out_dir') or folder, folder.absolute().name).resolve()}
    own_file = given == '' or (given and ('://' in given or Path(given).resolve().parent in own))
    resumable = any(file.exists() for file in there)
    if own_file or not (resumable or any(folder.glob('best_*.pth'))):
        return
    free = next(f for f in (Path(f'{folder}_{k}') for k in count(2)) if not f.exists())
    raise ToolError(
        f'work dir {folder} holds a run: {"go on with it by --resume, or " * resumable}start '
        f'another one with --work-dir {free}'
    )


def find_newest(cfg: Config, trust: bool = False) -> str | None:
    """The checkpoint to resume a run from: the noted one, or else the newest complete one.

    None if the run has saved nothing yet. Raises a ToolError if nothing that it saved is complete.
    """
    folder = work_dir = Path(cfg.work_dir)
    note = work_dir / LAST
    noted = note.read_text(errors='replace').strip() if note.is_file() else ''
    if '://' in noted:
        return noted
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') and '://' not in str(hook['out_dir']):
        folder = Path(hook['out_dir'], work_dir.absolute().name)
    pattern = re.sub('{.*?}', '*', hook.get('filename_tmpl') or '{}.pth')
    files = [file for file in folder.glob(pattern) if not file.name.startswith(('best_', '.'))]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    # the folder may have been moved since, so its own file comes first
    named = [file for file in (folder / Path(noted).name, Path(noted)) if noted and file.is_file()]
    broken = ''
    for file in [*named[:1], *files]:
        try:
            if 'message_hub' not in read_checkpoint(file, trust=trust):
                continue  # published, or another program's
        except (CheckpointError, OSError) as error:
            broken = broken or str(error)
            continue
        if file not in named and is_main_process():
            why = f'names {noted!r}, which is not complete' if noted else 'names no checkpoint'
            print(f'{note} {why}: resuming from {file}, the newest complete one')
        return str(file)
    if broken:
        raise ToolError(f'nothing in {folder} can be resumed: {broken}')
    return None
