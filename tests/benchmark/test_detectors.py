"""Test loops and training steps of detectors: the same results, and what is refused."""

import argparse
import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from benchmark import detectors
from benchmark.detectors import LOOPS, MMDET, OURS, STEPS
from mmdet.models.backbones import Res2Net as BuiltIn

import res2net_mm
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops.memory import can_keep_memory

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CONFIG = f"""
_base_ = '{CONFIGS}/faster_rcnn_r2n50.py'
model = dict(
    backbone=dict(base_channels=16, stem_channels=16, base_width=6),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32)),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=200)))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
test_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline))
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(90, 120), (120, 90), (64, 128), (100, 100)]):
        blobs = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), cv2.resize(blobs, (width, height)))
    return folder


@pytest.fixture(scope='module')
def runners(config, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runners')
    images = sorted(photos.iterdir())
    return {n: detectors.build(n, str(config), images, folder, 'cpu') for n in LOOPS}


def test_contenders(runners):
    backbones = {name: runner.model.backbone for name, runner in runners.items()}
    assert type(backbones['mmdet']) is BuiltIn
    assert isinstance(backbones['ours'], res2net_mm.Res2Net)
    norms = {
        name: any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
        for name, backbone in backbones.items()
    }
    assert norms == {'mmdet': True, 'mmdet kept memory': True, 'ours': True, 'ours fast': False}
    for runner in runners.values():
        assert len(runner.test_dataloader.dataset) == 4
    states = [runners[name].model.state_dict() for name in (MMDET, OURS)]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())


def test_detectors_are_as_sure_as_trained_ones(runners):
    """On the first image the pairs that were aimed at pass, and NMS leaves some of them."""
    runner = runners['mmdet']
    logits = []
    hook = runner.model.roi_head.bbox_head.fc_cls.register_forward_hook(
        lambda module, inputs, output: logits.append(output)
    )
    with torch.no_grad():
        found = runner.model.test_step(next(detectors.first_batches(runner)))[0].pred_instances
    hook.remove()
    passing = (logits[0].softmax(1)[:, :-1] > runner.model.test_cfg.rcnn.score_thr).sum().item()
    assert passing == pytest.approx(detectors.CANDIDATES, rel=0.02)
    assert 20 <= len(found) <= 100 and len(found.labels.unique()) > 5


@pytest.mark.slow
def test_record_of_detectors(config, photos):
    args = argparse.Namespace(
        config=str(config), images=photos, limit=3, rounds=2, device='cpu', task='detector'
    )
    record = detectors.run(args)
    assert [row['name'] for row in record['rows']] == [
        'mmdet',
        'mmdet kept memory',
        'ours',
        'ours fast',
    ]
    for row in record['rows']:
        assert len(row['times']) == 2 and min(row['times']) > 0
    mmdet, kept, ours, fast = (row['difference'] for row in record['rows'])
    assert mmdet == kept == 0 < ours < 1e-3 and 0 < fast < 1e-3
    notes = ['', *['keeps freed memory' * can_keep_memory()] * 3]
    assert [row['note'] for row in record['rows']] == notes
    assert set(record['profile']) == {'mmdet', 'ours fast'}
    assert all(sum(taken.values()) > 0 for taken in record['profile'].values())
    assert 'over 3 images' in record['title'] and 'images a second: mmdet ' in record['notes'][0]


@pytest.mark.parametrize(
    'name',
    [
        'backbone.layer3.0.convs.1.weight',
        'rpn_head.rpn_cls.weight',
        'roi_head.bbox_head.fc_cls.weight',
        'roi_head.bbox_head.fc_reg.weight',
    ],
)
def test_weights_that_differ_stop_it(runners, name):
    model = runners['ours'].model
    assert detectors.compare('ours', runners['mmdet'], runners['ours']) < 1e-3
    before = copy.deepcopy(model.state_dict())
    model.state_dict()[name].mul_(1.1)
    try:
        with pytest.raises(ToolError, match='ours and mmdet do not'):
            detectors.compare('ours', runners['mmdet'], runners['ours'])
    finally:
        model.load_state_dict(before)


def test_what_is_refused(config, photos, monkeypatch, tmp_path):
    images = sorted(photos.iterdir())[:1]
    for name, message in (
        ('faster_rcnn_r50.py', 'Res2Net of this package'),
        ('faster_rcnn_r2n50_dcn.py', 'Res2Net of this package'),
        ('retinanet_r2n50.py', 'Faster or Mask R-CNN'),
    ):
        with pytest.raises(ToolError, match=message):
            detectors.build(MMDET, name, images, tmp_path, 'cpu')
    monkeypatch.delenv('RES2NET_MM_DATA', raising=False)
    for given, message in (
        (dict(images=None, limit=None), '--images is needed'),
        (dict(images=photos, limit=0), '--limit must be at least 1, but is 0'),
    ):
        with pytest.raises(ToolError, match=message):
            detectors.run(argparse.Namespace(config='', task='detector', **given))


def prepared_step(name, config):
    return detectors.prepare_step(name, str(config), (96, 128), 2, 'cpu')


def test_steps_are_the_same(config):
    gradients = {}
    kinds = {MMDET: BuiltIn, OURS: res2net_mm.Res2Net}
    for name in STEPS:
        step = prepared_step(name, config)
        assert type(step.net.backbone) is kinds[name.split()[0]]
        losses = step.losses()
        assert losses['loss_cls'] > 0 and losses['loss_rpn_bbox'] > 0
        weight = step.net.backbone.layer2[0].conv1.weight
        before = weight.detach().clone()
        step()
        assert not weight.equal(before)
        gradients[name] = weight.grad.clone()  # what moves the weight is near to its rounding
    for gradient in gradients.values():
        assert (gradient - gradients[OURS]).norm() < 1e-3 * gradient.norm() != 0


def training(config, **changes):
    given = dict(config=str(config), size=['96x128'], batch=2, device='cpu', rounds=1)
    return argparse.Namespace(task='train_detector', **given | changes)


@pytest.mark.slow
def test_record_of_steps(config):
    record = detectors.run(training(config))
    assert [row['name'] for row in record['rows']] == detectors.without_kept(STEPS, 'cpu')
    assert record['yardstick'] == MMDET and record['title'].endswith('tiny.py, 2x3x96x128')
    assert all(len(row['times']) == 1 and row['times'][0] > 0 for row in record['rows'])
    for parts in record['profile'].values():
        assert any('convolution_backward' in name for name in parts)


def test_steps_that_are_refused(config, monkeypatch):
    with pytest.raises(ToolError, match='of boxes'):
        detectors.run(training('mask_rcnn_r2n50.py'))
    monkeypatch.setattr(detectors, 'BOUND_OF_LOSSES', 1e-9)
    with pytest.raises(ToolError, match='mmdet.* and ours do not compute the same'):
        detectors.run(training(config))
