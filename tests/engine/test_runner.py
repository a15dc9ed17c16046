"""A tool's arguments and the safeguards in a config."""

import mmengine.runner
import pytest
from mmengine.config import Config

from res2net_mm.engine import runner as module
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError, is_mistake
from res2net_mm.engine.runner import HOOKS, add_safeguards, build_runner, prepare_config
from res2net_mm.engine.safe_runner import Runner


def test_prepare_config(tmp_path):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    prepared = prepare_config(cfg)
    assert prepared.work_dir == 'work_dirs/faster_rcnn_r2n14_shapes' and 'work_dir' not in cfg
    first = prepared.train_dataloader.dataset.pipeline[0].type
    assert first == 'res2net_mm.LoadImageFromFile'
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    cfg.pop('randomness')
    assert isinstance(prepare_config(cfg).randomness['seed'], int)
    cfg.pop('auto_scale_lr')
    with pytest.raises(ToolError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        prepare_config(cfg, auto_scale_lr=True)
    with pytest.raises(FileNotFoundError, match='nothing.pth does not exist'):
        prepare_config(cfg, resume=str(tmp_path / 'nothing.pth'))
    cfg.load_from = str(tmp_path / 'nothing.pth')
    with pytest.raises(FileNotFoundError, match='load_from .*nothing.pth'):
        prepare_config(cfg)


def test_mixed_precision(monkeypatch):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')

    def wrapper_on(device):
        monkeypatch.setattr(module, 'get_device', lambda: device)
        return prepare_config(cfg, amp=True).optim_wrapper

    on_gpu, on_cpu = wrapper_on('cuda'), wrapper_on('cpu')
    assert on_gpu == dict(cfg.optim_wrapper, type='AmpOptimWrapper', loss_scale='dynamic')
    assert on_cpu == dict(cfg.optim_wrapper, type='res2net_mm.CPUAmpOptimWrapper')
    with pytest.raises(ToolError, match='for CUDA devices and CPUs, and the device here is mps'):
        wrapper_on('mps')
    said = []
    monkeypatch.setattr(module, 'warn', said.append)
    cfg.optim_wrapper = dict(on_gpu, dtype='float16')  # as a config for GPUs may have it
    assert wrapper_on('cpu') == on_cpu == prepare_config(cfg).optim_wrapper
    assert all(any(f'optim_wrapper.{key} is' in s for s in said) for key in ('loss_scale', 'dtype'))
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ToolError, match='optim_wrapper.type OptimWrapper.* has ApexOptimWrapper'):
        wrapper_on('cpu')
    del cfg.optim_wrapper.type  # mmengine's default is the right one
    assert wrapper_on('cpu') == on_cpu
    cfg.pop('optim_wrapper')
    with pytest.raises(ToolError, match='--amp needs optim_wrapper.type OptimWrapper.* has None'):
        wrapper_on('cpu')


def test_safeguards_are_named_one_line_each():
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    lines = dict(line.split(': ', 1) for line in add_safeguards(cfg))
    assert lines['val_dataloader, test_dataloader'] == (
        'LoadImageFromFile -> res2net_mm.LoadImageFromFile'
    )
    assert lines['val_evaluator, test_evaluator'].startswith('CocoMetric -> res2net_mm.CocoMetric')
    assert lines['custom_hooks'].count('res2net_mm.') == len(HOOKS)
    again = dict(line.split(': ', 1) for line in add_safeguards(cfg))
    assert set(again) == {'train_dataloader', 'default_hooks.checkpoint'}, "the Runner's own"


@pytest.mark.parametrize(
    ('option', 'word'),
    [
        ({'model.backbone.type': 'Res3Net'}, 'Res3Net'),
        ({'model.backbone.depth': 51}, 'depth'),
        ({'model.neck.num_outs': 'five'}, 'num_outs .*must be a number'),
        ({'train_dataloader.batchsize': 2}, "unexpected keyword argument 'batchsize'"),
        ({'train_dataloader.sampler.type': 'NoSampler'}, 'NoSampler'),
        (
            {'optim_wrapper.optimizer.type': 'Adan'},
            'optim_wrapper.optimizer.type of the config: there is no .*Adan',
        ),
        (
            {'visualizer.vis_backends.0.type': 'TensorboardBackend'},
            'vis_backends.0.type .*TensorboardBackend.* TensorboardVisBackend',
        ),
        ({'test_evaluator.metric': 'box'}, 'box'),
    ],
)
def test_a_mistake_in_a_config_is_one_line(tiny_options, tmp_path, option, word):
    """Whether mmengine, mmdet or this package finds it, and whenever that part is built."""
    cfg = load_config('faster_rcnn_r2n14_shapes.py', tiny_options)
    cfg.merge_from_dict(option)
    with pytest.raises(Exception, match=word) as caught:
        runner = build_runner(prepare_config(cfg, work_dir=str(tmp_path)))
        runner.train() if 'train' in str(option) or 'optim' in str(option) else runner.test()
    assert is_mistake(caught.value)


def test_from_scratch_no_part_learns_as_if_it_was_pretrained(capsys):
    cfg = load_config('faster_rcnn_r2n50_vd_ssld.py')
    cfg.load_from = 'https://example.com/x.pth'
    cfg.model.neck.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    cfg = prepare_config(cfg, from_scratch=True)
    assert cfg.load_from is None and cfg.model.neck.init_cfg is None
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys and not any('lr_mult' in values for values in keys.values())


def test_what_mixed_precision_and_scaling_cannot_do():
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    wrapper = cfg.optim_wrapper
    cfg.optim_wrapper = dict(constructor='X', backbone=wrapper, rest=wrapper)
    with pytest.raises(ToolError, match='--amp needs .* but the config has several optimizers'):
        prepare_config(cfg, amp=True)
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    cfg.auto_scale_lr = dict(base_batch_size=16)
    cfg.param_scheduler = [dict(type='OneCycleLR', eta_max=0.1, total_steps=9, by_epoch=False)]
    with pytest.raises(ToolError, match='cannot scale param_scheduler.0: set its eta_max'):
        prepare_config(cfg, auto_scale_lr=True)


def test_runners_of_others_are_refused():
    cfg = load_config('faster_rcnn_r2n14_shapes.py', {'runner_type': 'FlexibleRunner'})
    with pytest.raises(ToolError, match="runner_type='FlexibleRunner'.*a Runner of their own"):
        build_runner(cfg)
    with pytest.raises(ToolError, match='strategy='):
        build_runner(load_config('faster_rcnn_r2n14_shapes', {'strategy.type': 'DDPStrategy'}))


def test_a_resumed_run_builds_no_pretrained_weights_and_writes_them(tmp_path, monkeypatch):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    start = dict(type='Pretrained', checkpoint='res2net://res2net50_v1b_26w_4s')
    cfg.model.backbone.init_cfg = start
    cfg.load_from, cfg.resume = 'interrupted.pth', True
    runner = Runner.__new__(Runner)
    runner.cfg, runner._work_dir, runner.started_from = cfg, str(tmp_path), 'start.pth'
    assert 'Pretrained' not in str(runner.build_model(cfg.model).backbone.init_cfg)
    during = []
    monkeypatch.setattr(
        mmengine.runner.Runner, 'train', lambda self: during.append(self.cfg.resume)
    )
    monkeypatch.setattr(Runner, 'register_hook', lambda self, hook: None)
    runner.train()
    written = Config.fromfile(tmp_path / 'faster_rcnn_r2n14_shapes.py')
    assert (written.resume, written.load_from) == (False, 'start.pth') and during == [True]
    assert written.model.backbone.init_cfg == start
