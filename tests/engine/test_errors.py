import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader

from res2net_mm.backbones import Res2Net
from res2net_mm.data.errors import DataError
from res2net_mm.data.naming import name_failures
from res2net_mm.engine.errors import (
    ToolError,
    building_config,
    is_mistake,
    one_line,
    run_tool,
)

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
        if name not in ('__init__', 'ctrl_c')
    ],
)
def test_an_interruption_of_the_imports_leaves_no_traceback(tool):
    command = [sys.executable, '-X', 'importtime', f'tools/{tool}.py']
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
    assert status == 1 and lines[0].startswith('Traceback')
    assert lines[-1] == 'error: AttributeError: ours'


def test_a_defect_in_a_run_leaves_its_traceback_in_the_log_file(run, tmp_path, monkeypatch):
    log = tmp_path / 'a.log'

    def main():
        MMLogger.get_instance('of a run', log_file=str(log))
        raise KeyError('ours\x1b[2J')

    status, lines = run(main)
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith('error: KeyError: ') and str(log) in lines[0]
    assert 'Traceback' in log.read_text() and 'test_errors.py' in log.read_text()
    monkeypatch.setenv('RES2NET_MM_DEBUG', '1')
    assert run(main)[1][0].startswith('Traceback')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_transform_that_fails_leaves_its_traceback_in_the_log_file(run, tmp_path, workers):
    log = tmp_path / 'a.log'

    def broken(data):
        raise ValueError('ours')

    def main():
        MMLogger.get_instance('of a run', log_file=str(log))
        files = [dict(img_path='a.jpg')]
        data = BaseDataset(metainfo={}, pipeline=[broken], lazy_init=True)
        data.load_data_list = lambda: files
        data.full_init()
        name_failures(data)
        list(DataLoader(data, num_workers=workers))

    status, lines = run(main)
    assert status == 1 and len(lines) == 1
    assert lines[0].startswith('error: image a.jpg: ') and str(log) in lines[0]
    assert "raise ValueError('ours')" in log.read_text()


def raised_by(function):
    try:
        function()
    except Exception as error:
        return error


def test_mistakes_of_a_user_and_defects():
    for kind in (ToolError, DataError, FileNotFoundError, NotImplementedError, ImportError):
        assert is_mistake(kind('x'))
    assert is_mistake(raised_by(lambda: Res2Net(depth=51))), 'a check of ours'
    assert not is_mistake(raised_by(lambda: int('x')))
    assert not is_mistake(KeyError('x')) and not is_mistake(TypeError('x'))
    assert is_mistake(raised_by(lambda: Res2Net(depht=50))), 'the call of a tool'
    assert is_mistake(RuntimeError('CUDA out of memory')) and not is_mistake(RuntimeError('x'))


def test_errors_from_building_a_config():
    @building_config()
    def build(error):
        raise error

    for error in (KeyError('Foo is not in the registry'), TypeError('x'), AssertionError('x')):
        with pytest.raises(ToolError, match='config cannot be built: (Foo|x)'):
            build(error)
    with pytest.raises(DataError):
        build(DataError('x'))
    with pytest.raises(RuntimeError):
        build(RuntimeError('x'))


def test_message_of_a_worker_is_its_last_line():
    text = (
        'Caught DataError in DataLoader worker process 1.\nOriginal Traceback (most recent call '
        'last):\n  File "x.py", line 1, in f\n    g()\nres2net_mm.data.errors.DataError: '
        'image a.jpg\n is cut short\n'
    )
    assert one_line(ValueError(text)) == 'image a.jpg is cut short'
    assert one_line(KeyError('inputs')) == "key 'inputs' is missing"
    assert one_line(KeyError('X is not in the registry')) == 'X is not in the registry'
    assert one_line(ValueError()) == 'ValueError'
