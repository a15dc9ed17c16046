"""COCO's keypoint AP, against pycocotools and by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
from reference_coco import pycocotools_eval

from res2net_mm.data.errors import DataError
from res2net_mm.evaluation import keypoints
from res2net_mm.evaluation.keypoints import KeypointMetric
from res2net_mm.evaluation.tables import use_our_metrics

# COCO's: a tenth of a head is far off for an eye, and near for a hip
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
NAMES = 'AP', 'AP .5', 'AP .75', 'AP (M)', 'AP (L)', 'AR', 'AR .5', 'AR .75', 'AR (M)', 'AR (L)'


def person(number, image, points, visible=None, area=4000.0):
    visible = np.full(17, 2) if visible is None else visible
    flat = np.column_stack([points, visible]).round(2)
    flat[visible == 0] = 0
    low, high = points.min(0), points.max(0)
    return dict(
        id=number, image_id=image, category_id=1, iscrowd=0, area=area,
        bbox=[*low.tolist(), *(high - low).tolist()], num_keypoints=int((visible > 0).sum()),
        keypoints=flat.flatten().tolist(),
    )  # fmt: skip


def content(people, images):
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=200, height=200) for i in images],
        categories=[dict(id=1, name='person')],
        annotations=people,
    )


def sample(image, number, points, score=1.0):
    """A prediction as the metric gets it."""
    box = np.array([[0, 0, 100, 100]], np.float32)
    return dict(
        id=number, img_id=image, img_path=f'{image}.jpg', category_id=1,
        pred_instances=dict(
            keypoints=points[None], keypoint_scores=np.full((1, 17), score), bboxes=box,
            bbox_scores=np.ones(1),
        ),
        gt_instances=dict(bbox_scales=np.full((1, 2), 100.0), bbox_scores=np.ones(1)),
    )  # fmt: skip


def metric_of(truth, folder, **options):
    file = folder / 'truth.json'
    file.write_text(json.dumps(truth))
    metric = KeypointMetric(ann_file=str(file), table=False, **options)
    metric.dataset_meta = dict(dataset_name='coco', num_keypoints=17, sigmas=SIGMAS)
    return metric


def score(metric, samples):
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.fixture
def persons():
    """Of two images: visible, in part visible, and without any labelled keypoint."""
    rng = np.random.default_rng(0)
    people = []
    for number in range(12):
        visible = rng.integers(0, 3, 17) if number % 2 else None
        visible = np.zeros(17, int) if number in (4, 9) else visible
        area = float(rng.uniform(1500, 20_000))
        people.append(
            person(number + 1, number % 2 + 1, rng.uniform(5, 190, (17, 2)), visible, area)
        )
    return people


def test_all_figures_are_pycocotools(persons, tmp_path):
    rng = np.random.default_rng(1)
    truth = content(persons, (1, 2))
    samples = []
    for number, entry in enumerate(persons):
        points = np.reshape(entry['keypoints'], (17, 3))[:, :2] + rng.normal(0, number, (17, 2))
        samples.append(sample(entry['image_id'], number, points, rng.uniform(0.3, 1)))
    metric = metric_of(truth, tmp_path, nms_mode='none', outfile_prefix=str(tmp_path / 'r'))
    found = score(metric, samples)
    results = json.loads((tmp_path / 'r.keypoints.json').read_text())
    reference = pycocotools_eval(truth, results, 'keypoints', [20])
    assert list(found.values()) == pytest.approx(reference.stats.tolist(), abs=1e-12)
    assert list(found) == [f'coco/{name}' for name in NAMES]
    assert 0.1 < found['coco/AP'] < 0.9


def test_ap_by_hand(tmp_path):
    """OKS is the mean over keypoints of exp(-d^2 / (2 area (2 sigma)^2))."""
    points = np.random.default_rng(0).uniform(20, 180, (17, 2)).round(2)
    truth = content([person(1, 1, points)], [1])
    moved = points.copy()
    moved[:6] += 500  # six of 17 are lost: OKS is 11 / 17 = 0.647, which passes 0.5, 0.55, 0.6
    assert score(metric_of(truth, tmp_path), [sample(1, 1, moved)])['coco/AP'] == pytest.approx(0.3)
    near = points.copy()
    near[:, 0] += 2 * SIGMAS * np.sqrt(2 * 4000 * np.log(1 / 0.76))  # OKS 0.76
    found = score(metric_of(truth, tmp_path), [sample(1, 1, near)])
    assert found['coco/AP'] == pytest.approx(0.6) and found['coco/AP .75'] == pytest.approx(1)


def test_what_mmpose_can_train_on_counts_too(persons, tmp_path):
    samples = [
        sample(p['image_id'], p['id'], np.reshape(p['keypoints'], (17, 3))[:, :2]) for p in persons
    ]
    bare = [{k: v for k, v in p.items() if k != 'num_keypoints'} for p in persons]
    figures = score(metric_of(content(bare, (1, 2)), tmp_path, nms_mode='none'), samples)
    assert figures == score(metric_of(content(persons, (1, 2)), tmp_path, nms_mode='none'), samples)
    bare = [{k: v for k, v in p.items() if k != 'area'} for p in persons]
    metric = metric_of(content(bare, (1, 2)), tmp_path, nms_mode='none', use_area=False)
    assert score(metric, samples)['coco/AP'] > 0
    with pytest.raises(DataError, match='has no area'):
        score(metric_of(content(bare, (1, 2)), tmp_path, nms_mode='none'), samples)


def test_persons_without_keypoints_are_not_missed(persons, tmp_path):
    truth = content(persons, (1, 2))
    visible = [p for p in persons if p['num_keypoints']]
    samples = [
        sample(p['image_id'], p['id'], np.reshape(p['keypoints'], (17, 3))[:, :2]) for p in visible
    ]
    assert len(visible) == 10
    found = score(metric_of(truth, tmp_path, nms_mode='none'), samples)
    assert (found['coco/AP'], found['coco/AR']) == pytest.approx((1, 1))


def test_persons_in_images_not_run_are_missed_and_a_line_says_so(persons, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(keypoints, 'warn', lines.append)
    truth = content(persons, (1, 2))
    half = [p for p in persons if p['image_id'] == 1 and p['num_keypoints']]
    samples = [sample(1, p['id'], np.reshape(p['keypoints'], (17, 3))[:, :2]) for p in half]
    found = score(metric_of(truth, tmp_path, nms_mode='none'), samples)
    assert found['coco/AR'] == pytest.approx(len(half) / 10)
    assert lines == [f'{10 - len(half)} of 10 persons are in images not run: counted as missed']


def test_a_person_run_twice_counts_once_and_broken_values_not_at_all(tmp_path):
    points = np.random.default_rng(0).uniform(20, 180, (17, 2)).round(2)
    truth = content([person(1, 1, points)], [1])
    found = score(metric_of(truth, tmp_path, nms_mode='none'), [sample(1, 1, points)] * 2)
    assert found['coco/AP'] == pytest.approx(1)
    with pytest.raises(DataError, match='keypoint_scores predicted for 1.jpg are not finite'):
        score(metric_of(truth, tmp_path), [sample(1, 1, points, np.nan)])


def test_configs_get_it():
    ours = 'res2net_mm.evaluation.keypoints.KeypointMetric'
    assert use_our_metrics(dict(type='mmpose.CocoMetric'))['type'] == ours
    assert use_our_metrics([dict(type='CocoMetric')], None, 'mmpose')[0]['type'] == ours
    assert 'coco_metric' in use_our_metrics(dict(type='CocoMetric'), None, 'mmdet')['type']
    assert use_our_metrics(dict(type='mmpose.AUC'))['type'] == 'mmpose.AUC'


def test_a_broken_xtcocotools_is_replaced(tmp_path):
    """As a build for numpy 1 fails under numpy 2; and ``import res2net_mm`` leaves it alone."""
    package = tmp_path / 'xtcocotools'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'cocoeval.py').write_text("raise ValueError('numpy.dtype size changed')")
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import res2net_mm; '
        "assert 'xtcocotools' not in sys.modules; import res2net_mm.evaluation.keypoints as k; "
        'from xtcocotools.cocoeval import COCOeval; import xtcocotools.mask; '
        'from xtcocotools.coco import COCO; assert COCOeval is k.COCOeval'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
