"""Mistakes that would end in the middle of a run are one line before it, with what to set."""

import pytest

from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_model, check_training
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
        (PSPNET, {'model.decode_head.in_channels': 512}, 'set model.decode_head.in_channels=2048'),
        (PSPNET, {'model.decode_head.in_index': 4}, 'model.decode_head.in_index is 4'),
        (PSPNET, {'model.auxiliary_head.in_index': 1}, 'set model.auxiliary_head.in_channels=512'),
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


def test_what_mmseg_and_mmengine_take_is_taken():
    cfg = load_config(SHAPES)
    down = dict(type='YOLOV3Neck', in_channels=[1024, 512, 256, 128])
    cfg.model.neck = down  # from the highest level
    for head in (cfg.model.rpn_head, cfg.model.roi_head):
        head.pop('in_channels', None)
    check_model(cfg)
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=None, begin=None, end=None)]
    assert check_training(cfg, 100) == []
