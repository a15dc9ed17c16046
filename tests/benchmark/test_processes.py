"""Processes of contenders end with the one that asked for them."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PARENT = """
    import os, time
    from res2net_mm.benchmark.processes import own_process

    if __name__ == '__main__':
        with own_process('sleeper', 'cpu', False, eval, 'print') as process:
            print(process.ask(os.getpid), flush=True)
            time.sleep(600)
"""


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / 'parent.py'
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)
