"""Exported classifiers give PyTorch's scores, with the config's preparation of images."""

import copy

import numpy as np
import pytest
import torch
from classifiers import write_config, write_folders
from exported import SMALL, spread
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

import res2net_mm
from res2net_mm.deploy import export
from res2net_mm.deploy.export import ExportError
from res2net_mm.deploy.metadata import resize_rule
from res2net_mm.deploy.running import SUFFIXES, ExportedModel
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.exported import ExportedModule as Module
from res2net_mm.engine.exported import facts_of
from res2net_mm.engine.infer import load_model
from res2net_mm.engine.quantising import measure
from res2net_mm.engine.runner import prepare_config

SIZES = (300, 400), (401, 257), (100, 333), (64, 64)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    place = tmp_path_factory.mktemp('config')
    cfg = load_config(write_config(place, write_folders(place / 'data')))
    pipeline = load_config('res2net50_v1b_in1k.py').test_pipeline
    pipeline[1].scale, pipeline[2].crop_size = 72, (64, 56)
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline = pipeline
    return cfg


@pytest.fixture(scope='module')
def files(config, tmp_path_factory):
    """A checkpoint, and its exported files by suffix."""
    folder = tmp_path_factory.mktemp('files')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = spread(MODELS.build(config.model))
    meta = dict(dataset_meta=dict(classes=('blue', 'green', 'red')), res2net_mm=True)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'x.pth')
    about = dict(classes=meta['dataset_meta']['classes'])
    about['resize'] = resize_rule(config.test_dataloader.dataset.pipeline)
    for suffix in SUFFIXES:
        report = export(model, folder / f'x{suffix}', about=about)
        assert report.errors['scores'] < 1e-4 and report.metadata['task'] == 'classification'
    return {suffix: folder / f'x{suffix}' for suffix in ('.pth', *SUFFIXES)}


def test_the_rule_of_a_model_that_has_its_config(config, tmp_path):
    init_default_scope('mmpretrain')
    model = MODELS.build(config.model)
    model.cfg = copy.deepcopy(config)
    found = export(model, tmp_path / 'x.onnx').metadata['input']['resize']
    assert found == resize_rule(config.test_dataloader.dataset.pipeline) and found['crop']
    model.cfg.test_dataloader.dataset.pipeline[1] = dict(type='Rotate')
    with pytest.raises(ExportError, match='about=dict'):
        export(model, tmp_path / 'y.onnx')


def test_several_labels_are_refused(config, tmp_path):
    init_default_scope('mmpretrain')
    head = dict(config.model.head, type='MultiLabelLinearClsHead', loss=None)
    head = {key: head[key] for key in ('type', 'num_classes', 'in_channels')}
    model = MODELS.build(dict(config.model, head=head))
    with pytest.raises(ExportError, match='MultiLabelLinearClsHead'):
        export(model, tmp_path / 'x.onnx')


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_predicts_as_its_checkpoint(suffix, files, config, tmp_path):
    """Resizing, cropping, order of channels and normalisation are the config's."""
    ours, theirs = (res2net_mm.Predictor(*a) for a in ([files[suffix]], [config, files['.pth']]))
    assert ours.classes == theirs.classes
    found = []
    for i, size in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        pixels[..., i % 3] = 255  # so that the order of channels matters
        Image.fromarray(pixels).save(tmp_path / 'x.png')
        ours_, theirs_ = ours(tmp_path / 'x.png')['scores'], theirs(tmp_path / 'x.png')['scores']
        assert ours_.shape == (3,) and np.abs(ours_ - theirs_).max() < 1e-5, size
        found.append(theirs_)
    assert np.ptp(found, axis=0).max() > 1e-2


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_file_is_measured_as_its_checkpoint(suffix, files, config, tmp_path):
    figures = [
        run_test(prepare_config(config, work_dir=str(tmp_path / s)), str(files[s]))[0]
        for s in ('.pth', suffix)
    ]
    assert figures[0] == figures[1]
    model, loaded = load_model(config, str(files['.pth']))
    for measured in (model, Module(files[suffix], facts_of(config.model))):
        (top1,) = measure(config, measured, loaded.get('meta')).values()  # as export.py --check
        assert top1 == figures[0]['accuracy/top1']


@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='ResizeEdge', scale=72, edge='short'), dict(type='CenterCrop', crop_size=64)],
        [dict(type='ResizeEdge', scale=72, edge='long', backend='pillow')],
        [dict(type='ResizeEdge', scale=72, edge='width')],
        [dict(type='Resize', scale=(64, 48))],
        [dict(type='Resize', scale=(64, 48), keep_ratio=True, backend='pillow')],
        [dict(type='CenterCrop', crop_size=(50, 33))],
        [],
    ],
    ids=str,
)
def test_the_rule_prepares_as_the_pipeline(steps, files, tmp_path):
    pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    file = ExportedModel(files['.onnx'])
    file.metadata['input']['resize'] = resize_rule(pipeline)
    init_default_scope('mmpretrain')
    for i, size in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'x.png')
        dataset = dict(type='CustomDataset', data_root=str(tmp_path), with_label=False)
        data = DATASETS.build(dict(dataset, pipeline=pipeline))[0]['inputs']
        assert np.array_equal(file.resize(pixels), data.permute(1, 2, 0).numpy()[..., ::-1])


@pytest.mark.parametrize(
    'step',
    [
        dict(type='ResizeEdge', scale=72, interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=64, auto_pad=True),
        dict(type='Pad', size=(64, 64)),
    ],
)
def test_what_no_rule_describes_is_refused(step):
    with pytest.raises(ValueError, match=f'prepares images by .*{step["type"]}'):
        resize_rule([dict(type='LoadImageFromFile'), step, dict(type='PackInputs')])


def test_another_model_is_refused(files, config, tmp_path):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    with pytest.raises(ToolError, match='has task classification'):
        run_test(prepare_config(cfg, work_dir=str(tmp_path)), str(files['.onnx']))


def test_our_own_classifier(tmp_path):
    """As ImageNet's weights need them: RGB, and any size."""
    torch.manual_seed(0)
    model = spread(res2net_mm.Classifier(res2net_mm.Res2Net(**SMALL), 5))
    export(model, tmp_path / 'own.onnx')
    file = ExportedModel(tmp_path / 'own.onnx')
    pixels = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    mean, std = (np.array(file.metadata['input'][key], np.float32) for key in ('mean', 'std'))
    x = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = model(x)[0].softmax(0).numpy()
    assert np.abs(file.predict(pixels)['scores'] - scores).max() < 1e-5
