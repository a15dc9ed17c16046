"""Runs that are killed, interrupted or broken keep complete files, and resume exactly."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from forking import Forks, forks
from mmengine.config import Config
from running import server

from res2net_mm.data import make_shapes
from res2net_mm.engine.checkpoints import find_newest
from res2net_mm.engine.processes import hold_folder
from res2net_mm.weights import read_checkpoint

REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / 'configs' / 'faster_rcnn_r2n14_shapes.py'


@pytest.fixture(scope='module')
def config(tiny_options, tmp_path_factory) -> Path:
    """A config in one file, which loads fast, of 2 steps an epoch, that keeps one checkpoint."""
    folder = tmp_path_factory.mktemp('config')
    make_shapes(folder / 'shapes', train=8, val=4)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(tiny_options)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{folder}/shapes/'
        cfg[f'{split}_dataloader'].num_workers = 0
        cfg[f'{split}_dataloader'].persistent_workers = False
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = f'{folder}/shapes/annotations/instances_val.json'
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1, save_best='auto')
    cfg.train_cfg.val_interval = 1
    cfg.train_cfg.val_begin = 1
    cfg.dump(folder / 'tiny.py')
    return folder / 'tiny.py'


@pytest.fixture(scope='module')
def tools() -> Forks:
    return server()


def epochs_of(folder: Path) -> dict[int, Path]:
    found = {int(f.stem.partition('_')[2]): f for f in folder.glob('epoch_*.pth')}
    return dict(sorted(found.items()))


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_as_in(reference: Path, folder: Path) -> None:
    """Whatever has a final name is complete and equal to that of the run that was not killed."""
    for number, file in epochs_of(folder).items():
        mine, other = (read_checkpoint(f) for f in (file, reference / file.name))
        for key in ('state_dict', 'optimizer', 'param_schedulers'):
            assert equal(mine[key], other[key]), (number, key)
    for file in folder.glob('best_*.pth'):
        name = re.search(r'epoch_\d+\.pth', file.name)[0]
        mine, other = (read_checkpoint(f)['state_dict'] for f in (file, reference / name))
        assert equal(mine, other), file


def partial_files(folder: Path) -> set[str]:
    return {f.name for f in os.scandir(folder) if '.partial' in f.name}


def wait_for(step: str, log: Path) -> None:
    """Waits until a run prints this step."""
    end = time.monotonic() + 120
    while step not in (log.read_text() if log.exists() else '').replace(' ', ''):
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_to_kill(folder: Path, log: Path, draw: random.Random, in_write: bool) -> None:
    """Waits for a random moment of the first two epochs, or for a random one of their writes."""
    end = time.monotonic() + (60 if in_write else draw.uniform(0.5, 8))
    left = partial_files(folder)  # by an earlier kill
    seen = set(left)
    skipped = len(left) + draw.randrange(3)
    while time.monotonic() < end and len(seen) <= skipped:
        if in_write:
            seen |= partial_files(folder)
        else:
            time.sleep(0.01)
        if log.read_text().count('Saving checkpoint') > 1 + in_write:
            return  # a busy machine can miss writes


@pytest.mark.slow
@pytest.mark.parametrize('kills', [3, 20])
def test_killed_runs_can_be_resumed(tools, config, tmp_path, kills):
    epochs = 3 * kills + 1
    options = ['--cfg-options', f'train_cfg.max_epochs={epochs}']
    whole, folder, log = tmp_path / 'whole', tmp_path / 'killed', tmp_path / 'log'
    keep = 'default_hooks.checkpoint.max_keep_ckpts=-1'
    arguments = [str(config), '--work-dir', str(whole), *options, keep]
    assert tools.call('train', arguments, log) == 0, log.read_text()[-3000:]
    assert list(epochs_of(whole)) == list(range(1, epochs + 1))

    draw = random.Random(0)
    arguments = [str(config), '--work-dir', str(folder), '--resume', *options]
    newest = killed = 0
    folder.mkdir()
    while killed < kills:
        log.write_text('')
        pid = tools.start('train', arguments, log)
        wait_to_kill(folder, log, draw, in_write=killed % 2 == 0)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        status = tools.wait()
        text = log.read_text()
        assert status == -signal.SIGKILL, f'{status} after {killed} kills: {text[-3000:]}'
        killed += 1
        if 'resumed epoch' in text:
            assert int(re.search(r'resumed epoch: (\d+)', text)[1]) == newest
        assert_as_in(whole, folder)
        cfg = Config(dict(work_dir=str(folder)))
        found = find_newest(cfg)
        assert (found is not None) or not newest, 'what was saved before is lost'
        now = int(Path(found).stem.partition('_')[2]) if found else 0
        assert now >= newest
        newest = now
    assert tools.call('train', arguments, log) == 0, log.read_text()[-3000:]
    assert_as_in(whole, folder)
    assert list(epochs_of(folder)) == [epochs]
    assert {f.name for f in folder.glob('best_*')} == {f.name for f in whole.glob('best_*')}
    assert not list(folder.glob('.*.partial*'))


@pytest.mark.slow
@pytest.mark.parametrize('signals', [3, 20])
def test_signals_end_a_run_cleanly(tools, config, tmp_path, signals):
    draw = random.Random(1)
    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    workers = [f'{split}_dataloader.num_workers=2' for split in ('train', 'val')]
    for k in range(signals):
        folder, log = tmp_path / f'{k}', tmp_path / f'{k}.log'
        arguments = [str(config), '--work-dir', str(folder), '--cfg-options', *workers]
        pid = tools.start('train', arguments, log)
        wait = draw.uniform(0.2, 8)
        end = time.monotonic() + wait
        while time.monotonic() < end and 'Epoch(val) [2]' not in (
            log.read_text() if log.exists() else ''
        ):
            time.sleep(0.01)
        number = kinds[k % 3]
        # a terminal sends its signals to all processes of a group, others send theirs to one
        (os.kill if number == signal.SIGTERM else os.killpg)(pid, number)
        status, text = tools.wait(), log.read_text()
        name = '' if number == signal.SIGINT else f' by {number.name}'
        assert status == 128 + number, (k, number, status, text[-3000:])
        assert text.splitlines()[-1] == f'interrupted{name}', text[-3000:]
        assert 'Traceback' not in text and 'Error' not in text, text[-3000:]
        assert not [f for f in folder.rglob('*') if '.partial' in f.name]
        for file in epochs_of(folder).values():
            read_checkpoint(file)
        end = time.monotonic() + 10
        with suppress(ProcessLookupError):  # its workers have ended too
            while os.killpg(pid, 0) is None:
                assert time.monotonic() < end, f'processes of {pid} are left'
                time.sleep(0.05)


WORKERS = ['--cfg-options', 'train_dataloader.num_workers=2', 'train_dataloader.batch_size=2']


@pytest.fixture(scope='module')
def whole(tools, config, tmp_path_factory) -> Path:
    """A run of 4 steps an epoch that was not interrupted, with all its checkpoints."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    log, keep = folder.with_suffix('.log'), 'default_hooks.checkpoint.max_keep_ckpts=-1'
    arguments = [str(config), '--work-dir', str(folder), *WORKERS, keep]
    assert tools.call('train', arguments, log) == 0, log.read_text()[-3000:]
    return folder


