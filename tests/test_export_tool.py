"""tools/export.py as a user calls it."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from deploy.exported import metadata, picture, run_file, spread
from mmengine.registry import MODELS as ALL
from mmengine.registry import init_default_scope
from references import randomise
from test_segmentation_tools import CONFIG as SEGMENTOR

from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.registry import MODELS

REPO = Path(__file__).resolve().parents[1]
DETECTOR = 'configs/faster_rcnn_r2n14_shapes.py'


@pytest.fixture
def export(python, stack):
    return lambda *args: python('tools/export.py', *args, env=stack)


@pytest.fixture
def here(monkeypatch):
    """The tool in this process."""
    spec = spec_from_file_location('export_tool', REPO / 'tools' / 'export.py')
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, args)])
        tool.main()

    call.tool = tool
    return call


@pytest.fixture(scope='module')
def detector(tiny_options, tmp_path_factory):
    """A small detector, and a checkpoint of it."""
    cfg = load_config(DETECTOR, tiny_options)
    init_default_scope('mmdet')
    model = spread(ALL.build(cfg.model))
    path = tmp_path_factory.mktemp('detector') / 'detector.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return model, path


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
    run = export(config, tmp_path / 'fcn.pth', out)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'compared with PyTorch on 15 images' in run.stdout  # 12 of the set
    assert run.stdout.index('loading') < run.stdout.index('tracing') < run.stdout.index('compar')
    said = metadata(out)
    assert said['classes'][1:3] == ['disc', 'square'] and said['task'] == 'segmentation'
    assert said['config'] == 'fcn' and said['input']['height'] is None
    (labels,) = run_file(out, picture(65, 51)[None]).values()
    assert labels.shape == (65, 51)


@pytest.mark.parametrize(
    'stack', ['default', pytest.param('originals', marks=pytest.mark.slow)], indirect=True
)
def test_detector_and_its_backbone(export, here, detector, tiny_arguments, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'detector.xml'
    run = export(DETECTOR, checkpoint, out, *tiny_arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'compared with PyTorch on 15 images' in run.stdout
    said = metadata(out)
    assert said['input']['resize'] == dict(scale=[128, 128], keep_ratio=True, backend='cv2')
    assert (said['input']['height'], said['input']['width']) == (128, 128)
    assert said['classes'][0] == 'disc' and len(said['palette']) == 4
    assert said['config'] == 'faster_rcnn_r2n14_shapes'

    out = tmp_path / 'backbone.onnx'
    here(DETECTOR, checkpoint, out, '--backbone', '--raw', *tiny_arguments)
    image = torch.randn(1, 3, 65, 51)
    with torch.no_grad():
        levels = model.eval().backbone(image)
    given = onnxruntime.InferenceSession(out).run(None, {'image': image.numpy()})
    for ours, theirs in zip(given, levels, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-5 * theirs.abs().max()
    said = metadata(out)
    assert said['input']['mean'] == pytest.approx(model.data_preprocessor.mean.flatten().tolist())
    assert said['classes'] == [] and said['task'] == 'backbone'


def test_variant(here, capsys, tmp_path):
    net = randomise(MODELS.get('Res2Net')(depth=14))
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    files = tmp_path / 'net.pth', tmp_path / 'net.onnx'
    here('res2net14_v1b_26w_4s', *files, *'--shape 64 96 --cfg-options out_indices=(2,3)'.split())
    assert metadata(files[1])['variant'] == 'res2net14_v1b_26w_4s'
    given = run_file(files[1], picture(64, 96)[None])
    assert {name: v.shape for name, v in given.items()} == {
        'c4': (1, 1024, 4, 6),
        'c5': (1, 2048, 2, 3),
    }
    # of the plain network into one with deformable convolutions
    here('res2net14_v1b_26w_4s_dcn', *files, '--shape', 64, 64)
    assert 'not in the file, and zero' in capsys.readouterr().out


def test_data_that_are_not_there(here, detector, tiny_arguments, capsys, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr('res2net_mm.engine.classes.warn', warned.append)
    options = [a for a in tiny_arguments if 'data_root' not in a and 'ann_file' not in a]
    options.append('test_dataloader.dataset.data_root=/nowhere/')
    here(DETECTOR, detector[1], tmp_path / 'x.onnx', '--shape', 64, 64, *options)
    (line,) = [line for line in warned if 'made images only' in line]
    assert '/nowhere/' in line
    assert 'compared with PyTorch on 3 images' in capsys.readouterr().out


@pytest.mark.parametrize(
    'name, out, options, message',
    [
        ('res2net14_v1b_26w_4', 'x.xml', '', 'no config; did you mean res2net14_v1b_26w_4s?'),
        ('res2net14_v1b_26w_4s', 'x.onnx', '--shape 0 64', 'two positive integers'),
        ('res2net14_v1b_26w_4s', 'x.pth', '', 'ends in .onnx or .xml'),
        ('res2net26_v1b_26w_4s', 'x.onnx', '', 'does not fit the network'),
    ],
)
def test_wrong_arguments_of_the_tool(here, name, out, options, message, tmp_path):
    torch.save(MODELS.get('Res2Net')(depth=14).state_dict(), tmp_path / 'net.pth')
    with pytest.raises((ToolError, ValueError), match=re.escape(message)):
        here(name, tmp_path / 'net.pth', tmp_path / out, *options.split())
    assert not (tmp_path / out).exists()


def test_help(python):
    run = python('tools/export.py', '--help', env=None)
    assert run.returncode == 0 and 'example:' in run.stdout
    for option in ('--shape', '--dynamic', '--raw', '--backbone', '--trust-checkpoint'):
        assert option in run.stdout
