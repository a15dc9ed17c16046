"""Anchors, and the sizes that training gives objects."""

from __future__ import annotations

import numpy as np
import pytest

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.objects import anchor_sizes, best_ious, resize_factors

RESIZES = [
    {'type': 'Resize', 'scale': (1333, 800), 'keep_ratio': True},
    {'type': 'Resize', 'scale': (320, 320), 'keep_ratio': True},
    {'type': 'Resize', 'scale': (300, 200)},
    {'type': 'Resize', 'scale_factor': 1.5},
    {'type': 'Resize', 'scale_factor': (2.0, 0.5)},
    {'type': 'RandomResize', 'scale': (480, 360), 'ratio_range': (1.0, 1.0), 'keep_ratio': True},
    {'type': 'RandomChoiceResize', 'scales': [(640, 480)], 'keep_ratio': True},
]


@pytest.mark.parametrize('step', RESIZES, ids=str)
def test_objects_are_resized_as_mmcv_does(step):
    from mmcv.transforms import TRANSFORMS

    transform = TRANSFORMS.build(step)
    sizes = np.array([(640, 480), (200, 500), (333, 100)])
    pipeline = [{'type': 'LoadImageFromFile'}, step, {'type': 'RandomFlip'}]
    factors = resize_factors(pipeline, sizes)
    for (width, height), factor in zip(sizes, factors, strict=True):
        results = transform({'img': np.zeros((height, width, 3), np.uint8)})
        wanted = results['img'].shape[1] / width, results['img'].shape[0] / height
        # mmcv rounds to whole pixels
        np.testing.assert_allclose(factor, wanted, atol=0.51 / min(width, height))


def test_resizes_that_choose_count_with_their_middle():
    sizes = np.array([(100, 100)])
    step = {'type': 'RandomResize', 'scale': (200, 200), 'ratio_range': (1, 3), 'keep_ratio': True}
    np.testing.assert_allclose(resize_factors([step], sizes), [[4, 4]])
    step = {'type': 'RandomChoiceResize', 'scales': [(200, 100), (400, 300)], 'keep_ratio': True}
    np.testing.assert_allclose(resize_factors([step], sizes), [[2, 2]])
    choice = {'type': 'RandomChoice', 'transforms': [[step], [{'type': 'RandomCrop'}]]}
    np.testing.assert_allclose(resize_factors([choice], sizes), [[2, 2]])
    np.testing.assert_allclose(resize_factors([{'type': 'RandomFlip'}], sizes), [[1, 1]])


def test_anchors_and_overlaps_by_hand():
    generator = {
        'type': 'AnchorGenerator', 'scales': [2], 'ratios': [0.25, 1.0], 'strides': [8, 16],
    }  # fmt: skip
    head = {'anchor_generator': generator}
    training = {'assigner': {'type': 'MaxIoUAssigner'}}
    key, sizes = anchor_sizes({'rpn_head': head, 'train_cfg': {'rpn': training}})
    assert key == 'model.rpn_head.anchor_generator'
    # a ratio of 0.25 is height by width, the area stays
    np.testing.assert_allclose(sizes, [(32, 8), (16, 16), (64, 16), (32, 32)])
    assert anchor_sizes({'bbox_head': head, 'train_cfg': training})[0].startswith('model.bbox_head')
    other = {'assigner': {'type': 'ATSSAssigner'}}  # takes the nearest, whatever their IoU
    assert anchor_sizes({'bbox_head': head, 'train_cfg': other}) is None
    assert anchor_sizes({'bbox_head': {'type': 'FCOSHead'}}) is None
    boxes = np.array([(16, 16), (4, 4), (32, 64), (8, 32)])
    np.testing.assert_allclose(best_ious(boxes, sizes), [1, 16 / 256, 0.5, 128 / 384])
