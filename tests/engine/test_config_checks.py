"""Mistakes that would end in the middle of a run are one line before it, with what to set."""

import pytest

from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_model, check_training, repetitions
from res2net_mm.engine.errors import ToolError

SHAPES = 'faster_rcnn_r2n14_shapes.py'
PSPNET = 'pspnet_r2n50_cityscapes.py'


@pytest.mark.parametrize(
    ('config', 'options', 'remedy'),
    [
        (
            SHAPES,
            {'model.backbone.out_indices': (1, 2, 3)},
            r'set model.neck.in_channels=\[256,512,1024\]',
        ),
        (
            SHAPES,
            {'model.neck.in_channels': [64, 256, 512, 1024]},
            r'set model.neck.in_channels=\[128,256,512,1024\]',
        ),
        (SHAPES, {'model.rpn_head.in_channels': 32}, 'set model.rpn_head.in_channels=64'),
        (PSPNET, {'model.decode_head.in_channels': 512}, 'set model.decode_head.in_channels=2048'),
        (PSPNET, {'model.decode_head.in_index': 4}, 'model.decode_head.in_index is 4'),
        (PSPNET, {'model.auxiliary_head.in_index': 1}, 'set model.auxiliary_head.in_channels=512'),
        (
            SHAPES,
            {'model.backbone.in_channels': 1},
            "train_dataloader.dataset.pipeline.0 .*set its color_type='grayscale'",
        ),
        (SHAPES, {'model.data_preprocessor.mean': [1, 2, 3, 4]}, 'data_preprocessor.mean has 4'),
        (PSPNET, {'model.data_preprocessor.std': [1, 2]}, 'data_preprocessor.std has 2'),
        (
            PSPNET,
            {'val_dataloader.dataset.pipeline.2.reduce_zero_label': True},
            'set val_dataloader.dataset.reduce_zero_label=True',
        ),
    ],
)
def test_parts_that_do_not_fit(config, options, remedy):
    check_model(load_config(config))
    with pytest.raises(ToolError, match=remedy):
        check_model(load_config(config, options))


def test_gray_images_for_a_gray_network():
    options = {'model.backbone.in_channels': 1}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.pipeline.0.color_type'] = 'grayscale'
    check_model(load_config(SHAPES, options))


def test_schedules_and_the_length_of_the_run():
    """16 images in batches of 8: 2 steps in each of 6 epochs."""
    assert check_training(load_config(SHAPES, {'param_scheduler.0.end': 12}), images=16) == []
    assert check_training(load_config(SHAPES), images=0) == []  # not known
    (warmup,) = check_training(load_config(SHAPES), images=16)
    assert 'param_scheduler.0 (LinearLR)' in warmup and 'iteration 50' in warmup and '12' in warmup
    (cosine,) = check_training(load_config(SHAPES, {'train_cfg.max_epochs': 2}), images=0)
    assert 'param_scheduler.1 (CosineAnnealingLR)' in cosine and 'epoch 6' in cosine
    late = {'param_scheduler.1.begin': 9, 'param_scheduler.1.end': 12}
    assert 'begins at epoch 9 of 6' in check_training(load_config(SHAPES, late), images=0)[0]
    repeated = load_config(SHAPES)
    data = repeated.train_dataloader
    data.dataset = dict(type='RepeatDataset', times=5, dataset=data.dataset)
    assert check_training(repeated, images=16) == []  # 60 steps
    with pytest.raises(ToolError, match='param_scheduler.0 .LinearLR. ends at 50.*begins at 60'):
        check_training(load_config(SHAPES, {'param_scheduler.0.begin': 60}), images=16)


def test_batches_of_one_after_pooling():
    batch = 'train_dataloader.batch_size'
    assert check_training(load_config(PSPNET), images=9) == []  # endless: no last batch
    with pytest.raises(ToolError, match='batch_size is 1.*PSPHead'):
        check_training(load_config(PSPNET, {batch: 1}), images=9)
    group_norm = {batch: 1, 'model.decode_head.norm_cfg': dict(type='GN', num_groups=4)}
    assert check_training(load_config(PSPNET, group_norm), images=9) == []
    epochs = load_config(PSPNET, {'param_scheduler': []})
    epochs.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
    assert check_training(epochs, images=8) == []
    with pytest.raises(ToolError, match='batch_size 2 leaves a last batch of 1.*drop_last=True'):
        check_training(epochs, images=9)
    epochs.train_dataloader.drop_last = True
    assert check_training(epochs, images=9) == []


def test_what_mmseg_and_mmengine_take_is_taken():
    cfg = load_config(PSPNET, {'model.backbone.in_channels': 6})
    cfg.model.data_preprocessor.update(mean=[1.0] * 6, std=[1.0] * 6)
    check_model(cfg)
    cfg.model.data_preprocessor.mean = [1.0] * 4
    with pytest.raises(ToolError, match='mean has 4 values: give 6'):
        check_model(cfg)
    cfg = load_config(SHAPES)
    down = dict(type='YOLOV3Neck', in_channels=[1024, 512, 256, 128])
    cfg.model.neck = down  # from the highest level
    for head in (cfg.model.rpn_head, cfg.model.roi_head):
        head.pop('in_channels', None)
    check_model(cfg)
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=None, begin=None, end=None)]
    assert check_training(cfg, 100) == []


def test_voc_boxes_are_compared_in_one_size():
    cfg = load_config('faster_rcnn_r2n50_voc0712.py')
    check_model(cfg)
    steps = cfg.val_dataloader.dataset.pipeline
    (loads,) = [step for step in steps if step.type == 'LoadAnnotations']
    steps.remove(loads)
    steps.insert(1, loads)
    with pytest.raises(ToolError, match='val_dataloader.* has Resize after LoadAnnotations'):
        check_model(cfg)


@pytest.mark.parametrize(
    ('dataset', 'times'),
    [
        (dict(type='X'), 1),
        (dict(type='RepeatDataset', times=3, dataset=dict(type='X')), 3),
        (dict(type='mmdet.ClassBalancedDataset', dataset=dict(type='X')), 0),
        (dict(datasets=[dict(type='X'), dict(type='Y')]), 1),
        (dict(datasets=[dict(type='RepeatDataset', times=2, dataset=dict(type='X'))]), 0),
    ],
)
def test_repetitions(dataset, times):
    assert repetitions(dataset) == times
