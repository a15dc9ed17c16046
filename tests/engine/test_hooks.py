import math
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.dense_heads import ATSSHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from references import randomise
from torch import nn

from res2net_mm.backbones import Res2Net
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.hooks import FiniteLossHook, Float32BoxHook, FrozenNormHook
from res2net_mm.engine.runner import prepare_config


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_the_images(value):
    samples = [SimpleNamespace(img_path='a/1.jpg'), SimpleNamespace(img_path='a/2.jpg')]
    batch = dict(data_samples=samples)
    runner = SimpleNamespace(iter=4, epoch=1)
    good = dict(loss=torch.tensor(1.5), loss_bbox=torch.tensor(0.0), acc=torch.tensor(math.nan))
    FiniteLossHook().after_train_iter(runner, data_batch=batch, outputs=good)
    outputs = dict(good, loss_bbox=torch.tensor(value, requires_grad=True))
    with pytest.raises(ToolError, match=r'loss_bbox = .*iteration 5, epoch 2.*a/1.jpg, a/2.jpg'):
        FiniteLossHook().after_train_iter(runner, data_batch=batch, outputs=outputs)


def test_class_scores_that_are_not_finite_are_not_measured():
    good, bad = BaseDataElement(metainfo=dict(img_path='a.jpg')), None
    good.pred_score = torch.tensor([0.5, 0.5])
    bad = good.new()
    bad.pred_score = torch.tensor([0.5, math.nan])
    hook = FiniteLossHook()
    hook.after_val_iter(None, outputs=[good, torch.ones(2)])
    for check in (hook.after_val_iter, hook.after_test_iter):
        with pytest.raises(ValueError, match='scores predicted for a.jpg are not finite'):
            check(None, outputs=[good, bad])


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def warnings_of(backbone):
    said = []
    runner = SimpleNamespace(model=Detector(backbone), logger=SimpleNamespace(warning=said.append))
    FrozenNormHook().before_train(runner)
    return said


@pytest.mark.parametrize('build', [partial(Res2Net, depth=14), partial(ResNet, depth=18)])
def test_batch_norm_that_stays_as_built_is_said_before_the_first_step(build):
    """Of mmdet's networks too, whose default is norm_eval=True as well."""
    (said,) = warnings_of(build())
    assert 'model.backbone.norm_eval=False' in said and 'frozen_stages' not in said
    (said,) = warnings_of(build(norm_eval=False, frozen_stages=1))
    assert 'model.backbone.frozen_stages=-1' in said and 'norm_eval' not in said
    assert warnings_of(build(norm_eval=False, frozen_stages=-1)) == []
    assert warnings_of(randomise(build(norm_eval=True, frozen_stages=1))) == []
    net = Res2Net(depth=14)
    assert warnings_of(net)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net(torch.rand(2, 3, 64, 64))  # said before, and not again


def test_every_run_asks_for_frozen_batch_norm(tmp_path):
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet', depth=18)), default_scope='mmdet'))
    cfg.work_dir = str(tmp_path)
    run = prepare_config(cfg, from_scratch=True)
    assert dict(type='res2net_mm.FrozenNormHook') in run.custom_hooks
    assert run.model.backbone.norm_eval is False and run.model.backbone.frozen_stages == -1
    assert 'norm_eval' not in prepare_config(cfg).model.backbone


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_boxes_keep_their_pixels_in_half_precision(dtype):
    extractor = SingleRoIExtractor(
        dict(type='RoIAlign', output_size=7, sampling_ratio=2), 4, [4, 8]
    )
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 4, 256 // s, 256 // s, generator=generator) for s in (1, 2)]
    levels = [level.to(dtype) for level in levels]
    boxes = torch.tensor([[0, 801.3, 733.7, 877.1, 799.2], [0, 601.0, 201.0, 1001.0, 703.0]])
    exact = extractor([level.double() for level in levels], boxes.double())
    lossy = extractor(levels, boxes)
    for _ in range(2):  # twice is harmless
        Float32BoxHook().before_run(SimpleNamespace(model=extractor))
    ours = extractor(levels, boxes)
    assert ours.dtype == dtype
    step = torch.finfo(dtype).eps  # what is left is the rounding of the output alone
    assert (ours.double() - exact).abs().max() <= exact.abs().max() * step
    assert (lossy.double() - exact).abs().max() > 10 * exact.abs().max() * step


def test_dense_heads_predict_in_float32():
    head = ATSSHead(num_classes=2, in_channels=8, feat_channels=32, stacked_convs=1)
    levels = [torch.rand(1, 8, 4, 4) for _ in range(5)]
    with torch.autocast('cpu', torch.bfloat16):
        assert head(levels)[0][0].dtype == torch.bfloat16
        for _ in range(2):
            Float32BoxHook().before_run(SimpleNamespace(model=head))
        predicted = head(levels)
    assert len(predicted) == 3 and len(head._forward_hooks) == 1
    assert {level.dtype for kind in predicted for level in kind} == {torch.float32}
