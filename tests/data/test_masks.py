"""Masks of COCO."""

from __future__ import annotations

import numpy as np
import pytest

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.sets.masks import mask_fault, mask_runs


@pytest.mark.parametrize('seed', range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    mask = np.zeros((70, 130), np.uint8, order='F')
    if seed:
        mask[rng.random(mask.shape) < 0.1 * seed] = 1
        mask[:, 20:60] = seed % 2  # long runs
    rle = coco_mask.encode(mask)
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *changes, len(flat)])
    np.testing.assert_array_equal(mask_runs(rle['counts']), runs)
    np.testing.assert_array_equal(mask_runs(rle['counts'].decode()), runs)
    if seed:
        box = [0, 0, 130, 70]
        assert mask_fault({'size': [70, 130], 'counts': runs.tolist()}, box, 130, 70) is None
        assert mask_fault({**rle, 'size': [70, 130]}, box, 130, 70) is None
