"""tools/export_onnx.py as a user calls it."""

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from mmengine.registry import MODELS as ALL
from mmengine.registry import init_default_scope
from references import randomise
from test_segmentation_tools import CONFIG as SEGMENTOR

from res2net_mm.deploy import export_onnx
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.registry import MODELS

REPO = Path(__file__).resolve().parents[1]
DETECTOR = 'configs/faster_rcnn_r2n14_shapes.py'


def error_of(run):
    assert run.returncode == 1 and 'Traceback' not in run.stderr, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, run.stderr[-2000:]
    return lines[0]


@pytest.fixture
def export(python, stack):
    return lambda *args: python('tools/export_onnx.py', *args, env=stack)


@pytest.fixture(scope='module')
def detector(tiny_options, tmp_path_factory):
    """A small detector, and a checkpoint of it."""
    cfg = load_config(DETECTOR, tiny_options)
    init_default_scope('mmdet')
    model = randomise(ALL.build(cfg.model))
    path = tmp_path_factory.mktemp('detector') / 'detector.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return model, path


def props(path):
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


@pytest.mark.parametrize(
    'stack', ['default', pytest.param('originals', marks=pytest.mark.slow)], indirect=True
)
def test_segmentation_config(export, shapes, tmp_path):
    config = tmp_path / 'fcn.py'
    config.write_text(SEGMENTOR.replace('DATA', str(shapes)))
    cfg = load_config(config)
    init_default_scope('mmseg')
    model = randomise(ALL.build(dict(cfg.model)))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'fcn.pth')
    out = tmp_path / 'fcn.onnx'
    run = export(config, tmp_path / 'fcn.pth', out, '--shape', 64, 80)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'compared with PyTorch at 1 x 3 x 64 x 80 and 2 x 3 x' in run.stdout
    assert run.stdout.index('loading') < run.stdout.index('exporting') < run.stdout.index('compar')
    assert json.loads(props(out)['classes'])[1:3] == ['disc', 'square']
    image = torch.randn(1, 3, 65, 51)
    with torch.no_grad():
        (sample,) = model.eval().predict(image)
    expected = sample.seg_logits.data
    (logits,) = onnxruntime.InferenceSession(out).run(None, {'image': image[:1].numpy()})
    error = (torch.from_numpy(logits[0]) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize(
    'stack', ['default', pytest.param('originals', marks=pytest.mark.slow)], indirect=True
)
def test_backbone_of_a_detector(export, detector, tiny_arguments, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'backbone.onnx'
    said = error_of(export(DETECTOR, checkpoint, out, '--shape', 64, 64, *tiny_arguments))
    assert 'model is FasterRCNN' in said and '--backbone' in said and 'EncoderDecoder' in said
    assert not out.exists()
    run = export(DETECTOR, checkpoint, out, '--backbone', '--shape', 64, 64, *tiny_arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    image = torch.randn(1, 3, 65, 51)
    with torch.no_grad():
        levels = model.eval().backbone(image)
    given = onnxruntime.InferenceSession(out).run(None, {'image': image.numpy()})
    for ours, theirs in zip(given, levels, strict=True):
        assert (torch.from_numpy(ours) - theirs).abs().max() < 1e-5 * theirs.abs().max()
    preprocessor = model.data_preprocessor
    found = props(out)
    assert json.loads(found['mean']) == pytest.approx(preprocessor.mean.flatten().tolist())
    assert 'classes' not in found


def test_detector_in_python(detector, tmp_path):
    model, _ = detector
    with pytest.raises(ValueError, match=r'FasterRCNN.*model\.backbone'):
        export_onnx(model, tmp_path / 'x.onnx', (1, 3, 64, 64))


@pytest.fixture
def here(monkeypatch):
    """The tool in this process."""
    spec = spec_from_file_location('export_tool', REPO / 'tools' / 'export_onnx.py')
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, args)])
        tool.main()

    return call


def test_variant(here, capsys, tmp_path):
    net = randomise(MODELS.get('Res2Net')(depth=14))
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    files = tmp_path / 'net.pth', tmp_path / 'net.onnx'
    options = '--shape 2 3 64 96 --static --time --cfg-options out_indices=(2,3)'.split()
    here('res2net14_v1b_26w_4s', *files, *options)
    printed = capsys.readouterr().out
    assert 'variant: res2net14_v1b_26w_4s\n' in printed
    assert 'outputs: c4 (2, 1024, 4, 6), c5 (2, 2048, 2, 3)' in printed
    assert re.search(r"2 x 3 x 64 x 96: onnxruntime's time / PyTorch eager's \d", printed)
    # of the plain network into one with deformable convolutions
    here('res2net14_v1b_26w_4s_dcn', *files, '--shape', 64, 64)
    printed = capsys.readouterr().out
    assert 'not in the file, and zero' in printed and 'timing' not in printed


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('res2net14_v1b_26w_4', '', 'no variant and no config; did you mean res2net14_v1b_26w_4s?'),
        ('res2net14_v1b_26w_4s', '--shape 1 2 3', '--shape must be H W or N C H W'),
        ('res2net14_v1b_26w_4s', '--static', 'give --shape'),
        ('res2net14_v1b_26w_4s', '--shape 0 64', 'four positive integers'),
        ('res2net26_v1b_26w_4s', '', 'does not fit the network'),
    ],
)
def test_wrong_arguments_of_the_tool(here, name, options, message, tmp_path):
    torch.save(MODELS.get('Res2Net')(depth=14).state_dict(), tmp_path / 'net.pth')
    with pytest.raises((ToolError, ValueError), match=re.escape(message)):
        here(name, tmp_path / 'net.pth', tmp_path / 'net.onnx', *options.split())
    assert not (tmp_path / 'net.onnx').exists()


def test_help(python):
    run = python('tools/export_onnx.py', '--help', env=None)
    assert run.returncode == 0 and 'example:' in run.stdout
    for option in ('--static', '--backbone', '--time', '--trust-checkpoint', '--cfg-options'):
        assert option in run.stdout
