"""Exported files in onnxruntime and OpenVINO against PyTorch, and what is refused."""

import random
import sys
import warnings
from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from exported import SMALL, build, detector, metadata, moved, picture, run_file, segmentor
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from references import randomise
from torch import nn

import res2net_mm
from res2net_mm.deploy import ExportError, export
from res2net_mm.registry import MODELS

DLA = dict(type='Res2NetDLA', base_channels=16, base_width=8)
NETWORKS = {
    'v1': dict(SMALL, deep_stem=False, avg_down=False),
    'v1b': SMALL,
    'vd': dict(SMALL, first_block='paddle'),
    'mmdet': dict(SMALL, first_block='mmdet', out_indices=(1, 3)),
    'dilated': dict(SMALL, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    'poolnet': dict(
        SMALL, with_stem=True, ceil_mode=True, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)
    ),
    'dla': DLA,
    'dcn': dict(SMALL, type='Res2NetDCN', dcn=dict(type='DCN', deform_groups=2), groups=2),
    'dcnv2': dict(
        SMALL,
        type='Res2NetDCN',
        dcn=dict(type='DCNv2', deform_groups=2, fallback_on_stride=False),
        stage_with_dcn=(True,) * 4,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        groups=2,
    ),
}
CASES = [(name, '.onnx') for name in NETWORKS] + [
    (n, '.xml') for n in ('v1b', 'poolnet', 'dcn', 'dcnv2')
]
FORMATS = pytest.mark.parametrize('suffix', ['.onnx', '.xml'])


