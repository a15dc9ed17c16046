"""Epochs, batch and size: everything in a config that is timed or sized by them follows."""

from argparse import Namespace

import pytest
from mmengine.config import ConfigDict
from running import loaded

from res2net_mm.engine.adapting import adapt, set_epochs, set_size
from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_training
from res2net_mm.engine.errors import ToolError


def arguments(**given):
    names = 'data data_format classes ignore_label epochs batch size resume cfg_options work_dir'
    return Namespace(**{**dict.fromkeys(names.split()), **given})


def test_epochs_of_a_schedule_with_steps():
    cfg = loaded('faster_rcnn_r2n50')  # 12 epochs, milestones 8 and 11, warm-up of 500 steps
    assert adapt(cfg, arguments(epochs=36)) == ['schedule: 36 epochs']
    assert cfg.train_cfg.max_epochs == 36
    warm_up, steps = cfg.param_scheduler
    assert (steps.milestones, steps.end, warm_up.end) == ([24, 33], 36, 500)
    cfg = loaded('faster_rcnn_r2n50')
    (line,) = set_epochs(cfg, 6, 160)  # 16 a step are 2 here: 80 steps an epoch
    assert line == f'schedule: {6 * 80:,} steps of 2 images, 6 epochs'
    assert cfg.param_scheduler[0].end == 160 and cfg.param_scheduler[1].milestones == [4, 5]
    assert not check_training(cfg, 160)


@pytest.mark.parametrize(
    ('epochs', 'steps'), [(24, [16, 22]), (6, [4, 5]), (4, [2, 3]), (3, [1, 2]), (2, [1]), (1, [])]
)
def test_steps_of_the_learning_rate_stay_within_the_run(epochs, steps):
    cfg = loaded('faster_rcnn_r2n50')
    line, *notes = set_epochs(cfg, epochs, 160)
    assert line.startswith(f'schedule: {80 * epochs:,} steps of 2 images, {epochs} epoch')
    assert cfg.param_scheduler[1].milestones == steps
    left = f'of its steps at [8, 11], {steps or "none"} are left'
    short = f'note: the run is too short for all learning rates: {left}'
    assert notes == ([short] if len(steps) < 2 else [])


def test_epochs_of_repeated_data():
    cfg = loaded('sem_fpn_r2n14_camvid')
    data = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=data)
    batch = cfg.train_dataloader.batch_size
    assert set_epochs(cfg, 2, 8 * batch)[0].startswith(
        f'schedule: 48 steps of {batch} images, 2 ep'
    )


def test_epochs_of_a_cosine():
    cfg = loaded('faster_rcnn_r2n14_shapes')
    set_epochs(cfg, 2, 1600)
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == 2
    assert cfg.param_scheduler[1].T_max == 2 and cfg.param_scheduler[0].end == 50
    assert not check_training(cfg, 1600)


def test_epochs_of_a_run_by_steps():
    cfg = loaded('sem_fpn_r2n50_ade20k')  # 160,000 steps of 4 images
    (line,) = set_epochs(cfg, 20, 100)
    assert line == 'schedule: 500 steps of 4 images, 20 epochs'
    assert cfg.train_cfg.max_iters == 500 and cfg.param_scheduler[0].end == 500
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 12
    cfg = loaded('sem_fpn_r2n50_ade20k')
    assert set_epochs(cfg, None, 100) == ['schedule: 160,000 steps of 4 images, 6400 epochs']
    with pytest.raises(ToolError, match='how many images .* set --cfg-options train_cfg.max_iters'):
        set_epochs(cfg, 20, 0)


def test_epochs_with_accumulated_gradients():
    """A step of the schedule is one batch, however many of them make an update."""
    cfg = loaded('sem_fpn_r2n14_camvid')
    cfg.train_dataloader.batch_size = 8
    cfg.optim_wrapper.accumulative_counts = 4
    assert set_epochs(cfg, 10, 400) == ['schedule: 500 steps of 8 images, 10 epochs']
    assert cfg.train_cfg.max_iters == 500


def test_sizes_with_the_short_side_first():
    cfg = loaded('faster_rcnn_r2n50')
    step = dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)], keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline[2] = step
    set_size(cfg, 1333, 800)
    assert cfg.train_dataloader.dataset.pipeline[2]['scales'] == [(480, 1333), (800, 1333)]


