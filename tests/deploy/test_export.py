"""Exported files in onnxruntime against PyTorch, and what is refused."""

import json
import random
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from references import randomise
from torch import nn

import res2net_mm
from res2net_mm.deploy import ExportError, export, export_onnx, measure_speed
from res2net_mm.deploy.exportable import AdaptivePool
from res2net_mm.deploy.metadata import variant_of
from res2net_mm.registry import MODELS

SMALL = dict(depth=14, base_channels=8, stem_channels=8, base_width=4)
DLA = dict(type='Res2NetDLA', base_channels=16, base_width=8)
NETWORKS = {
    'v1': dict(SMALL, deep_stem=False, avg_down=False),
    'v1b': SMALL,
    'vd': dict(SMALL, first_block='paddle'),
    'mmdet': dict(SMALL, first_block='mmdet', out_indices=(1, 3)),
    'dilated': dict(SMALL, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
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


def build(args):
    args = dict(args)
    return moved(randomise(MODELS.get(args.pop('type', 'Res2Net'))(**args)))


def moved(net, seed=0):
    """Offsets of pixels, and factors, that depend on the image."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in net.named_modules():
        if name.endswith('.conv_offset'):
            fan_in = module.weight[0].numel()
            weight = torch.randn(module.weight.shape, generator=generator) / fan_in**0.5
            module.weight.data.copy_(weight)
            module.bias.data.copy_(3 * torch.randn(module.bias.shape, generator=generator))
    return net


def images(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_onnxruntime(path, image):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {'image': image.numpy()})
    return {name: torch.from_numpy(o) for name, o in zip(names, outputs, strict=True)}


@torch.no_grad()
def errors(net, path, image):
    """Relative error of each output."""
    training = net.training
    expected = net.eval()(image)
    net.train(training)
    given = in_onnxruntime(path, image)
    assert list(given) == [f'c{i + 2}' for i in net.out_indices]
    pairs = list(zip(given.values(), expected, strict=True))
    assert all(ours.shape == theirs.shape for ours, theirs in pairs)
    return [((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs]


@pytest.mark.parametrize('args', NETWORKS.values(), ids=NETWORKS)
def test_every_size_gives_what_pytorch_gives(args, tmp_path, monkeypatch):
    net = build(args)
    report = export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 96))
    file = onnx.load(report.path)
    assert {node.domain for node in file.graph.node} == {''}, 'standard operators alone'
    assert [(o.domain, o.version) for o in file.opset_import] == [('', report.opset)]
    assert report.inputs == {'image': ('batch', 3, 'height', 'width')}
    channels = {name: shape[1] for name, shape in report.outputs.items()}
    assert tuple(channels.values()) == net.out_channels
    assert report.compared[0] == (1, 3, 64, 96) and report.error < 1e-5
    assert report.compared[1][0] != 1 and all(n % 2 for n in report.compared[1][2:])

    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', 'torchvision')  # compiled, by others
    for shape in ((1, 3, 64, 96), (3, 3, 65, 97), (2, 3, 77, 50), (1, 3, 33, 127)):
        assert max(errors(net, report.path, images(*shape))) < 1e-5, shape


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
    report = export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))
    assert report.metadata['variant'] == 'res2net50_v1b_26w_4s_dcn'
    for size in ((480, 640), (517, 321)):
        assert max(errors(net, report.path, images(1, 3, *size))) < 1e-5, size


def test_static_file(tmp_path):
    net = build(SMALL)
    report = export_onnx(net, tmp_path / 'net.onnx', (2, 3, 65, 97), dynamic=False)
    assert report.inputs == {'image': (2, 3, 65, 97)} and report.compared == ((2, 3, 65, 97),)
    assert report.outputs['c5'] == (2, 256, 3, 4)
    assert max(errors(net, report.path, images(2, 3, 65, 97))) < 1e-5
    with pytest.raises(Exception, match='[Gg]ot invalid dimensions'):
        in_onnxruntime(report.path, images(2, 3, 64, 97))


def test_network_and_random_state_are_untouched(tmp_path):
    net = build(dict(NETWORKS['dcnv2'], frozen_stages=1, norm_eval=False)).train().bfloat16()
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    needs = [p.requires_grad for p in net.parameters()]
    assert {True, False} == set(modes) == set(needs)
    export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))
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
        export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64), progress=lines.append)
    assert [str(w.message) for w in caught] == []
    assert len(lines) == 2 and 'exporting' in lines[0] and 'onnxruntime' in lines[1]


def properties(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def test_metadata_of_a_variant(tmp_path):
    net = res2net_mm.create_backbone('res2net14_v1b_26w_4s', out_indices=(0, 3))
    report = export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64), dynamic=False)
    found = properties(report.path)
    assert found == report.metadata
    assert found['variant'] == 'res2net14_v1b_26w_4s'
    assert found['package'] == f'res2net_mm {res2net_mm.__version__}'
    assert (found['first_block'], found['style']) == ('official', 'pytorch')
    assert json.loads(found['mean']) == [123.675, 116.28, 103.53]
    assert json.loads(found['std']) == [58.395, 57.12, 57.375]
    assert found['channel_order'] == 'RGB' and 'classes' not in found
    assert 'RGB pixels, 0 to 255, from which the mean (123.675, 116.28' in found['input']
    assert 'stride 32, (N, 2048, H / 32' in found['output c5'] and 'output c3' not in found
    text = str(report)
    assert str(report.path) in text and f'{report.error:.1e}' in text and 'opset 17' in text


def test_metadata_that_the_caller_gives(tmp_path):
    path = tmp_path / 'net.onnx'
    given = dict(mean=(1, 2, 3), std=(4, 5, 6), channel_order='BGR', classes=('a', 'ä'))
    export_onnx(build(SMALL), path, (1, 3, 64, 64), False, **given)
    found = properties(path)
    assert [json.loads(found[k]) for k in ('mean', 'std', 'classes')] == [
        [1, 2, 3],
        [4, 5, 6],
        ['a', 'ä'],
    ]
    assert found['channel_order'] == 'BGR' and 'BGR pixels' in found['input']
    export_onnx(build(dict(SMALL, in_channels=4)), path, (1, 4, 64, 64), False)
    found = properties(path)
    assert 'mean' not in found and 'channel_order' not in found
    assert 'does not know how' in found['input'], 'nothing is made up'


def test_variants_are_told_from_networks_that_are_none():
    """By every layer: weights alone do not show strides and dilations."""
    for name in ('res2net50_26w_4s', 'res2next_dla60', 'res2net50_vd_26w_4s'):
        args = dict(res2net_mm.backbones.VARIANTS[name])
        kind = MODELS.get(args.pop('type', 'Res2Net'))
        with torch.device('meta'):
            assert variant_of(kind(**args, out_indices=(1,))) == name
    with torch.device('meta'):
        dilated = res2net_mm.Res2Net(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
        mmdet = res2net_mm.Res2Net(first_block='mmdet', norm_cfg=dict(type='SyncBN'))
    assert 'dilations=(1, 1, 1, 2)' in variant_of(dilated) and 'depth=50' in variant_of(dilated)
    assert "first_block='mmdet'" in variant_of(mmdet)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    net, other = build(SMALL), build(SMALL)
    other.layer4[0].conv3.weight.data *= 1.001
    trace = export._trace
    wrong = export.make_exportable(other)
    monkeypatch.setattr(export, '_trace', lambda net, *args: trace(wrong, *args))
    path = tmp_path / 'net.onnx'
    with pytest.raises(ExportError, match=r'c5 at \(1, 3, 64, 64\) has a relative error'):
        export_onnx(net, path, (1, 3, 64, 64))
    assert left(tmp_path) == []
    path.write_bytes(b'an older file')
    with pytest.raises(ExportError):
        export_onnx(net, path, (1, 3, 64, 64))
    assert left(tmp_path) == ['net.onnx'] and path.read_bytes() == b'an older file'


class Baked(res2net_mm.Res2Net):
    """The width that it is traced with becomes a constant."""

    def forward(self, x):
        factor = torch.linspace(1, 2, int(x.shape[3])).mean() * int(x.shape[3]) / 64
        return tuple(level * factor for level in super().forward(x))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_other_sizes_are_compared_too(tmp_path):
    net = randomise(Baked(**SMALL))
    export_onnx(net, tmp_path / 'static.onnx', (1, 3, 64, 64), dynamic=False)
    with pytest.raises(ExportError, match='relative error'):
        export_onnx(net, tmp_path / 'dynamic.onnx', (1, 3, 64, 64))
    assert left(tmp_path) == ['static.onnx']


class Bessel(nn.Module):
    """What ONNX does not have."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_values_that_are_not_finite_and_operators_without_export(tmp_path, capfd):
    net = build(SMALL)
    net.layer2[0].conv1.weight.data[0] = float('nan')
    with pytest.raises(ExportError, match='NaN or infinite: c3'):
        export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))
    net = build(SMALL)
    net.layer1[0].relu = Bessel()
    with pytest.raises(ExportError, match='cannot be exported: .*bessel_j0') as caught:
        export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))
    assert '\n' not in str(caught.value) and left(tmp_path) == []
    assert capfd.readouterr().out == ''