def images(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def errors(net, path, image):
    """Relative error of each output."""
    training = net.training
    expected = net.eval()(image)
    net.train(training)
    given = run_file(path, image.numpy())
    stem = ['c1'] * getattr(net, 'with_stem', False)
    assert list(given) == stem + [f'c{i + 2}' for i in net.out_indices]
    pairs = [(torch.from_numpy(o), e) for o, e in zip(given.values(), expected, strict=True)]
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return [((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('name, suffix', CASES)
def test_every_size_of_a_backbone(name, suffix, tmp_path, monkeypatch):
    net = build(NETWORKS[name])
    report = export(net, tmp_path / f'net{suffix}', raw=True)
    assert max(report.errors.values()) < 1e-5 and report.compared == 3
    if suffix == '.onnx':
        file = onnx.load(report.path)
        assert {node.domain for node in file.graph.node} == {''}, 'only standard operators'
        opset = report.metadata['opset']
        assert [(o.domain, o.version) for o in file.opset_import] == [('', opset)]
    limit = 1e-5 if suffix == '.onnx' else 5e-5
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', 'torchvision')  # compiled, by others
    for shape in ((1, 3, 64, 96), (3, 3, 65, 97), (2, 3, 77, 50), (1, 3, 33, 127)):
        assert max(errors(net, report.path, images(*shape))) < limit, shape


@pytest.mark.parametrize('name', ['dcn', 'dcnv2'])
def test_offsets_of_these_tests_leave_the_image(name):
    """Otherwise they would say little: offsets zero are plain convolutions."""
    net = build(NETWORKS[name]).eval()
    seen = []
    for path, module in net.named_modules():
        if path.endswith('.conv_offset'):
            module.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        net(images(1, 3, 65, 97))
    assert len(seen) >= 9
    for out in seen:
        offsets = out[:, : 2 * 2 * 9]  # masks come after
        assert offsets.abs().median() > 1, 'of pixels'
        assert (offsets[..., 0, :].flatten(1) < -3).any(), 'taps of the first row are outside'


@pytest.mark.slow
def test_big_images_with_deformable_convolutions(tmp_path):
    net = moved(randomise(res2net_mm.create_backbone('res2net50_v1b_26w_4s_dcn')))
    report = export(net, tmp_path / 'net.onnx', raw=True)
    assert report.metadata['variant'] == 'res2net50_v1b_26w_4s_dcn'
    for size in ((480, 640), (517, 321)):
        assert max(errors(net, report.path, images(1, 3, *size))) < 1e-5, size


def test_image_input_of_a_backbone(tmp_path):
    net = build(SMALL).eval()
    path = export(net, tmp_path / 'net.onnx', (65, 97)).path
    image = picture(65, 97)
    mean, std = (torch.tensor(v) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    x = ((torch.from_numpy(image) - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = net(x)
    for ours, theirs in zip(run_file(path, image[None]).values(), expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-5 * theirs.abs().max()


def predicted(model, image):
    """What the model's own preparation and prediction give for an RGB image."""
    module = 'mmdet.structures' if model.__module__.startswith('mmdet') else 'mmseg.structures'
    kind = 'DetDataSample' if module.startswith('mmdet') else 'SegDataSample'
    size = image.shape[:2]
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    sample = getattr(import_module(module), kind)(metainfo=meta)
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        return model.test_step(pseudo_collate([dict(inputs=bgr, data_samples=sample)]))[0]


@FORMATS
@pytest.mark.parametrize(
    'mask', [pytest.param(False, marks=pytest.mark.slow), True], ids=['faster', 'mask']
)
def test_detector(mask, suffix, tmp_path):
    model, path = detector(mask), tmp_path / f'detector{suffix}'
    report = export(model, path, (96, 128), images=[picture(96, 100)])
    assert report.compared == 4 and report.stray[0] <= 2 < 100 < report.stray[1]
    assert report.errors['boxes'] < 1e-2 and report.errors['scores'] < 1e-4
    for size in ((96, 128), (96, 128), (60, 90)):
        image = picture(*size, seed=sum(size))
        given = run_file(path, image[None])
        if size == (96, 128):  # smaller ones are padded more than mmdet pads
            found = predicted(model, image).pred_instances
            np.testing.assert_allclose(given['boxes'], found.bboxes, atol=1e-2)
            np.testing.assert_allclose(given['scores'], found.scores, atol=1e-4)
            assert (given['labels'] == found.labels.numpy()).all()
            if mask:
                assert given['masks'].dtype == bool and given['masks'].shape == found.masks.shape
                assert (given['masks'] != found.masks.numpy()).mean() < 1e-4
                assert given['mask_scores'].shape[1:] == (28, 28)
        assert (given['boxes'] >= 0).all() and (given['boxes'] <= [*size[::-1]] * 2).all()
    said = metadata(path)
    assert said == report.metadata
    assert said['task'] == ('instance' if mask else 'detection') and said['format'] == 1
    assert said['input']['height'] == 96 and said['input']['divisor'] == 32
    assert said['score_thr'] == 0.05 and said['outputs'] == list(given)


@FORMATS
def test_open_sizes_of_a_detector(suffix, tmp_path):
    """Every size is padded as mmdet pads it."""
    model, path = detector(), tmp_path / f'detector{suffix}'
    said = export(model, path).metadata['input']
    assert (said['height'], said['width']) == (None, None)
    for size in ((64, 96), (70, 130), (33, 150)):
        image = picture(*size)
        given, found = run_file(path, image[None]), predicted(model, image).pred_instances
        assert len(found.scores) > 20
        np.testing.assert_allclose(given['boxes'], found.bboxes, atol=1e-2)
        np.testing.assert_allclose(given['scores'], found.scores, atol=1e-4)


@FORMATS
def test_open_sizes_of_a_segmentor(suffix, tmp_path):
    model, path = segmentor(), tmp_path / f'segmentor{suffix}'
    report = export(model, path, about=dict(classes=tuple('äbcdefghijk')))
    assert report.metadata['classes'][0] == 'ä' and report.errors == dict(segmentation=0)
    for size in ((64, 96), (65, 131)):
        image = picture(*size)
        (labels,) = run_file(path, image[None]).values()
        expected = predicted(model, image).pred_sem_seg.data[0].numpy()
        assert labels.shape == size and len(np.unique(expected)) > 2
        assert (labels != expected).mean() < 1e-3


def test_segmentor_of_one_plane(tmp_path):
    model = segmentor(num_classes=2, out_channels=1, threshold=0.4)
    path = export(model, tmp_path / 'x.onnx', (64, 96)).path
    image = picture(64, 96)
    labels, probability = run_file(path, image[None]).values()
    sample = predicted(model, image)
    expected = sample.pred_sem_seg.data[0].numpy()
    assert 0.1 < expected.mean() < 0.9 and (labels != expected).mean() < 1e-3
    np.testing.assert_allclose(probability, sample.seg_logits.data[0], atol=1e-4)


def test_windows_need_a_fixed_size(tmp_path):
    model = segmentor(dropout_ratio=0.0)
    model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 48), stride=(32, 24))
    with pytest.raises(ExportError, match='windows.*shape'):
        export(model, tmp_path / 'x.onnx')
    path = export(model, tmp_path / 'x.onnx', (96, 80)).path
    image = picture(96, 80)
    (labels,) = run_file(path, image[None]).values()
    assert (labels != predicted(model, image).pred_sem_seg.data[0].numpy()).mean() < 1e-3


def test_network_and_random_state_are_untouched(tmp_path):
    net = build(dict(NETWORKS['dcnv2'], frozen_stages=1, norm_eval=False)).train().bfloat16()
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    needs = [p.requires_grad for p in net.parameters()]
    assert {True, False} == set(modes) == set(needs)
    export(net, tmp_path / 'net.onnx', (64, 64))
    assert modes == [module.training for module in net.modules()]
    assert needs == [p.requires_grad for p in net.parameters()]
    after = net.state_dict()
    assert all(after[k].equal(v) and after[k].dtype == v.dtype for k, v in before.items())
    assert torch.get_rng_state().equal(states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


def test_no_warning_and_a_line_before_long_steps(tmp_path):
    net, lines = build(NETWORKS['dcn']), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        export(net, tmp_path / 'net.onnx', (64, 64), progress=lines.append)
    assert [str(w.message) for w in caught] == []
    assert len(lines) == 2 and 'tracing' in lines[0] and 'comparing' in lines[1]


class Wrong(res2net_mm.Res2Net):
    """Computes something else in a trace."""

    def forward(self, x):
        factor = 1.001 if torch.jit.is_tracing() else 1
        return tuple(level * factor for level in super().forward(x))


class Baked(res2net_mm.Res2Net):
    """Keeps the width of the example in a trace."""

    def forward(self, x):
        return tuple(level * (int(x.shape[3]) / 64) for level in super().forward(x))


@FORMATS
def test_a_file_that_differs_is_refused(suffix, tmp_path):
    path = tmp_path / f'net{suffix}'
    with pytest.raises(ExportError, match='c2 of made image 1.* differs by 0.001'):
        export(randomise(Wrong(**SMALL)), path, (64, 64))
    assert left(tmp_path) == []
    path.write_bytes(b'an older file')
    with pytest.raises(ExportError, match='c2 of made image 2'):
        export(randomise(Baked(**SMALL)), path)
    assert left(tmp_path) == [path.name] and path.read_bytes() == b'an older file'


def test_boxes_that_differ_are_refused(tmp_path, monkeypatch):
    """The first detection without a counterpart is named."""
    head = type(detector().roi_head.bbox_head)
    forward = head.forward

    def moved_in_a_trace(self, x):
        scores, deltas = forward(self, x)
        return scores, deltas * (1.01 if torch.jit.is_tracing() else 1)

    monkeypatch.setattr(head, 'forward', moved_in_a_trace)
    with pytest.raises(ExportError, match=r'in one of both only.*label \d+, score 0\.\d+, box'):
        export(detector(), tmp_path / 'x.onnx', (96, 128))
    assert left(tmp_path) == []


class Bessel(nn.Module):
    """What ONNX does not have."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_values_that_are_not_finite_and_operators_without_export(tmp_path, capfd):
    net = build(SMALL)
    net.layer2[0].conv1.weight.data[0] = float('nan')
    with pytest.raises(ExportError, match='c3 of made image 1.* nan'):
        export(net, tmp_path / 'net.onnx', (64, 64))
    net = build(SMALL)
    net.layer1[0].relu = Bessel()
    for suffix in ('onnx', 'xml'):
        with pytest.raises(ExportError, match='cannot be exported: .*bessel_j0') as caught:
            export(net, tmp_path / f'net.{suffix}', (64, 64))
        assert '\n' not in str(caught.value) and left(tmp_path) == []
    assert capfd.readouterr().out == ''


def test_disk_that_is_full(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError, match='net.onnx could not be written: No space left'):
        export(build(SMALL), tmp_path / 'net.onnx', (64, 64))
    assert left(tmp_path) == []


@pytest.mark.parametrize('module, suffix', [('onnx', '.onnx'), ('openvino', '.xml')])
def test_missing_extra(module, suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    extra = 'export' if suffix == '.onnx' else 'openvino'
    with pytest.raises(ImportError, match=rf"pip install 'res2net_mm\[{extra}\]'"):
        export(build(SMALL), tmp_path / f'net{suffix}', (64, 64))


@pytest.mark.parametrize(
    'changed, message',
    [
        (dict(shape=(64,)), 'shape must be two positive integers'),
        (dict(shape=(64, 0)), 'shape must be two positive integers'),
        (dict(shape=(64.0, 64)), 'shape must be two positive integers'),
        (dict(shape=(True, 64)), 'shape must be two positive integers'),
        (dict(path='net.pth'), 'path must be a file that ends in .onnx or .xml'),
        (dict(path='none/net.onnx'), 'path must be in a folder that exists'),
        (dict(about=dict(mean=(1, 2))), 'mean must be 3 finite numbers'),
        (dict(about=dict(std=(1, 0, 3))), 'std must be positive'),
        (dict(about=dict(channels='rgb')), "channels must be one of 'RGB', 'BGR'"),
        (dict(model=nn.Conv2d(3, 3, 1)), 'model is Conv2d; what can be exported is a backbone'),
        (dict(model=build(dict(SMALL, in_channels=4))), '4 channels, not an image of 3'),
    ],
)
def test_wrong_arguments(changed, message, tmp_path):
    args = dict(model=build(SMALL), path='net.onnx', shape=(64, 64)) | changed
    args['path'] = tmp_path / args['path']
    with pytest.raises(ValueError, match=message) as caught:
        export(**args)
    assert '\n' not in str(caught.value) and left(tmp_path) == []


def test_refused_before_any_work(tmp_path):
    with torch.device('meta'):
        net = MODELS.get('Res2Net')(**SMALL)
    with pytest.raises(ExportError, match='model must have weights'):
        export(net, tmp_path / 'net.onnx', (64, 64))
    model = detector(mask=True)
    before = model.test_cfg.rcnn.nms
    model.test_cfg.rcnn.nms = ConfigDict(type='soft_nms', iou_threshold=0.5)
    try:
        with pytest.raises(ExportError, match="'soft_nms'"):
            export(model, tmp_path / 'x.onnx', (64, 64))
    finally:
        model.test_cfg.rcnn.nms = before


def test_a_file_of_weights_that_is_not_ours_stays(tmp_path):
    (tmp_path / 'model.bin').write_bytes(b'a checkpoint')
    with pytest.raises(ExportError, match='model.bin exists, and would be replaced'):
        export(build(SMALL), tmp_path / 'model.xml')
    assert (tmp_path / 'model.bin').read_bytes() == b'a checkpoint'


def test_padding_that_a_file_cannot_do_is_refused(tmp_path):
    model = detector()
    before = model.data_preprocessor.pad_value
    model.data_preprocessor.pad_value = 114
    try:
        with pytest.raises(ExportError, match='pads images with 114; only zeros'):
            export(model, tmp_path / 'x.onnx')
    finally:
        model.data_preprocessor.pad_value = before
    model = segmentor()
    model.data_preprocessor.test_cfg = dict(size=(256, 256))
    with pytest.raises(ExportError, match='pads images with test_cfg size'):
        export(model, tmp_path / 'x.onnx')
