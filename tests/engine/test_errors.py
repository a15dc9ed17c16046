import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.engine.lock import hold_folder

REPO = Path(__file__).resolve().parents[2]
KINDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def run(tmp_path):
    """Runs a tool in a fork; its status and the lines on stderr."""

    def call(main):
        path = tmp_path / 'stderr'
        pid = os.fork()
        if not pid:
            os.setsid()
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            status = 99
            try:
                with open(2, 'w', closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
                    patch.setattr('sys.stderr', stream)
                    run_tool(main)
            except SystemExit as end:
                status = end.code
            except BaseException:
                path.write_text(traceback.format_exc())
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), path.read_text().splitlines()

    return call


def send(number):
    os.kill(os.getpid(), number)
    for _ in range(1000):
        time.sleep(0.01)


@pytest.mark.parametrize('number', KINDS)
def test_signals_end_in_one_line_after_clearing_away(run, tmp_path, number):
    name = '' if number == signal.SIGINT else f' by {number.name}'
    left = tmp_path / 'partial'

    def main():
        left.touch()
        try:
            send(number)
        finally:
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)  # impatient, but not a second Ctrl-C
            left.unlink()

    assert run(main) == (128 + number, [f'interrupted{name}'])
    assert not left.exists()


@pytest.mark.parametrize('number', KINDS)
def test_an_interruption_that_becomes_another_error_is_one(run, number):
    def main():
        try:
            send(number)
        except:  # noqa: E722
            raise SyntaxError('Failed to format the config') from None

    status, lines = run(main)
    assert status == 128 + number and len(lines) == 1 and lines[0].startswith('interrupted')


def test_an_interruption_that_a_destructor_swallows_comes_again(run):
    class Slow:
        def __del__(self):
            send(signal.SIGINT)

    def main():
        slow = Slow()
        del slow
        time.sleep(20)

    start = time.monotonic()
    assert run(main) == (130, ['interrupted'])
    assert time.monotonic() - start < 10


def test_a_second_interruption_ends_at_once(run):
    def main():
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGINT)

    assert run(main) == (-signal.SIGINT, [])


def test_what_is_ignored_stays_ignored(run):
    def main():
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run(main) == (7, [])
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    'tool',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ('train', 'eval_results')))
        for name in sorted(file.stem for file in (REPO / 'tools').glob('*.py'))
    ],
)
def test_an_interruption_of_the_imports_leaves_no_traceback(tool):
    command = [sys.executable, '-X', 'importtime', f'tools/{tool}.py', '--help']
    process = subprocess.Popen(
        command, cwd=REPO, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    for line in process.stderr:
        if 'numpy' in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT and 'Traceback' not in rest


class Slow:
    def __len__(self):
        return 100

    def __getitem__(self, i):
        time.sleep(0.05)
        return i


@pytest.mark.parametrize('number', KINDS)
def test_workers_end_without_a_word(run, number):
    def main():
        for k, _ in enumerate(DataLoader(Slow(), num_workers=2)):
            if k == 2:
                os.killpg(0, number)  # as a terminal does

    status, lines = run(main)
    assert status == 128 + number and len(lines) == 1 and lines[0].startswith('interrupted')


def test_a_defect_keeps_its_traceback(run):
    def main():
        raise AttributeError('ours')

    status, lines = run(main)
    assert status == 99 and lines[0].startswith('Traceback') and 'ours' in lines[-1]


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
