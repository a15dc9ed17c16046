"""VOC's AP against a reference in fractions."""

import numpy as np
import pytest
from voc_reference import devkit_ap, voc_set

from res2net_mm.evaluation.voc_metric import average_precision, box_overlaps


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_voc_ap_is_the_development_kits(mode):
    for seed in range(4):
        for images in voc_set(seed):
            expected = devkit_ap(images, mode)
            assert average_precision(images, mode) == pytest.approx(expected, abs=1e-12)
            assert 0.2 < expected < 0.95
            strict = devkit_ap(images, mode, 0.75)
            assert average_precision(images, mode, 0.75) == pytest.approx(strict, abs=1e-12)
            assert strict < expected


def test_voc_boxes_include_their_last_pixel():
    assert box_overlaps([[0, 0, 9, 9]], [[0, 0, 9, 4], [9, 9, 20, 20]])[0] == pytest.approx(
        [50 / 100, 1 / (100 + 144 - 1)], abs=1e-15
    )
    assert np.isnan(average_precision([([[0, 0, 9, 9, 0.5]], [[0, 0, 9, 9]], [True])], 'area'))


def test_of_equal_scores_the_first_comes_first():
    box, far = [0, 0, 9, 9], [50, 50, 59, 59]
    right, wrong = [*box, 0.5], [*far, 0.5]
    for found, ap in (([right, wrong], 1), ([wrong, right], 0.5)):
        images = [(found, [box], [False])]
        assert average_precision(images, 'area') == ap == devkit_ap(images, 'area')
