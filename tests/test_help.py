"""--help is quick, and tools start in every way in which they are called."""

import sys

import pytest
from running import REPO, run

TOOLS = sorted(
    path.stem for path in REPO.glob('tools/*.py') if path.stem not in ('__init__', 'ctrl_c')
)
LATE = {'benchmark'}  # measures; it is not in the wheel


@pytest.mark.parametrize('tool', [tool for tool in TOOLS if tool not in LATE])
def test_help_does_not_load_torch(tool):
    done = run(sys.executable, '-X', 'importtime', f'tools/{tool}.py', '--help')
    assert done.returncode == 0 and done.stdout.startswith(f'usage: {tool}.py'), done.stderr[-1000:]
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {'torch', 'mmengine', 'mmcv', 'mmdet', 'cv2', 'matplotlib'}


@pytest.mark.parametrize(
    'start',
    [
        pytest.param(['-m', 'tools.train'], marks=pytest.mark.slow),
        ['res2net_command.py', 'train'],
        pytest.param(['tools/train.py'], marks=pytest.mark.slow),
    ],
)
def test_ways_to_start_a_tool(start, tmp_path):
    done = run(sys.executable, *start, 'no_such_config_r2n50')
    assert done.returncode == 1
    assert done.stderr.startswith('error: config no_such_config_r2n50 does not exist')
    assert len(done.stderr.splitlines()) == 1


def test_the_command_lists_the_tools():
    done = run(sys.executable, 'res2net_command.py')
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith('  ')}
    assert listed == {*TOOLS, 'check', 'convert'} and done.returncode == 0
    done = run(sys.executable, 'res2net_command.py', 'trian')
    assert (done.returncode, done.stderr) == (
        1, "error: there is no tool 'trian'; did you mean train?\n"
    )  # fmt: skip
