"""Training, measuring, predicting and exporting a segmentor with one channel."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from res2net_mm import Predictor
from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_model
from res2net_mm.engine.drawing import overlay
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.infer import ConfiguredModel, predict_images
from res2net_mm.engine.runner import build_runner, prepare_config

SIDES = (60, 76)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Bright discs on noise, with masks of 0 and 255, laid out as the nuclei."""
    root = tmp_path_factory.mktemp('saliency')
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SIDES[0], : SIDES[1]]
    for split in ('train', 'val'):
        for i in range(4):
            mask = (y - 20 - 5 * i) ** 2 + (x - 30 - 5 * i) ** 2 < (10 + i) ** 2
            photo = random.integers(0, 80, (*SIDES, 3)) + 150 * mask[..., None]
            for folder, picture in (('images', photo), ('semseg', mask * 255)):
                file = root / f'nuclei/{folder}/{split}/{i}.png'
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture.astype(np.uint8)).save(file)
    return root


def options(data, **more):
    found = {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.backbone.base_width': 8,
        'model.decode_head.in_channels': [8, 32, 64, 128, 256],
        'model.decode_head.channels': 8,
        'model.data_preprocessor.size': (64, 64),
        'train_dataloader.dataset.pipeline.2.crop_size': (48, 64),
        'train_cfg.max_iters': 40,
        'train_cfg.val_interval': 40,
        'optim_wrapper.optimizer.lr': 0.01,
        'param_scheduler': [],
        'default_hooks.checkpoint.interval': 40,
        'randomness.seed': 0,
        **more,
    }
    for split in ('train', 'val', 'test'):
        found[f'{split}_dataloader.dataset.data_root'] = str(data / 'nuclei')
        found[f'{split}_dataloader.num_workers'] = 0
        found[f'{split}_dataloader.persistent_workers'] = False
    return found


@pytest.fixture(scope='module')
def trained(data):
    """The config and the checkpoint of a short training."""
    cfg = load_config('unet_r2n14_nuclei.py', options(data))
    runner = build_runner(prepare_config(cfg, work_dir=str(data / 'run')))
    runner.train()
    found = runner.message_hub.log_scalars
    assert 'train/decode.loss_dice' in found and 'train/decode.acc_seg' not in found
    assert 'val/saliency/Sm' in found and 'val/mIoU' in found
    return cfg, str(data / 'run/iter_40.pth')


def measure(cfg, checkpoint, data, **changes):
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(changes)
    return run_test(prepare_config(cfg, work_dir=str(data / 'test')), checkpoint)[0]


def test_measuring(trained, data):
    figures = measure(*trained, data)
    assert figures['saliency/MAE'] < 0.2 and figures['saliency/maxF'] > 0.8
    assert figures['mIoU'] > 60
    predictor, errors = Predictor(*trained, device='cpu'), []
    for i in range(4):
        found = predictor(data / f'nuclei/images/val/{i}.png')
        mask = cv2.imread(str(data / f'nuclei/semseg/val/{i}.png'), 0) > 128
        assert found['probability'].shape == found['segmentation'].shape == SIDES
        np.testing.assert_array_equal(found['segmentation'], found['probability'] > 0.5)
        errors.append(np.abs(found['probability'].astype(float) - mask).mean())
    assert figures['saliency/MAE'] == pytest.approx(np.mean(errors), abs=1e-6)


def test_swapped_classes(trained, data):
    """A checkpoint whose label 1 is the data's background: its probability is that of the other."""
    before = measure(*trained, data)
    after = measure(*trained, data, checkpoint_classes=['nucleus', 'background'])
    assert after['saliency/MAE'] == pytest.approx(1 - before['saliency/MAE'], abs=1e-6)


