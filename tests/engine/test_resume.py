"""A run that is killed and resumed ends with the weights of one that is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from res2net_mm.weights import read_checkpoint

REPO = Path(__file__).resolve().parents[2]


CONFIG = REPO / 'configs' / 'faster_rcnn_r2n14_shapes.py'
ITERATIONS = f"""
_base_ = '{CONFIG}'
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=12, val_interval=12)
train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler'))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))
log_processor = dict(by_epoch=False)
"""


def train(config, work_dir, arguments, env, *more):
    command = [sys.executable, 'tools/train.py', str(config), '--work-dir', str(work_dir), *more]
    return subprocess.Popen(
        command + arguments,
        env=env,
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.parametrize(
    'stack', ['default', pytest.param('originals', marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize('loop', ['epochs', pytest.param('iterations', marks=pytest.mark.slow)])
def test_killed_and_resumed_run_equals_uninterrupted_run(stack, loop, tiny_arguments, tmp_path):
    config = CONFIG
    arguments = [*tiny_arguments, 'train_dataloader.num_workers=2', 'randomness.seed=7']
    first, last, next_step = 'epoch_1', 'epoch_3', '[2][2/4]'
    if loop == 'iterations':
        config = tmp_path / 'iterations.py'
        config.write_text(ITERATIONS)
        arguments = [a for a in arguments if 'max_epochs' not in a]
        first, last, next_step = 'iter_5', 'iter_12', 'Iter(train)[6/12]'
    finish(train(config, tmp_path / 'whole', arguments, stack))

    killed = train(config, tmp_path / 'killed', arguments, stack)
    for line in killed.stdout:
        if next_step in line.replace(' ', ''):
            break
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert Path(tmp_path, 'killed', f'{first}.pth').exists()
    assert not Path(tmp_path, 'killed', f'{last}.pth').exists()
    output = finish(train(config, tmp_path / 'killed', arguments, stack, '--resume'))
    assert 'resumed epoch' in output

    whole = read_checkpoint(tmp_path / 'whole' / f'{last}.pth')
    resumed = read_checkpoint(tmp_path / 'killed' / f'{last}.pth')
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    assert whole['param_schedulers'] == resumed['param_schedulers']
    before = read_checkpoint(tmp_path / 'killed' / f'{first}.pth')['state_dict']
    assert any(not v.equal(before[k]) for k, v in whole['state_dict'].items())
