"""Costs of whole models against the published table, and against numbers computed by hand."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from res2net_mm.engine.config import load_config
from res2net_mm.evaluation.models import describe_model

# The authors' table of COCO detectors: millions of trained parameters and GFLOPs at 1280 x 800.
TABLE = {
    'faster_rcnn_r101': (60.52, 283.14),
    'mask_rcnn_r101': (63.17, 351.65),
    'faster_rcnn_r2n101_2x': (61.18, 293.68),
    'mask_rcnn_r2n101_2x': (63.83, 362.18),
    'cascade_rcnn_r2n101_20e': (88.82, 321.32),
    'cascade_mask_rcnn_r2n101_20e': (96.75, 526.84),
    'htc_r2n101_20e': (99.69, 574.30),
}


def build(name, **backbone):
    cfg = load_config(f'{name}.py')
    cfg.model.backbone.update(backbone)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    model.eval()
    return model


def of_the_background(model):
    """Parameters and multiply-adds of a background class in box regression and masks.

    The table was counted on mmdet 1, which had them; later releases predict no box and no mask for
    the background.
    """
    heads = (model.roi_head.bbox_head, getattr(model.roi_head, 'mask_head', None))
    boxes, masks = (list(h) if isinstance(h, nn.ModuleList) else [h] * bool(h) for h in heads)
    box_outputs = sum(
        4 * (head.fc_reg.in_features + 1) for head in boxes if not head.reg_class_agnostic
    )
    mask_outputs = sum(head.conv_logits.in_channels + 1 for head in masks)
    return box_outputs + mask_outputs, 1000 * box_outputs + 100 * 28 * 28 * mask_outputs


ALIKE = ('faster_rcnn_r101', 'mask_rcnn_r2n101_2x', 'cascade_rcnn_r2n101_20e')  # parts of others


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in TABLE]
)
def test_published_table(name):
    """To the digits printed, with mmdet's rule: the first block of stage 1 has no pool in it."""
    ours = '_r2n' in name
    model = build(name, **dict(first_block='mmdet') if ours else {})
    cost = describe_model(model, 800, 1280)
    params, macs = of_the_background(model)
    printed = round((cost.trained + params) / 1e6, 2), round(cost.gflops + macs / 1e9, 2)
    assert printed == TABLE[name]
    assert cost.params - cost.trained == sum(
        p.numel()
        for part in ('stem', 'conv1', 'bn1', 'layer1')
        for p in getattr(model.backbone, part, nn.Identity()).parameters()
    )
    if ours:  # 26 channels at stride 4
        pool = describe_model(build(name), 800, 1280).gflops - cost.gflops
        assert pool * 1e9 == pytest.approx(26 * 200 * 320, rel=1e-3)


class Small(nn.Module):
    """A detector of a few layers that can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.bbox_head = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.backbone[0].requires_grad_(False)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 1)

    def forward(self, x):
        rows = x.flatten(2)
        self.inner(query=rows, key=rows, value=rows)  # by keywords, as mmcv does
        return x


def test_by_hand():
    with torch.device('meta'):
        model = Small().eval()
    cost = describe_model(model, 8, 16)
    conv, norm, relu = 4 * 8 * 8 * (27 + 1), 2 * 4 * 8 * 8, 4 * 8 * 8
    transposed = 8 * 16 * 4 * (8 * 4)  # every output counted with all weights of its channel
    assert cost.gflops * 1e9 == pytest.approx(conv + norm + relu + transposed, rel=1e-12)
    assert (cost.params, cost.trained) == (8 * 28 + 16 + 128, 16 + 128)
    assert not any(module._forward_hooks for module in model.modules())


def test_dcn_costs_its_offsets_and_weights_more():
    plain, deformed = (build(f'faster_rcnn_r2n50{kind}') for kind in ('', '_dcn'))
    before, after = (describe_model(model, 256, 256) for model in (plain, deformed))
    offsets = {
        name: module
        for name, module in deformed.backbone.named_modules()
        if name.endswith('conv_offset')
    }
    assert after.params - before.params == sum(
        p.numel() for module in offsets.values() for p in module.parameters()
    )
    strides = {'layer2': 8, 'layer3': 16, 'layer4': 32}
    macs = sum(
        (256 // strides[name.split('.')[0]]) ** 2 * (m.weight.numel() + m.bias.numel())
        for name, m in offsets.items()
    )
    assert (after.gflops - before.gflops) * 1e9 == pytest.approx(macs, rel=1e-6)


def test_parts_that_are_not_run():
    with torch.device('meta'):
        model = Small().eval()
        model.auxiliary_head = nn.Conv2d(3, 3, 1)
        counted = describe_model(model, 8, 16)
        assert counted.gflops == describe_model(Small().eval(), 8, 16).gflops
        model.mask_head = nn.Sequential(nn.Conv2d(3, 3, 1))
        with pytest.raises(ValueError, match='all of its heads, but mask_head.0 has'):
            describe_model(model, 8, 16)


def test_errors():
    with pytest.raises(ValueError, match='meta'):
        describe_model(Small(), 8, 8)
    with torch.device('meta'), pytest.raises(ValueError, match='of one head, but is Conv2d'):
        describe_model(nn.Conv2d(3, 3, 1), 8, 8)
    with torch.device('meta'), pytest.raises(ValueError, match='but has LayerNorm'):
        model = Small().eval()  # a transformer's other products are in no module
        model.backbone = nn.Sequential(model.backbone, nn.LayerNorm(4))
        describe_model(model, 8, 8)
    with torch.device('meta'), pytest.raises(ValueError, match='but has MultiheadAttention'):
        model = Small().eval()
        model.backbone = nn.Sequential(model.backbone, Attention())
        describe_model(model, 8, 8)
