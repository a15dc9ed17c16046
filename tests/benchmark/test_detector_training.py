"""A training step of a detector: what is compared, and what it refuses."""

import argparse

import pytest
import torch
from mmdet.models.backbones import Res2Net as BuiltIn
from mmengine.config import Config
from test_detector_benchmark import CONFIG

import res2net_mm
from res2net_mm.benchmark import detector_training
from res2net_mm.benchmark.detector_training import CONTENDERS, OURS, YARDSTICK, build
from res2net_mm.benchmark.processes import without_kept
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops.trained_conv import TrainedConv2d


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(CONFIG)
    return path


def arguments(config, **changes):
    given = dict(config=str(config), size=['96x128'], batch=2, device='cpu', rounds=1, command='')
    return argparse.Namespace(**given | changes)


def test_steps_are_the_same(config):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=generator)
    steps = build(Config.fromfile(config), images, 'cpu')
    models = {name: step.model for name, step in steps.items()}
    assert type(models[YARDSTICK].backbone) is BuiltIn
    assert type(models[OURS].backbone) is res2net_mm.Res2Net
    kinds = {name: {type(m) for m in model.modules()} for name, model in models.items()}
    assert [name for name in CONTENDERS if TrainedConv2d in kinds[name]] == [OURS]
    before = models[OURS].backbone.layer2[0].conv1.weight.detach().clone()
    gradients = {}
    for name, step in steps.items():
        losses = step.losses()
        assert losses['loss_cls'] > 0 and losses['loss_rpn_bbox'] > 0
        step()
        weight = models[name].backbone.layer2[0].conv1.weight
        assert not weight.equal(before)
        gradients[name] = weight.grad.clone()  # what moves the weight is near to its rounding
    for gradient in gradients.values():
        assert (gradient - gradients[OURS]).norm() < 1e-3 * gradient.norm() != 0


@pytest.mark.slow
def test_record(config):
    record = detector_training.run(arguments(config))
    assert [row['name'] for row in record['rows']] == without_kept(CONTENDERS, 'cpu')
    assert record['yardstick'] == YARDSTICK and record['title'].endswith('tiny.py, 2x3x96x128')
    assert all(len(row['times']) == 1 and row['times'][0] > 0 for row in record['rows'])
    for parts in record['profile'].values():
        assert parts['convolution, backward'] > parts['batch norm'] > 0


def test_what_is_refused(config, monkeypatch):
    with pytest.raises(ToolError, match='of boxes on a Res2Net'):
        detector_training.run(arguments('mask_rcnn_r2n50.py'))
    with pytest.raises(ToolError, match='--size must be one'):
        detector_training.run(arguments(config, size=['64x64', '96x96']))
    broken = 'res2net_mm.ops.trained_conv._weight_gradient'
    with monkeypatch.context() as patch:
        patch.setattr(broken, lambda x, grad, weight, *places: torch.zeros_like(weight))
        patch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')  # where it is used
        with pytest.raises(ToolError, match='mmdet and ours do not compute the same'):
            detector_training.run(arguments(config))
    monkeypatch.setattr(detector_training, 'BOUND', 1e-9)
    with pytest.raises(ToolError, match='mmdet.* and ours do not compute the same'):
        detector_training.run(arguments(config))
