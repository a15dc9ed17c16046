"""Operators on boxes: against loops in float64 written from their definitions, and torchvision."""

import math

import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms


def random_boxes(count, size=60.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator) * size / 2 + 1
    scores = torch.rand(count, generator=generator)
    return torch.cat((low, low + extent), 1), scores


def overlap(a, b, offset=0, over_first=False):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    shared = width * height
    return shared / (area_a if over_first else area_a + area_b - shared)


def slow_nms(boxes, scores, threshold, offset=0):
    boxes, scores = boxes.double().tolist(), scores.double().tolist()
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])  # stable: ties stay in order
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if overlap(boxes[best], boxes[i], offset) <= threshold]
    return kept


def slow_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset=0):
    boxes, scores = boxes.double().tolist(), scores.double().tolist()
    left, chosen = list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        chosen.append((best, scores[best]))
        for i in left:
            shared = overlap(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= math.exp(-shared * shared / sigma)
            elif shared >= threshold:
                scores[i] *= 1 - shared if method == 'linear' else 0
        left = [i for i in left if scores[i] >= min_score]
    return chosen


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.7, 1.0])
def test_nms(threshold, offset):
    boxes, scores = random_boxes(150, seed=offset)
    dets, kept = nms(boxes, scores, threshold, offset)
    assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[kept])
    if not offset:
        assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold))


def test_nms_offset_counts_the_last_pixel():
    # 4 x 4 pixels each, 2 x 4 in common: 8 / 24 with offset 1, but (1 * 3) / (9 + 9 - 3) without.
    boxes, scores = torch.tensor([[0.0, 0, 3, 3], [2, 0, 5, 3]]), torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]
    assert nms(boxes, scores, 0.34, offset=1)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    # apart by a whole pixel, or by less: a gap only without the offset
    boxes = torch.tensor([[0.0, 0, 3, 3], [3.5, 0, 6.5, 3]])
    assert nms(boxes, scores, 0.0, offset=1)[1].tolist() == [0]
    assert nms(boxes, scores, 0.0, offset=0)[1].tolist() == [0, 1]


@pytest.mark.parametrize('tenths', range(1, 10))
def test_nms_keeps_an_overlap_of_exactly_the_threshold(tenths):
    # As mmcv's, which compares in float32: torchvision's alone would drop 0.6 > 0.6 in doubles.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, tenths, 1]])
    assert nms(boxes, torch.tensor([0.9, 0.8]), tenths / 10)[1].tolist() == [0, 1]


def test_nms_ties_keep_their_order():
    boxes, _ = random_boxes(80, size=400)
    scores = torch.arange(80) // 8 / 10.0
    assert nms(boxes, scores, 0.5)[1].tolist() == slow_nms(boxes, scores, 0.5)
    assert nms(boxes[:1].repeat(5, 1), torch.ones(5), 0.5)[1].tolist() == [0]


def test_nms_of_boxes_without_area():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist() == [0, 1, 2]


def test_nms_by_score_and_number():
    boxes, scores = random_boxes(60)
    kept = [i for i in slow_nms(boxes, scores, 0.5) if scores[i] > 0.4]
    assert nms(boxes, scores, 0.5, score_threshold=0.4)[1].tolist() == kept
    assert nms(boxes, scores, 0.5, score_threshold=0.4, max_num=4)[1].tolist() == kept[:4]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_other_types(dtype):
    boxes, scores = random_boxes(150)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    dets, kept = nms(boxes, scores, 0.5)
    assert kept.tolist() == slow_nms(boxes, scores, 0.5)
    assert dets.dtype == dtype


def test_nms_of_numpy_arrays():
    boxes, scores = random_boxes(30)
    dets, kept = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and kept.tolist() == slow_nms(boxes, scores, 0.5)


@pytest.mark.parametrize('split_thr', [100_000, 100])
def test_batched_nms_on_large_images(split_thr):
    """Class offsets reach 650,000 px; 1/16 px still fits float32, so that nothing may differ."""
    boxes, scores = random_boxes(1500, size=5400, seed=3)
    boxes = (boxes * 16).round() / 16
    classes = torch.arange(1500) % 80
    config = dict(type='nms', iou_threshold=0.2, split_thr=split_thr)
    dets, kept = batched_nms(boxes, scores, classes, config)
    expected = []
    for index in range(80):
        mine = (classes == index).nonzero()[:, 0]
        expected += mine[slow_nms(boxes[mine], scores[mine], 0.2)].tolist()
    assert len(expected) < 1450  # there was something to drop
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i])
    assert torch.equal(dets[:, :4], boxes[kept])


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(120, seed=5)
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    expected = slow_soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert len(expected) < 120
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    torch.testing.assert_close(dets[:, 4].double(), torch.tensor([s for _, s in expected]).double())


def test_soft_nms_keeps_the_first_box_and_those_without_area():
    one = torch.tensor([[0.0, 0, 9, 9]])
    assert soft_nms(one, torch.tensor([1e-9]))[1].tolist() == [0]
    points = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]])
    dets, kept = soft_nms(points, torch.tensor([0.9, 0.8]), method='gaussian')
    assert kept.tolist() == [0, 1] and dets[:, 4].tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_soft_nms_in_half_precision(dtype):
    boxes, scores = random_boxes(40)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    dets, kept = soft_nms(boxes, scores)
    full, kept_full = soft_nms(boxes.float(), scores.float())
    assert torch.equal(kept, kept_full) and torch.equal(dets, full.to(dtype))


def test_nms_match():
    boxes, scores = random_boxes(60, seed=2)
    groups = nms_match(torch.cat((boxes, scores[:, None]), 1), 0.4)
    order = sorted(range(60), key=lambda i: -scores[i])
    expected = []
    while order:
        best, *rest = order
        dropped = [i for i in rest if overlap(boxes[best].tolist(), boxes[i].tolist()) >= 0.4]
        expected.append([best, *dropped])
        order = [i for i in rest if i not in dropped]
    assert [group.tolist() for group in groups] == expected
    assert max(map(len, expected)) > 1


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_bbox_overlaps(mode, offset):
    first, second = random_boxes(12, seed=1)[0], random_boxes(9, seed=2)[0]
    expected = torch.tensor(
        [[overlap(a, b, offset, mode == 'iof') for b in second.tolist()] for a in first.tolist()]
    )
    result = bbox_overlaps(first, second, mode, offset=offset)
    torch.testing.assert_close(result, expected)
    aligned = bbox_overlaps(first[:9], second, mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected.diagonal())
    if mode == 'iou' and not offset:
        torch.testing.assert_close(result, torchvision.ops.box_iou(first, second))


def test_bbox_overlaps_in_float16_does_not_overflow():
    boxes = torch.tensor([[0, 0, 1000, 1000], [0, 0, 1000, 500]], dtype=torch.float16)
    result = bbox_overlaps(boxes, boxes)
    assert result.dtype == torch.float16 and result.tolist() == [[1, 0.5], [0.5, 1]]


def test_no_boxes():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for offset in (0, 1):
        dets, kept = nms(boxes, scores, 0.5, offset)
        assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.long
        dets, kept = soft_nms(boxes, scores, offset=offset)
        assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.long
    assert nms_match(torch.zeros(0, 5), 0.5) == []
    assert bbox_overlaps(boxes, torch.rand(3, 4)).shape == (0, 3)
    config = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
    assert batched_nms(boxes, scores, torch.zeros(0, dtype=torch.long), config)[0].shape == (0, 5)
