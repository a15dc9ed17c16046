"""Annotation and result files, and the tool that scores them."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from random_sets import random_set
from reference_coco import pycocotools_eval

from res2net_mm.evaluation.coco import evaluate

REPO = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, PYTHONPATH=str(REPO))
KINDS = ('bbox', 'segm')


def call(monkeypatch, capsys, tool, *args):
    """Exit status, standard output and standard error of a tool, in this process."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / 'tools' / f'{tool}.py'), run_name='__main__')
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture
def written(tmp_path):
    annotations, results = random_set(0)
    for kind in KINDS:
        (tmp_path / f'{kind}.json').write_text(json.dumps(results[kind]))
    (tmp_path / 'truth.json').write_text(json.dumps(annotations))
    return tmp_path


def test_tool_prints_and_writes_all_figures(written, monkeypatch, capsys):
    out = written / 'new' / 'figures.json'
    status, text, _ = call(
        monkeypatch,
        capsys,
        'eval_results',
        written / 'segm.json',
        written / 'truth.json',
        '--metric',
        'segm',
        '--max-dets',
        *(5, 50),
        '--json',
        out,
    )
    assert status == 0
    annotations, results = random_set(0)
    scores = evaluate(annotations, results['segm'], 'segm', max_dets=(5, 50))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ['segm', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    assert lines[1][:2] == ['all', f'{scores.ap():.3f}']
    assert lines[2] == ['person', f'{scores.ap(None, 1):.3f}'] and lines[5] == ['dog', '-']
    assert lines[6] == ['segm', 'recall', 'AR@5', 'AR@50', 'AR_s@50', 'AR_m@50', 'AR_l@50']
    assert lines[7][:2] == ['all', f'{scores.ar(5):.3f}']
    content = json.loads(out.read_text())
    assert content['figures'] == scores.figures() and content['max_dets'] == [5, 50]
    assert content['classes'][1]['AP50'] == scores.ap(0.5, 3)
    assert content['classes'][3]['AP'] is None, 'a class without objects'
    assert [file.name for file in out.parent.iterdir()] == ['figures.json']


def test_no_detection_is_ap_zero(written, monkeypatch, capsys):
    (written / 'none.json').write_text('[]')
    status, text, _ = call(
        monkeypatch, capsys, 'eval_results', written / 'none.json', written / 'truth.json'
    )
    assert status == 0 and 'holds no detection: every AP is 0' in text
    assert text.splitlines()[2].split() == ['all'] + ['0.000'] * 6


def test_results_of_a_part_of_the_images(written, monkeypatch, capsys):
    """Of 6 images 2 have results: both figures are there, and a choice of the second."""
    annotations, results = random_set(0)
    few = [r for r in results['bbox'] if r['image_id'] in (2, 30)]
    (written / 'few.json').write_text(json.dumps(few))
    run = pycocotools_eval(annotations, few, 'bbox', (1, 10, 100))
    part = pycocotools_eval(annotations, few, 'bbox', (1, 10, 100), images=[2, 30])
    assert part.stats[0] > 2 * run.stats[0]
    arguments = (written / 'few.json', written / 'truth.json', '--json', written / 'out.json')
    for more, expected, scored in (((), run, 6), (('--images-with-results',), part, 2)):
        status, text, error = call(monkeypatch, capsys, 'eval_results', *arguments, *more)
        assert status == 0, error
        assert text.splitlines()[1].split()[1] == f'{expected.stats[0]:.3f}'
        content = json.loads((written / 'out.json').read_text())
        parts = content['images'], content['images_with_results'], content['images_scored']
        assert parts == (6, 2, scored)
        figures = [-1 if value is None else value for value in content['figures'].values()]
        assert figures == pytest.approx(expected.stats.tolist())
        note = next(line for line in text.splitlines() if line.startswith('note: '))
        assert '4 of 6 images' in note and ('pass --images-with-results' in note) == (not more)


def test_what_is_odd_about_the_files_is_said(written, monkeypatch, capsys):
    annotations, results = random_set(0)
    annotations['annotations'][0]['image_id'] = 77
    everywhere = [*results['bbox'], {**results['bbox'][0], 'image_id': 31}]
    again = [{**result, 'id': i} for i, result in enumerate(everywhere[:3])]
    (written / 'odd.json').write_text(json.dumps([*everywhere, *again]))
    (written / 'truth.json').write_text(json.dumps(annotations))
    _, text, _ = call(
        monkeypatch, capsys, 'eval_results', written / 'odd.json', written / 'truth.json'
    )
    notes = [line for line in text.splitlines() if line.startswith('note: ')]
    assert len(notes) == 2, 'no image is without a detection'
    assert f'3 of {len(everywhere) + 3} detections' in notes[0] and '1 annotations' in notes[1]


def test_where_figures_cannot_be_written_is_said_first(written, monkeypatch, capsys):
    arguments = (written / 'bbox.json', written / 'truth.json', '--json')
    below = written / 'bbox.json' / 'x'
    for target, part in ((written, 'no regular file'), (below, 'Not a directory')):
        status, text, error = call(monkeypatch, capsys, 'eval_results', *arguments, target)
        assert status == 1 and not text and str(target) in error and part in error


def change(**values):
    return lambda results: [dict(results[0], **values), *results[1:]]


BOX = {'bbox': [1, 2, 3]}


WRONG = {
    'cut off': (lambda r: json.dumps(r)[:-40], ('not valid JSON', 'line 1')),
    'empty': (lambda r: '', ('not valid JSON', 'line 1 column 1')),
    'thousands of digits': (lambda r: f'[{"9" * 5000}]', ('not valid JSON', '5000 digits')),
    'text': (lambda r: 'AP is 0.5', ('not valid JSON', 'line 1 column 1')),
    'dict': (lambda r: {'results': r}, ('must be a list', "{'results'")),
    'numbers': (lambda r: [1, 2], ('entries[0]: must be a dict',)),
    'image': (change(image_id=77), ('1 detections', 'image_id', ': 77')),
    'string': (change(image_id='9'), ('image_id', "'9'")),
    'list': (change(image_id=[9]), ('entries[0]: image_id', '[9]')),
    'class': (change(category_id=2), ('1 detections', 'category_id', ': 2')),
    'score': (change(score=float('nan')), ('entries[0]: score', 'finite', 'nan')),
    'word': (change(score='high'), ('entries[0]: score', 'finite', "'high'")),
    'box': (change(**BOX), ('entries[0]: bbox must be 4 finite numbers', '[1, 2, 3]')),
    'digits': (change(score=10**400), ('entries[0]: score', 'finite', '1000')),
    'nested': (lambda r: '[' * 100_000, ('not valid JSON', 'recursion')),
    'key': (lambda r: [{'image_id': 9}], ("entries[0]: it has no 'category_id'",)),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_results_are_one_line(written, monkeypatch, capsys, case):
    make, expected = WRONG[case]
    content = make(json.loads((written / 'bbox.json').read_text()))
    file = written / 'wrong.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    status, text, error = call(monkeypatch, capsys, 'eval_results', file, written / 'truth.json')
    assert (status, text) == (1, '')
    assert error.count('\n') == 1 and error.startswith('error: ')
    assert all(part in error for part in (*expected, str(file))), error


def test_other_mistakes_are_one_line(written, monkeypatch, capsys):
    boxes, truth = written / 'bbox.json', written / 'truth.json'
    masks = json.loads((written / 'segm.json').read_text())
    masks[3]['segmentation']['size'] = [10, 20]
    (written / 'small.json').write_text(json.dumps(masks))
    for args, part in (
        (
            (boxes, truth, '--metric', 'segm'),
            'entries[0]: it has no segmentation; score with --metric bbox',
        ),
        (
            (written / 'small.json', truth, '--metric', 'segm'),
            'the mask cannot be used: the mask has size [10, 20], but the image has [320, 320]',
        ),
        ((boxes, written / 'gone.json'), 'gone.json'),
        ((boxes, boxes), "no list 'images'"),
        ((boxes, truth, '--max-dets', '0'), 'max_dets must be positive integers'),
    ):
        status, _, error = call(monkeypatch, capsys, 'eval_results', *args)
        assert status == 1 and part in error and error.count('\n') == 1, error


def alter(part, **values):
    return lambda truth: truth[part][0].update(values)


def odd(truth):
    truth['annotations'][0]['segmentation'] = [[1, 2, 3, 4, 5, 6, 7]]


WRONG_TRUTH = {
    'box': (alter('annotations', bbox=[1, 2]), 'annotations[0]: bbox must be 4 finite numbers'),
    'box of text': (alter('annotations', bbox=['1', '2', '3', '4']), 'bbox must be 4 finite'),
    'area': (alter('annotations', area='big'), "area must be a finite number, but is 'big'"),
    'crowd': (alter('annotations', iscrowd='yes'), "iscrowd must be 0 or 1, but is 'yes'"),
    'list': (
        alter('annotations', image_id=[1]),
        'image_id must be a whole number, without .0, or a text, but is [1]',
    ),
    'name': (
        alter('categories', name=None),
        'categories[0]: name must be a text, but is None',
    ),
    'images': (lambda truth: truth['images'].clear(), 'it has no image'),
    'ids': (alter('images', id='one'), 'id of images are numbers and texts'),
    'points': (
        alter('annotations', segmentation=[[[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [1, 1]]]),
        'it is neither polygons',
    ),
    'polygon': (odd, 'do not have 6, 8, 10, ... coordinates'),
    'none': (alter('annotations', segmentation=None), 'annotations[0]: it has no segmentation'),
    'number': (alter('annotations', segmentation=5), 'it is neither polygons'),
    'size': (
        alter('annotations', segmentation=dict(size=[3, 3], counts=[9])),
        'annotations[0]: the mask cannot be used: the mask has size [3, 3]',
    ),
    'no size': (alter('images', height=None), 'images[0]: height must be an integer above 0'),
}


@pytest.mark.parametrize('case', WRONG_TRUTH)
def test_wrong_annotations_are_one_line(written, monkeypatch, capsys, case):
    spoil, expected = WRONG_TRUTH[case]
    truth = json.loads((written / 'truth.json').read_text())
    spoil(truth)
    file = written / 'wrong.json'
    file.write_text(json.dumps(truth))
    status, text, error = call(
        monkeypatch, capsys, 'eval_results', written / 'segm.json', file, '--metric', 'segm'
    )
    assert (status, text) == (1, '')
    assert error.count('\n') == 1 and expected in error and str(file) in error, error


@pytest.mark.parametrize('counts', ['abc', 'é', '', [5], 7])
def test_masks_that_do_not_decode(written, monkeypatch, capsys, counts):
    masks = json.loads((written / 'segm.json').read_text())
    masks[2]['segmentation']['counts'] = counts
    (written / 'spoilt.json').write_text(json.dumps(masks))
    status, _, error = call(
        monkeypatch,
        capsys,
        'eval_results',
        written / 'spoilt.json',
        written / 'truth.json',
        '--metric',
        'segm',
    )
    assert status == 1 and 'entries[2]: the mask' in error and error.count('\n') == 1, error


def test_tool_in_a_process_of_its_own(written, python):
    run = python('tools/eval_results.py', written / 'bbox.json', written / 'truth.json', env=ENV)
    assert run.returncode == 0 and run.stdout.startswith('bbox   '), run.stderr[-2000:]
    assert run.stderr == ''


def small_set(**changes):
    """Two objects of two classes in an image, and a detection of each."""
    objects = [
        dict(id=i, image_id=1, category_id=i, bbox=[10 * i, 10, 20, 20], iscrowd=0) for i in (1, 2)
    ]
    truth = dict(
        images=[dict(id=1, file_name='a.jpg', width=100, height=100)],
        categories=[dict(id=i, name=name) for i, name in ((1, 'cat'), (2, 'dog'))],
        annotations=objects,
    )
    results = [{**{k: o[k] for k in ('image_id', 'category_id', 'bbox')}, 'score': 0.9}
               for o in objects]  # fmt: skip
    return truth | changes, results


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        (dict(categories=[dict(id=i, name='cat') for i in (1, 2)]), "name 'cat' more than once"),
        (dict(categories=[dict(id=1, name=n) for n in 'ab']), 'the id 1 more than once'),
        (dict(categories=[dict(id=str(i), name=str(i)) for i in (1, 2)]), 'id of categories are'),
        (dict(images=[dict(id=1, width=100.5, height=9)]), 'width must be an integer above 0'),
    ],
)
def test_files_that_cannot_be_scored(changes, said, tmp_path, monkeypatch, capsys):
    truth, results = small_set(**changes)
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'results.json').write_text(json.dumps(results))
    files = tmp_path / 'results.json', tmp_path / 'truth.json'
    metric = ('--metric', 'segm') if 'images' in changes else ()
    status, _, error = call(monkeypatch, capsys, 'eval_results', *files, *metric)
    assert status == 1 and said in error and error.count('\n') == 1