def test_switches():
    cfg = loaded('faster_rcnn_r2n50')
    cfg.custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch=9, switch_pipeline=[])]
    set_epochs(cfg, 24, 100)
    assert cfg.custom_hooks[0].switch_epoch == 18
    set_epochs(cfg, 2, 100)  # the second part of a run does not vanish
    assert cfg.custom_hooks[0].switch_epoch == 1


@pytest.mark.parametrize('epochs', [1, 2, 3, 5, 8, 10, 30])
def test_schedules_that_end_a_run(epochs):
    """As YOLOX has them: a warm-up, a cosine, and a constant rate without mosaic at the end."""
    cfg = loaded('faster_rcnn_r2n50')
    cfg.train_cfg.max_epochs = 300
    cfg.param_scheduler = [
        dict(type='mmdet.QuadraticWarmupLR', by_epoch=True, begin=0, end=5),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=5, T_max=285, end=285),
        dict(type='ConstantLR', by_epoch=True, factor=1, begin=285, end=300),
    ]
    cfg.custom_hooks = [dict(type='YOLOXModeSwitchHook', num_last_epochs=15)]
    cfg.default_hooks.checkpoint.interval = 10
    set_epochs(cfg, epochs, 160)
    assert cfg.custom_hooks[0].num_last_epochs < epochs
    assert 1 <= cfg.default_hooks.checkpoint.interval <= max(1, round(epochs / 30))
    assert all(s.begin < s.end <= epochs for s in cfg.param_scheduler)
    check_training(cfg, 160)


def test_batch():
    cfg = loaded('faster_rcnn_r2n50')
    adapt(cfg, arguments(batch=4))
    assert cfg.train_dataloader.batch_size == 4 and cfg.auto_scale_lr.enable
    cfg.pop('auto_scale_lr')
    assert 'the learning rate stays' in adapt(cfg, arguments(batch=4))[0]
    with pytest.raises(ValueError, match='--batch must be a positive integer, but got 0'):
        adapt(cfg, arguments(batch=0))


def test_size_of_detectors():
    cfg = loaded('faster_rcnn_r2n50')
    set_size(cfg, 640, 480)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        scales = [step.scale for step in loader.dataset.pipeline if step.type == 'Resize']
        assert scales == [(640, 480)]
    cfg = loaded('vfnet_r2n101_dcn')  # from 1333 x 480 to 1333 x 960
    set_size(cfg, 640, 480)
    assert [step.scale for step in cfg.train_dataloader.dataset.pipeline
            if step.type == 'RandomResize'] == [[(640, 240), (640, 480)]]  # fmt: skip


def test_size_of_segmentors():
    cfg = loaded('sem_fpn_r2n50_ade20k')
    set_size(cfg, 800, 400)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomResize'].scale == (800, 400)
    assert steps['RandomCrop'].crop_size == cfg.model.data_preprocessor.size == (400, 512)
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline = []
    cfg.test_dataloader.dataset.pipeline = []
    with pytest.raises(ToolError, match='--size: no Resize'):
        set_size(cfg, 800, 400)


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Pad', size=(640, 640)),
        dict(type='CachedMosaic', img_scale=(640, 640)),
        dict(type='RandomChoiceResize', scales=[256, 320], resize_type='ResizeShortestEdge'),
    ],
)
def test_sizes_that_cannot_follow_are_refused(step):
    cfg = loaded('faster_rcnn_r2n50')
    hook = dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=[step])
    cfg.custom_hooks = [ConfigDict(hook)]
    with pytest.raises(ToolError, match=f'--size cannot set .* of {step["type"]}'):
        set_size(cfg, 320, 320)
    step = ConfigDict(type='Resize', scale=640)
    cfg.custom_hooks = [ConfigDict(hook, switch_pipeline=[step])]
    set_size(cfg, 320, 240)
    assert cfg.custom_hooks[0].switch_pipeline[0].scale == (320, 240)


def test_options_of_data_without_data():
    with pytest.raises(ToolError, match='belong to --data'):
        adapt(loaded('faster_rcnn_r2n50'), arguments(classes=['a']))


def test_cfg_options_have_the_last_word():
    options = {'train_cfg.max_epochs': 5}
    cfg = load_config('faster_rcnn_r2n50', options)
    adapt(cfg, arguments(epochs=24, cfg_options=options))
    assert cfg.train_cfg.max_epochs == 5


def test_size_of_classifiers():
    cfg = loaded('res2net14_cells')
    set_size(cfg, 96, 80)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomResizedCrop'].scale == (96, 80)
    with pytest.raises(ToolError, match='--size: no Resize.* is in the pipeline of val'):
        set_size(loaded('res2net50_v1b_in1k'), 192, 192)
