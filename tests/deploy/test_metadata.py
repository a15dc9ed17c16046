"""What exported files say about themselves."""

import numpy as np
import pytest
import torch
from exported import SMALL, build, detector, metadata

import res2net_mm
from res2net_mm.data.transforms import harden_pipeline
from res2net_mm.deploy import export
from res2net_mm.deploy.metadata import resize_rule, test_size, variant_of, weights_hash
from res2net_mm.registry import MODELS

size_of = test_size
del test_size  # pytest would collect it


def test_metadata_of_a_variant(tmp_path):
    net = res2net_mm.create_backbone('res2net14_v1b_26w_4s', out_indices=(0, 3))
    for suffix in ('.onnx', '.xml'):
        report = export(net, tmp_path / f'net{suffix}', (64, 64))
        found = metadata(report.path)
        assert found == report.metadata
        assert found['variant'] == 'res2net14_v1b_26w_4s' and found['task'] == 'backbone'
        assert found['version'] == res2net_mm.__version__ and found['format'] == 1
        assert (found['first_block'], found['style']) == ('official', 'pytorch')
        assert found['input']['mean'] == [123.675, 116.28, 103.53]
        assert found['input']['std'] == [58.395, 57.12, 57.375]
        assert (found['input']['kind'], found['input']['channels']) == ('image', 'RGB')
        assert found['outputs'] == ['c2', 'c5'] and found['classes'] == []
        assert found['opset'] == (17 if suffix == '.onnx' else None)
        assert str(report.path) in str(report)


def test_metadata_that_the_caller_gives(tmp_path):
    about = dict(mean=(1, 2, 3), std=(4, 5, 6), channels='BGR', classes=('a', 'ä'), config='x')
    found = export(build(SMALL), tmp_path / 'net.onnx', (64, 64), about=about).metadata
    assert [found['input'][k] for k in ('mean', 'std', 'channels')] == [[1, 2, 3], [4, 5, 6], 'BGR']
    assert found['classes'] == ['a', 'ä'] and found['config'] == 'x'
    net = build(dict(SMALL, in_channels=4))
    found = export(net, tmp_path / 'net.onnx', (64, 64), raw=True).metadata
    assert found['input']['kind'] == 'raw' and len(found['input']['mean']) == 4


def test_weights_tell_models_apart():
    one, two = build(SMALL), build(SMALL)
    assert weights_hash(one) == weights_hash(two) and len(weights_hash(one)) == 16
    two.layer4[0].conv3.weight.data[0, 0, 0, 0] += 1e-3
    assert weights_hash(one) != weights_hash(two)
    assert weights_hash(detector()) == weights_hash(detector().float())


def test_variants_are_told_from_networks_that_are_none():
    """By every layer: weights do not show strides and dilations."""
    for name in ('res2net50_26w_4s', 'res2next_dla60', 'res2net50_vd_26w_4s'):
        args = dict(res2net_mm.backbones.VARIANTS[name])
        kind = MODELS.get(args.pop('type', 'Res2Net'))
        with torch.device('meta'):
            assert variant_of(kind(**args, out_indices=(1,))) == name
    with torch.device('meta'):
        dilated = res2net_mm.Res2Net(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
        mmdet = res2net_mm.Res2Net(first_block='mmdet', norm_cfg=dict(type='SyncBN'))
    assert variant_of(dilated) is variant_of(mmdet) is None


@pytest.mark.parametrize(
    'step, size',
    [
        (dict(type='Resize', scale=(1333, 800), keep_ratio=True), (800, 1333)),
        (dict(type='mmdet.Resize', scale=(800, 1333), keep_ratio=True), (800, 1333)),
        (dict(type='Resize', scale=(512, 1024), keep_ratio=False), (1024, 512)),
        (dict(type='Resize', scale=512, keep_ratio=True), (512, 512)),
        (dict(type='LoadAnnotations'), None),
    ],
)
def test_size_of_a_pipeline(step, size):
    rule = resize_rule([dict(type='LoadImageFromFile'), step])
    assert size_of(rule) == size
    images = [np.zeros((30, 40, 3)), np.zeros((30, 40, 3))]
    assert size_of(rule, images) == (30, 40)  # padding to more would change scores
    assert size_of(rule, [*images, np.zeros((40, 30, 3))]) == size


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomFlip'),
        dict(type='ResizeShortestEdge', scale=(512, 2048), max_size=2048),
        dict(type='Resize', scale=(64, 64), interpolation='nearest'),
        dict(type='Resize', scale_factor=0.5),
        dict(type='Pad', size=(64, 64)),
        dict(type='CLAHE'),
        dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    ],
)
def test_what_no_rule_describes_is_refused(step):
    rest = dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')
    with pytest.raises(ValueError, match=f'prepares images by .*{step["type"]}'):
        resize_rule([dict(type='LoadImageFromFile'), step, *rest])


def test_what_our_runs_add_to_a_pipeline_changes_no_rule():
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 48), keep_ratio=True)]
    steps += [dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    assert resize_rule(harden_pipeline(steps)) == resize_rule(steps)
    assert len(harden_pipeline(steps)) > len(steps)


def test_pillow_is_kept_in_the_rule():
    step = dict(type='Resize', scale=(64, 64), keep_ratio=True, backend='pillow')
    assert resize_rule([step])['backend'] == 'pillow'
