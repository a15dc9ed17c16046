"""Masks of COCO."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.masks import mask_fault, read_mask, read_rle

BOX = [0, 0, 130, 70]


@pytest.mark.parametrize('seed', range(3))
def test_both_forms_of_run_lengths_are_read(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((70, 130)) < 0.1 + 0.4 * seed).astype(np.uint8)
    mask[:, 20:60] = seed % 2  # long runs
    rle = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *changes, len(flat)]).tolist()
    for counts in (rle['counts'], rle['counts'].decode(), runs):
        given = {'size': [70, 130], 'counts': counts}
        np.testing.assert_array_equal(coco_mask.decode(read_rle(given, 130, 70)), mask)
        assert mask_fault(given, BOX, 130, 70) is None


BROKEN = [[5, 6, 7], [5, 6, 9100], [-5, 9105], [1.5, 9098.5], '123', '56P[2', '~ä', '', None, 7]


@pytest.mark.parametrize('counts', BROKEN, ids=str)
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts):
    """pycocotools takes most of these."""
    with pytest.raises(DataError, match='does not decode'):
        read_rle({'size': [70, 130], 'counts': counts}, 130, 70)
    with pytest.raises(DataError, match='has size .130, 70.'):
        read_rle({'size': [130, 70], 'counts': counts}, 130, 70)


def test_polygons_are_those_of_pycocotools():
    from pycocotools import mask as theirs

    rng = np.random.default_rng(0)
    for _ in range(50):
        polygons = [rng.uniform(-20, 140, 2 * rng.integers(3, 9)).tolist() for _ in range(2)]
        wanted = theirs.decode(theirs.merge(theirs.frPyObjects(polygons, 70, 130)))
        mask, dropped = read_mask([*polygons, [1, 2, 3]], 130, 70)
        np.testing.assert_array_equal(coco_mask.decode(mask), wanted)
        assert dropped.startswith('1 of its 3 polygons ')


def test_an_empty_polygon_is_left_out():
    good = [0, 0, 130, 0, 130, 70, 0, 70]
    assert mask_fault([[], good], BOX, 130, 70)[0] == 'polygon dropped'
    assert mask_fault([[]], BOX, 130, 70)[0] == 'mask broken'
