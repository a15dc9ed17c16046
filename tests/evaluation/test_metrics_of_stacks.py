"""Where the tools put our metrics, and the tests of each on the original packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from metric_samples import ROOM
from mmengine.config import Config
from mmengine.registry import METRICS
from running import ORIGINALS

import res2net_mm  # noqa: F401  (before mmdet)
from res2net_mm.engine.runner import prepare_config

REPO = Path(__file__).resolve().parents[2]


def test_configs_get_our_metrics():
    cfg = prepare_config(Config.fromfile(REPO / 'configs' / 'faster_rcnn_r2n14_voc.py'))
    for key in ('val_evaluator', 'test_evaluator'):
        assert cfg[key].type == f'{ROOM}.coco_metric.CocoMetric'
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=[dict(type='A'), dict(type='B', ignore_index=11)]),
            val_evaluator=[dict(type='IoUMetric'), dict(type='mmdet.VOCMetric', eval_mode='area')],
            test_evaluator=dict(type='mmseg.IoUMetric', ignore_index=7),
        )
    )
    ready = prepare_config(cfg)
    assert ready.val_evaluator[0] == dict(type=f'{ROOM}.iou_metric.IoUMetric', ignore_index=11)
    assert ready.val_evaluator[1].type == f'{ROOM}.voc_metric.VOCMetric'
    assert ready.test_evaluator.ignore_index == 7
    assert cfg.val_evaluator[0] == dict(type='IoUMetric'), 'the config is not touched'
    METRICS.build(ready.test_evaluator)


def test_metrics_on_the_originals():
    """The tests of each metric with the original mmdet and mmseg."""
    if not ORIGINALS.is_dir():
        pytest.skip(f'the original packages are not in {ORIGINALS}: make test lays them there')
    here = Path(__file__).parent
    files = [str(here / f'test_{name}_metric.py') for name in ('coco', 'voc', 'iou')]
    files.append(str(here / 'test_mmdet_metrics.py'))
    code = (
        'import sys, res2net_mm, mmdet, mmseg, pytest\n'
        f'assert mmdet.__file__.startswith({str(ORIGINALS)!r})\n'
        f'assert mmseg.__file__.startswith({str(ORIGINALS)!r})\n'
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files!r}]))"
    )
    path = os.pathsep.join([str(ORIGINALS), str(REPO), str(REPO / 'tests' / 'evaluation')])
    run = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout and 'failed' not in run.stdout
