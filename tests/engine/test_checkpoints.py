import errno
import math
import os
from pathlib import Path

import mmengine.runner.checkpoint
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader

from res2net_mm.engine.checkpoints import CheckpointHook, find_newest
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.hooks import FiniteWeightsHook
from res2net_mm.engine.runner import Runner, use_safe_loading
from res2net_mm.weights import CheckpointError, read_checkpoint


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer('mask', torch.tensor([0.0, -math.inf]))

    def forward(self, inputs, mode='tensor'):
        out = self.norm(self.layer(inputs))
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else [out]


class Score(BaseMetric):
    """What is given for each validation in turn."""

    def __init__(self, scores) -> None:
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return next(self.scores)


def runner(
    folder: Path, scores=({'acc': 1},) * 9, hook=None, loop=None, custom_hooks=(), **more
) -> Runner:
    use_safe_loading()
    images = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    loader = DataLoader([dict(inputs=image) for image in images], batch_size=4)
    hook = dict(type='CheckpointHook', max_keep_ckpts=1, save_best='acc', rule='greater') | (
        hook or {}
    )
    return Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg=loop or dict(by_epoch=True, max_epochs=3),
        val_cfg=dict(),
        val_evaluator=Evaluator(Score(scores)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=hook),
        custom_hooks=[*custom_hooks, dict(type='res2net_mm.FiniteWeightsHook')],
        randomness=dict(seed=0),
        experiment_name=f'{folder}{len(list(folder.iterdir()))}',
        **more,
    )


def names(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir() if f.suffix == '.pth' or 'partial' in f.name}


def scores(*values: float) -> list[dict]:
    return [dict(acc=value) for value in values]


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_arguments_of_the_hook_keep_their_meaning(tmp_path, loop):
    hook, kind = None, 'epoch'
    train_cfg = dict(by_epoch=True, max_epochs=4)
    if loop == 'iterations':
        kind, hook = 'iter', dict(by_epoch=False, interval=1)
        train_cfg = dict(by_epoch=False, max_iters=4, val_interval=1)
    run = runner(tmp_path, scores(1, 3, 2, 2), dict(hook or dict(interval=1)), train_cfg)
    assert sum(type(hook) is CheckpointHook for hook in run.hooks) == 1
    run.train()
    assert names(tmp_path) == {f'{kind}_4.pth', f'best_acc_{kind}_2.pth'}
    assert Path((tmp_path / 'last_checkpoint').read_text()) == tmp_path / f'{kind}_4.pth'
    checkpoint = read_checkpoint(tmp_path / f'{kind}_4.pth')
    assert checkpoint['meta'][kind] == 4
    assert checkpoint['message_hub']['runtime_info']['best_score'] == 3


@pytest.mark.parametrize('failing', [2, 3, 4, 5, 6])
def test_full_disk_leaves_a_complete_checkpoint_and_the_best(tmp_path, monkeypatch, failing):
    """Writes: epoch 1, best 1, epoch 1 again, epoch 2, best 2, epoch 2 again."""
    written = []
    save = torch.save

    def full(content, file, *args, **kwargs):
        written.append(1)
        if len(written) == failing:
            raise OSError(errno.ENOSPC, 'No space left on device')
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(mmengine.runner.checkpoint.torch, 'save', full)
    with pytest.raises(OSError, match='.pth could not be written: No space left'):
        runner(tmp_path, scores(1, 2, 3), dict(interval=1)).train()
    monkeypatch.undo()
    expected = {
        2: {'epoch_1.pth'},
        3: {'epoch_1.pth', 'best_acc_epoch_1.pth'},
        4: {'epoch_1.pth', 'best_acc_epoch_1.pth'},
        5: {'epoch_2.pth', 'best_acc_epoch_1.pth'},
        6: {'epoch_2.pth', 'best_acc_epoch_1.pth', 'best_acc_epoch_2.pth'},
    }
    assert names(tmp_path) == expected[failing]
    newest = find_newest(Config(dict(work_dir=str(tmp_path))))
    assert Path(newest).name in expected[failing]

    # the validation that was lost is made up for
    left = scores(1, 2, 3)[1 if failing >= 4 else 0 :]
    run = runner(tmp_path, left, dict(interval=1), load_from=newest, resume=True)
    run.train()
    assert names(tmp_path) == {'epoch_3.pth', 'best_acc_epoch_3.pth'}


def test_several_best_and_published(tmp_path):
    hook = dict(interval=1, save_best=['acc', 'miss'], rule=['greater', 'less'])
    hook |= dict(published_keys=['meta', 'state_dict'])
    values = [dict(acc=1, miss=1), dict(acc=2, miss=2), dict(acc=1, miss=1)]
    runner(tmp_path, values, hook).train()
    kept = {'epoch_3', 'best_acc_epoch_2', 'best_miss_epoch_1'}
    assert {name.partition('-')[0].removesuffix('.pth') for name in names(tmp_path)} == kept
    published = [tmp_path / name for name in names(tmp_path) if '-' in name]
    assert len(published) == 3 and len(names(tmp_path)) == 6
    assert {*read_checkpoint(published[0])} == {'meta', 'state_dict'}


def test_the_best_of_another_folder_is_not_removed(tmp_path):
    first, second = tmp_path / '1', tmp_path / '2'
    first.mkdir()
    second.mkdir()
    runner(first, scores(1, 1, 1), dict(interval=1)).train()
    before = names(first)
    (second / 'best_acc_epoch_1.pth').touch()  # of the same name as the other's
    (second / 'epoch_3.pth').touch()
    loop = dict(by_epoch=True, max_epochs=4)
    source = dict(load_from=str(first / 'epoch_3.pth'), resume=True)
    runner(second, scores(1, 5), dict(interval=1), loop, **source).train()
    assert names(first) == before
    kept = {'epoch_3.pth', 'best_acc_epoch_1.pth'}
    assert names(second) == {'epoch_4.pth', 'best_acc_epoch_4.pth'} | kept


