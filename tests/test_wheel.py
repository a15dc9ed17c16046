"""A wheel holds configs, tools and the model index, and works without the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """The folder that a wheel of this repository unpacks to."""
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
    for name in (
        'setup.py',
        'res2net_command.py',
        'pyproject.toml',
        'README.md',
        'LICENSE',
        'model-index.yml',
    ):
        shutil.copy(REPO / name, source)
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*build, '-w', str(root), str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(root.glob('*.whl'))) as wheel:
        wheel.extractall(root / 'installed')
    return root / 'installed'


@pytest.mark.slow
def test_python_starts_with_the_finder(installed, tmp_path):
    """With the wheel installed, mmdet imports first; uninstalling it leaves nothing behind."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env'], check=True)
    python = tmp_path / 'env/bin/python'
    site = next((tmp_path / 'env/lib').glob('*/site-packages'))
    (site / 'base.pth').write_text(sysconfig.get_path('purelib') + '\n')
    before = set(site.rglob('*'))

    def pip(*args):
        command = [sys.executable, '-m', 'pip', '--python', str(python), *args]
        subprocess.run(command, check=True, capture_output=True)

    pip('install', '--no-deps', '--no-index', str(next(installed.parent.glob('*.whl'))))
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    code = "import mmdet.apis, sys; print('mmcv._ext' in sys.modules, 'res2net_mm' in sys.modules)"
    done = subprocess.run([python, '-c', code], env=env, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ['True', 'False'], done.stderr[-2000:]
    pip('uninstall', '-y', 'res2net_mm')
    left = {path for path in set(site.rglob('*')) - before if path.name != '__pycache__'}
    assert not left


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
    tools = {f.name for f in REPO.glob('tools/*.py')} - {'benchmark.py'}  # it needs timm
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
    imported = subprocess.run(
        [sys.executable, '-c', where], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert imported.stdout.startswith(str(installed))
