"""Nothing that a checkpoint, or a file that a config names, says is run or removes files."""

import os
import pickle
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
import yaml
from mmengine import fileio
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader
from mmengine.structures import InstanceData
from torch import nn

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.runner import Runner
from res2net_mm.engine.safety import check_arrays, use_safe_loading
from res2net_mm.weights import CheckpointError


@pytest.fixture(autouse=True)
def safe_loading():
    before = dict(CheckpointLoader._schemes)
    use_safe_loading()
    yield
    use_safe_loading(trust=True)  # mmengine's handlers of files
    CheckpointLoader._schemes = before


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@DATASETS.register_module()
class Ones(list):
    def __init__(self):
        super().__init__([dict(x=torch.ones(1))] * 2)


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, mode='loss'):
        return dict(loss=self.layer(x).square().mean())


def toy_runner(work_dir, epochs, **kwargs):
    loader = dict(
        batch_size=1,
        dataset=dict(type='Ones'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', **kwargs)),
        experiment_name=f'{work_dir}_{epochs}',
        randomness=dict(seed=0),
        default_scope='mmdet',  # other tests find it
    )


@pytest.fixture
def saved(tmp_path):
    """The checkpoint of a run of one epoch."""
    toy_runner(tmp_path / 'run', 1).train()
    return tmp_path / 'run' / 'epoch_1.pth'


def resume(path, epochs=2, **kwargs):
    runner = toy_runner(path.parent, epochs, **kwargs)
    runner._load_from, runner._resume = str(path), True
    runner.train()
    return runner


def test_the_config_in_a_checkpoint_is_not_run(tmp_path, saved):
    ran = tmp_path / 'ran'
    content = torch.load(saved, weights_only=False)
    content['meta']['config'] = f"touched = open('{ran}', 'w').close()"
    torch.save(content, saved)
    assert resume(saved).epoch == 2 and not ran.exists()
    use_safe_loading(trust=True)
    resume(saved, 3)
    assert ran.exists()


def test_a_checkpoint_names_no_file_to_remove(tmp_path, saved):
    theirs, own = tmp_path / 'thesis.pth', saved.with_name('best_score_epoch_0.pth')
    theirs.touch()
    own.touch()
    content = torch.load(saved, weights_only=False)
    info = content['message_hub']['runtime_info']
    for named, gone in ((theirs, False), (own, True)):
        (saved.parent / 'epoch_').mkdir(exist_ok=True)
        info.update(best_ckpt=str(named), best_score=0.0, keep_ckpt_ids=['/../../thesis'] * 3)
        torch.save(content, saved)
        runner = toy_runner(saved.parent, 2, save_best='score', rule='greater', max_keep_ckpts=1)
        runner._load_from, runner._resume = str(saved), True
        runner.call_hook('before_run')
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.load_or_resume()
        hook = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        hook.before_train(runner)
        hook.after_val_epoch(runner, dict(score=1.0))
        assert theirs.exists() and named.exists() is not gone


@pytest.mark.parametrize('key', ['outdated_ckpts', 'best_ckpt'])
@pytest.mark.parametrize('name', ['..', 'data', 'notes.pth', '5'])
def test_a_resumed_run_removes_checkpoints_of_its_own_only(tmp_path, key, name):
    folder = tmp_path / 'runs' / 'this'
    runner = toy_runner(folder, 1, save_best='score', rule='greater', max_keep_ckpts=1)
    (folder / 'data').mkdir()
    (folder / 'notes.pth').touch()
    (tmp_path / 'runs' / 'other.pth').touch()
    hook = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    runner.call_hook('before_run')
    path = f'{folder}/{name}'
    value = path if key == 'best_ckpt' else 5 if name == '5' else [path]
    runner.message_hub.update_info(key, value)
    hook.before_train(runner)
    if key == 'best_ckpt':
        hook.best_ckpt_path = path
        hook.after_val_epoch(runner, dict(score=1.0))
    assert (folder / 'data').is_dir() and (folder / 'notes.pth').exists()
    assert (tmp_path / 'runs' / 'other.pth').exists()


def test_the_log_file_holds_no_control_characters(tmp_path):
    runner = toy_runner(tmp_path, 1)
    runner.logger.warning('class %s', 'cat\x1b[2J')
    (log,) = tmp_path.glob('*/*.log')
    text = log.read_text()
    assert 'class cat\\x1b[2J' in text and '\x1b' not in text


def test_pickles_and_yaml_that_a_config_names_run_nothing(tmp_path):
    ran = tmp_path / 'ran'
    hostile = pickle.dumps(Call(os.system, (f'touch {ran}',)))
    for suffix in ('pkl', 'pickle'):
        path = tmp_path / f'proposals.{suffix}'
        path.write_bytes(hostile)
        with pytest.raises(CheckpointError, match='system.*--trust-checkpoint'):
            mmengine.load(path)
    path = tmp_path / 'annotations.yaml'
    path.write_text(f'!!python/object/apply:os.system ["touch {ran}"]')
    with pytest.raises(yaml.YAMLError):
        mmengine.load(path)
    assert not ran.exists()
    use_safe_loading(trust=True)
    mmengine.load(tmp_path / 'proposals.pkl')
    assert ran.exists()


def test_an_array_that_a_config_names_runs_nothing(tmp_path):
    ran = tmp_path / 'ran'
    path = tmp_path / 'tree.np'
    dataset = dict(type='mmdet.OpenImagesChallengeDataset', hierarchy_file='tree.np')
    dataset['data_root'] = str(tmp_path)
    cfg = Config(dict(val_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset))))
    check_arrays(cfg)  # a missing file is not its affair
    hostile = Call(os.system, (f'touch {ran}',))
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(ToolError, match='tree.np'):
        check_arrays(cfg)
    with path.open('wb') as file:
        np.save(file, np.array([hostile]))
    with pytest.raises(ToolError, match='tree.np'):
        check_arrays(cfg)
    with path.open('wb') as file:
        np.save(file, np.eye(3))
    check_arrays(cfg)
    assert not ran.exists()


