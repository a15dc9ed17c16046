"""Heads and losses for one kind of object."""

import math

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.losses import DiceLoss
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

import res2net_mm

LOSSES = [
    dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True),
    dict(type='res2net_mm.BinaryDiceLoss', naive_dice=True, eps=1.0),
]
ONE = dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode=LOSSES)


def logit(p):
    return math.log(p / (1 - p))


def test_dice_by_hand():
    """Probabilities 0.75, 0.5, 0.25 and an ignored pixel on labels 1, 0, 1; an empty image."""
    values = [[logit(0.75), 0.0, logit(0.25), 9.0], [logit(0.5)] * 4]
    logits = torch.tensor(values, dtype=torch.float64).reshape(2, 1, 2, 2).requires_grad_()
    labels = torch.tensor([[[1, 0], [1, 255]], [[0, 0], [0, 0]]])
    loss = res2net_mm.BinaryDiceLoss(naive_dice=True, eps=1.0)(logits, labels)
    first, second = (2 * 1.0 + 1) / (1.5 + 2 + 1), 1 / (2 + 1)
    assert loss.item() == pytest.approx(((1 - first) + (1 - second)) / 2, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all() and gradient[0, 0, 1, 1] == 0
    assert gradient[0, 0, 0, 0] < 0 < gradient[0, 0, 0, 1]
    squares = res2net_mm.BinaryDiceLoss(loss_weight=2, eps=0.5)(logits, labels)
    first = 2 * 1.0 / (0.75**2 + 0.5**2 + 0.25**2 + 0.5 + 2 + 0.5)
    assert squares.item() == pytest.approx((1 - first) + 1, abs=1e-12)
    with pytest.raises(ValueError, match='1 channel, but have 2'):
        res2net_mm.BinaryDiceLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))


def test_mmsegs_dice_teaches_the_background():
    """The reason for a loss of our own; if this fails, mmseg's will do."""
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:6, 2:6] = 1
    right = (labels * 20.0 - 10)[:, None]
    theirs, ours = DiceLoss(), res2net_mm.BinaryDiceLoss()
    assert theirs(right, labels) > 0.8 > 0.2 > theirs(-right, labels)
    assert ours(right, labels) < 0.1 < 0.9 < ours(-right, labels)


def test_unet_by_hand():
    """skip + 2 * enlarged, then both convolutions keep the centre, then 3 * x + 0.5."""
    head = res2net_mm.UNetHead(
        in_channels=[1, 1, 1],
        in_index=[0, 1, 2],
        channels=1,
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        dropout_ratio=0,
        norm_cfg=None,
        act_cfg=None,
    )
    widths = [[m.conv.weight.shape[:2] for m in block] for block in head.blocks]
    assert widths == [[(2, 2), (2, 2)], [(1, 3), (1, 1)]]
    for block in head.blocks:
        for conv in (m.conv for m in block):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
            conv.weight.data[0, :, 1, 1] = torch.tensor([1.0, 2.0, 0.0])[: conv.in_channels]
        block[1].conv.weight.data[:, 1:] = 0
    nn.init.constant_(head.conv_seg.weight, 3.0)
    nn.init.constant_(head.conv_seg.bias, 0.5)
    random = torch.Generator().manual_seed(0)
    fine, middle, coarse = (torch.randn(1, 1, n, n + 1, generator=random) for n in (8, 4, 2))
    with torch.no_grad():
        found = head([fine, middle, coarse])
    x = middle + 2 * F.interpolate(coarse, (4, 5), mode='bilinear')
    x = fine + 2 * F.interpolate(x, (8, 9), mode='bilinear')
    torch.testing.assert_close(found, 3 * x + 0.5)


def segmentor(head, stem, neck=None):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    backbone = dict(
        type='res2net_mm.Res2Net',
        depth=14,
        base_channels=8,
        base_width=8,
        stem_channels=8,
        norm_eval=False,
        with_stem=stem,
    )
    preprocessor = dict(
        type='SegDataPreProcessor', mean=[0.0] * 3, std=[64.0] * 3, size=(64, 64), seg_pad_val=255
    )
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor,
        backbone=backbone,
        neck=neck,
        decode_head={**ONE, 'norm_cfg': dict(type='BN'), **head},
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    model = MODELS.build(ConfigDict(cfg))
    model.init_weights()
    return model


UNET = dict(
    type='res2net_mm.UNetHead',
    in_channels=[8, 32, 64, 128, 256],
    in_index=[0, 1, 2, 3, 4],
    channels=8,
    dropout_ratio=0,
)
FPN = dict(
    type='res2net_mm.BinaryFPNHead',
    in_channels=[16] * 4,
    in_index=[0, 1, 2, 3],
    feature_strides=[4, 8, 16, 32],
    channels=16,
    dropout_ratio=0,
)
NECK = dict(type='FPN', in_channels=[32, 64, 128, 256], out_channels=16, num_outs=4)


@pytest.mark.parametrize('head, stem, neck', [(UNET, True, None), (FPN, False, NECK)])
def test_it_learns_the_object(head, stem, neck):
    """A disc on noise: the probability is high inside and low outside, at the image's size."""
    model = segmentor(head, stem, neck)
    logits = model._forward(torch.zeros(1, 3, 64, 64))
    assert logits.shape == ((1, 1, 32, 32) if stem else (1, 1, 16, 16))
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing='ij')
    disc = (((y - 24) ** 2 + (x - 30) ** 2) < 14**2).long()
    random = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 80, (2, 3, 64, 64), generator=random)
    images = (noise + 120 * disc).to(torch.uint8)

    def batch():
        samples = []
        for _ in images:
            sample = SegDataSample(metainfo=dict(ori_shape=(60, 50), img_shape=(64, 64)))
            sample.gt_sem_seg = PixelData(data=disc[None].clone())
            samples.append(sample)
        return dict(inputs=list(images), data_samples=samples)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(30):
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        assert losses.keys() == {'decode.loss_ce', 'decode.loss_dice'}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model.test_step(batch())
    for sample in found:
        probability = sample.seg_logits.data
        assert probability.shape == (1, 60, 50)  # as the image was before resizing
        inside = F.interpolate(disc[None, None].float(), (60, 50))[0, 0] == 1
        assert probability[0][inside].mean() > 0.7 > 0.3 > probability[0][~inside].mean()
        assert torch.equal(sample.pred_sem_seg.data, (probability > 0.5).float())


def test_accuracy_of_several_channels_stays():
    model = segmentor(dict(UNET, out_channels=2, loss_decode=dict(type='CrossEntropyLoss')), True)
    sample = SegDataSample()
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
    losses = model.loss(torch.zeros(1, 3, 64, 64), [sample])
    assert 'decode.acc_seg' in losses
