"""The three tools with an mmseg config, on both stacks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from running import REPO, call

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.infer import predict_images

CONFIG = """
custom_imports = dict(imports=['res2net_mm'], allow_failed_imports=False)
default_scope = 'mmseg'
classes = ('background', 'disc', 'square', 'triangle', 'star')
palette = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(64, 64)),
    backbone=dict(
        type='res2net_mm.Res2Net', depth=14, base_channels=8, stem_channels=8, base_width=4,
        norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False,
        strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    decode_head=dict(
        type='FCNHead', in_channels=256, in_index=3, channels=8, num_convs=1, num_classes=5,
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(96, 96), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64)), dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
def_ = dict(
    type='BaseSegDataset', data_root='DATA', metainfo=dict(classes=classes, palette=palette),
    img_suffix='.jpg', seg_map_suffix='.png')
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(def_, data_prefix=dict(img_path='train', seg_map_path='semseg/train'),
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(def_, data_prefix=dict(img_path='val', seg_map_path='semseg/val'),
                 pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
default_hooks = dict(
    timer=dict(type='IterTimerHook'), logger=dict(type='LoggerHook', interval=2),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
"""


@pytest.fixture
def config(shapes, tmp_path) -> Path:
    path = tmp_path / 'fcn.py'
    path.write_text(CONFIG.replace('DATA', str(shapes)))
    return path


@pytest.mark.parametrize(
    'stack', ['default', pytest.param('originals', marks=pytest.mark.slow)], indirect=True
)
def test_train_test_infer(stack, config, python, shapes, tmp_path):
    def tool(name, *arguments):
        if stack['PYTHONPATH'] == str(REPO):  # in a fork, which has imported much already
            return call(name, *arguments)
        return python(f'tools/{name}.py', *arguments, env=stack)

    run = tool('train', config, '--work-dir', tmp_path / 'w')
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'train: 16 images' in run.stdout and 'learning rate 0.01' in run.stdout
    checkpoint = tmp_path / 'w' / 'iter_4.pth'

    shown = tmp_path / 'shown'
    where = ['--work-dir', tmp_path / 't', '--show-dir', shown]
    run = tool('test', config, checkpoint, *where)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'mIoU: ' in run.stdout[-200:]
    assert len([f for f in shown.rglob('*.*') if f.suffix in ('.png', '.jpg')]) == 12

    out = tmp_path / 'out'
    run = tool('infer', config, checkpoint, shapes / 'val', '--out', out)
    assert run.returncode == 0, run.stderr[-3000:]
    predicted = json.loads((out / 'predictions.json').read_text())
    assert predicted['classes'] == ['background', 'disc', 'square', 'triangle', 'star']
    record = predicted['images'][0]
    labels = cv2.imread(str(out / Path(record['file']).stem) + '.labels.png', cv2.IMREAD_UNCHANGED)
    assert labels.shape == (record['height'], record['width']) == (256, 256)
    counts = np.bincount(labels.ravel(), minlength=5) / labels.size
    for name, share in record['shares'].items():
        assert counts[predicted['classes'].index(name)] == pytest.approx(share, abs=1e-6)
    assert len(list(out.glob('*.jpg'))) == 12


def test_pictures_never_replace_images(shapes, tmp_path):
    photos = tmp_path / 'photos'
    photos.mkdir()
    image = sorted((shapes / 'val').glob('*.jpg'))[0].read_bytes()
    (photos / 'a.jpg').write_bytes(image)
    with pytest.raises(ToolError, match='would replace the image'):
        predict_images(None, [photos / 'a.jpg'], photos, 0.3)
    assert (photos / 'a.jpg').read_bytes() == image
