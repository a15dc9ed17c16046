"""A wheel brings configs, tools and the model index, and works away from the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """What a wheel of the repository unpacks to."""
    root = tmp_path_factory.mktemp('wheel')
    source = root / 'source'
    ignored = shutil.ignore_patterns('.venv', '.git', 'work_dirs', 'data', '__pycache__')
    source.mkdir()
    for name in ('configs', 'tools'):
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    shutil.copytree(
        REPO / 'res2net_mm',
        source / 'res2net_mm',
        ignore=shutil.ignore_patterns('__pycache__', '.mim'),
    )
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(REPO / name, source)
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*build, '-w', str(root), str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(root.glob('*.whl'))) as wheel:
        wheel.extractall(root / 'installed')
    return root / 'installed'


def test_model_index(installed):
    mim = installed / 'res2net_mm/.mim'
    index = yaml.safe_load((mim / 'model-index.yml').read_text())
    models = [
        model
        for file in index['Import']
        for model in yaml.safe_load((mim / file).read_text())['Models']
    ]
    assert [m['Config'] for m in models] == [f'configs/{m["Name"]}.py' for m in models]
    listed = {mim / model['Config'] for model in models}
    assert listed == set((mim / 'configs').glob('*.py')) and len(listed) == len(models)
    tools = {f.name for f in REPO.glob('tools/*.py')} - {'benchmark.py'}  # its peers need timm
    assert {f.name for f in (mim / 'tools').iterdir()} == tools


@pytest.mark.parametrize('stack', ['default'], indirect=True)
def test_config_runs_from_a_wheel(installed, shapes, tiny_arguments, stack, tmp_path):
    env = dict(stack, PYTHONPATH=f'{installed}')
    train = installed / 'res2net_mm/.mim/tools/train.py'
    run = subprocess.run(
        [
            sys.executable,
            str(train),
            'faster_rcnn_r2n14_shapes.py',
            *tiny_arguments,
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=1',
        ],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / 'work_dirs/faster_rcnn_r2n14_shapes/epoch_1.pth').exists()
    where = 'import res2net_mm; print(res2net_mm.__file__)'
    told = subprocess.run(
        [sys.executable, '-c', where], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert told.stdout.startswith(str(installed))
