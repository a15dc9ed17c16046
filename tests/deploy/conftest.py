"""A tiny detector, exported once for all tests of its files."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from res2net_mm.deploy import export
from res2net_mm.deploy.running import SUFFIXES
from res2net_mm.engine.config import load_config


@pytest.fixture(scope='session')
def config(tiny_options):
    return load_config('faster_rcnn_r2n14_shapes.py', tiny_options)


@pytest.fixture(scope='session')
def files(config, tmp_path_factory):
    """A tiny detector as a checkpoint and as both kinds of file, by suffix."""
    folder = tmp_path_factory.mktemp('exported')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    with torch.no_grad():  # scores that differ, so that rounding does not change their order
        model.rpn_head.rpn_cls.weight.mul_(100)
        model.rpn_head.rpn_reg.weight.mul_(10)
        model.roi_head.bbox_head.fc_cls.weight.mul_(100)
        model.roi_head.bbox_head.fc_reg.weight.mul_(20)
    classes = config.classes
    meta = dict(dataset_meta=dict(classes=classes), res2net_mm=True)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'tiny.pth')
    rule = dict(scale=[128, 128], keep_ratio=True)
    about = dict(config='tiny', classes=classes, resize=rule)
    for suffix in SUFFIXES:
        export(model, folder / f'tiny{suffix}', (128, 128), about=about)
    return {suffix: folder / f'tiny{suffix}' for suffix in ('.pth', *SUFFIXES)}
