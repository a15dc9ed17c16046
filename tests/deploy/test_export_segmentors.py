"""Segmentation models of both stacks: exported logits are those that mmseg predicts from."""

import json

import onnx
import pytest

CODE = """
import sys, warnings
import torch, onnx, onnxruntime
sys.path.insert(0, 'tests')
import res2net_mm
import mmseg.models
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from references import randomise
from res2net_mm.deploy import ExportError, export_onnx

init_default_scope('mmseg')
folder = sys.argv[1]
HEADS = dict(
    fcn=dict(
        type='FCNHead', in_channels=256, in_index=3, channels=8, num_convs=1, num_classes=5),
    fcn_corners=dict(
        type='FCNHead', in_channels=256, in_index=3, channels=8, num_classes=5,
        align_corners=True),
    binary=dict(
        type='FCNHead', in_channels=256, in_index=3, channels=8, num_classes=2, out_channels=1,
        threshold=0.4),
    psp=dict(
        type='PSPHead', in_channels=256, in_index=3, channels=8, num_classes=5,
        pool_scales=(1, 2, 3, 6)),
    upernet=dict(
        type='UPerHead', in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], channels=8,
        pool_scales=(1, 2, 3, 6), num_classes=5, align_corners=True),
    deeplab=dict(
        type='DepthwiseSeparableASPPHead', in_channels=256, in_index=3, channels=8,
        dilations=(1, 2, 4), c1_in_channels=32, c1_channels=4, num_classes=5),
    fpn=dict(
        type='FPNHead', in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], channels=8,
        feature_strides=[4, 8, 16, 32], num_classes=5))
# batch norm of several processes, as configs of mmseg have it
norm = dict(type='SyncBN', requires_grad=True)
for name, head in HEADS.items():
    model = MODELS.build(dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[1.0, 2.0, 3.0], std=[4.0, 5.5, 6.0],
            bgr_to_rgb=name == 'fcn', size=(64, 64)),
        backbone=dict(
            type='res2net_mm.Res2Net', depth=14, base_channels=8, stem_channels=8, base_width=4,
            norm_cfg=norm, strides=(1, 2, 2, 2) if name == 'fpn' else (1, 2, 1, 1),
            dilations=(1, 1, 2, 4)),
        decode_head=dict(head, norm_cfg=norm),
        auxiliary_head=dict(
            type='FCNHead', in_channels=128, in_index=2, channels=8, num_convs=1, num_classes=5),
        test_cfg=dict(mode='whole')))
    randomise(model)
    model.dataset_meta = dict(classes=tuple('abcde'))
    if name == 'psp':
        model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 48), stride=(32, 24))
    model.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        report = export_onnx(model, f'{folder}/{name}.onnx', (1, 3, 64, 96))
    assert not caught, [str(w.message) for w in caught]
    assert model.training and model.decode_head.training
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    planes = 1 if name == 'binary' else 5
    assert report.outputs == {'logits': ('batch', planes, 'height', 'width')}, report.outputs
    print(name, report.error)

    model.eval()
    model.test_cfg = ConfigDict(mode='whole')
    session = onnxruntime.InferenceSession(
        f'{folder}/{name}.onnx', providers=['CPUExecutionProvider'])
    for shape in ((1, 3, 64, 96), (3, 3, 65, 97), (2, 3, 50, 131), (1, 3, 160, 224)):
        image = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            samples = model.predict(image)
        expected = torch.stack([sample.seg_logits.data for sample in samples])
        ours, = session.run(None, dict(image=image.numpy()))
        ours = torch.from_numpy(ours)
        if name == 'binary':  # where mmseg keeps what it compares with the threshold
            ours = ours.sigmoid()
        assert ours.shape == expected.shape == (shape[0], planes, *shape[2:])
        spread = (expected.amax((0, 2, 3)) - expected.amin((0, 2, 3))).min()
        assert spread > 0.05 * expected.abs().max(), 'logits that say something'
        error = ((ours - expected).abs().max() / expected.abs().max()).item()
        assert error < 1e-5, (name, shape, error)

# pools a function, not a module: to be exported for one size only
head = dict(type='APCHead', in_channels=256, in_index=3, channels=8, num_classes=5)
model.decode_head = MODELS.build(dict(head, pool_scales=(2,), fusion=True))
randomise(model)
path = f'{folder}/apc.onnx'
try:
    export_onnx(model, path, (1, 3, 128, 192))
except ExportError as error:
    assert '--static' in str(error), error
    assert export_onnx(model, path, (1, 3, 128, 192), dynamic=False).error < 1e-5
    print('segmentors: ok')
"""


@pytest.fixture
def exported(stack, python, tmp_path):
    run = python('-c', CODE, tmp_path, env=stack)
    assert run.returncode == 0 and 'segmentors: ok' in run.stdout, run.stderr[-3000:]
    return tmp_path


def test_logits_are_what_mmseg_predicts_from(exported):
    found = {
        path.stem: {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        for path in exported.glob('*.onnx')
    }
    del found['apc']
    assert len(found) == 7
    for name, props in found.items():
        assert json.loads(props['classes']) == list('abcde')
        assert json.loads(props['mean']) == [1, 2, 3] and json.loads(props['std']) == [4, 5.5, 6]
        assert props['channel_order'] == ('RGB' if name == 'fcn' else 'BGR')
        assert 'dilations=(1, 1, 2, 4)' in props['variant'] and 'depth=14' in props['variant']
        assert ('note' in props) == (name == 'psp')
    assert 'windows of (64, 48) at steps of (32, 24)' in found['psp']['note']
    assert 'sigmoid is above 0.4' in found['binary']['output logits']
    assert 'plane of the largest' in found['fcn']['output logits']
