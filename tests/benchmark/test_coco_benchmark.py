"""The comparison with pycocotools: the same figures, a set as it is described, and its errors."""

import argparse
import json

import numpy as np
import pytest
from benchmark import coco

from res2net_mm.engine.errors import ToolError


def arguments(**given):
    return argparse.Namespace(
        **dict(images=20, type='bbox', rounds=2, device='cpu', task='coco') | given
    )


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_record_of_evaluations(here, kind):
    pytest.importorskip('pycocotools')
    record = coco.run(arguments(type=kind))
    assert record['yardstick'] == 'pycocotools'
    assert [row['name'] for row in record['rows']] == ['pycocotools', 'ours']
    for row in record['rows']:
        assert len(row['times']) == 2 and min(row['times']) > 0 and row['difference'] <= 1e-6
    assert record['settings']['images'] == 20


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_detections_are_neither_perfect_nor_useless(kind, tmp_path):
    figures = coco.by_ours(*coco.write_set(tmp_path, 60, kind), kind)
    assert len(figures) == 12 and all(0.2 < figure < 0.9 for figure in figures)


def test_perfect_detections(tmp_path):
    """Both read the files that they are given: what is found exactly has AP and AR 1."""
    pytest.importorskip('pycocotools')
    truth, results = coco.write_set(tmp_path, 30, 'bbox')
    found = [
        {key: a[key] for key in ('image_id', 'category_id', 'bbox')} | dict(score=1.0)
        for a in json.loads(truth.read_text())['annotations']
        if not a['iscrowd']
    ]
    results.write_text(json.dumps(found))
    for by in (coco.by_ours, coco.by_pycocotools):
        figures = by(truth, results, 'bbox')
        assert figures[:6] == pytest.approx([1] * 6)
        assert figures[8:] == pytest.approx([1] * 4)


def test_random_set(tmp_path):
    truth, results = (json.loads(f.read_text()) for f in coco.write_set(tmp_path, 300, 'bbox'))
    objects = truth['annotations']
    assert len(objects) / 300 == pytest.approx(7, abs=0.5)
    assert len({a['category_id'] for a in objects}) == 80 == len(truth['categories'])
    areas = np.array([a['area'] for a in objects])
    shares = [(areas < 32**2).mean(), (areas >= 96**2).mean()]
    assert shares == pytest.approx([0.41, 0.24], abs=0.08)
    assert 0 < sum(a['iscrowd'] for a in objects) < 60
    counts = np.bincount([r['image_id'] for r in results])
    assert counts[1:].tolist() == [100] * 300
    boxes = np.array([r['bbox'] for r in results] + [a['bbox'] for a in objects])
    assert boxes.min() >= 0 and (boxes[:, 2:] >= 1.99).all()
    assert ((boxes[:, :2] + boxes[:, 2:]) <= np.array([640, 480]) + 0.02).all()
    scores = [r['score'] for r in results]
    assert 0 <= min(scores) and max(scores) <= 1


def test_figures_that_differ_stop_it(here, monkeypatch):
    pytest.importorskip('pycocotools')
    figures = coco.by_ours
    for factor, offset in ((1 + 5e-6, 0), (1, float('nan'))):

        def changed(*args, factor=factor, offset=offset):
            return [figure * factor + offset for figure in figures(*args)]

        monkeypatch.setattr(coco, 'by_ours', changed)
        with pytest.raises(ToolError, match='pycocotools and ours do not compute the same'):
            coco.run(arguments())


def test_wrong_number_of_images():
    with pytest.raises(ToolError, match='--images must be at least 1, but is 0'):
        coco.run(arguments(images=0))
