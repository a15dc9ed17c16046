"""What a run shows and keeps: progress, validation loss, best checkpoints, early stop, loggers."""

import importlib.util
import io
import json
import logging
import random
import re
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook, IterTimerHook
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from res2net_mm.data.check.inspection import check_data
from res2net_mm.data.check.survey import SplitSummary
from res2net_mm.engine.checkpoints import check_new_run
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.runner import build_runner, prepare_config
from res2net_mm.engine.watching import (
    EarlyStopHook,
    ProgressHook,
    ReportHook,
    loss_loader,
    watch_run,
)
from res2net_mm.evaluation.tables import main_metric

CONFIG = 'faster_rcnn_r2n14_shapes.py'


@pytest.fixture(scope='module')
def prepared(tiny_options, tmp_path_factory):
    """A function that prepares the tiny detector, two epochs of one process, with changes."""

    def prepare(log=(), **changes):
        options = {
            **tiny_options,
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 1,
            **{f'{s}_dataloader.num_workers': 0 for s in ('train', 'val', 'test')},
            **{f'{s}_dataloader.persistent_workers': False for s in ('train', 'val', 'test')},
            **changes,
        }
        folder = str(tmp_path_factory.mktemp('run'))
        cfg = prepare_config(load_config(CONFIG, options), work_dir=folder)
        cfg.experiment_name = cfg.visualizer.name = folder  # mmengine keeps both by name
        watch_run(cfg, check_data(cfg), log=log)
        return cfg

    return prepare


def images(train, val):
    return [SplitSummary('train', images=train), SplitSummary('val', images=val)]


def bare(**loop):
    return Config(
        dict(
            train_cfg=dict(loop),
            val_cfg=dict(),
            train_dataloader=dict(batch_size=4, dataset=dict()),
            val_dataloader=dict(dataset=dict()),
            default_hooks=dict(checkpoint=dict(interval=1), logger=dict(interval=50)),
        )
    )


def test_small_sets_are_validated_each_epoch():
    cfg = bare(max_epochs=12, val_interval=12)
    (line, kept) = watch_run(cfg, images(200, 80))
    assert cfg.train_cfg.val_interval == 1 and 'each epoch, as the set has only 80' in line
    assert 'val_interval=12 keeps that' in line and 'the last two and the best' in kept
    told = {'train_cfg.val_interval': 9}
    for train, val, given in ((200, 101, {}), (9000, 1001, {}), (200, 80, told)):
        cfg = bare(max_epochs=12, val_interval=12)
        watch_run(cfg, images(train, val), given=given)
        assert cfg.train_cfg.val_interval == 12
    cfg = bare(max_iters=600, val_interval=600)  # an epoch has 50 iterations
    watch_run(cfg, images(200, 80))
    assert cfg.train_cfg.val_interval == 60
    assert cfg.default_hooks.logger.interval == 5


def test_what_the_config_says_about_checkpoints_stays():
    cfg = bare(max_epochs=1)
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=-1, save_best=None)
    assert watch_run(cfg, images(200, 80)) == []
    assert cfg.default_hooks.checkpoint == dict(interval=1, max_keep_ckpts=-1, save_best=None)
    cfg.default_hooks.checkpoint = None  # mmengine's way to leave one out
    again = watch_run(cfg, images(200, 80), early_stop=3)
    assert 'after 3 validations' in again[-1]
    kinds = [hook['type'].rpartition('.')[2] for hook in cfg.custom_hooks]
    assert sorted(kinds) == ['EarlyStopHook', 'ProgressHook', 'ReportHook', 'ValLossHook']


def test_mistakes_are_one_line(tmp_path):
    cfg = bare(max_epochs=1)
    with pytest.raises(ValueError, match='--early-stop must be a positive integer'):
        watch_run(cfg, images(200, 80), early_stop=0)
    with pytest.raises(ToolError, match='--log wandb needs the package'):
        watch_run(cfg, images(200, 80), log=['wandb'])
    cfg.val_cfg = None
    with pytest.raises(ToolError, match='needs a validation set'):
        watch_run(cfg, images(200, 80), early_stop=1)
    cfg.work_dir = str(tmp_path / 'w')
    check_new_run(cfg)
    (tmp_path / 'w').mkdir()
    (tmp_path / 'w_2').mkdir()
    (tmp_path / 'w' / 'epoch_3.pth').touch()
    with pytest.raises(ToolError, match=r'w holds a run.*--resume.*--work-dir \S+w_3$'):
        check_new_run(cfg)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'w' / 'epoch_3.pth')
    check_new_run(cfg)
    cfg.load_from = str(tmp_path / 'another' / 'epoch_3.pth')  # a run of another folder
    with pytest.raises(ToolError, match='w holds a run'):
        check_new_run(cfg)
    (tmp_path / 'w_2' / 'best_mIoU_iter_8.pth').touch()
    cfg.work_dir = str(tmp_path / 'w_2')
    with pytest.raises(ToolError, match='w_2 holds a run'):
        check_new_run(cfg)
    cfg.work_dir = str(tmp_path / 'empty')
    check_new_run(cfg)


