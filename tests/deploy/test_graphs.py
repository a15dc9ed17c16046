"""Functions that stand in for mmdet's in a trace against mmdet's own."""

import numpy as np
import pytest
import torch
from exported import detector, picture
from mmengine.structures import InstanceData
from torch import nn

from res2net_mm.deploy.graphs import Detector, adaptive_pool, traceable

RGB = dict(mean=[120.0] * 3, std=[58.0] * 3, channels='RGB')


@pytest.fixture
def graph():
    return Detector(detector(mask=True), RGB, (64, 96), 32)


@pytest.mark.parametrize('levels', [(0,), (3,), (1, 2), (0, 1, 2, 3), ()])
def test_roi_features_with_empty_levels(graph, levels):
    extractor = graph.model.roi_head.bbox_roi_extractor
    random = torch.Generator().manual_seed(0)
    feats = [torch.randn(1, 16, 64 >> i, 96 >> i, generator=random) for i in range(4)]
    rois = torch.zeros(0, 5)
    for level in levels:
        side = 28.0 * 2**level * 1.5  # finest_scale 28
        corners = torch.rand(5, 2, generator=random) * 20
        rois = torch.cat([rois, torch.cat([torch.zeros(5, 1), corners, corners + side], 1)])
    rois = rois[torch.randperm(len(rois), generator=random)]
    expected = extractor(feats, rois)
    with traceable(graph):
        given = extractor(feats, rois)
    assert given.shape == expected.shape
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('count', [0, 1, 20])
def test_masks_are_pasted_as_mmdet_does(graph, count):
    head = graph.model.roi_head.mask_head
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=random) * 40
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=random) * 50], 1)
    if count > 1:
        boxes[0, 2] = boxes[0, 0]  # no width
    logits = torch.randn(count, 1, 28, 28, generator=random)
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    labels = torch.zeros(count, dtype=torch.long)

    def paste():
        results = InstanceData(bboxes=boxes.clone(), scores=torch.ones(count), labels=labels)
        cfg = graph.model.roi_head.test_cfg
        return head.predict_by_feat((logits,), [results], [meta], cfg, rescale=False)[0].masks

    expected = paste()
    with traceable(graph):
        given = paste()
    assert given.shape == expected.shape == (count, 64, 96)
    assert (given != expected).float().sum() <= 2 and (not count or expected.any())


@pytest.mark.parametrize('found', [0, 1, 12])
def test_panoptic_maps_are_fused_as_mmdet_does(graph, found):
    from mmdet.models import HeuristicFusionHead
    from mmengine.config import ConfigDict

    cfg = ConfigDict(mask_overlap=0.5, stuff_area_limit=400)
    head = HeuristicFusionHead(num_things_classes=3, num_stuff_classes=4, test_cfg=cfg)
    random = torch.Generator().manual_seed(found)
    masks = torch.zeros(found, 64, 96, dtype=torch.bool)
    for i, (y, x) in enumerate(torch.randint(0, 60, (found, 2), generator=random).tolist()):
        masks[i, y : y + 25, x : x + 30] = i != 3  # one is empty
    results = InstanceData(
        bboxes=torch.zeros(found, 4),
        scores=torch.rand(found, generator=random),
        labels=torch.randint(0, 3, (found,), generator=random),
        masks=masks,
    )
    logits = torch.randn(5, 8, 12, generator=random).repeat_interleave(8, 1).repeat_interleave(8, 2)
    expected = head.predict([results.clone()], [logits])[0].sem_seg
    with traceable(graph):
        given = head.predict([results.clone()], [logits])[0].sem_seg
    assert (given == expected).all() and len(expected.unique()) > 3


def test_nothing_stays_replaced(graph):
    from mmcv.ops import deform_conv
    from mmdet import models
    from mmdet.models.dense_heads import base_dense_head
    from mmdet.models.task_modules.coders import delta_xywh_bbox_coder

    owners = [deform_conv, base_dense_head, delta_xywh_bbox_coder]
    owners += [models.RPNHead, models.BBoxHead, models.SingleRoIExtractor, models.FCNMaskHead]
    before = [dict(vars(owner)) for owner in owners]
    with pytest.raises(ZeroDivisionError), traceable(graph):
        assert any(dict(vars(o)) != b for o, b in zip(owners, before, strict=True))
        raise ZeroDivisionError
    assert all(dict(vars(o)) == b for o, b in zip(owners, before, strict=True))
    x = torch.arange(4)
    assert len(x.split((4,))) == 1 and x.split((4,))[0] is not x


def test_eager_graph_is_the_model(graph):
    """Without a trace, the functions that stand in give the model's results."""
    image = torch.from_numpy(picture(50, 70))[None]
    with torch.no_grad():
        with traceable(graph):
            given = dict(zip(graph.outputs, graph(image), strict=True))
    assert given['boxes'].shape == (len(given['scores']), 4) and len(given['scores']) > 20
    assert given['masks'].shape[1:] == (50, 70)
    assert (given['boxes'][:, [0, 2]] <= 70).all() and (given['boxes'][:, [1, 3]] <= 50).all()
    assert (np.diff(given['scores']) <= 0).all()


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6)])
@pytest.mark.parametrize('image', [(5, 4), (12, 18), (7, 33)])
def test_adaptive_pool(size, image):
    x = torch.randn(2, 3, *image, generator=torch.Generator().manual_seed(3))
    expected = nn.functional.adaptive_avg_pool2d(x, size)
    torch.testing.assert_close(adaptive_pool(x, size), expected, atol=1e-6, rtol=0)
