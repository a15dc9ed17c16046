"""mmdet's methods over the stand-in: docs/operators.md shows what really happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from method_trial import CHOSEN, PAGE, SKIPPED, folders, rows, smallest

TABLE = rows(PAGE.read_text())


def test_the_page_has_every_folder():
    tried = {folder: CHOSEN.get(folder) or [smallest(folder).stem] for folder in folders()}
    expected = [(folder, config) for folder, names in tried.items() for config in names]
    cells = [tuple(cell.strip(' `') for cell in row.split('|')[1:4]) for row in TABLE]
    assert [cell[:2] for cell in cells] == expected
    for folder, _, outcome in cells:
        assert outcome.startswith(('passed', 'refused: ', 'failed: ', 'skipped: '))
        assert outcome.startswith('skipped: ') == (folder in SKIPPED), folder


@pytest.mark.slow
def test_the_page_has_the_results():
    env = dict(os.environ, RES2NET_MM_OPS='torchvision', OMP_NUM_THREADS='1')
    script = Path(__file__).with_name('method_trial.py')
    done = subprocess.run(
        [sys.executable, script], env=env, cwd=PAGE.parents[1], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    assert rows(done.stdout) == TABLE
