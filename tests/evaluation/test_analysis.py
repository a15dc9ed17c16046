"""Analyses, their pictures, and the tool that makes them."""

import csv
import json
import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_errors import CAT, DOG, made_set
from PIL import Image

from res2net_mm.evaluation.analysis import SIZE_BINS, analyse
from res2net_mm.evaluation.analysis_page import detection_sections, read_image
from res2net_mm.evaluation.judging import judge

REPO = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, PYTHONPATH=str(REPO))


@pytest.fixture
def made():
    return made_set()


def test_confusion_and_worst_images_from_a_score(made):
    truth, results = made
    analysis = analyse(truth, results, 'bbox', score=0.25)
    # rows dog, cat, background; columns likewise, the last not detected
    assert analysis.confident.confusion().tolist() == [[0, 1, 2], [0, 2, 2], [0, 4, 0]]
    assert analysis.every.confusion().tolist() == [[1, 1, 1], [0, 2, 2], [0, 4, 0]]
    assert analysis.names == ['dog', 'cat']
    lost, false = analysis.confident.by_image()
    assert (lost.tolist(), false.tolist()) == ([0, 5, 0], [0, 5, 0])
    assert analysis.worst(12) == [1] and analysis.confident.images[1] == 4
    assert analysis.confident.counts()['missed'] == 3  # h has too low a score
    counts = dict.fromkeys(SIZE_BINS, 0) | {'96 to 192': 6, '32 to 64': 1}
    assert analysis.sizes == counts
    assert analysis.scores.ap(0.5, DOG, '32 to 64') == pytest.approx(1.0)


def test_wrong_class_on_an_object_already_found_is_background_in_confusions(made):
    truth, results = made
    extra = [dict(image_id=4, category_id=DOG, score=0.5, bbox=[0, 0, 100, 100])]
    table = analyse(truth, results + extra, 'bbox', score=0.25).confident.confusion()
    assert table.tolist() == [[0, 1, 2], [0, 2, 2], [1, 4, 0]], 'a is found as a cat'


@pytest.fixture
def written(made, tmp_path):
    truth, results = made
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'results.json').write_text(json.dumps(results))
    (tmp_path / 'images').mkdir()
    for image in truth['images']:
        cv2.imwrite(str(tmp_path / 'images' / image['file_name']), np.full((480, 800, 3), 90))
    return tmp_path


def arguments(written, *more):
    paths = (written / 'results.json', written / 'truth.json', '--out', written / 'out')
    return [str(part) for part in (*paths, *more)]


def call(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, 'argv', ['analyze', *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / 'tools' / 'analyze.py'), run_name='__main__')
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_tool_writes_one_table_and_a_page(written, monkeypatch, capsys):
    more = ('--images', written / 'images', '--score', 0.25)
    status, text, _ = call(monkeypatch, capsys, *arguments(written, *more))
    assert status == 0
    lines = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert lines['missed'][:2] == ['2', '3'] and lines['duplicate'][:2] == ['1', '1']
    rows = list(csv.reader((written / 'out' / 'analysis.csv').open()))
    assert rows[0] == ['table', 'row', 'column', 'value']
    figures = {tuple(row[:3]): float(row[3]) for row in rows[1:]}
    assert len(figures) == len(rows) - 1, 'no figure is there twice'
    judged = judge(json.loads((written / 'truth.json').read_text()), read(written), 'bbox')
    assert figures['ap', 'all', 'AP50'] == pytest.approx(judged.ap(), abs=1e-12)
    gain = figures['errors', 'class', 'AP50 gained without']
    assert gain == pytest.approx(judged.ap('class') - judged.ap(), abs=1e-12)
    assert figures['errors', 'missed', 'count from score 0.25'] == 3
    assert figures['confusion', 'dog', 'cat'] == 1
    assert figures['confusion', 'background', 'cat'] == 4
    assert figures['images', '4.png', 'missed'] == figures['images', '4.png', 'false'] == 5
    assert figures['ap_by_size', '96 to 192', 'objects'] == 6
    assert figures['precision', 'IoU 0.50', 'recall 0.00'] == 1
    assert sorted(file.name for file in (written / 'out').iterdir()) == [
        'analysis.csv',
        'analysis.html',
    ]
    page = (written / 'out' / 'analysis.html').read_text()
    assert '4.png: 5 missed, 5 false' in page and page.count('data:image/jpeg') == 2
    marks = [page.count(f'<g class="{kind}">') for kind in ('found', 'lost', 'false')]
    # truth: a and f are found, five are lost; predictions: these two, one on the crowd, five false
    assert marks == [2 + 3, 5, 5]
    assert '<title>cat 0.60 class<' in page and '<title>cat 0.80 duplicate<' in page


def read(written):
    return json.loads((written / 'results.json').read_text())


def test_an_image_annotated_unturned_is_drawn_so(written):
    exif = Image.Exif()
    exif[0x0112] = 6  # turns its 800 x 480 px
    Image.new('RGB', (800, 480)).save(written / 'images/4.png', 'JPEG', exif=exif)
    assert cv2.imread(str(written / 'images/4.png')).shape == (800, 480, 3)
    entry = dict(width=800, height=480)
    assert read_image(written / 'images/4.png', entry).shape == (480, 800, 3)
    assert read_image(written / 'images/4.png', {}).shape == (800, 480, 3)


