"""int8 files: what is quantised, with which images, and how much accuracy that may cost."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from exported import picture
from mmengine.config import Config
from PIL import Image

from res2net_mm import create_backbone
from res2net_mm.deploy import ExportError, export, int8
from res2net_mm.deploy.running import ExportedModel, openvino_core
from res2net_mm.engine import quantising
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.exported import ExportedModule, facts_of
from res2net_mm.engine.quantising import ResizedImages, measure, write_int8
from res2net_mm.engine.runner import prepare_config


@pytest.fixture(scope='module')
def images(config):
    return ResizedImages(config, 6)


def quantised_inputs(path):
    """Operations of a file that take int8, by name; and their types."""
    found = {}
    for operation in openvino_core().read_model(path).get_ops():
        if operation.get_type_name() == 'FakeQuantize':
            for target in operation.output(0).get_target_inputs():
                found[target.get_node().get_friendly_name()] = target.get_node().get_type_name()
    return found


@pytest.fixture(scope='module')
def quantised(files, images, tmp_path_factory):
    path = tmp_path_factory.mktemp('int8') / 'int8.xml'
    return path, int8.quantize(files['.xml'], path, images)['int8']['float']


def test_arithmetic_stays_in_float(files, images, quantised):
    path, in_float = quantised
    found = quantised_inputs(path)
    assert {'Convolution', 'MatMul'} <= {*found.values()}
    assert not {*int8.ELEMENTWISE} & {*found.values()}
    model, exact = ExportedModel(path), ExportedModel(files['.xml'])
    assert model.metadata['int8'] == dict(images=6, float=in_float)
    assert model.metadata | dict(int8=None, bin=exact.metadata['bin']) == exact.metadata
    a, b = model.predict(images[0]), exact.predict(images[0])
    assert len(a['scores']) > 3 and abs(a['scores'][0] - b['scores'][0]) < 0.1


def test_export_in_int8(tmp_path):
    net, path = create_backbone('res2net14_v1b_26w_4s'), tmp_path / 'net.xml'
    images = [picture(64, 64, seed) for seed in range(3)]
    for given in (
        dict(int8=True),
        dict(int8=images, raw=True),
        dict(int8=[]),
        dict(int8=5),
        dict(int8=[images[0] / 255]),
    ):
        with pytest.raises(ExportError, match='int8 needs images, uint8'):
            export(net, path, (64, 64), **given)
    with pytest.raises(ExportError, match='int8 needs images'):
        export(net, tmp_path / 'net.onnx', (64, 64), int8=images)
    report = export(net, path, (64, 64), images=images, int8=True)
    assert report.metadata['int8'] == dict(images=3, float=['elementwise arithmetic'])
    assert ExportedModel(path).metadata == report.metadata
    assert {'Convolution', 'MatMul'} & {*quantised_inputs(path).values()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ['net.bin', 'net.xml']


def test_steps_leave_more_in_float_and_loggers_as_they_are(files, images, quantised, tmp_path):
    int8.require_nncf()
    logger = logging.getLogger('nncf')
    levels = [logger.level, *(handler.level for handler in logger.handlers)]
    model = openvino_core().read_model(files['.xml'])
    layers = [int8._layers(model, step) for step in int8.STEPS[1:]]
    assert 0 < len(layers[0]) < len(layers[1]) < len(layers[2])  # first layers, heads, neck
    path = tmp_path / 'int8.xml'
    in_float = int8.quantize(files['.xml'], path, [images[0]], step=2)['int8']['float']
    assert in_float[1:] == [*int8.STEPS[2]]
    fewer, more = (quantised_inputs(file) for file in (path, quantised[0]))
    assert fewer and not fewer.keys() & {*layers[1]} and more.keys() & {*layers[1]}
    assert levels == [logger.level, *(handler.level for handler in logger.handlers)]
    assert logging.getLoggerClass() is logging.Logger


def test_images_are_those_of_training(config, shapes):
    images = ResizedImages(config, 1000)
    assert len(images) == 16
    assert len(ResizedImages(config, 3)) == 3
    path = sorted((shapes / 'train').glob('*.jpg'))[0]
    size = images[0].shape[1::-1]
    assert max(size) == 128
    expected = np.asarray(Image.open(path).convert('RGB').resize(size))
    assert np.abs(images[0].astype(int) - expected).mean() < 6
    wrapped = config.copy()
    inner = config.train_dataloader.dataset
    wrapped.train_dataloader = dict(dataset=dict(type='RepeatDataset', times=3, dataset=inner))
    assert len(ResizedImages(wrapped, 1000)) == 16
    with pytest.raises(ValueError, match='images'):
        int8.quantize('any.xml', 'any8.xml', [])


def test_figures_are_those_of_the_test_tool(config, files, tmp_path):
    model = ExportedModule(files['.xml'], facts_of(config.model))
    found = measure(config, model, model.meta)
    expected, _ = run_test(prepare_config(config, work_dir=str(tmp_path)), str(files['.xml']))
    (name,) = found
    assert name.endswith('bbox_mAP')
    assert found[name] == pytest.approx(
        next(value for key, value in expected.items() if key.endswith('bbox_mAP'))
    )
    # a checkpoint whose labels have another order
    names = list(config.classes)[::-1]
    meta = dict(dataset_meta=dict(classes=names), res2net_mm={})
    mapped = measure(config, ExportedModule(files['.xml'], facts_of(config.model)), meta)
    config = Config({**config.to_dict(), 'checkpoint_classes': names})
    expected, _ = run_test(prepare_config(config, work_dir=str(tmp_path)), str(files['.xml']))
    (value,) = (value for key, value in expected.items() if key.endswith('bbox_mAP'))
    assert mapped[name] == pytest.approx(value) != found[name]


@pytest.mark.parametrize(
    'falls, written',
    [([0.004], 0), pytest.param([0.02, 0.001], 1, marks=pytest.mark.slow), ([0.02] * 4, None)],
)
def test_check_bounds_the_loss(config, files, images, tmp_path, monkeypatch, falls, written):
    figures = iter([0.5, *(0.5 - fall for fall in falls)])
    monkeypatch.setattr(quantising, 'measure', lambda *_: {'coco/bbox_mAP': next(figures)})
    steps, lines = [], []
    quantize = int8.quantize

    def quick(source, path, images, step):
        steps.append(step)
        return (
            quantize(source, path, images[:1], step)
            if step == written
            else dict(int8=dict(float=['nothing']))
        )

    monkeypatch.setattr(quantising, 'quantize', quick)
    monkeypatch.setattr(quantising, 'ExportedModule', lambda *_: SimpleNamespace(meta={}))
    monkeypatch.setattr(quantising, 'has_int8_instructions', lambda: False)
    given = config, files['.xml'], tmp_path / 'out.xml', [images[0]], True, lines.append
    if written is None:
        with pytest.raises(ToolError, match='not written'):
            write_int8(*given)
        assert not [*tmp_path.iterdir()]
        return
    write_int8(*given)
    assert steps == [*range(written + 1)]
    assert ExportedModel(tmp_path / 'out.xml').metadata['int8']['float'][1:] == [
        *int8.STEPS[written]
    ]
    assert 'int8 0.4960' in lines[2] or written
    assert 'VNNI' in lines[-1]