def test_layers_of_mmcv_are_refused(tmp_path):
    import_module('mmcv.ops')  # registers them
    net = randomise(MODELS.get('Res2NetDCN')(**SMALL, dcn=dict(type='mmengine.DCNv2')))
    with pytest.raises(ExportError, match='does not have: mmcv::MMCVModulatedDeformConv2d$'):
        export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))
    assert left(tmp_path) == []


def test_disk_that_is_full(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='net.onnx could not be written: No space left'):
        export_onnx(build(SMALL), tmp_path / 'net.onnx', (1, 3, 64, 64))
    assert left(tmp_path) == []


@pytest.mark.parametrize('module', ['onnx', 'onnxruntime'])
def test_missing_extra(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'res2net_mm\[export\]'"):
        export_onnx(build(SMALL), tmp_path / 'net.onnx', (1, 3, 64, 64))


@pytest.mark.parametrize(
    'changed, message',
    [
        (dict(input_shape=(3, 64, 64)), 'input_shape must be four positive integers'),
        (dict(input_shape=(1, 3, 64, 0)), 'input_shape must be four positive integers'),
        (dict(input_shape=(1, 3, 64.0, 64)), 'input_shape must be four positive integers'),
        (dict(input_shape=(True, 3, 64, 64)), 'input_shape must be four positive integers'),
        (dict(input_shape=64), 'input_shape must be four positive integers'),
        (dict(input_shape=(1, 4, 64, 64)), r'must be \(N, 3, H, W\).* got \(1, 4, 64, 64\)'),
        (dict(path='net.pth'), 'path must be a file that ends in .onnx'),
        (dict(path='none/net.onnx'), 'path must lie in a folder that exists'),
        (dict(mean=(1, 2, 3)), 'mean and std go together'),
        (dict(mean=(1, 2), std=(1, 2)), 'mean must have 3 finite values'),
        (dict(mean=(1, 2, 3), std=(1, 0, 3)), 'std must be positive'),
        (dict(channel_order='rgb'), "channel_order must be 'RGB' or 'BGR'"),
        (dict(model=nn.Conv2d(3, 3, 1)), 'model is Conv2d, a network that is not of this package'),
    ],
)
def test_wrong_arguments(changed, message, tmp_path):
    args = dict(model=None, path='net.onnx', input_shape=(1, 3, 64, 64)) | changed
    args['path'] = tmp_path / args['path']
    args['model'] = args['model'] or MODELS.get('Res2Net')(**SMALL)
    with pytest.raises(ValueError, match=message) as caught:
        export_onnx(**args)
    assert '\n' not in str(caught.value) and left(tmp_path) == []


def test_network_without_weights(tmp_path):
    with torch.device('meta'):
        net = MODELS.get('Res2Net')(**SMALL)
    with pytest.raises(ValueError, match='model must have weights'):
        export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64))


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6)])
@pytest.mark.parametrize('image', [(5, 4), (12, 18), (7, 33)])
def test_adaptive_pool(size, image):
    x = images(2, 3, *image)
    expected = nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(AdaptivePool(size)(x), expected, atol=1e-6, rtol=0)


def test_speed(tmp_path):
    net = build(SMALL)
    path = export_onnx(net, tmp_path / 'net.onnx', (1, 3, 64, 64)).path
    speed = measure_speed(net, path, (2, 3, 65, 64), rounds=3)
    assert speed.onnxruntime > 0 and speed.pytorch > 0
    assert speed.ratio == pytest.approx(speed.onnxruntime / speed.pytorch)
    assert '2 x 3 x 65 x 64' in str(speed) and f"PyTorch eager's {speed.ratio:.2f} (" in str(speed)
