"""Programs of mmdet, mmseg and SAHI, which import their own packages before a config names ours.

They need the finder for mmcv's operators at Python's startup; ``make env`` installs it beside the
editable package. Without it they end with ``No module named 'mmcv._ext'``.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ORIGINALS
from test_segmentation_tools import CONFIG as SEGMENTOR

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / 'configs/faster_rcnn_r2n14_shapes.py'

DETECT = """
from mmdet.apis import DetInferencer, inference_detector, init_detector
import sys
config, weights, image = sys.argv[1:]
model = init_detector(config, weights, palette='random', device='cpu')
print('boxes', tuple(inference_detector(model, image).pred_instances.bboxes.shape)[1])
found = DetInferencer(model=config, weights=weights, device='cpu', palette='random')(image)
print('images', len(found['predictions']))
"""
SEGMENT = """
from mmseg.apis import MMSegInferencer
import sys
config, weights, image = sys.argv[1:]
model = MMSegInferencer(model=config, weights=weights, device='cpu')
print('labels', model(image)['predictions'].shape)
"""
SLICED = """
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction
import sys
config, weights, image = sys.argv[1:]
model = AutoDetectionModel.from_pretrained(
    'mmdet', model_path=weights, config_path=config, confidence_threshold=0.0, device='cpu')
found = get_sliced_prediction(image, model, slice_height=128, slice_width=128, verbose=0)
print('objects', len(found.object_prediction_list) > 0)
"""


def program(package: str, name: str, stack: dict) -> Path:
    """The path of a tool that an installed package carries for mim."""
    root = ORIGINALS if str(ORIGINALS) in stack['PYTHONPATH'] else None
    if root is None:
        root = Path(importlib.util.find_spec(package).origin).parents[1]
    return root / package / '.mim' / 'tools' / name


def run(stack, cwd, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=stack,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def detector(tiny_options, tmp_path):
    """A small self-contained config, and weights that every release of mmengine can read."""
    from res2net_mm.engine.config import load_config

    options = {
        **tiny_options,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'model.test_cfg.rcnn.score_thr': 0.0,
    }
    for split in ('train', 'val', 'test'):
        options |= {f'{split}_dataloader.num_workers': 0}
        options |= {f'{split}_dataloader.persistent_workers': False}
    cfg = load_config(CONFIG, options)
    config = tmp_path / 'tiny.py'
    cfg.dump(config)
    return config, weights(cfg.model, ('disc', 'square', 'triangle', 'star'), tmp_path)


@pytest.fixture
def segmentor(shapes, tmp_path):
    from mmengine.config import Config

    config = tmp_path / 'fcn.py'
    config.write_text(SEGMENTOR.replace('DATA', str(shapes)))
    cfg = Config.fromfile(config)
    return config, weights(cfg.model, cfg.classes, tmp_path, palette=cfg.palette)


def weights(model, classes, folder, **meta):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmseg' if meta else 'mmdet')
    state = revert_sync_batchnorm(MODELS.build(model)).state_dict()
    file = folder / 'weights.pth'
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes, **meta))), file)
    return file


def test_mmdets_tools(stack, detector, tmp_path):
    config, checkpoint = detector
    said = run(stack, tmp_path, program('mmdet', 'test.py', stack), config, checkpoint)
    assert 'coco/bbox_mAP' in said


@pytest.mark.slow
def test_mmdets_other_tools(stack, detector, tmp_path):
    config, _ = detector
    run(stack, tmp_path, program('mmdet', 'train.py', stack), config, '--work-dir', tmp_path / 'w')
    assert (tmp_path / 'w' / 'epoch_1.pth').exists()
    tool = program('mmdet', 'analysis_tools/browse_dataset.py', stack)
    run(stack, tmp_path, tool, config, '--output-dir', tmp_path / 'b', '--not-show')
    assert len(list((tmp_path / 'b').iterdir())) == 16
    said = run(stack, tmp_path, program('mmdet', 'analysis_tools/get_flops.py', stack), config)
    assert 'Flops: ' in said


@pytest.mark.slow
def test_mmdets_inferencer(stack, detector, shapes, tmp_path):
    image = sorted((shapes / 'val').glob('*.jpg'))[0]
    said = run(stack, tmp_path, '-c', DETECT, *detector, image)
    assert 'boxes 4' in said and 'images 1' in said


@pytest.mark.slow
def test_mmsegs_tools(stack, segmentor, shapes, tmp_path):
    config, checkpoint = segmentor
    image = sorted((shapes / 'val').glob('*.jpg'))[0]
    assert 'labels (256, 256)' in run(stack, tmp_path, '-c', SEGMENT, *segmentor, image)
    said = run(stack, tmp_path, program('mmseg', 'test.py', stack), config, checkpoint)
    assert 'mIoU' in said
    run(stack, tmp_path, program('mmseg', 'train.py', stack), config, '--work-dir', tmp_path / 'w')
    assert (tmp_path / 'w' / 'iter_4.pth').exists()


@pytest.mark.skipif(importlib.util.find_spec('sahi') is None, reason='SAHI is not installed')
def test_sliced_prediction(stack, detector, shapes, tmp_path):
    image = sorted((shapes / 'val').glob('*.jpg'))[0]
    assert 'objects True' in run(stack, tmp_path, '-c', SLICED, *detector, image)