def test_a_best_checkpoint_that_is_gone_is_replaced(tmp_path):
    runner(tmp_path, scores(1, 3, 2), dict(interval=1)).train()
    (tmp_path / 'best_acc_epoch_2.pth').unlink()
    loop = dict(by_epoch=True, max_epochs=5)
    source = dict(load_from=str(tmp_path / 'epoch_3.pth'), resume=True)
    runner(tmp_path, scores(2, 1, 1), dict(interval=1), loop, **source).train()
    assert names(tmp_path) == {'epoch_5.pth', 'best_acc_epoch_3.pth'}


def test_a_stop_that_depends_on_scores_validates_the_resumed_checkpoint(tmp_path, monkeypatch):
    """A run that was killed between saving and validating ends as one that was not."""
    hook = dict(interval=1, save_best=None)
    stop = [dict(type='res2net_mm.EarlyStopHook', patience=2)]
    loop = dict(by_epoch=True, max_epochs=5)
    values = [dict(mAP=value) for value in (0.5, 0.4, 0.3, 0.2, 0.1)]
    (tmp_path / 'a').mkdir()
    run = runner(tmp_path / 'a', values, hook, loop, stop)
    run.train()
    assert run.epoch == 3
    monkeypatch.setattr(Score, 'compute_metrics', lambda *_: (_ for _ in ()).throw(SystemExit))
    (tmp_path / 'b').mkdir()
    with pytest.raises(SystemExit):
        runner(tmp_path / 'b', values, hook, loop, stop).train()
    monkeypatch.undo()
    source = dict(load_from=str(tmp_path / 'b' / 'epoch_1.pth'), resume=True)
    run = runner(tmp_path / 'b', values, hook, loop, stop, **source)
    run.train()
    assert run.epoch == 3


@pytest.mark.parametrize('note', [None, '', '{}/epoch_3.pth', '{}/gone.pth', '/moved/epoch_2.pth'])
def test_the_newest_complete_checkpoint_is_found(tmp_path, note, capsys):
    runner(tmp_path, hook=dict(interval=1, max_keep_ckpts=-1)).train()
    capsys.readouterr()
    cfg = Config(dict(work_dir=str(tmp_path)))
    last = tmp_path / 'epoch_3.pth'
    assert find_newest(cfg) == str(last) and not capsys.readouterr().out
    for age, name in enumerate(('epoch_3.pth', 'epoch_2.pth', 'epoch_1.pth')):
        os.utime(tmp_path / name, (2e9 - age, 2e9 - age))
    last.write_bytes(last.read_bytes()[:-100])
    os.utime(last, (2e9, 2e9))
    if note is None:
        (tmp_path / 'last_checkpoint').unlink()
    else:
        (tmp_path / 'last_checkpoint').write_text(note.format(tmp_path))
    assert find_newest(cfg) == str(tmp_path / 'epoch_2.pth')
    assert bool(capsys.readouterr().out) == (note != '/moved/epoch_2.pth')
    for file in tmp_path.glob('epoch_*'):
        file.write_bytes(b'')
    with pytest.raises(ToolError, match='nothing in .* can be resumed: .*empty'):
        find_newest(cfg)
    for file in tmp_path.glob('epoch_*'):
        file.unlink()
    assert find_newest(cfg) is None


@pytest.mark.parametrize('averaged', [False, True])
@pytest.mark.parametrize('part', ['layer.weight', 'norm.running_var'])
def test_weights_that_are_not_finite_are_neither_saved_nor_measured(tmp_path, part, averaged):
    hooks = [dict(type='EMAHook')] if averaged else []
    run = runner(tmp_path, hook=dict(interval=1), custom_hooks=hooks)
    step = run.model.train_step

    def last(data, optim_wrapper):
        loss = step(data, optim_wrapper)
        if run.iter == 3:  # the last of epoch 2
            run.model.state_dict()[part].fill_(math.nan)
        return loss

    run.model.train_step = last
    with pytest.raises(
        ToolError, match=rf'state_dict.(module.)?{part}.* after iteration 4.*not saved'
    ):
        run.train()
    assert names(tmp_path) == {'epoch_1.pth', 'best_acc_epoch_1.pth'}
    with pytest.raises(ToolError, match=part):
        FiniteWeightsHook().before_val_epoch(run)


@pytest.mark.parametrize('part', ['state_dict', 'optimizer'])
def test_checkpoints_that_are_not_finite_are_refused(tmp_path, part):
    (tmp_path / 'a').mkdir()
    runner(tmp_path / 'a').train()
    file = tmp_path / 'a' / 'epoch_3.pth'
    checkpoint = torch.load(file, weights_only=False)
    if part == 'state_dict':
        checkpoint[part]['norm.running_mean'].fill_(math.inf)
    else:
        checkpoint[part]['state'][0]['momentum_buffer'][0] = math.nan
    torch.save(checkpoint, file)
    more = dict(load_from=str(file), resume=True)
    run = runner(tmp_path, loop=dict(by_epoch=True, max_epochs=4), **more)
    key = 'norm.running_mean' if part == 'state_dict' else 'optimizer.state.0.momentum_buffer'
    with pytest.raises(CheckpointError, match=f'epoch_3.pth: {key} has values'):
        run.train()
    if part == 'optimizer':  # of no use to a run that begins
        runner(tmp_path, load_from=str(file)).train()
