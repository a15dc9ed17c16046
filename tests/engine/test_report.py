"""The lines that a run starts with."""

import pytest
from running import loaded

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.report import describe_batch, preprocessing_warnings
from res2net_mm.engine.runner import prepare_config


def test_batch_and_learning_rate():
    cfg = loaded('faster_rcnn_r2n50.py')
    cfg.train_dataloader.batch_size = 4
    line = describe_batch(cfg)
    assert line.startswith('batch: 4 images a step (4 x 1 processes); learning rate 0.02. WARNING')
    assert 'meant for 16 images; pass --auto-scale-lr' in line and 'lr to 0.005' in line
    assert 'x 4/16 (scaled)' in describe_batch(prepare_config(cfg, auto_scale_lr=True))
    cfg.optim_wrapper.accumulative_counts = 4
    assert describe_batch(cfg) == (
        'batch: 16 images a step (4 x 1 processes x 4 accumulated); learning rate 0.02'
    )
    scaled = describe_batch(prepare_config(cfg, auto_scale_lr=True))
    assert scaled.endswith('learning rate 0.02 x 16/16 (scaled) = 0.02')
    cfg.train_dataloader.batch_size = 0
    with pytest.raises(ValueError, match='train_dataloader.batch_size must be a positive integer'):
        describe_batch(cfg)
    cfg.train_dataloader.pop('batch_size')
    with pytest.raises(ValueError, match='train_dataloader.batch_size .* got None'):
        describe_batch(cfg)
    cfg.pop('train_dataloader')
    with pytest.raises(ToolError, match='no train_dataloader, which training needs'):
        describe_batch(cfg)


def test_preprocessing_that_published_weights_do_not_fit():
    cfg = loaded('faster_rcnn_r2n50.py')
    assert preprocessing_warnings(cfg) == []
    cfg.model.data_preprocessor.update(bgr_to_rgb=False, mean=[0, 0, 0])
    lines = preprocessing_warnings(cfg)
    assert len(lines) == 2 and 'bgr_to_rgb is False' in lines[1] and 'v1b' in lines[1]
    cfg.model.backbone.init_cfg = None
    assert preprocessing_warnings(cfg) == []
