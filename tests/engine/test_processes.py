import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch.distributed
import torch.multiprocessing

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.hooks import SharedBuffersHook
from res2net_mm.engine.processes import hold_folder, on_first_rank, start_processes


def hold(folder, ready, fork=False):
    """Trains in a folder, in a fork, maybe with a worker that outlives it; its process id."""
    pid = os.fork()
    if not pid:
        with hold_folder(folder):
            if fork and not os.fork():
                time.sleep(20)
                os._exit(0)
            ready.touch()
            time.sleep(20)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    return pid


@pytest.mark.parametrize('fork', [False, True])
def test_one_run_at_a_time_in_a_folder(tmp_path, fork):
    folder = tmp_path / 'runs' / 'a'
    pid = hold(folder, tmp_path / 'ready', fork)
    pattern = rf'{folder} is in use: process {pid} on .*, since 20\d\d-.*another folder'
    with pytest.raises(ToolError, match=pattern), hold_folder(folder):
        pass
    with hold_folder(tmp_path / 'runs' / 'b'):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with hold_folder(folder):
        pass
    with hold_folder(folder):
        pass


def _work(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2
    )

    def note(value):
        with (folder / 'calls').open('a') as calls:
            calls.write(f'{rank} ')
        if value is None:
            raise KeyError('no such class')
        return value

    kept = on_first_rank(note, [7])
    try:
        on_first_rank(note, None)
    except Exception as error:
        (folder / f'{rank}').write_text(f'{kept} {type(error).__name__} {error}')
    torch.distributed.destroy_process_group()


def test_the_first_process_works_and_fails_for_all(tmp_path):
    torch.multiprocessing.start_processes(_work, (tmp_path,), nprocs=2, start_method='fork')
    assert (tmp_path / 'calls').read_text() == '0 0 '
    assert (tmp_path / '0').read_text() == "[7] KeyError 'no such class'"
    assert (tmp_path / '1').read_text() == (
        f'[7] {ToolError.__name__} stopped with the first process: no such class'
    )


def test_torchrun_needs_a_launcher(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ToolError, match='add --launcher pytorch'):
        start_processes(SimpleNamespace(), 'none')
    monkeypatch.setenv('WORLD_SIZE', '1')
    start_processes(SimpleNamespace(), 'none')


def _measure(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2
    )
    norm = torch.nn.BatchNorm2d(3)
    norm(torch.full((2, 3, 4, 4), float(rank)))
    runner = SimpleNamespace(model=norm)
    SharedBuffersHook().before_val_epoch(runner)
    (folder / f'{rank}').write_text(f'{norm.running_mean.tolist()} {norm.num_batches_tracked}')
    torch.distributed.destroy_process_group()


def test_all_processes_measure_with_the_statistics_that_are_saved(tmp_path):
    torch.multiprocessing.start_processes(_measure, (tmp_path,), nprocs=2, start_method='fork')
    assert (tmp_path / '0').read_text() == (tmp_path / '1').read_text() == '[0.0, 0.0, 0.0] 1'