@pytest.mark.parametrize('protocol', [2, 4])
def test_proposals_are_read(tmp_path, protocol):
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    proposals = {'a/1.jpg': InstanceData(bboxes=boxes, scores=np.ones(2)), 'plain': dict(b=boxes)}
    path = tmp_path / 'proposals.pkl'
    fileio.dump(proposals, path, protocol=protocol)
    read = mmengine.load(path)
    found = read['a/1.jpg']
    assert type(found) is InstanceData and len(found[:1]) == 1
    assert np.array_equal(found.bboxes, boxes) and np.array_equal(read['plain']['b'], boxes)


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'mmcls', 's3'])
def test_every_scheme_of_mmengine_is_safe(tmp_path, monkeypatch, scheme):
    ran = tmp_path / 'ran'
    bad, good = tmp_path / 'bad.pth', tmp_path / 'good.pth'
    torch.save(dict(state_dict={}, meta=Call(os.system, (f'touch {ran}',))), bad)
    torch.save(dict(state_dict={'backbone.w': torch.ones(2)}), good)
    names = dict(bad=str(bad), good=str(good))
    for which in ('torchvision', 'mmcls'):
        monkeypatch.setattr(f'res2net_mm.weights.sources.get_{which}_models', lambda: names)
    backend = fileio.get_file_backend(str(good))
    monkeypatch.setattr(  # in place of a bucket
        fileio, 'get_local_path', lambda path: backend.get_local_path(names[Path(path).name])
    )
    with pytest.raises(CheckpointError, match='system.*--trust-checkpoint'):
        CheckpointLoader.load_checkpoint(f'{scheme}://bad')
    assert not ran.exists()
    state = CheckpointLoader.load_checkpoint(f'{scheme}://good')['state_dict']
    assert list(state) == ['w' if scheme == 'mmcls' else 'backbone.w']
