"""Images that a pipeline cannot resize, compared with what mmcv does with them."""

from __future__ import annotations

import cv2
import mmcv.transforms
import numpy as np
import pytest

from res2net_mm.data.sets.sizes import resize_faults

SIZES = [(2000, 3), (3, 2000), (2000, 40), (1, 1), (1334, 1), (1333, 1), (60, 40)]


@pytest.mark.parametrize('scale', [(96, 96), (1333, 800), (64, 32), 96])
@pytest.mark.parametrize('keep_ratio', [True, False])
def test_the_sizes_that_fail_are_those_that_mmcv_fails_at(scale, keep_ratio):
    step = {'type': 'Resize', 'scale': scale, 'keep_ratio': keep_ratio}
    failing = set()
    for width, height in SIZES:
        resize = mmcv.transforms.Resize(scale=scale, keep_ratio=keep_ratio)
        try:
            resize({'img': np.zeros((height, width, 3), np.uint8)})
        except cv2.error:
            failing.add((width, height))
    found = resize_faults([{'type': 'LoadImageFromFile'}, step], SIZES)
    assert found.keys() == failing
    if scale in ((96, 96), 96):
        assert failing == ({*SIZES[:2], *SIZES[4:6]} if keep_ratio else set())


@pytest.mark.parametrize(
    'step, fails',
    [
        ({'type': 'mmdet.Resize', 'scale': (200, 200), 'keep_ratio': True}, True),  # 0.3 px
        ({'type': 'Resize', 'scale': (400, 400), 'keep_ratio': True}, False),  # 0.6 px
        ({'type': 'Resize', 'scale': (200, 200)}, False),
        ({'type': 'RandomResize', 'scale': [(400, 400), (200, 300)], 'keep_ratio': True}, True),
        ({'type': 'RandomResize', 'scale': (400, 400), 'keep_ratio': True}, False),
        (
            {'type': 'RandomResize', 'scale': (400, 400), 'ratio_range': (0.5, 2),
             'keep_ratio': True}, True,
        ),
        (
            {'type': 'RandomChoiceResize', 'scales': [(400, 400), (200, 200)],
             'keep_ratio': True}, True,
        ),
        (
            {'type': 'RandomChoiceResize', 'scales': [200], 'resize_type': 'ResizeShortestEdge',
             'keep_ratio': True}, False,
        ),
        (
            {'type': 'RandomChoice', 'transforms': [
                [{'type': 'Resize', 'scale': (400, 400), 'keep_ratio': True}],
                [{'type': 'Resize', 'scale': (200, 200), 'keep_ratio': True}]]}, True,
        ),
    ],
)  # fmt: skip
def test_the_smallest_scale_counts(step, fails):
    assert bool(resize_faults([step], [(2000, 3)])) is fails
    # of what is cut out before, the size is not known
    assert not resize_faults([{'type': 'RandomCrop', 'crop_size': (3, 3)}, step], [(2000, 3)])
