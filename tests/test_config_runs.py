"""Every config takes a training step on its data layout, predicts, is measured and described."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch
from layouts import write_layouts
from mmengine.config import Config
from mmengine.registry import init_default_scope

from res2net_mm.data.check.inspection import check_data
from res2net_mm.engine.config import load_config, our_networks, walk_dicts
from res2net_mm.engine.runner import build_runner, prepare_config

REPO = Path(__file__).resolve().parents[1]
# what differs from another one only in data set, depth, schedule or weights
LONG = re.compile(
    '^(?!fcn_).*_(ade20k|cityscapes)|(?<!vfnet_r2n)101|_2x|_20e|_ssld|_r50_|_[rsx]50$'
    '|^mask_rcnn_r2n50_dcn|^cascade|^(res2net50_(14w|26w|vd)|res2next50)'
    '|^(atss|gfl)_r2n50$|_voc0712$|^sem_fpn_r2n50_voc'
)
CONFIGS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * bool(LONG.search(path.stem)))
    for path in sorted((REPO / 'configs').glob('*.py'))
    if path.stem != 'res2next29_cifar100'  # its data are checked by md5; see test_res2net_cifar.py
]
done: dict[str, str] = {}  # reduced configs that ran -> of which config


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('layouts')
    write_layouts(root / 'data')
    return root


@pytest.fixture(params=CONFIGS)
def config(request, data, monkeypatch):
    monkeypatch.chdir(data)
    monkeypatch.setenv('RES2NET_MM_DATA', str(data / 'data'))
    # what takes time and is not looked at: the config's text, and normally distributed weights
    monkeypatch.setattr(Config, 'pretty_text', '')
    monkeypatch.setattr(torch.Tensor, 'normal_', uniform)
    cfg = load_config(request.param)
    init_default_scope(cfg.default_scope)
    return cfg


def uniform(self, mean=0.0, std=1.0, **_):
    return self.uniform_(mean - std * math.sqrt(3), mean + std * math.sqrt(3))


def one_step(cfg):
    """A run of one step on all images, and of one measuring, without worker processes."""
    cfg.train_cfg.update({key: 1 for key in ('max_epochs', 'max_iters') if key in cfg.train_cfg})
    cfg.train_cfg.val_interval = 1
    cfg.param_scheduler = []  # a warm-up's first step can be too small to be seen
    cfg.default_hooks.checkpoint = None
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for part in walk_dicts(loader.dataset):
            if 'times' in part:
                part.times = 1
    several = sum('ann_file' in part for part in walk_dicts(cfg.train_dataloader.dataset))
    persons = 2 if cfg.default_scope == 'mmpose' else 1  # in an image
    cfg.train_dataloader.batch_size = 2 * max(1, several) * persons


def reduce(cfg, depth=14, size=(96, 72), crop=(64, 64)):
    """The same networks with fewer blocks, on small images."""
    for part in our_networks(cfg):
        part.depth = depth
    few = dict(nms_pre=50, max_per_img=10, num=16)  # boxes
    for part in walk_dicts(cfg.model):
        part.update({key: value for key, value in few.items() if key in part})
    if cfg.model.backbone.type in ('ResNet', 'ResNetV1c'):
        cfg.model.backbone.depth = 50
    for split in ('train', 'val'):
        for step in walk_dicts(cfg[f'{split}_dataloader'].dataset):
            if 'scale' in step:  # a list of them where one between is drawn
                several = not isinstance(step.scale, int) and not isinstance(step.scale[0], int)
                whole = crop[0] if isinstance(step.scale, int) else size
                step.scale = [size, size] if several else whole
            if 'scales' in step:
                step.scales = [size]
            if 'crop_size' in step:
                step.crop_size = crop
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = crop


def train_and_measure(cfg, work_dir):
    summary = {s.split: s for s in check_data(cfg, splits=('train', 'val'))}
    if not summary['train'].unchecked:
        assert summary['train'].images >= 2 and summary['val'].images == 2
    cfg.randomness = dict(seed=0)
    for part in walk_dicts(cfg.model):  # random weights; what is frozen stays frozen
        if (part.get('init_cfg') or {}).get('type') == 'Pretrained':
            part.init_cfg = None
        if part.get('pretrained'):  # timm's
            part.pretrained = False
    runner = build_runner(prepare_config(cfg, work_dir=str(work_dir)))
    runner.model.init_weights()
    runner.model.init_weights = lambda: None  # the runner would do it once more
    backbone = runner.model.backbone
    before = [p.detach().clone() for p in backbone.parameters()]
    runner.train()
    moved = [
        not torch.equal(old, new) for old, new in zip(before, backbone.parameters(), strict=True)
    ]
    trained = [p.requires_grad for p in backbone.parameters()]
    assert runner.iter == 1
    # blocks start as the identity, so at first nothing but weight decay moves their inner weights
    decays = cfg.optim_wrapper.optimizer.get('weight_decay')
    assert sum(moved) > sum(trained) // (2 if decays else 3)
    assert not any(m for m, t in zip(moved, trained, strict=True) if not t)
    assert all(trained) is (cfg.model.backbone.get('frozen_stages', -1) < 0)
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars['train/loss'].current())
    return {key: value.current() for key, value in scalars.items() if key.startswith('val/')}


def measures_of(cfg):
    """What the config is to be measured by."""
    names = []
    evaluators = cfg.val_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        kinds = evaluator.get('metric')
        if evaluator.type == 'CocoMetric':
            names += [f'{kind}_mAP' for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        figures = {
            'VOCMetric': ['mAP'],
            'IoUMetric': ['mIoU'],
            'mmpose.CocoMetric': ['AP'],
            'res2net_mm.SaliencyMetric': ['Sm'],
            'Accuracy': ['top1'],
            'SingleLabelMetric': ['recall'],
        }
        names += figures.get(evaluator.type, [])
        names += ['PQ'] if evaluator.type == 'CocoPanopticMetric' else []
    return names


def test_step_prediction_and_measure(config, tmp_path):
    name = Path(config.filename).stem
    measures = measures_of(config)
    one_step(config)
    reduce(config)
    text = json.dumps(
        [config.model, config.train_dataloader, config.val_dataloader, config.optim_wrapper],
        default=str,
    ).replace('res2net101', 'res2net50')
    if text in done:
        pytest.skip(f'reduced, it is {done[text]}')
    done[text] = name
    found = train_and_measure(config, tmp_path)
    assert measures and all(any(key.endswith(m) for key in found) for m in measures), found


@pytest.mark.slow
def test_whole_size(config, tmp_path):
    one_step(config)
    found = train_and_measure(config, tmp_path)
    assert found


@pytest.fixture(scope='module')
def describe():
    spec = importlib.util.spec_from_file_location('describe_tool', REPO / 'tools/describe.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.slow
def test_describe(config, describe, capsys):
    describe([config.filename, '--input', '128', '128'])
    printed = capsys.readouterr().out
    assert 'GFLOPs' in printed
    assert ('first_block' in printed) is bool(our_networks(config))


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['originals'], indirect=True)
def test_on_the_originals(python, stack):
    run = python('-m', 'pytest', '-q', __file__, '-m', 'not slow', '-k', 'measure', env=stack)
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]
