"""Pose estimation by the tools: on synthetic persons, and on four images of COCO."""

import json

import pytest
import torch
from layouts import write_layouts
from mmengine.registry import MODELS, init_default_scope
from running import as_arguments, call

from res2net_mm.engine.config import load_config
from res2net_mm.engine.runner import build_runner, prepare_config

EPOCHS = 60
CONFIG = 'configs/td_hm_r2n50_coco_256x192.py'
SMALL = {
    'model.backbone.depth': 14,
    'model.backbone.base_channels': 8,
    'model.backbone.base_width': 4,
    'model.backbone.init_cfg': None,
    'model.head.in_channels': 256,
    'model.head.deconv_out_channels': (16, 16, 16),
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
}


def paths(folder, train, val, images):
    """Options for one folder of images with annotated boxes."""
    options = {f'{split}_evaluator.ann_file': f'{folder}/{val}' for split in ('val', 'test')}
    for split in ('train', 'val', 'test'):
        dataset = f'{split}_dataloader.dataset'
        options[f'{dataset}.data_root'] = f'{folder}/'
        options[f'{dataset}.ann_file'] = train if split == 'train' else val
        options[f'{dataset}.data_prefix.img'] = images[split == 'train']
        if split != 'train':
            options[f'{dataset}.bbox_file'] = None
    return options


def test_tools(tmp_path):
    """A checkpoint is measured and its skeletons are drawn, one picture for each person."""
    write_layouts(tmp_path)
    names = [f'annotations/person_keypoints_{split}2017.json' for split in ('train', 'val')]
    options = SMALL | paths(tmp_path / 'coco', *names, ('val2017/', 'train2017/'))
    cfg = load_config(CONFIG, options)
    init_default_scope('mmpose')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'c.pth')
    run = call(
        'test', CONFIG, tmp_path / 'c.pth', '--work-dir', tmp_path / 'work', '--show-dir',
        tmp_path / 'shown', *as_arguments(options),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'coco/AP: ' in run.stdout and 'coco/AR (L): ' in run.stdout
    assert 'mmpose.CocoMetric -> res2net_mm.KeypointMetric' in run.stdout
    assert len(list((tmp_path / 'shown').glob('*.jpg'))) == 4
    given = CONFIG, tmp_path / 'c.pth', tmp_path / 'x.onnx', *as_arguments(options)
    run = call('export', *given)
    assert run.returncode == 1 and 'cannot be exported: ' in run.stderr


@pytest.mark.slow
def test_overfits_four_images(real_data, tmp_path):
    """12 of the 14 persons have keypoints; the other two must not count as missed."""
    people = json.loads((real_data / 'coco_keypoints/test_coco.json').read_text())['annotations']
    assert [p['num_keypoints'] for p in people].count(0) == 2 and len(people) == 14
    wide = {'model.backbone.base_channels': 32, 'model.backbone.base_width': 13}
    wide |= {'model.head.in_channels': 1024, 'model.head.deconv_out_channels': (64, 64, 64)}
    folder = real_data / 'coco_keypoints'
    cfg = load_config(
        CONFIG, SMALL | wide | paths(folder, 'test_coco.json', 'test_coco.json', ('', ''))
    )
    steps = cfg.train_dataloader.dataset.pipeline
    kept = [step for step in steps if not step['type'].startswith('Random')]
    cfg.train_dataloader.dataset.pipeline = kept
    cfg.train_dataloader.batch_size = 12
    cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=EPOCHS),
    ]
    cfg.optim_wrapper.optimizer.lr = 2e-3
    cfg.default_hooks.checkpoint.interval = EPOCHS
    cfg.randomness = dict(seed=0)
    runner = build_runner(prepare_config(cfg, work_dir=str(tmp_path)))
    runner.train()
    assert runner.message_hub.get_scalar('val/coco/AP').current() > 0.9