def test_what_does_not_count_is_noted(tmp_path, monkeypatch, capsys):
    truth, results = small_set()
    truth['annotations'][1]['category_id'] = 7
    results[0]['score'] = 90
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'results.json').write_text(json.dumps(results))
    files = tmp_path / 'results.json', tmp_path / 'truth.json'
    status, text, _ = call(monkeypatch, capsys, 'eval_results', *files, '--max-dets', 100, 300)
    assert status == 0
    notes = [line for line in text.splitlines() if line.startswith('note: ')]
    assert notes == [
        'note: annotations without area: figures by size take that of the box',
        'note: 1 annotations do not count: the file has no such category',
        'note: scores are from 0.9 to 90, not from 0 to 1',
        'note: AP of all is with 100 detections (pycocotools), the rest with 300',
    ]


@pytest.mark.parametrize(
    ('written', 'note'),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], '12 of its 12 boxes would be inside'),
        (lambda x, y, w, h: [x, y, x + w + 99 * (h == 63), y + h], '11 of its 12 boxes would be'),
        (lambda x, y, w, h: [x / 640, y / 480, w / 640, h / 480], 'within 0 to 1'),
        (lambda x, y, w, h: [x + w, y, -w, h], '12 boxes have a negative width'),
        (lambda *box: [*box], ''),
    ],
)
def test_boxes_in_another_format_are_noted(tmp_path, monkeypatch, capsys, written, note):
    boxes = [[40 * i + 100, 30 * i + 100, 60, 40] for i in range(8)]
    boxes += [[500, 400, 100, 60 + i] for i in range(4)]
    image = dict(id=1, width=640, height=480, neg_category_ids=[2])
    truth = dict(images=[image], categories=[dict(id=1, name='a'), dict(id=2, name='b')])
    truth['annotations'] = [
        dict(id=i, image_id=1, category_id=1, bbox=box, area=2400, iscrowd=0)
        for i, box in enumerate(boxes)
    ]
    results = [dict(image_id=1, category_id=1, score=0.5, bbox=written(*box)) for box in boxes]
    for name, content in (('t', truth), ('r', results)):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    files = tmp_path / 'r.json', tmp_path / 't.json'
    _, text, _ = call(monkeypatch, capsys, 'eval_results', *files)
    notes = [line for line in text.splitlines() if line.startswith('note: ')]
    assert 'LVIS' in notes.pop()
    assert [note in line for line in notes] == [True] * bool(note)
