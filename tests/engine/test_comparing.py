"""Backbones are compared under the same conditions, and only clear differences count."""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from running import loaded
from scipy import stats

from res2net_mm.engine import comparing
from res2net_mm.engine.comparing import Compared, compare, page, with_backbone
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.run_page import read_scalars
from res2net_mm.evaluation.complexity import describe_stages
from res2net_mm.registry import MODELS


def test_multiply_adds_are_comparable():
    cfg = loaded('faster_rcnn_r2n14_shapes')
    macs, parts = {}, {}
    for name in ('res2net14', 'resnet14', 'resnext14'):
        parts[name] = with_backbone(cfg, name).model.backbone
        with torch.device('meta'):
            net = MODELS.build(parts[name])
        macs[name] = sum(stage.macs for stage in describe_stages(net, 224, 224))
    assert [(p.scales, p.groups) for p in parts.values()] == [(4, 1), (1, 1), (1, 8)]
    assert parts['res2net14'].base_width == 14  # the config's own
    for name, count in macs.items():
        assert abs(count / macs['res2net14'] - 1) < 0.05, name


def test_the_rest_of_the_config_stays():
    cfg = loaded('faster_rcnn_r2n14_shapes')
    other = with_backbone(cfg, 'res2net26_v1b_26w_4s')
    assert other.model.neck.in_channels == [256, 512, 1024, 2048]
    other.model.backbone, other.model.neck = cfg.model.backbone, cfg.model.neck
    assert other.to_dict() == cfg.to_dict()
    with pytest.raises(ToolError, match="'resnat14' is unknown; did you mean"):
        with_backbone(cfg, 'resnat14')


