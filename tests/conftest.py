import functools
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Tests send Ctrl-C, which a shell makes its background jobs ignore.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if 'PYTEST_XDIST_WORKER' in os.environ:  # several threads per process would compete
    os.environ['OMP_NUM_THREADS'] = '1'

REPO = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(REPO))
sys.path.append(str(REPO / 'tools'))  # last: it has names such as `test` and `train`

import mmengine.config.utils  # noqa: E402
from running import ORIGINALS, as_arguments  # noqa: E402

import res2net_mm  # noqa: E402, F401
from res2net_mm.data import make_shapes  # noqa: E402

# mmengine reads all index files of mmdet for each config that inherits from it: 0.3 s
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """A small synthetic data set: 16 training and 12 validation images."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    make_shapes(root, train=16, val=12)
    return root


@pytest.fixture(scope='session')
def real_data() -> Path:
    """The folder with real data sets; skips the test if there is none."""
    folder = os.environ.get('RES2NET_MM_DATA')
    if not folder:
        pytest.skip('RES2NET_MM_DATA is not set: no real data to test on')
    return Path(folder)


@pytest.fixture(autouse=True)
def nothing_of_slow_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees whole models, which are in cycles: a hundred of them would take 13 GB."""
    yield
    if request.node.get_closest_marker('slow'):
        gc.collect()


@pytest.fixture(scope='module', autouse=True)
def nothing_of_others() -> Iterator[None]:
    """Removes the loggers, visualizers and default scopes of a module before the next one."""
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    kinds = [kind._instance_dict for kind in (MMLogger, DefaultScope, Visualizer)]
    kinds[1].clear()  # collecting modules that read configs sets one
    before = [dict(kind) for kind in kinds]
    yield
    for kind, found in zip(kinds, before, strict=True):
        kind.clear()
        kind.update(found)


@pytest.fixture(scope='session', autouse=True)
def stream_of_absl() -> None:
    """Gives absl, which tensorboard imports, a stream that it does not close at shutdown."""
    with suppress(ImportError):
        from absl import logging

        logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.fixture(params=['default', 'originals'])
def stack(request) -> dict[str, str]:
    """The environment variables of a process on each stack: as installed, and the originals."""
    env = dict(os.environ, OMP_NUM_THREADS='1')
    paths = [str(REPO)]
    if request.param == 'originals':
        if not ORIGINALS.is_dir():
            pytest.skip(f'no original packages in {ORIGINALS}: `make test` installs them')
        paths.insert(0, str(ORIGINALS))
    env['PYTHONPATH'] = os.pathsep.join(paths)
    return env


def run_python(*args: str, env: dict[str, str], **kwargs) -> subprocess.CompletedProcess:
    """Runs Python in the repository and captures its output."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env=env,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )


@pytest.fixture
def python():
    return run_python


@pytest.fixture(scope='session')
def tiny_options(shapes):
    """``--cfg-options`` that shrink the synthetic config and make it read the small data set."""
    size = 'train_dataloader.dataset.pipeline.2.scale'
    options = {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.backbone.base_width': 4,
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        size: (96, 96),
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 3,
        'default_hooks.logger.interval': 2,
        'val_evaluator.ann_file': f'{shapes}/annotations/instances_val.json',
        'test_evaluator.ann_file': f'{shapes}/annotations/instances_val.json',
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{shapes}/'
    return options


@pytest.fixture(scope='session')
def tiny_arguments(tiny_options):
    return as_arguments(tiny_options)
