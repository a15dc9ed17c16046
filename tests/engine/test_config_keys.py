"""Keys that nothing reads are errors with the nearest that is; valid configs are none."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest
from torch import nn

from res2net_mm.data.sets.nodes import type_name
from res2net_mm.engine.classes import KEY
from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_keys import check_arguments, check_keys, check_options
from res2net_mm.engine.errors import ToolError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SHAPES = 'faster_rcnn_r2n14_shapes.py'


@pytest.fixture(scope='module')
def shapes_config():
    return load_config(SHAPES)


def apply(cfg, options):
    """What a tool does with options, without reading the file again."""
    check_options(cfg, options)
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(options)
    check_keys(cfg)
    check_arguments(cfg)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet/rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'mmdet/yolox/yolox_s_8xb8-300e_coco.py',
        'mmdet/detr/detr_r50_8xb2-150e_coco.py',
        'mmdet/vfnet/vfnet_r50_fpn_ms-2x_coco.py',
        'mmdet/pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
        'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'mmdet/soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
        'mmseg/pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'mmseg/mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        'mmseg/beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
        'mmseg/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    ],
)
def test_configs_of_others_are_read(name):
    package, _, file = name.partition('/')
    folder = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'
    check_arguments(load_config(folder / file))


@pytest.mark.parametrize(
    ('option', 'nearest'),
    [
        ('optim_wraper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('randomnes.seed', 'randomness.seed'),
        ('randomness.sed', 'randomness.seed'),
        ('max_epochs', 'train_cfg.max_epochs'),
        ('lr', 'optim_wrapper.optimizer.lr'),
        ('data_root', 'train_dataloader.dataset.data_root'),
        ('train_pipeline.1.with_bbox', 'train_dataloader.dataset.pipeline.1.with_bbox'),
        ('data_preprocessor.mean', 'model.data_preprocessor.mean'),
        ('train_dataloader.batchsize', 'train_dataloader.batch_size'),
        ('train_cfg.max_epoch', 'train_cfg.max_epochs'),
        ('env_cfg.cudnn_benchmar', 'env_cfg.cudnn_benchmark'),
        ('env_cfg.mp_cfg.start_method', 'env_cfg.mp_cfg.mp_start_method'),
        ('auto_scale_lr.base_batchsize', 'auto_scale_lr.base_batch_size'),
        ('default_hooks.chekpoint.interval', 'default_hooks.checkpoint'),
        ('default_hooks.checkpoint.intervall', 'default_hooks.checkpoint.interval'),
        ('optim_wrapper.accumulative_count', 'optim_wrapper.accumulative_counts'),
        ('optim_wrapper.paramwise_cfg.norm_decay_multi', 'paramwise_cfg.norm_decay_mult'),
        ('model.test_cfg.rcnn.score_threshold', 'model.test_cfg.rcnn.score_thr'),
        ('model.test_cfg.score_thr', 'model.test_cfg.rcnn.score_thr'),
        ('model.rpn_head.feat_chanels', 'model.rpn_head.feat_channels'),
        ('train_dataloader.dataset.ann_fil', 'train_dataloader.dataset.ann_file'),
    ],
)
def test_options_that_nothing_reads(shapes_config, option, nearest):
    with pytest.raises(ToolError) as caught:
        apply(shapes_config, {option: 1})
    named, hint = re.split('did you mean|Set', str(caught.value))
    assert option.split('.')[0] in named and nearest in hint


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('model.test_cfg.rcnn.mask_thr_binary', 0.4),  # new, and read by mask heads
        ('optim_wrapper.paramwise_cfg.custom_keys.mine.lr_mult', 0.1),
        ('default_hooks.mine.type', 'EMAHook'),
        ('find_unused_parameters', True),
        ('custom_hooks', [{'type': 'EMAHook', 'momentum': 0.1}]),
        ('train_dataloader.dataset.pipeline.2.keep_ratio', False),
        ('model.backbone.norm_cfg', {'type': 'BN', 'requires_grad': False}),
    ],
)
def test_options_that_are_read(shapes_config, option, value):
    apply(shapes_config, {option: value})


def test_variables_of_a_file_are_its_own_affair(tmp_path):
    path = tmp_path / 'mine.py'
    base = f'_base_ = {str(CONFIGS / SHAPES)!r}\n'
    variables = 'num_epochs = 3\nmy_models = 1\nloader = dict(batchsize=1)\n'
    path.write_text(base + variables + 'val_evaluator_dice = 1\ntrain_dataloader2 = 2\n')
    load_config(path)
    imports = (
        'from mmengine.config import read_base\nfrom mmengine.hooks import ParamSchedulerHook\n'
    )
    scheduler = 'default_hooks = dict(param_scheduler=dict(type=ParamSchedulerHook))\n'
    path.write_text(imports + scheduler)
    assert (
        type_name(load_config(path).default_hooks.param_scheduler) == 'mmengine.ParamSchedulerHook'
    )
    for key in (
        'randomnes',
        'custom_hook',
        'optim_wraper',
        'train_dataloaders',
        'model_',
        'val_dataloader_cfg',
    ):
        path.write_text(base + f'{key} = dict()\n')
        with pytest.raises(ToolError, match=f'nothing reads {key} of the config; did you mean '):
            load_config(path)


@pytest.mark.parametrize('key', ['score_thresh', 'score-thr', 'score thr', '宽度'])
def test_settings_of_a_model_in_a_file(shapes_config, key):
    cfg = copy.deepcopy(shapes_config)
    cfg.model.test_cfg.rcnn[key] = cfg.model.test_cfg.rcnn.pop('score_thr')
    with pytest.raises(ToolError, match=f'nothing reads model.test_cfg.rcnn.{key}'):
        check_arguments(cfg)


def test_a_wrapper_of_data_sets_has_no_data_root(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f'_base_ = {str(CONFIGS / SHAPES)!r}\n'
        'part = {{_base_.train_dataloader.dataset}}\n'
        "both = dict(_delete_=True, type='ConcatDataset', datasets=[part, part])\n"
        'train_dataloader = dict(dataset=both)'
    )
    with pytest.raises(ToolError, match=r'dataset.data_root.*dataset.datasets.0.data_root'):
        load_config(path, {'train_dataloader.dataset.data_root': 'x'})


@pytest.mark.parametrize('value', ['data', 'names', ['disc', 'star']])
def test_the_key_that_messages_of_classes_name_can_be_set(value):
    assert load_config(SHAPES, {KEY: value})[KEY] == value


class Popping(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.width = kwargs.pop('gamma_quux')


def test_what_a_class_of_the_users_pops_is_read(shapes_config):
    cfg = copy.deepcopy(shapes_config)
    cfg.model.neck = dict(type=Popping, gamma_quux=3)
    check_arguments(cfg)
    other = 'gama' + '_quux'  # which this file, where the class is, does not hold
    cfg.model.neck = {'type': Popping, other: 3}
    with pytest.raises(ToolError, match=f'nothing reads model.neck.{other}'):
        check_arguments(cfg)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (
            {'train_cfg.max_epochs': 'x'},
            "train_cfg.max_epochs must be a number such as 6, but is 'x'",
        ),
        ({'train_cfg.val_begin': 'x'}, "train_cfg.val_begin .* must be a number, but is 'x'"),
        ({'train_dataloader.batch_size': 'many'}, 'batch_size must be a number such as 8'),
        ({'optim_wrapper': 3}, 'optim_wrapper must be a dict, but is 3; set optim_wrapper.type'),
        ({'model.rpn_head.feat_channels': {'a': 1}}, 'feat_channels must be a number such as 64'),
    ],
)
def test_values_of_another_sort(shapes_config, options, words):
    with pytest.raises(ToolError, match=words):
        apply(shapes_config, options)


@pytest.mark.parametrize(
    'options',
    [
        {'load_from': 'x.pth'},
        {'model.backbone.out_indices': [0, 1]},
        {'model.neck': None},
        {'optim_wrapper.optimizer.lr': 1},
        {'val_evaluator.metric': ['bbox', 'segm']},
    ],
)
def test_values_of_a_sort_that_fits(shapes_config, options):
    apply(shapes_config, options)


@pytest.mark.parametrize('key', ['backbone.norm_cfg', 'neck.conv_cfg'])
def test_layers_that_there_are_not(key):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    cfg.merge_from_dict({f'model.{key}': dict(type='BM')})
    with pytest.raises(ToolError, match=f"model.{key}.type of the config: there is no 'BM'; did"):
        check_arguments(cfg)
