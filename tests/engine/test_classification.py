"""Classifiers in the tools: train, test, infer, and what is checked before."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from classifiers import COLOURS, write_config, write_folders
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from references import randomise
from torchvision import transforms
from weights.other_layouts import as_arrays, paddle

import res2net_mm
from res2net_mm.data.check.inspection import check_data
from res2net_mm.data.errors import DataError
from res2net_mm.engine.config import load_config
from res2net_mm.engine.drawing import draw_classes
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.infer import ConfiguredModel, predict_images
from res2net_mm.engine.runner import build_runner, prepare_config
from res2net_mm.weights import ZOO
from res2net_mm.weights.zoo import IMAGENET_MEAN, IMAGENET_STD

NAMES = sorted(COLOURS)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp('data') / 'colours')


@pytest.fixture
def config(folder, tmp_path):
    return write_config(tmp_path, folder)


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """A config and a checkpoint that knows its colours."""
    place = tmp_path_factory.mktemp('trained')
    cfg = load_config(write_config(place, folder), {'train_cfg.max_epochs': 6})
    cfg.param_scheduler = []
    cfg.randomness = dict(seed=0)
    runner = build_runner(prepare_config(cfg, work_dir=str(place / 'run')))
    runner.train()
    return place / 'tiny.py', place / 'run/epoch_6.pth', runner


def test_training_measures_and_keeps_the_classes(trained):
    config, checkpoint, runner = trained
    meta = torch.load(checkpoint, weights_only=False)['meta']
    assert list(meta['dataset_meta']['classes']) == NAMES
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() >= 50
    assert 'val/single-label/recall' in runner.message_hub.log_scalars


def test_top1_equals_a_count(trained, tmp_path):
    config, checkpoint, _ = trained
    cfg = prepare_config(load_config(config), work_dir=str(tmp_path))
    figures, classes = run_test(cfg, str(checkpoint), show_dir=str(tmp_path / 'shown'))
    assert classes == NAMES
    model = res2net_mm.Predictor(config, checkpoint)
    hits = []
    for i, name in enumerate(NAMES):
        for file in sorted((data_of(config) / 'val' / name).iterdir()):
            scores = model(file)['scores']
            assert scores.shape == (3,) and scores.sum() == pytest.approx(1, abs=1e-5)
            hits.append(scores.argmax() == i)
    assert figures['accuracy/top1'] == pytest.approx(100 * np.mean(hits))
    pictures = sorted(
        p.relative_to(tmp_path / 'shown') for p in (tmp_path / 'shown').rglob('*.png')
    )
    assert len(pictures) == len(hits)  # of the same names in three folders
    assert cv2.imread(str(tmp_path / 'shown' / pictures[0])).shape[0] > 40  # lines below the image


def data_of(config):
    return Path(load_config(config).train_dataloader.dataset.data_root)


def test_classes_in_another_order_are_mapped(trained, folder, tmp_path):
    """Folders that sort otherwise number the labels otherwise; names do not change."""
    config, checkpoint, _ = trained
    for name in NAMES:
        shutil.copytree(folder / 'val' / name, tmp_path / 'val' / name.upper())
    (tmp_path / 'list.txt').write_text(
        ''.join(
            f'{name.upper()}/{i}.png {2 - NAMES.index(name)}\n' for name in NAMES for i in (0, 1)
        )
    )
    cfg = load_config(config)
    dataset = cfg.test_dataloader.dataset
    dataset.update(data_root=str(tmp_path), ann_file='list.txt', data_prefix='val')
    dataset.metainfo = dict(classes=tuple(NAMES[::-1]))
    straight = load_config(config)
    found = [
        run_test(prepare_config(c, work_dir=str(tmp_path / 'run')), str(checkpoint))[0]
        for c in (cfg, straight)
    ]
    assert found[0] == found[1]


def test_infer_writes_names_and_pictures(trained, folder, tmp_path):
    config, checkpoint, _ = trained
    model = ConfiguredModel(load_config(config), str(checkpoint), device='cpu')
    images = sorted((folder / 'val').rglob('*.png'))
    assert predict_images(model, images, tmp_path, 0.3) == []
    content = json.loads((tmp_path / 'predictions.json').read_text())
    assert content['classes'] == NAMES
    for record, file in zip(content['images'], images, strict=True):
        scores = model.predict(file).pred_score.tolist()
        order = sorted(range(3), key=lambda i: -scores[i])
        assert [c['label'] for c in record['classes']] == order
        assert [c['name'] for c in record['classes']] == [NAMES[i] for i in order]
        assert record['classes'][0]['score'] == pytest.approx(max(scores), abs=1e-6)
    drawn = cv2.imread(str(tmp_path / 'blue/0.jpg'))
    assert drawn is not None and drawn.shape[0] > 40


def test_drawing_keeps_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    classes = [dict(score=0.9, name='a name that is wider than the image'), dict(score=0, name='b')]
    drawn = np.asarray(draw_classes(pixels, classes, 'truth'))
    assert np.array_equal(drawn[:50, :70], pixels)
    assert drawn.shape[1] > 200 and drawn.shape[0] > 50 + 3 * 12


def test_arrays_and_files_agree(trained, folder):
    config, checkpoint, _ = trained
    model = res2net_mm.Predictor(config, checkpoint)
    file = folder / 'val/red/1.png'
    pixels = np.asarray(Image.open(file))
    assert np.array_equal(model(file)['scores'], model(pixels)['scores'])
    assert model.classes[model(file)['scores'].argmax()] in NAMES


@pytest.mark.parametrize('size', [(300, 400), (401, 257), (256, 256), (100, 333), (777, 224)])
def test_preparation_equals_torchvision(size, tmp_path):
    """Resize(256), CenterCrop(224), mean and standard deviation: what the authors test with."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    cfg = load_config('res2net50_v1b_in1k.py')
    init_default_scope('mmpretrain')
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), with_label=False)
    data = DATASETS.build(dict(dataset, pipeline=cfg.test_dataloader.dataset.pipeline))[0]
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    ours = preprocessor(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    mean, std = (torch.tensor(v)[:, None, None] / 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = (transforms.Compose(steps)(Image.open(tmp_path / 'x.png')) - mean) / std
    assert ours['inputs'][0].shape == (3, 224, 224)
    assert torch.allclose(ours['inputs'][0], theirs, atol=2e-6)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A published file in a mirror, and images with labels of known ranks in its predictions."""
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(tmp_path / 'mirror'))
    monkeypatch.setenv('RES2NET_MM_CACHE', str(tmp_path / 'cache'))
    entry = ZOO['res2net50_vd_26w_4s']
    weights = paddle(randomise(res2net_mm.create_backbone(entry.variant)).state_dict())
    generator = torch.Generator().manual_seed(0)
    weights['out.weight'] = torch.randn(2048, 1000, generator=generator) / 30
    weights['out.bias'] = torch.randn(1000, generator=generator) / 10
    (tmp_path / 'mirror').mkdir()
    content = pickle.dumps(as_arrays(weights), protocol=2)
    (tmp_path / 'mirror' / entry.filename).write_bytes(content)
    model = res2net_mm.create_classifier(entry.variant, pretrained=True).eval()
    lines, labels = [], []
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    (tmp_path / 'imagenet/val').mkdir(parents=True)
    for i, rank in enumerate((0, 2, 6, 0)):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 9, 3), np.uint8)
        pixels = pixels.repeat(32, 0).repeat(32, 1)  # 256 x 288: resizing changes nothing
        Image.fromarray(pixels).save(tmp_path / f'imagenet/val/{i}.png')
        image = torch.from_numpy(pixels[16:240, 32:256].copy()).permute(2, 0, 1).float()
        with torch.inference_mode():
            logits = model(((image - mean) / std)[None])[0]
        labels.append(logits.topk(7).indices[rank].item())
        lines.append(f'{i}.png {labels[-1]}')
    (tmp_path / 'imagenet/meta').mkdir()
    (tmp_path / 'imagenet/meta/val.txt').write_text('\n'.join(lines))
    return tmp_path / 'imagenet', labels


def test_published_weights_are_a_checkpoint(imagenet, tmp_path):
    """``test.py CONFIG res2net://NAME --cfg-options data_root=...`` and the same of infer.py."""
    root, labels = imagenet
    options = {'data_root': str(root), 'test_dataloader.num_workers': 0}
    options['test_dataloader.persistent_workers'] = False
    cfg = load_config('res2net50_vd_in1k.py', options)
    source = 'res2net://res2net50_vd_26w_4s'
    assert cfg.test_dataloader.dataset.data_root == str(root)
    figures, classes = run_test(prepare_config(cfg, work_dir=str(tmp_path / 'run')), source)
    assert (figures['accuracy/top1'], figures['accuracy/top5']) == (50, 75)
    assert len(classes) == 1000 and classes[0] == 'tench, Tinca tinca'
    model = ConfiguredModel(cfg, source, device='cpu')
    sample = model.predict(root / 'val/3.png')
    best = model.describe(root / 'val/3.png', sample, 0.3)['classes']
    assert len(best) == 5 and best[0]['label'] == labels[3]
    assert best[0]['name'] == classes[labels[3]]
    # the same weights under another rule are refused, whoever loads them
    other = load_config('res2net50_v1b_in1k.py', options)
    with pytest.raises(ValueError, match="first_block='paddle'"):
        ConfiguredModel(other, source, device='cpu')


def test_wrong_configs_are_one_line(config, tmp_path):
    def prepare(**options):
        return prepare_config(load_config(config, options), work_dir=str(tmp_path / 'run'))

    with pytest.raises(ToolError, match=r'model.head.in_channels is 7, .* set .*=256'):
        prepare(**{'model.head.in_channels': 7})
    with pytest.raises(ToolError, match=r'val_evaluator.0.topk is \(1, 5\), but .* 3 classes'):
        prepare(**{'val_evaluator.0.topk': (1, 5)})
    with pytest.raises(
        DataError, match=r'num_classes=4, but .* has 3 classes \(blue, green, red\)'
    ):
        check_data(load_config(config, {'model.head.num_classes': 4}))


def test_data_root_moves_all_splits(tmp_path):
    cfg = load_config('res2net50_v1b_in1k.py', {'data_root': '/x/imagenet'})
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.data_root == '/x/imagenet'
    detector = load_config('faster_rcnn_r2n14_shapes.py', {'data_root': str(tmp_path)})
    assert detector.val_evaluator.ann_file == f'{tmp_path}/annotations/instances_val.json'
    assert detector.train_dataloader.dataset.data_root == str(tmp_path)
    with pytest.raises(ToolError, match='data_rot'):
        load_config('res2net50_v1b_in1k.py', {'data_rot': '/x'})


def test_a_missing_package_is_one_line(monkeypatch):
    for name in ('mmpretrain', 'mmpretrain.registry'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ToolError, match=r'needs mmpretrain: pip install .*classification'):
        load_config('res2net50_v1b_in1k.py')
