"""COCO's figures against pycocotools and published ones."""

import copy
import json

import numpy as np
import pytest
from random_sets import NAMES, random_set
from reference_coco import pycocotools_eval

from res2net_mm.evaluation.coco import evaluate
from res2net_mm.evaluation.coco_files import read_annotations, read_results

KINDS = ('bbox', 'segm')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(2))
def test_all_that_pycocotools_says(kind, seed):
    annotations, results = random_set(seed)
    before = copy.deepcopy((annotations, results))
    run = pycocotools_eval(annotations, results[kind], kind, (1, 10, 100))
    scores = evaluate(annotations, results[kind], kind)
    assert (annotations, results) == before, "the caller's lists are not touched"
    ours = list(scores.figures().values())
    assert ours == pytest.approx(run.stats.tolist(), abs=1e-9)
    assert 0.1 < ours[0] < 0.9 and len({round(v, 6) for v in ours}) > 8
    assert np.abs(scores.precision - run.eval['precision']).max() < 1e-9
    assert np.abs(scores.recall - run.eval['recall']).max() < 1e-9
    assert list(scores.categories) == [1, 3, 7, 90]


@pytest.mark.parametrize('kind', KINDS)
def test_ap_is_at_the_largest_max_dets(kind):
    annotations, results = random_set(1)
    limits = (120, 2, 7)
    run = pycocotools_eval(annotations, results[kind], kind, limits)
    assert run.stats[0] == -1, "pycocotools' own AP knows no limit but 100"
    scores = evaluate(annotations, results[kind], kind, max_dets=limits)
    assert scores.max_dets == (2, 7, 120)
    precision = run.eval['precision'][:, :, :, 0, -1]
    assert scores.ap() == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    assert scores.ap(0.75) == pytest.approx(run.stats[2], abs=1e-9)
    assert scores.ar(7) == pytest.approx(run.stats[7], abs=1e-9)
    assert scores.ap() != evaluate(annotations, results[kind], kind, max_dets=[7]).ap()
    assert scores.metrics()[f'{kind}_AR@120'] == scores.figures()['AR_120']
    assert scores.metrics()[f'{kind}_AR_m@120'] == scores.figures()['AR_medium']


def test_summary_of_mmdets_limits_is_pycocotools():
    """AP at 100 detections, all others at 1000."""
    annotations, results = random_set(1)
    limits = (2, 100, 1000)
    run = pycocotools_eval(annotations, results['bbox'], 'bbox', limits)
    scores = evaluate(annotations, results['bbox'], 'bbox', max_dets=limits)
    assert list(scores.figures().values()) == pytest.approx(run.stats.tolist(), abs=1e-9)
    assert scores.metrics()['bbox_mAP'] == scores.figures()['AP'] != scores.ap()


def test_images_to_score():
    annotations, results = random_set(1)
    run = pycocotools_eval(annotations, results['segm'], 'segm', (1, 10, 100), images=[5, 31, 9])
    scores = evaluate(annotations, results['segm'], 'segm', images=[9, 5, 31])
    assert list(scores.figures().values()) == pytest.approx(run.stats.tolist(), abs=1e-9)
    assert np.abs(scores.precision - run.eval['precision']).max() < 1e-9
    with pytest.raises(ValueError, match='no image with id 77'):
        evaluate(annotations, results['segm'], 'segm', images=[9, 77])


def test_other_thresholds_and_classes():
    annotations, results = random_set(1)
    run = pycocotools_eval(annotations, results['bbox'], 'bbox', (1, 10, 100), [0.3, 0.75])
    scores = evaluate(annotations, results['bbox'], 'bbox', iou_thrs=[0.3, 0.75])
    assert scores.ap() == pytest.approx(run.stats[0], abs=1e-9)
    assert scores.ap(0.5) == -1.0, 'not among the thresholds'
    by_class = scores.by_class()
    assert list(by_class) == ['person_precision', *(f'{NAMES[k]}_precision' for k in (3, 7, 90))]
    assert np.isnan(by_class['dog_precision']), 'a class without objects has no AP'
    one = evaluate(annotations, results['bbox'], 'bbox', iou_thrs=[0.3, 0.75], categories=[3])
    assert one.ap() == by_class['a cat_precision'] == scores.ap(None, 3)


def test_ids_of_annotations_do_not_matter():
    """With pycocotools an object with id 0 is never found."""
    annotations, results = random_set(1)
    expected = evaluate(annotations, results['bbox'], 'bbox').figures()
    shifted = copy.deepcopy(annotations)
    for i, annotation in enumerate(shifted['annotations']):
        annotation['id'] = i
    assert evaluate(shifted, results['bbox'], 'bbox').figures() == expected
    for annotation in shifted['annotations']:
        del annotation['id'], annotation['area'], annotation['segmentation']
    found = evaluate(shifted, results['bbox'], 'bbox').figures()
    assert (found['AP'], found['AR_100']) == (expected['AP'], expected['AR_100'])


def test_images_with_names():
    truth, results = copy.deepcopy(random_set())
    results = results['bbox']
    numbered = evaluate(truth, results, 'bbox')
    for image in truth['images']:
        image['id'] = f'image {image["id"]:06}'
    for entry in (*truth['annotations'], *results):
        entry['image_id'] = f'image {entry["image_id"]:06}'
    assert evaluate(truth, results, 'bbox').figures() == numbered.figures()
    assert numbered.ap() > 0


def test_boxes_beside_masks_do_not_change_their_sizes():
    annotations, results = random_set(1)
    expected = evaluate(annotations, results['segm'], 'segm').figures()
    both = [
        dict(mask, bbox=box['bbox'])
        for mask, box in zip(results['segm'], results['bbox'], strict=True)
    ]
    assert evaluate(annotations, both, 'segm').figures() == expected


@pytest.mark.parametrize('kind', KINDS)
def test_published_figures(real_data, kind):
    folder = real_data / 'coco_eval_reference'
    annotations = read_annotations(folder / 'instances_val2014_100.json')
    results = read_results(folder / f'{kind}_results.json', annotations, kind)
    expected = json.loads((folder / 'expected.json').read_text())[kind]
    figures = evaluate(annotations, results, kind).figures()
    assert set(figures) == set(expected)
    assert figures == pytest.approx(expected, abs=1e-6)