def test_features_must_have_the_strides_of_the_head():
    cfg = loaded('faster_rcnn_r2n14_shapes')
    for name in ('res2next29_6c_24w_4s', 'timm/vit_tiny_patch16_224'):
        with pytest.raises(ToolError, match=f'{name} has features of strides .*needs 4, 8, 16'):
            with_backbone(cfg, name)
    cfg.model.backbone.update(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    with pytest.raises(ToolError, match='needs 4, 8, 16, 16'):
        with_backbone(cfg, 'res2net50_v1b_26w_4s')
    with pytest.raises(ToolError, match='res2net50 needs a config with a backbone of this package'):
        with_backbone(loaded('faster_rcnn_r50'), 'res2net50')


def test_backbones_of_others_may_be_in_the_config():
    assert with_backbone(loaded('faster_rcnn_r50'), 'timm/rexnet_100').model.neck.in_channels == [
        38, 61, 128, 185
    ]  # fmt: skip


def test_a_failed_run_costs_no_other(tmp_path, monkeypatch):
    def run(cfg, seed, out, data):
        if (cfg.model.backbone.scales, cfg.model.backbone.groups) == (1, 1):
            raise ToolError('the loss is NaN')
        out.mkdir(parents=True)
        (out / 'scores.json').write_text('{"coco/bbox_mAP": 0.5, "coco/segm_mAP": 0.4, "x": 1}')
        return out

    monkeypatch.setattr(comparing, '_run', run)
    monkeypatch.setattr(comparing, '_digest', lambda cfg, out: b'')
    cfg = loaded('faster_rcnn_r2n14_shapes')
    with pytest.raises(ToolError, match='resnet14 failed: the loss is NaN .*has the others'):
        compare(cfg, ['resnet14', 'res2net14', 'resnext14'], 1, tmp_path)
    text = (tmp_path / 'compare.md').read_text()
    assert text.endswith('\nLeft out: `resnet14`, the loss is NaN\n')
    assert '`res2net14` | 0.500 | 0.400 |' in text and '`resnext14` bbox_mAP: +0.000' in text
    assert (tmp_path / 'compare.png').stat().st_size


def test_other_data_is_another_comparison(shapes, tmp_path, tiny_options):
    cfg = load_config('faster_rcnn_r2n14_shapes', tiny_options)
    root = Path(shutil.copytree(shapes, tmp_path / 'set'))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
    before = comparing._digest(cfg, root / 'out')
    (root / 'out').mkdir()
    (root / 'out/compare.png').write_bytes(b'written')
    assert before == comparing._digest(cfg, root / 'out')
    file = root / 'annotations/instances_val.json'
    content = json.loads(file.read_text())
    content['annotations'][0]['bbox'][0] += 0.5
    file.write_text(json.dumps(content))
    changed = comparing._digest(cfg, root / 'out')
    assert changed != before
    one, other, *_ = (root / 'val').glob('*.jpg')
    shutil.copy(one, other)
    assert comparing._digest(cfg, root / 'out') != changed


def test_page():
    a = Compared('a', 1, 2, 3, 4, {'AP': [0.5, 0.52, 0.48], 'small': [0.1, 0.1, 0.1]})
    b = Compared('b', 1, 2, 3, math.nan, {'AP': [0.6, 0.62, 0.58], 'small': [0.1, 0.1, 0.1]})
    c = Compared('c', 1, 2, 3, 4, {'AP': [0.55, 0.45, 0.52], 'small': [0.2, 0.11, 0.1]})
    text = page([a, b, c], 3)
    spread = statistics.stdev([0.5, 0.52, 0.48])
    assert f'| `a` | 0.500 ± {spread:.3f} | 0.100 ± 0.000 | 1.00 | 2.00 | 3.0 | 4.0 |' in text
    assert '| 1.00 | 2.00 | 3.0 | - |' in text
    p = stats.ttest_ind(a.scores['AP'], b.scores['AP'], equal_var=False).pvalue
    assert p < 0.05 and f'- `b` AP: +0.100, counts (p = {p:.2g})' in text
    assert '- `b` small: +0.000; no test, as neither has a spread' in text
    assert '- `c` AP: +0.007, within the spread' in text
    single = [Compared(n, 1, 2, 3, 4, {'AP': [ap]}) for n, ap in (('a', 0.5), ('b', 0.9))]
    one = page(single, 1)
    assert '- `b` AP: +0.400, of a single seed' in one and '| 0.500 |' in one


def test_a_model_that_is_not_exported_has_no_time(tmp_path):
    assert math.isnan(comparing._exported(loaded('faster_rcnn_r2n14_shapes'), tmp_path))


@pytest.mark.slow
def test_runs_are_kept_and_not_mixed(tiny_options, tmp_path, monkeypatch):
    options = {**tiny_options, 'train_cfg.max_epochs': 1, 'param_scheduler.1.T_max': 1}
    cfg = load_config('faster_rcnn_r2n14_shapes', options)
    names = ['res2net14', 'resnet14']
    written = compare(cfg, names, 1, tmp_path)
    text = written.read_text()
    assert len(re.findall(r'\d+\.\d \| \d+\.\d \|$', text, re.M)) == 2, 'PyTorch and OpenVINO'
    for name in names:  # each run logs in its own folder
        (log,) = tmp_path.glob(f'{name}/seed_0_*/*/vis_data/scalars.json')
        assert [*read_scalars([log])[0]['loss']] == [2, 4]
    (checkpoint,) = tmp_path.glob('res2net14/seed_0_*/epoch_1.pth')
    time = checkpoint.stat().st_mtime_ns
    compare(cfg, names, 1, tmp_path)
    assert checkpoint.stat().st_mtime_ns == time
    assert [line[:20] for line in written.read_text().splitlines()] == [
        line[:20] for line in text.splitlines()
    ]
    cfg.train_cfg.max_epochs = 2  # another config is trained anew

    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(comparing, 'build_runner', stop)
    with pytest.raises(ToolError, match='res2net14 failed: InterruptedError$'):
        compare(cfg, ['res2net14'], 1, tmp_path)
    assert checkpoint.stat().st_mtime_ns == time


def test_nothing_of_a_trained_model_is_left(tmp_path):
    """Weights and learning rates for one of the backbones would decide the comparison."""
    cfg = loaded('faster_rcnn_r2n50_vd_ssld')
    cfg.load_from, cfg.resume = 'x.pth', True
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    rates = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert any('lr_mult' in values for values in rates.values())
    other = with_backbone(cfg, 'res2net14')
    assert (other.load_from, other.resume, other.model.get('init_cfg')) == (None, False, None)
    rates = other.optim_wrapper.paramwise_cfg.custom_keys
    assert not any('lr_mult' in v for key, v in rates.items() if key.startswith('backbone'))


@pytest.mark.parametrize('kind', ['Resize', 'mmdet.Resize'])
def test_cost_is_that_of_the_tested_size(kind):
    cfg = with_backbone(loaded('faster_rcnn_r2n14_shapes'), 'res2net14')
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type.endswith('Resize'):
            step.type = kind
    assert comparing._cost(cfg)[1] == pytest.approx(1.15, abs=0.01)
