"""Checkpoints of a training run: a complete one exists at every moment and is found again."""

from __future__ import annotations

import bisect
import hashlib
import pickle
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import mmengine.hooks
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, save_checkpoint

from ..files import remove_partial, write_text, writing
from ..weights import CheckpointError, read_checkpoint
from .errors import ToolError

LAST = 'last_checkpoint'  # mmengine's note of the newest, in the work dir
# recorded in a checkpoint: files that it replaces, and the best ones before its validation
_OUTDATED, _FORMER = 'outdated_ckpts', 'former_best_ckpts'


class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook with its arguments, in an order that survives a kill and a full disk.

    mmengine removes outdated files and then saves. Here the new file and its note are complete
    before anything is removed. A run that was killed between saving and validating validates when
    it resumes, so it ends with the same best checkpoint as a run that was not killed.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        info = runner.message_hub.runtime_info
        if is_main_process() and _is_local(self.out_dir):
            remove_partial(self.out_dir, Path(self.filename_tmpl).suffix)
            remove_partial(runner.work_dir, '')  # of the note
        for key in (_OUTDATED, _FORMER):  # what a kill left between saving and removing
            left = info.get(key)
            self._remove(left if isinstance(left, list) else ())
        if self.save_best and runner.iter and self._lacks_validation(runner):
            runner.logger.info('validating the resumed checkpoint, which may not have been')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        before = self._best()
        runner.message_hub.update_info(_FORMER, [path for path in before.values() if path])
        self._set_best({})  # or mmengine would remove them before it saves
        try:
            super().after_val_epoch(runner, metrics)
        finally:
            now = {key: path or before.get(key) for key, path in self._best().items()}
            self._set_best(now)
        self._remove(before.values())

    def _best(self) -> dict[str, str | None]:
        """Metric -> its best checkpoint; a single metric has the name ''."""
        if hasattr(self, 'best_ckpt_path_dict'):
            return dict(self.best_ckpt_path_dict)
        return {'': getattr(self, 'best_ckpt_path', None)}

    def _set_best(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, 'best_ckpt_path_dict'):
            for key in self.best_ckpt_path_dict:
                self.best_ckpt_path_dict[key] = paths.get(key)
        else:
            self.best_ckpt_path = paths.get('')

    def _lacks_validation(self, runner: Runner) -> bool:
        """Whether a validation is due now that the resumed checkpoint has no result of."""
        loop = runner.train_loop
        done, end = runner.epoch, runner.max_epochs
        if isinstance(loop, IterBasedTrainLoop):
            done, end = runner.iter, runner.max_iters
        elif not isinstance(loop, EpochBasedTrainLoop):
            return False
        if runner.val_loop is None or done < loop.val_begin:
            return False
        new = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        if any(str(path).endswith(f'_{new}') for path in self._best().values()):
            return False  # saved again after its validation
        step = bisect.bisect(loop.dynamic_milestones, done + 1)  # as mmengine's loops do
        return done % loop.dynamic_intervals[step - 1] == 0 or done == end

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            kept = [*self.keep_ckpt_ids, step]
            outdated, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        runner.message_hub.update_info(_OUTDATED, list(map(self._path, outdated)))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text(Path(runner.work_dir, LAST), self.last_ckpt)
            self._remove(map(self._path, outdated))

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    @master_only
    def _remove(self, paths: Iterable[str | None]) -> None:
        """Removes checkpoints, but only this run's: a resumed file can name any path."""
        numbered = r'\d+'.join(map(re.escape, re.split('{.*?}', self.filename_tmpl)))
        named = {path for path in paths if isinstance(path, str)}
        for path in named - {self.last_ckpt, *self._best().values()}:
            own = Path(path).parent == Path(self.out_dir)
            if not own or not re.fullmatch(f'(best_.+_)?{numbered}', Path(path).name):
                continue
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's
                self.file_backend.rmtree(path)

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        if not _is_local(ckpt_path):
            super()._publish_model(runner, ckpt_path)
            return
        checkpoint = read_checkpoint(ckpt_path)
        checkpoint = {k: v for k, v in checkpoint.items() if k in self.published_keys}
        digest = hashlib.sha256(pickle.dumps(checkpoint)).hexdigest()
        final = Path(ckpt_path).with_suffix('')
        final = final.with_name(f'{final.name}-{digest[:8]}.pth')
        with writing(final) as partial:
            save_checkpoint(checkpoint, str(partial))
        runner.logger.info(f'The checkpoint ({ckpt_path}) is published to {final}.')


def find_newest(cfg: Config, trust: bool = False) -> str | None:
    """The checkpoint to resume a run from: the noted one, or else the newest complete one.

    Args:
        cfg: Config with the ``work_dir`` of the run.
        trust: Read checkpoints with pickle.

    Returns:
        The file, or None if the run has saved nothing yet.

    Raises:
        ToolError: There are checkpoints, but none is complete.
    """
    work_dir = Path(cfg.work_dir)
    note = work_dir / LAST
    noted = note.read_text(errors='replace').strip() if note.is_file() else ''
    if not _is_local(noted):
        return noted
    folder = work_dir
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('out_dir') and _is_local(hook['out_dir']):
        folder = Path(hook['out_dir'], work_dir.absolute().name)
    pattern = re.sub('{.*?}', '*', hook.get('filename_tmpl') or '{}.pth')
    files = [file for file in folder.glob(pattern) if not file.name.startswith(('best_', '.'))]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    # the folder may have been moved since, so its own file comes first
    named = [file for file in (folder / Path(noted).name, Path(noted)) if noted and file.is_file()]
    broken = ''
    for file in [*named[:1], *files]:
        try:
            checkpoint = read_checkpoint(file, trust=trust)
        except (CheckpointError, OSError) as error:
            broken = broken or str(error)
            continue
        if 'message_hub' not in checkpoint:  # published, or another program's
            continue
        if file not in named and is_main_process():
            why = f'names {noted!r}, which is not complete' if noted else 'names no checkpoint'
            print(f'{note} {why}: resuming from {file}, the newest complete one')
        return str(file)
    if broken:
        raise ToolError(f'nothing in {folder} can be resumed: {broken}')
    return None


def _is_local(path: str | Path) -> bool:
    return '://' not in str(path)
