"""What stands in for panopticapi, against numbers computed by hand."""

import sys

import cv2
import mmdet.evaluation  # noqa: F401  (before the stand-in, which then has to repair it)
import numpy as np
import pytest

from res2net_mm.evaluation import panoptic
from res2net_mm.evaluation.panoptic import PQStat, id2rgb, rgb2id

CATEGORIES = {1: dict(isthing=1), 2: dict(isthing=1), 9: dict(isthing=0), 10: dict(isthing=0)}


def test_colours():
    picture = np.array([[[3, 2, 1], [255, 255, 255]]], np.uint8)
    ids = rgb2id(picture)
    assert ids.tolist() == [[3 + 2 * 256 + 65536, 256**3 - 1]]
    assert (id2rgb(ids) == picture).all()


def test_averages():
    stat, other = PQStat(), PQStat()
    stat[1].tp, stat[1].iou, stat[1].fp = 2, 1.6, 1
    other[1].tp, other[1].iou, other[1].fn = 1, 0.8, 3
    other[9].fn = 1
    stat += other
    means, by_class = stat.pq_average(CATEGORIES, isthing=None)
    assert by_class[1] == pytest.approx(dict(pq=2.4 / 5, sq=0.8, rq=3 / 5))
    assert by_class[9] == by_class[2] == dict(pq=0, sq=0, rq=0)
    assert means == pytest.approx(dict(pq=0.24, sq=0.4, rq=0.3, n=2))  # of 1 and 9: 2 is nowhere
    assert stat.pq_average(CATEGORIES, isthing=True)[0]['pq'] == pytest.approx(0.48)
    stuff = PQStat().pq_average(CATEGORIES, isthing=False)[0]
    assert stuff['n'] == 0 and np.isnan(stuff['pq'])


def test_mmdet_counts_with_it(tmp_path):
    """10 x 10: a thing found with IoU 50/70, a stuff missed, one predicted on the unlabelled."""
    from mmdet.evaluation.functional.panoptic_utils import pq_compute_single_core

    truth, found = np.zeros((10, 10), int), np.zeros((10, 10), int)
    truth[:6], truth[6:8] = 300, 70_000
    found[1:7], found[8:] = 5, 6
    for name, ids in (('truth', truth), ('found', found)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / 'a.png'), id2rgb(ids)[..., ::-1])
    segments = [
        dict(id=300, category_id=1, iscrowd=0, area=60),
        dict(id=70_000, category_id=9, iscrowd=0, area=20),
    ]
    predicted = [dict(id=5, category_id=1), dict(id=6, category_id=10)]
    stat = pq_compute_single_core(
        0,
        [
            (
                dict(image_id=0, file_name='a.png', segments_info=segments),
                dict(image_id=0, file_name='a.png', segments_info=predicted),
            )
        ],
        str(tmp_path / 'truth'),
        str(tmp_path / 'found'),
        CATEGORIES,
    )
    assert isinstance(stat, PQStat)
    means, by_class = stat.pq_average(CATEGORIES, isthing=None)
    assert by_class[1]['pq'] == pytest.approx(50 / 70)
    assert (stat[9].fn, stat[10].fp) == (1, 0)  # what lies on the unlabelled is left out
    assert means['n'] == 2 and means['pq'] == pytest.approx(50 / 70 / 2)


def test_a_package_that_is_there_stays(monkeypatch, tmp_path):
    (tmp_path / 'panopticapi').mkdir()
    (tmp_path / 'panopticapi/__init__.py').write_text('mine = True')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'panopticapi']:
        monkeypatch.delitem(sys.modules, name)
    panoptic._stand_in()
    import panopticapi

    assert panopticapi.mine
    monkeypatch.delitem(sys.modules, 'panopticapi')
