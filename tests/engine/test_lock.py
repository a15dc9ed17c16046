import os
import signal
import time

import pytest

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.lock import hold_folder


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
    pattern = rf'{folder} is in use: process {pid} on .*, since 20\d\d-.*--work-dir'
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