@pytest.mark.parametrize(
    ('names', 'main'),
    [
        (['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP'], 'coco/bbox_mAP'),
        (['aAcc', 'mIoU', 'mAcc', 'road_IoU'], 'mIoU'),
        (['pascal_voc/mAP', 'pascal_voc/AP50'], 'pascal_voc/mAP'),
        (['coco_panoptic/PQ', 'coco_panoptic/SQ'], 'coco_panoptic/PQ'),
        (['accuracy/top1'], 'accuracy/top1'),
        (['dog_precision', 'val_loss'], None),
    ],
)
def test_main_metric(names, main):
    assert main_metric(names) == main


class State(Hook):
    """Notes weights, buffers and generators around the hooks of a validation."""

    def __init__(self, priority, seen):
        self.priority, self.seen = priority, seen

    def after_val_epoch(self, runner, metrics=None):
        state = {key: value.clone() for key, value in runner.model.state_dict().items()}
        generators = random.random(), np.random.rand(), torch.rand(1).item()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        self.seen.append((state, generators))


def test_validation_loss_is_that_of_training_and_touches_nothing(prepared):
    changes = {}
    for part in ('rpn', 'rcnn'):  # samplers that take all draw nothing
        changes[f'model.train_cfg.{part}.sampler.num'] = 10**6
        changes[f'model.train_cfg.{part}.sampler.pos_fraction'] = 1.0
    cfg = prepared(**{'train_cfg.max_epochs': 1, **changes})
    runner = build_runner(cfg)
    seen = []
    runner.register_hook(State(39, seen), priority=39)
    runner.register_hook(State(41, seen), priority=41)
    runner.train()
    (before, _), (after, drawn) = seen
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())

    record = [json.loads(line) for line in scalars(runner).read_text().splitlines()]
    (logged,) = [r for r in record if 'val_loss' in r]
    parts = sum(logged[k] for k in logged if k.startswith('val_') and k != 'val_loss')
    assert logged['val_loss'] == pytest.approx(parts, rel=1e-5) and logged['iter'] == 4

    steps = cfg.train_dataloader.dataset.pipeline
    (resize,) = [s for s in cfg.val_dataloader.dataset.pipeline if s['type'] == 'Resize']
    pipeline = [resize if s['type'] == 'Resize' else s for s in steps if s['type'] != 'RandomFlip']
    assert len(pipeline) == len(steps) - 1
    dataset = DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=pipeline))
    model, total = runner.model.eval(), 0.0
    for start in range(0, len(dataset), 4):
        batch = [dataset[i] for i in range(start, min(start + 4, len(dataset)))]
        keys = ('inputs', 'data_samples')
        data = model.data_preprocessor({key: [part[key] for part in batch] for key in keys}, True)
        with torch.no_grad():
            losses = model.loss(data['inputs'], data['data_samples'])
        values = [v for name, v in losses.items() if 'loss' in name]
        flat = [part for v in values for part in (v if isinstance(v, list) else [v])]
        total += sum(map(float, flat)) * len(batch)
    assert logged['val_loss'] == pytest.approx(total / len(dataset), rel=1e-5)


def test_validation_loss_of_a_head_that_differs_when_it_predicts(prepared):
    """mmdet's FCOS multiplies boxes by their stride then, and SOLO suppresses scores."""
    cfg = prepared(**{'train_cfg.max_epochs': 1})
    runner = build_runner(cfg)
    modes = []

    def note(module, args, kwargs):
        if kwargs.get('mode') == 'loss' and not torch.is_grad_enabled():
            norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            modes.append(
                (module.training, module.rpn_head.training, any(n.training for n in norms))
            )

    runner.model.register_forward_pre_hook(note, with_kwargs=True)
    runner.train()
    assert {*modes} == {(True, True, False)}


def scalars(runner):
    return Path(runner.log_dir, 'vis_data', 'scalars.json')


