"""Every config builds its model, and holds what it says."""

from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope

import res2net_mm
from res2net_mm.engine.config import load_config, walk_dicts

CONFIGS = sorted((Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    cfg = load_config(request.param)
    init_default_scope(cfg.default_scope)
    return cfg


def test_model_builds(config):
    model = MODELS.build(config.model)
    assert type(model.backbone) is res2net_mm.Res2Net
    channels = tuple(config.model.neck.in_channels)
    assert model.backbone.out_channels[-len(channels) :] == channels
    assert config.custom_imports == dict(imports=['res2net_mm'], allow_failed_imports=False)


def test_splits_and_heads_agree(config):
    counts = {
        d['num_classes']
        for d in walk_dicts(config.model.get('roi_head') or config.model)
        if 'num_classes' in d
    }
    classes = config.train_dataloader.dataset.get('metainfo', {}).get('classes')
    named = {'faster_rcnn_r2n50': 80, 'faster_rcnn_r2n14_voc': 20}
    expected = len(classes) if classes else named[Path(config.filename).stem]
    assert counts == {expected}
    for split in ('val', 'test'):
        assert config[f'{split}_dataloader'].dataset.get('metainfo', {}).get('classes') == classes


def test_front_door_is_what_it_says():
    cfg = load_config('faster_rcnn_r2n50.py')
    net = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
    classifier = 2048 * 1000 + 1000  # the published count includes it
    params = sum(p.numel() for p in net.parameters()) + classifier
    assert params / 1e6 == pytest.approx(25.72, abs=0.005)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    assert (cfg.train_cfg.max_epochs, cfg.auto_scale_lr.base_batch_size) == (12, 16)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb and preprocessor.mean == [123.675, 116.28, 103.53]
