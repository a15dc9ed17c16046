"""Order and number of what is timed, memory that is known, the machine."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import torch

from res2net_mm.benchmark import measure
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops.memory import can_keep_memory


def allocate(mib):
    return torch.ones(mib * 2**18)


def keep_and_allocate(kept, mib):
    tensor = allocate(kept)
    return lambda: (tensor, allocate(mib))


def allocate_twice(mib):
    """Pages that the second needed anew."""
    allocate(mib)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate(mib)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


def allocate_if_few_faults(mib, most):
    if allocate_twice(mib) < most:
        allocate(3 * mib)


def end_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_round_begins_with_the_next_call():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in 'abc'}
    times = measure.interleave(calls, 4, warmup=2)
    assert ''.join(log) == 'abc' * 2 + 'abc' + 'bca' + 'cab' + 'abc'
    assert {name: len(values) for name, values in times.items()} == dict(a=4, b=4, c=4)


def test_times_are_those_of_the_calls(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure, 'now', lambda device: clock[0])

    def takes(*seconds):
        left = iter(seconds)
        return lambda: clock.__setitem__(0, clock[0] + next(left))

    calls = dict(slow=takes(64, 4, 5), fast=takes(32, 1, 2))
    assert measure.interleave(calls, 2, warmup=1) == dict(slow=[4, 5], fast=[1, 2])


def test_a_call_may_tell_its_seconds():
    assert measure.interleave(dict(told=lambda: 3.5), 2) == dict(told=[3.5, 3.5])


@pytest.mark.parametrize('wrong', [dict(rounds=0), dict(rounds=1, warmup=-1)])
def test_numbers_of_rounds_are_checked(wrong):
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=f'{name} must be at least .*, but is {wrong[name]}'):
        measure.interleave({}, **wrong)


@pytest.mark.slow
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='Linux tells memory')
def test_memory_is_what_a_call_allocates():
    # the system counts pages in batches, and tells a little less or more
    assert 63.5 < measure.peak_memory(allocate, 64) < 100
    assert 63.5 < measure.peak_memory(keep_and_allocate, 200, 64, prepared=True) < 100
    told = [measure.peak_memory(allocate_if_few_faults, 64, 1000, keep=k) for k in (False, True)]
    assert told[0] < 150 and (told[1] > 191 or not can_keep_memory())
    with pytest.raises(ToolError, match='measured the memory of end_itself was ended'):
        measure.peak_memory(end_itself)


def test_no_figure_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, '_CLEAR_REFS', tmp_path / 'none')
    assert measure.peak_memory(allocate, 1) is None


def test_rate_is_that_of_the_best_product(monkeypatch):
    gaps = iter([0, 9, 0, 2, 0, 0.5] + [0, 3] * 47)
    clock = [0.0]

    def now(device):
        clock[0] += next(gaps)
        return clock[0]

    monkeypatch.setattr(measure, 'now', now)
    assert measure.matmul_gflops(torch.float32) == 2 * 1024**3 / 0.5 / 1e9


def test_machine(monkeypatch):
    import mmcv  # here, as processes that measure memory import this file
    import mmdet
    import timm

    monkeypatch.setattr(measure, 'matmul_gflops', lambda dtype, device: 7.0)
    found = measure.machine('cpu', [torch.float32, torch.bfloat16])
    assert found['matmul_gflops'] == dict(float32=7.0, bfloat16=7.0)
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
    before = measure._tf32()
    try:
        measure._set_tf32(True, True)
        with measure.exact_float32():
            assert measure._tf32() == (False, False)
        assert measure._tf32() == (True, True)
    finally:
        measure._set_tf32(*before)