def test_report_of_a_map_with_one_channel(tmp_path):
    """mmseg's prediction of such a head is in floats."""
    hook = ReportHook()
    hook.trains = True
    runner = SimpleNamespace(val_evaluator=SimpleNamespace(metrics=[SimpleNamespace()]))
    sample = SegDataSample(metainfo=dict(img_path='a.jpg'))
    sample.gt_sem_seg = PixelData(data=torch.ones(1, 8, 8, dtype=torch.long))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 8, 8))
    hook.after_val_iter(runner, outputs=[sample])
    (found,) = hook.worst
    assert found['accuracy'] == 1 and found['predicted'].dtype == found['truth'].dtype == np.int64


def test_pipeline_of_the_loss():
    cfg = Config(
        dict(
            train_dataloader=dict(
                batch_size=3,
                dataset=dict(
                    type='RepeatDataset',
                    dataset=dict(
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                            dict(type='res2net_mm.DropEmptyBoxes'),
                            dict(type='RandomFlip'),
                            dict(type='PackDetInputs'),
                        ]
                    ),
                ),
            ),
            val_dataloader=dict(
                batch_size=1,
                dataset=dict(
                    pipeline=[
                        dict(type='res2net_mm.LoadImageFromFile'),
                        dict(type='Resize', scale=(64, 64)),
                        dict(type='LoadAnnotations', with_bbox=True),
                        dict(type='res2net_mm.CheckLabelMap'),  # of maps that are not resized
                        dict(type='PackDetInputs', meta_keys=('img_id',)),
                    ]
                ),
            ),
        )
    )
    loader = loss_loader(cfg)
    steps = loader.dataset.pipeline
    assert [step.type.rpartition('.')[2] for step in steps] == [
        'LoadImageFromFile', 'LoadAnnotations', 'DropEmptyBoxes', 'Resize', 'PackDetInputs'
    ]  # fmt: skip
    assert steps[1].with_mask and 'meta_keys' not in steps[-1] and loader.batch_size == 3
    assert len(cfg.val_dataloader.dataset.pipeline) == 5
    cfg.train_dataloader.dataset.dataset.pipeline[-1].type = 'PackSegInputs'
    assert loss_loader(cfg).batch_size == 1


def test_what_fails_is_said_and_training_goes_on(prepared, monkeypatch):
    cfg = prepared()
    runner = build_runner(cfg)
    Path(cfg.work_dir, 'report.html').mkdir()
    real = type(runner.model).parse_losses
    said = []
    monkeypatch.setattr(logging.Logger, 'log', lambda self, level, text: said.append(text))

    def broken(self, losses):
        if not torch.is_grad_enabled():
            raise RuntimeError('no loss without gradients')
        return real(self, losses)

    monkeypatch.setattr(type(runner.model), 'parse_losses', broken)
    runner.train()
    once = 'no validation loss: no loss without gradients; training goes on'
    assert [t for t in said if 'validation loss' in t] == [once]
    assert 'val_loss' not in scalars(runner).read_text() and runner.epoch == 2
    line = r'no report: \w+: .*report.html.*; training goes on'
    assert any(re.match(line, text) for text in said), said
    assert Path(cfg.work_dir, 'epoch_2.pth').exists()


class Hub:
    def __init__(self):
        self.runtime_info = {}

    def update_info(self, key, value):
        self.runtime_info[key] = value


def test_early_stop_goes_on_counting_when_resumed():
    runner = types.SimpleNamespace(
        train_loop=types.SimpleNamespace(stop_training=False),
        logger=logging.getLogger('none'),
        message_hub=Hub(),
    )
    hook = EarlyStopHook(patience=3)
    for value in (0.1, 0.2, 0.2, 0.15):  # an equal one is not better
        hook.after_val_epoch(runner, {'coco/bbox_mAP_50': 9.0, 'coco/bbox_mAP': value})
    assert not runner.train_loop.stop_training
    resumed = EarlyStopHook(patience=3)
    resumed.before_train(runner)
    resumed.after_val_epoch(runner, {'coco/bbox_mAP': 0.19})
    assert runner.train_loop.stop_training
    better = EarlyStopHook(patience=3)
    better.before_train(runner)
    runner.train_loop.stop_training = False
    better.after_val_epoch(runner, {'coco/bbox_mAP': 0.21})
    assert better.wait_count == 0 and not runner.train_loop.stop_training


