"""Order and number of what is timed, memory that is known, profiles, processes, the machine."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark import measure
from torch import nn

from res2net_mm.engine.errors import ToolError
from res2net_mm.ops.memory import can_keep_memory

REPO = Path(__file__).resolve().parents[2]


def allocate(mib):
    return torch.ones(mib * 2**18)


def prepare_allocation(name, mib, kept=1):
    tensor = allocate(kept)
    return lambda: (tensor, allocate(mib))


def page_faults(mib):
    """Pages that a second tensor of this size needs anew."""
    allocate(mib)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate(mib)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def prepare_end(name):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def prepare_sleep(name, more):
    return lambda: (time.sleep(0.05), torch.ones(8).square())


def test_each_round_begins_with_the_next_call():
    log = []
    calls = {name: lambda name=name: log.append(name) or 1.0 for name in 'abc'}
    times = measure.interleave(calls, 4, warmup=2)
    assert ''.join(log) == 'abc' * 2 + 'abc' + 'bca' + 'cab' + 'abc'
    assert times == dict(a=[1.0] * 4, b=[1.0] * 4, c=[1.0] * 4)


def test_times_are_those_of_the_calls(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure, 'timer', lambda: clock[0])

    def takes(*seconds):
        left = iter(seconds)
        return partial(measure.seconds, lambda: clock.__setitem__(0, clock[0] + next(left)))

    calls = dict(slow=takes(64, 4, 5), fast=takes(32, 1, 2))
    assert measure.interleave(calls, 2, warmup=1) == dict(slow=[4, 5], fast=[1, 2])


@pytest.mark.slow
def test_rows_of_contenders():
    settings = SimpleNamespace(rounds=2, device='cpu')
    contenders = dict(a=False, b=True)
    given = contenders, prepare_sleep, 'x'
    rows, profile = measure.measure(*given, settings=settings, profiled=['b'], profiles=1)
    assert [row['name'] for row in rows] == ['a', 'b'] and set(profile) == {'b'}
    assert 'aten::pow' in profile['b'] and measure.REST in profile['b']
    assert all(len(row['times']) == 2 and 0.05 <= min(row['times']) < 5 for row in rows)
    kept = 'keeps freed memory' if can_keep_memory() else ''
    assert [row['note'] for row in rows] == ['', kept]


@pytest.mark.slow
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='needs Linux')
def test_memory_is_what_a_call_allocates():
    settings = SimpleNamespace(rounds=1, device='cpu')
    for kept, keeps in ((1, True), (200, False)):
        given = dict(x=keeps), prepare_allocation, 64, kept
        (row,), _ = measure.measure(*given, settings=settings)
        # the system counts pages in batches, and reports a little less or more
        assert 63.5 < row['memory_mib'] < 100
    for keeps in (False, True):
        with measure.own_process('x', prepare_allocation, 'x', 1, keep=keeps) as process:
            few = process.ask(page_faults, 64) < 1000
            assert few is (keeps and can_keep_memory()) is process.keeps


def test_process_that_is_killed_is_named():
    with pytest.raises(ToolError, match='the process of victim was killed'):
        measure.measure(
            dict(victim=False), prepare_end, settings=SimpleNamespace(rounds=1, device='cpu')
        )


def test_no_figure_where_the_system_does_not_report_it(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, '_CLEAR_REFS', tmp_path / 'none')
    calls = []
    assert measure.peak_memory(lambda: calls.append(allocate(1))) is None and len(calls) == 1


def test_machine():
    import mmcv  # here, as processes that measure memory import this file
    import mmdet
    import timm

    found = measure.machine('cpu')
    assert found['gpu'] is None and found['threads'] == torch.get_num_threads()
    assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
    versions = found['versions']
    assert versions['timm'] == timm.__version__
    assert versions['mmdet'].split()[0] == mmdet.__version__
    assert versions['mmcv'].split()[0] == mmcv.__version__
    if os.path.exists('/proc/cpuinfo'):
        flags = subprocess.run(
            ['grep', '-m1', '^flags', '/proc/cpuinfo'], capture_output=True, text=True
        ).stdout.split()
        assert ('avx2' in found['flags']) == ('avx2' in flags)


def test_float32_is_exact_within():
    before = torch.backends.cudnn.allow_tf32
    with measure.exactly():
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32 is before


def test_profile_of_a_step():
    net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    image = torch.rand(2, 8, 64, 64)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    calls = []

    def step():
        calls.append(None)
        net(image).square().sum().backward()
        sgd.step()

    takes = dict(step=partial(measure.profile_operations, step))
    found = measure.least_profiles(takes, rounds=2)['step']
    assert len(calls) == 2 and len(found) == measure.TOP + 1
    *longest, rest = found.values()
    assert longest == sorted(longest, reverse=True) and longest[-1] > 0 and rest > 0
    assert any('convolution' in name for name in found) and [*found][-1] == measure.REST


def test_profile_is_that_of_the_shortest_call():
    taken = iter([dict(a=3, b=1), dict(a=1, b=2), dict(a=9)])
    takes = dict(x=lambda: next(taken))
    assert measure.least_profiles(takes, rounds=3) == dict(x=dict(a=1, b=2))


PARENT = """
    import os, time
    from benchmark.measure import own_process

    if __name__ == '__main__':
        with own_process('sleeper', eval, 'print') as process:
            print(process.ask(os.getpid), flush=True)
            time.sleep(600)
"""


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / 'parent.py'
    script.write_text(textwrap.dedent(PARENT))
    paths = os.pathsep.join([str(REPO), str(REPO / 'tools')])
    env = dict(os.environ, PYTHONPATH=paths)
    command = [sys.executable, script]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)
