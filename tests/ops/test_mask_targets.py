"""Mask targets of Mask R-CNN: mmdet's masks take RoIAlign from mmcv when they are imported."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks, mask_target  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402

BOXES = np.array([[2, 3, 18, 15], [0.5, 0.5, 9.5, 19.5], [-4, 6, 12, 30]], dtype=np.float32)
OWNERS = np.array([0, 1, 0])


def coverage(mask, box, size):
    """Share of every cell of the box that the mask covers, from 200 x 200 points per cell."""
    x1, y1, x2, y2 = box
    fine = 200
    y = y1 + (np.arange(size * fine) + 0.5) / (size * fine) * (y2 - y1)
    x = x1 + (np.arange(size * fine) + 0.5) / (size * fine) * (x2 - x1)
    inside_y, inside_x = (y >= 0) & (y < mask.shape[0]), (x >= 0) & (x < mask.shape[1])
    rows, columns = y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)
    points = mask[rows.astype(int)][:, columns.astype(int)] * inside_y[:, None] * inside_x
    return points.reshape(size, fine, size, fine).mean((1, 3))


@pytest.fixture
def masks():
    disc = np.hypot(*np.mgrid[-9.5:10.5, -11.5:12.5]) < 8
    bar = np.zeros((20, 24), dtype=bool)
    bar[4:16, 3:7] = True
    return np.stack((disc, bar)).astype(np.uint8)


def test_bitmap_masks(masks):
    targets = BitmapMasks(masks, 20, 24).crop_and_resize(BOXES, (7, 7), OWNERS).masks
    assert targets.shape == (3, 7, 7) and targets.dtype == bool
    for target, box, owner in zip(targets, BOXES, OWNERS, strict=True):
        share = coverage(masks[owner], box, 7)
        clear = abs(share - 0.5) > 0.25  # interpolated, so that it may differ on the outline
        assert clear.sum() > 20 and 0 < target.sum() < 49
        assert (target == (share > 0.5))[clear].all()


def test_bitmap_masks_pixel_by_pixel(masks):
    """A box on whole pixels, cut into as many cells, gives the mask itself."""
    cut = BitmapMasks(masks, 20, 24).crop_and_resize(
        np.array([[5.0, 4, 15, 14]], dtype=np.float32), (10, 10), np.array([0]), binarize=False
    )
    assert np.array_equal(cut.masks[0], masks[0, 4:14, 5:15])
    assert 0 < cut.masks.mean() < 1


def test_polygon_masks_agree_with_bitmaps():
    polygon = np.array([4.0, 5, 20, 5, 20, 15, 4, 15])
    bitmap = np.zeros((1, 20, 24), dtype=np.uint8)
    bitmap[0, 5:15, 4:20] = 1
    boxes, owners = np.array([[0.0, 1, 24, 19]], dtype=np.float32), np.array([0])
    from_polygons = PolygonMasks([[polygon]], 20, 24).crop_and_resize(boxes, (14, 14), owners)
    from_bitmaps = BitmapMasks(bitmap, 20, 24).crop_and_resize(boxes, (14, 14), owners)
    differs = from_polygons.to_ndarray() != from_bitmaps.masks
    assert from_bitmaps.masks.sum() > 50 and differs.mean() < 0.08


def test_mask_target(masks):
    """As Mask R-CNN's head calls it, one image without a region among them."""
    ground_truth = BitmapMasks(masks, 20, 24)
    config = ConfigDict(mask_size=7)
    proposals = [torch.from_numpy(BOXES), torch.zeros(0, 4)]
    owners = [torch.from_numpy(OWNERS), torch.zeros(0, dtype=torch.long)]
    targets = mask_target(proposals, owners, [ground_truth, ground_truth], config)
    inside = BOXES.clip(0, np.array([24, 20, 24, 20], dtype=np.float32))
    expected = ground_truth.crop_and_resize(inside, (7, 7), OWNERS).masks
    assert targets.dtype == torch.float32 and np.array_equal(targets.numpy(), expected)