class Client(types.ModuleType):
    """Stands for the module of a logging service; notes every call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        if name == 'MlflowException':
            return RuntimeError
        return Recorder(self.calls, name)


class Recorder:
    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def __call__(self, *args, **kwargs):
        self.calls.append((self.name, args, kwargs))

    def __getattr__(self, name):
        return Recorder(self.calls, f'{self.name}.{name}')


@pytest.fixture(scope='module')
def watched(prepared):
    """A run of three epochs on a terminal with every logger; what it showed, and the clients."""
    clients, shown = {name: Client(name) for name in ('wandb', 'mlflow')}, []
    terminal = types.SimpleNamespace(
        write=shown.append,
        flush=lambda: None,
        isatty=lambda: True,
        fileno=lambda: 2,
        encoding='utf-8',
    )
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, client in clients.items():
            patch.setitem(sys.modules, name, client)
        log = ['tensorboard', *clients] if importlib.util.find_spec('tensorboard') else [*clients]
        runner = build_runner(prepared(log, **{'train_cfg.max_epochs': 3}))
        patch.setattr(sys, 'stderr', terminal)
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                patch.setattr(handler, 'stream', printed)
        runner.train()
    return runner, ''.join(shown), printed.getvalue(), clients


def test_report_and_checkpoints_of_a_run(watched):
    runner, folder = watched[0], Path(watched[0].work_dir)
    files = {file.name for file in folder.glob('*.pth')}
    best = {name for name in files if re.fullmatch(r'best_coco_bbox_mAP_epoch_\d\.pth', name)}
    assert files == {'epoch_2.pth', 'epoch_3.pth', *best} and len(best) == 1
    assert (folder / 'last_checkpoint').read_text().endswith('epoch_3.pth')
    page = (folder / 'report.html').read_text()
    assert '12 iterations are logged' in page and 'val_loss' in page and 'AP by class' in page
    assert 'images_per_s' in scalars(runner).read_text()


def test_a_live_line_on_a_terminal(watched):
    runner, text, printed, _ = watched
    # not each step is shown: tqdm leaves out what comes within a tenth of a second
    form = r'epoch [23]/3: .*\d+/12 \[.*<00:0\d, .*loss=\d+(\.\d+)?, lr=\S+, images_per_s=\d+'
    assert re.search(form, text) and 'validating 2/2' in text, text
    assert re.search(r'epoch 3/3: 100%\|.*12/12 \[.*<00:00', text), text
    assert 'Epoch(train)' not in printed and 'Epoch(val)' in printed
    log = next(iter(scalars(runner).parents[1].glob('*.log'))).read_text()
    assert 'Epoch(train)' in log and 'images_per_s: ' in log


def test_tensorboard_holds_losses_and_measures(watched):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    file = scalars(watched[0])
    events = reader.EventAccumulator(str(file.parent))
    events.Reload()
    tags = events.Tags()['scalars']
    assert {'loss', 'lr', 'coco/bbox_mAP', 'val_loss', 'images_per_s'} <= set(tags)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [(r['step'], r['loss']) for r in records if 'loss' in r]
    read = [(event.step, event.value) for event in events.Scalars('loss')]
    assert [step for step, _ in read] == [*range(1, 13)] == [step for step, _ in losses]
    assert [v for _, v in read] == pytest.approx([v for _, v in losses], rel=1e-6)


@pytest.mark.parametrize(('name', 'call'), [('wandb', 'log'), ('mlflow', 'log_metrics')])
def test_other_loggers_get_losses_and_measures(watched, name, call):
    sent = [args[0] for what, args, _ in watched[3][name].calls if what == call]
    assert sum('loss' in values for values in sent) == 12
    assert any('coco/bbox_mAP' in values for values in sent)
    assert any('val_loss' in values for values in sent)


def test_images_a_second_are_of_the_steps_whose_time_is_logged():
    hub = MessageHub.get_instance('images_a_second')
    runner = SimpleNamespace(
        message_hub=hub, log_processor=SimpleNamespace(window_size=3), train_loop=None
    )
    hook = ProgressHook()
    for seconds, images in [(9.0, 4), (1.0, 4), (3.0, 4), (1.0, 2)]:  # loading comes in bursts
        hub.update_scalar('train/time', seconds)
        hook.after_train_iter(runner, 0, dict(inputs=[None] * images))
    assert hub.get_scalar('train/images_per_s').current() == pytest.approx(10 / 5)


def test_a_validation_does_not_count_as_loading():
    timer = IterTimerHook()
    timer.t = 0.0
    ProgressHook().after_val(SimpleNamespace(hooks=[timer]))
    assert time.time() - timer.t < 5