@pytest.mark.parametrize(
    'number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_goes_on_within_its_epoch(tools, config, whole, tmp_path, number):
    """Ends with the same bits, whatever the step and the workers."""
    folder, log = tmp_path / 'interrupted', tmp_path / 'log'
    arguments = [str(config), '--work-dir', str(folder), *WORKERS]
    pid = tools.start('train', arguments, log)
    wait_for('[2][2/4]', log)
    os.kill(pid, number)
    assert tools.wait() == 128 + number
    said = re.search(r'interrupted after (\d+) of 12 iterations: (\S+) holds', log.read_text())
    done, file = int(said[1]), Path(said[2])
    assert 6 <= done < 12 and file.exists(), log.read_text()[-2000:]
    assert (folder / 'last_checkpoint').read_text() == str(file)
    if done % 4:
        assert file.name == 'interrupted.pth' and read_checkpoint(file)['meta']['iter'] == done
    log.write_text('')
    assert tools.call('train', [*arguments[:3], '--resume', *WORKERS], log) == 0, log.read_text()
    assert 'validating the resumed' not in log.read_text() or done % 4 == 0
    assert_as_in(whole, folder)
    assert [*epochs_of(folder)] == [3] and not (folder / 'interrupted.pth').exists()
    assert {f.name for f in folder.glob('best_*')} == {f.name for f in whole.glob('best_*')}
    assert (folder / 'report.html').exists()
    log.write_text('')
    assert tools.call('train', arguments, log) == 1
    assert log.read_text().splitlines()[-1] == (
        f'error: work dir {folder} holds a run: go on with it by --resume, or start another one '
        f'with --work-dir {folder}_2'
    )


def test_a_killed_run_goes_on_from_its_last_epoch(tools, config, whole, tmp_path):
    folder, log = tmp_path / 'killed', tmp_path / 'log'
    arguments = [str(config), '--work-dir', str(folder), *WORKERS]
    pid = tools.start('train', arguments, log)
    wait_for('[2][2/4]', log)
    os.killpg(pid, signal.SIGKILL)
    assert tools.wait() == -signal.SIGKILL
    assert tools.call('train', [*arguments[:3], '--resume', *WORKERS], log) == 0, log.read_text()
    assert 'resumed epoch: 1' in log.read_text() and [*epochs_of(folder)] == [3]
    assert_as_in(whole, folder)
    written = Config.fromfile(folder / config.name)
    assert (written.resume, written.load_from) == (False, None)


@pytest.mark.parametrize('every', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_are_nowhere_used(tools, config, tmp_path, every):
    log, folder = tmp_path / 'log', tmp_path / 'run'

    def call(tool, *arguments):
        log.unlink(missing_ok=True)
        status = tools.call(tool, [str(argument) for argument in arguments], log)
        return status, log.read_text().splitlines()[-1]

    one = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=8']
    # one step: its loss is finite, the squares of its gradients are not
    much = ['model.roi_head.bbox_head.loss_cls.loss_weight=1e37', 'optim_wrapper.clip_grad=None']
    status, line = call('train', config, '--work-dir', folder, *one, *much)
    assert status == 1 and re.match('error: .* after iteration 1.*not saved', line), line
    assert not list(folder.glob('*.pth'))

    assert call('train', config, '--work-dir', folder, *one)[0] == 0
    name = 'backbone.layer1.0.bn1.running_var'
    good, bad = folder / 'epoch_1.pth', tmp_path / 'bad.pth'
    checkpoint = torch.load(good, weights_only=False)
    checkpoint['state_dict'][name][0] = torch.nan
    torch.save(checkpoint, bad)
    work_dir = ['--work-dir', tmp_path / 'w']
    picture = next((config.parent / 'shapes' / 'val').iterdir())
    for tool, *arguments in (
        ('infer', config, bad, picture, '--out', tmp_path / 'predicted'),
        ('train', config, '--resume', bad, *work_dir),
        ('test', config, bad, *work_dir),
        ('train', config, *work_dir, '--cfg-options', f'load_from={bad}'),
    )[: 4 if every else 2]:
        line = f'error: checkpoint {bad}: {name} has values that are NaN or infinite'
        assert call(tool, *arguments) == (1, line)


def test_a_folder_has_one_run_at_a_time(tools, config, tmp_path):
    arguments = ['train', [str(config), '--work-dir', str(tmp_path)], tmp_path / 'log']
    with hold_folder(tmp_path):
        assert tools.call(*arguments) == 1
    line = arguments[-1].read_text().splitlines()[-1]
    assert line.startswith(f'error: work dir {tmp_path} is in use: process {os.getpid()} on ')


ITERATIONS = f"""
_base_ = '{CONFIG}'
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=12, val_interval=12)
train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler'))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))
log_processor = dict(by_epoch=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['default', 'originals'], indirect=True)
@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_killed_and_resumed_run_equals_uninterrupted_run(stack, loop, tiny_arguments, tmp_path):
    config = CONFIG
    options = [*tiny_arguments, 'train_dataloader.num_workers=2', 'randomness.seed=7']
    first, last, next_step = 'epoch_1', 'epoch_3', '[2][2/4]'
    if loop == 'iterations':
        config = tmp_path / 'iterations.py'
        config.write_text(ITERATIONS)
        options = [a for a in options if 'max_epochs' not in a]
        first, last, next_step = 'iter_5', 'iter_12', 'Iter(train)[6/12]'
    whole, killed, log = tmp_path / 'whole', tmp_path / 'killed', tmp_path / 'log'
    with forks(stack) as tools:
        arguments = [str(config), '--work-dir', str(whole), *options]
        assert tools.call('train', arguments, log) == 0, log.read_text()[-3000:]
        log.write_text('')
        arguments[2] = str(killed)
        pid = tools.start('train', arguments, log)
        wait_for(next_step, log)
        os.killpg(pid, signal.SIGKILL)
        assert tools.wait() == -signal.SIGKILL
        assert Path(killed, f'{first}.pth').exists() and not Path(killed, f'{last}.pth').exists()
        before = read_checkpoint(killed / f'{first}.pth')['state_dict']
        assert tools.call('train', [*arguments[:3], '--resume', *options], log) == 0
    assert 'resumed epoch' in log.read_text()
    expected, resumed = (read_checkpoint(folder / f'{last}.pth') for folder in (whole, killed))
    assert equal(expected['state_dict'], resumed['state_dict'])
    assert expected['param_schedulers'] == resumed['param_schedulers']
    assert not equal(expected['state_dict'], before)