def test_pictures_and_json(trained, data, tmp_path):
    predictor = ConfiguredModel(*trained, device='cpu')
    folder = data / 'nuclei/images/val'
    images = sorted(folder.iterdir())
    assert not predict_images(predictor, images, tmp_path, 0.3)
    content = json.loads((tmp_path / 'predictions.json').read_text())
    assert content['classes'] == ['background', 'nucleus']
    for image, record in zip(images, content['images'], strict=True):
        grey, labels = (
            cv2.imread(str(tmp_path / f'{image.stem}.{kind}.png'), cv2.IMREAD_UNCHANGED)
            for kind in ('probability', 'labels')
        )
        found = Predictor(*trained, device='cpu')(image)
        np.testing.assert_array_equal(grey, np.rint(found['probability'] * 255))
        np.testing.assert_array_equal(labels, found['segmentation'])
        assert record['shares']['nucleus'] == pytest.approx(labels.mean(), abs=1e-6)
        before, drawn = (
            cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            for file in (image, tmp_path / f'{image.stem}.jpg')
        )
        expected = overlay(before, found['probability'], (220, 20, 60))
        inside = labels == 1
        means = [picture[inside].mean(0) for picture in (before, expected, drawn)]
        assert np.abs(means[2] - means[1]).max() < 10 < 40 < np.abs(means[1] - means[0]).max()


def test_overlay_by_hand():
    pixels = np.full((1, 3, 3), 100, np.uint8)
    found = overlay(pixels, np.array([[0.0, 0.5, 1.0]]), (200, 0, 50))
    assert found.tolist() == [[[100, 100, 100], [130, 70, 85], [160, 40, 70]]]


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_exported(trained, data, suffix, tmp_path):
    """Also at another size than that of the image, where logits are interpolated."""
    from res2net_mm.deploy import export
    from res2net_mm.engine.infer import load_model

    cfg, checkpoint = trained
    cfg = copy.deepcopy(cfg)
    resize = dict(type='Resize', scale=(64, 48), keep_ratio=False)
    cfg.test_dataloader.dataset.pipeline.insert(1, resize)
    model, _ = load_model(cfg, checkpoint)
    about = dict(classes=('background', 'nucleus'), resize=dict(scale=[64, 48], keep_ratio=False))
    path = export(model, tmp_path / f'x{suffix}', (48, 64), about=about).path
    image = data / 'nuclei/images/val/1.png'
    ours, theirs = Predictor(path)(image), Predictor(cfg, checkpoint, device='cpu')(image)
    assert ours.keys() == theirs.keys() == {'segmentation', 'probability'}
    assert ours['probability'].shape == SIDES
    np.testing.assert_allclose(ours['probability'], theirs['probability'], atol=1e-4)
    assert (ours['segmentation'] != theirs['segmentation']).mean() < 1e-3
    before, after = (measure(cfg, source, data) for source in (checkpoint, str(path)))
    assert before.keys() == after.keys()
    for name in ('saliency/MAE', 'saliency/Sm', 'saliency/wF', 'saliency/adpF'):
        assert after[name] == pytest.approx(before[name], abs=1e-3), name
    cfg.model.decode_head.threshold = 0.4
    with pytest.raises(ToolError, match='mask_thr 0.5, but the config has 0.4'):
        measure(cfg, str(path), data)


def test_channels_of_the_stem_are_checked(data):
    cfg = load_config('unet_r2n14_nuclei.py', options(data))
    check_model(cfg)
    cfg.model.backbone.with_stem = False
    with pytest.raises(ToolError, match='in_index'):
        check_model(cfg)
    cfg.model.backbone.with_stem = True
    cfg.model.decode_head.in_channels = [16, 32, 64, 128, 256]
    with pytest.raises(ToolError, match=r'with_stem=True.*in_channels=\[8,32,64,128,256\]'):
        check_model(cfg)


def test_fast(trained, data):
    ours, theirs = (
        Predictor(*trained, device='cpu', fast=fast)(data / 'nuclei/images/val/0.png')
        for fast in (None, {})
    )
    assert torch.allclose(*(torch.as_tensor(p['probability']) for p in (ours, theirs)), atol=1e-4)
