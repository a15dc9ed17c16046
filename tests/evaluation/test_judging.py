"""Verdicts, confusions and AP without errors, of detections made by hand."""

from collections import Counter

import numpy as np
import pytest
from made_errors import CAT, DETECTIONS, DOG, OBJECTS, made_set
from random_sets import random_set

from res2net_mm.evaluation.coco import evaluate
from res2net_mm.evaluation.judging import FALSE, judge


@pytest.fixture
def made():
    return made_set()


def mean_ap(cat, dog):
    """AP of two classes from (thresholds, precision) pairs: of 0, 0.01, ... 1, how many."""
    return sum(n * p for part in (cat, dog) for n, p in part) / 101 / 2


def test_every_detection_has_its_verdict(made):
    truth, results = made
    judged = judge(truth, results, 'bbox')
    assert judged.images == [1, 4, 6] and judged.classes == [DOG, CAT]
    order = list(DETECTIONS)[::-1]
    found = {order[d.source]: d for d in judged.detections}
    assert {name: d.verdict for name, d in found.items()} == dict(
        ignored='ignored',
        a='right',
        twice='duplicate',
        off='localisation',
        wrong='class',
        both='class and localisation',
        nothing='background',
        f='right',
        h='right',
    )
    names = list(OBJECTS)
    assert {names[o.source] for o in judged.objects if o.found} == {'a', 'f', 'h'}
    assert {names[o.source] for o in judged.objects if o.missed} == {'d', 'e'}
    assert names[found['off'].target.source] == 'b'
    assert names[found['wrong'].target.source] == 'c'
    assert {found[name].target for name in ('nothing', 'both', 'twice')} == {None}


def test_what_ap_gains_without_an_error(made):
    """Cats have 4 objects, dogs 3; recall k / 4 reaches 25 k + 1 thresholds."""
    judged = judge(*made, 'bbox')
    dog = [(34, 1)]  # h alone: recall 1/3
    assert judged.ap() == pytest.approx(mean_ap([(26, 1), (25, 2 / 7)], dog), abs=1e-12)
    assert judged.ap() == pytest.approx(evaluate(*made, 'bbox').ap(0.5), abs=1e-12)
    expected = {
        'localisation': mean_ap([(26, 1), (25, 2 / 3), (25, 3 / 7)], dog),
        'class': mean_ap([(26, 1), (25, 2 / 6)], [(67, 1)]),  # c and h: recall 2/3
        'duplicate': mean_ap([(26, 1), (25, 2 / 6)], dog),
        'background': mean_ap([(26, 1), (25, 2 / 6)], dog),
        'class and localisation': mean_ap([(26, 1), (25, 2 / 6)], dog),
        'missed': mean_ap([(34, 1), (33, 2 / 7)], [(51, 1)]),  # of 3 cats and 2 dogs
    }
    for kind, ap in expected.items():
        assert judged.ap(kind) == pytest.approx(ap, abs=1e-12), kind


def test_of_several_errors_about_an_object_the_best_is_put_right(made):
    truth, results = made
    extra = [
        dict(image_id=4, category_id=CAT, score=0.75, bbox=[240, 0, 100, 100]),  # b, IoU 60/140
        dict(image_id=4, category_id=DOG, score=0.99, bbox=[400, 200, 100, 100]),  # f, a cat, found
    ]
    judged = judge(truth, results + extra, 'bbox')
    assert judged.counts() == {
        'localisation': 2,
        'class': 2,
        'duplicate': 1,
        'background': 1,
        'class and localisation': 1,
        'missed': 2,
    }
    # dogs: the false one at 0.99, then h
    cat = [(26, 1), (25, 2 / 3), (25, 3 / 7)]
    assert judged.ap('localisation') == pytest.approx(mean_ap(cat, [(34, 0.5)]), abs=1e-12)
    # of class: the one about c is right, the one about f gone
    cat = [(26, 1), (25, 2 / 7)]
    assert judged.ap('class') == pytest.approx(mean_ap(cat, [(67, 1)]), abs=1e-12)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_judged_ap_is_cocos(kind):
    annotations, results = random_set(1)
    judged = judge(annotations, results[kind], kind)
    expected = evaluate(annotations, results[kind], kind).ap(0.5)
    assert judged.ap() == pytest.approx(expected, abs=1e-12)
    counts = judged.counts()
    assert sum(map(bool, counts.values())) == 6, 'every kind is there'
    verdicts = Counter(d.verdict for d in judged.detections)
    assert verdicts['ignored'] and set(verdicts) == {'right', 'ignored', *FALSE}
    table = judged.confusion()
    objects = [a for a in annotations['annotations'] if not a['iscrowd']]
    for k, key in enumerate(judged.classes):
        assert table[k].sum() == sum(a['category_id'] == key for a in objects)
        seen = [d for d in judged.detections if d.label == k and d.verdict != 'ignored']
        assert table[:, k].sum() == len(seen)
    assert np.trace(table) == verdicts['right']


def test_at_most_100_detections_of_an_image_and_class(made):
    """With 97 better cats, the best three of the others count, and the dog."""
    truth, results = made
    cats = [dict(image_id=4, category_id=CAT, score=0.99, bbox=[9, 9, 9, 9])] * 97
    judged = judge(truth, results + cats, 'bbox')
    order = list(DETECTIONS)[::-1]
    found = {order[d.source] for d in judged.detections if d.source < len(order)}
    assert found == {'ignored', 'a', 'twice', 'h'}