def test_no_object_at_all(written, monkeypatch, capsys):
    truth = json.loads((written / 'truth.json').read_text())
    truth['annotations'] = []
    (written / 'truth.json').write_text(json.dumps(truth))
    status, text, error = call(monkeypatch, capsys, *arguments(written))
    assert status == 0, error
    assert text.startswith('AP at IoU 0.5: 0.000') and (written / 'out/analysis.csv').exists()


def test_no_detection_at_all(written, monkeypatch, capsys):
    (written / 'results.json').write_text('[]')
    status, text, _ = call(monkeypatch, capsys, *arguments(written))
    assert status == 0 and text.startswith('AP at IoU 0.5: 0.000')
    assert not (written / 'out' / 'worst.png').exists()


def test_images_that_have_results(written, monkeypatch, capsys):
    """Image 6 was not run: its cat is missed, but not of the images with results."""
    truth = json.loads((written / 'truth.json').read_text())
    cat = dict(image_id=6, category_id=CAT, bbox=[0, 0, 50, 50], area=2500, iscrowd=0, id=99)
    truth['annotations'].append(cat)
    (written / 'truth.json').write_text(json.dumps(truth))
    missed = {}
    for more in ((), ('--images-with-results',)):
        status, text, _ = call(monkeypatch, capsys, *arguments(written, *more))
        assert status == 0 and 'note: ' in text
        missed[more] = next(line for line in text.splitlines() if line.startswith('missed'))
        rows = list(csv.reader((written / 'out' / 'analysis.csv').open()))
        images = {row[1] for row in rows if row[0] == 'images'}
        assert images == ({'4.png'} if more else {'6.png', '4.png', '1.png'})
    counts = [int(line.split()[1]) for line in missed.values()]
    assert counts[0] == counts[1] + 1


def test_no_page_is_left_cut_off(written, monkeypatch, capsys):
    real = Path.write_text

    def cut(self, text, **kwargs):
        real(self, text[:10], **kwargs)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', cut)
    status, text, error = call(monkeypatch, capsys, *arguments(written))
    assert status == 1 and text.startswith('AP at IoU 0.5'), 'the figures are there all the same'
    assert 'analysis.html could not be written: No space left' in error
    assert [file.name for file in (written / 'out').iterdir()] == ['analysis.csv']


def test_the_best_threshold_is_the_best_of_all(made):
    """By counting anew with only the detections from each score."""
    truth, results = made
    extra = [dict(image_id=6, category_id=DOG, score=0.2, bbox=[0, 0, 40, 40])]  # a tie
    results = results + extra
    rows = analyse(truth, results, 'bbox').thresholds()
    assert [row[:2] for row in rows] == [('dog', 3), ('cat', 4)]
    for label, (_, objects, score, precision, recall, f1) in enumerate(rows):
        found = {}
        for least in sorted({r['score'] for r in results}, reverse=True):
            kept = [d for d in judge(truth, results, 'bbox', score=least).detections]
            kept = [d for d in kept if d.label == label and d.verdict != 'ignored']
            right = sum(not d.false for d in kept)
            if kept and right:
                p, r = right / len(kept), right / objects
                found[least] = (p, r, 2 * p * r / (p + r))
        assert (precision, recall, f1) == pytest.approx(found[score])
        assert f1 == pytest.approx(max(value[-1] for value in found.values()))
    assert rows[0][2:] == pytest.approx((0.2, 1 / 2, 1 / 3, 2 / 5))
    truth['annotations'] = []
    assert np.isnan(analyse(truth, results, 'bbox').thresholds()[0][2:]).all()


def test_calibration(made):
    """By hand: 0.95 is on a crowd and does not count; 0.9, 0.3 and 0.2 are right."""
    truth, results = made
    assert analyse(truth, results, 'bbox').calibration(2) == [
        (pytest.approx((0.4 + 0.3 + 0.2) / 3), pytest.approx(2 / 3), 3),
        (pytest.approx((0.9 + 0.8 + 0.7 + 0.6 + 0.5) / 5), pytest.approx(1 / 5), 5),
    ]
    assert analyse(truth, [], 'bbox').calibration() == []


def test_mistakes_are_one_line(written, monkeypatch, capsys):
    for more, part in (
        (('--images', written / 'gone'), 'gone is not a folder'),
        (('--metric', 'segm'), 'annotations[0]: it has no segmentation; score with --metric bbox'),
        (('--score', '2'), '--score must be from 0 to 1, but is 2.0'),
        (('--out', written / 'truth.json'), 'truth.json cannot be written'),
    ):
        status, _, error = call(monkeypatch, capsys, *arguments(written, *more))
        assert status == 1 and part in error and error.count('\n') == 1, error
        assert not (written / 'out').exists()


@pytest.mark.slow
def test_analysis_in_a_process_of_its_own(written, python):
    run = python('tools/analyze.py', *arguments(written), env=ENV)
    assert run.returncode == 0 and 'background' in run.stdout, run.stderr[-2000:]
    assert (written / 'out' / 'analysis.html').exists() and run.stderr == ''


def test_a_missing_image_is_said_and_the_others_shown(written, made):
    truth, results = made
    (written / 'images' / '4.png').unlink()
    analysis = analyse(truth, results, 'bbox')
    text = ''.join(detection_sections(analysis, truth, results, written / 'images'))
    assert '4.png: 5 missed, 5 false; not shown: ' in text
    assert '4.png: the image cannot be read' in text and 'No such file' in text
