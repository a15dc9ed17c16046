"""The page of a run."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from res2net_mm.data.errors import DataError
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.run_page import note_validation, read_scalars, write_report

REPO = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
EVIL = '</script><img src=x onerror=alert(1)> "dög" \'&amp;'


def write_log(folder, *records):
    folder = folder / 'vis_data'
    folder.mkdir(parents=True)
    text = '\n'.join(map(json.dumps, records))
    (folder / 'scalars.json').write_text(f'{text}\n')
    (folder / 'config.py').write_text(f'# {EVIL}\nmodel = dict()\n')
    return folder / 'scalars.json'


def trained(at, loss):
    return dict(lr=0.1, loss=loss, loss_cls=loss / 2, epoch=1, iter=at, step=at, time=0.1)


def test_scalars_of_a_resumed_run_join(tmp_path):
    first = write_log(
        tmp_path / '1', trained(2, 5.0), trained(4, 4.0), {'coco/bbox_mAP': 0.1, 'step': 4},
        trained(6, 3.0), trained(8, 2.5), {'coco/bbox_mAP': 0.2, 'step': 8}
    )  # fmt: skip
    with first.open('a') as file:
        file.write('{"lr": 0.1, "lo')  # killed while it wrote
    second = write_log(
        tmp_path / '2', {'coco/bbox_mAP': 0.1, 'step': 4}, trained(6, 3.1), trained(8, 2.6),
        {'val_loss': 9.0, 'iter': 8, 'step': 8}
    )  # fmt: skip
    losses, measures = read_scalars([first, second])
    assert losses['loss'] == {2: 5.0, 4: 4.0, 6: 3.1, 8: 2.6}
    assert measures == {'coco/bbox_mAP': {4: 0.1}, 'val_loss': {8: 9.0}}
    assert set(losses) == {'lr', 'loss', 'loss_cls'}


def test_measures_by_epoch_are_at_the_iterations_of_their_epochs(tmp_path):
    """As mmengine logs them unless told otherwise."""
    records = [dict(trained(k, 1.0), epoch=-(-k // 4)) for k in (2, 4, 6, 8)]
    for at, epoch in ((4, 2), (2, 1)):
        records.insert(at, {'coco/bbox_mAP': epoch / 10, 'step': epoch})
    _, measures = read_scalars([write_log(tmp_path / '1', *records)])
    assert measures == {'coco/bbox_mAP': {4: 0.1, 8: 0.2}}


def test_measures_to_judge_by_come_first(tmp_path):
    names = [f'{kind}_{end}' for kind in ('bbox', 'segm') for end in ('AR@1', 'mAP', 'mAP_50')]
    more = {f'coco/bbox_{k}': 0.5 for k in 'bcdefgh'} | {'voc/cat_AP30': 0.5}
    figures = more | {f'coco/{name}': 0.5 for name in names}
    write_log(tmp_path / 'w' / '1', trained(2, 5.0), dict(figures, step=2))
    note_validation(str(tmp_path / 'w'), [detections(), detections()], [])
    text = write_report(tmp_path / 'w').read_text()
    assert 'segm_mAP' in text and 'cat_AP30' not in text
    assert 'Results of 2 metrics: those of the first are shown.' in text


def detections(count=3):
    boxes = [[10.0 * k, 5.0, 8.0, 8.0] for k in range(count)]
    return dict(
        images=[dict(id=1, file_name=EVIL, path='gone.png', width=64, height=48)],
        annotations=[
            dict(id=k, image_id=1, category_id=1, bbox=box, area=64.0)
            for k, box in enumerate(boxes)
        ],
        categories=[dict(id=1, name=EVIL)],
        results=[dict(image_id=1, category_id=1, bbox=boxes[0], score=np.float32(0.5))],
    )


@pytest.fixture
def work_dir(tmp_path):
    write_log(tmp_path / 'w' / '1', trained(2, 5.0), {'coco/bbox_mAP': 0.1, 'step': 4})
    return tmp_path / 'w'


def test_what_is_missing_is_said(work_dir, tmp_path):
    text = write_report(work_dir).read_text()
    assert 'No results of a validation' in text and 'No run.json' in text
    note_validation(str(work_dir), [dict(detections(), images=[{}] * 1001)], [])
    text = write_report(work_dir).read_text()
    assert 'No results: 1,001 images were validated, and up to 1,000' in text
    with pytest.raises(ToolError, match='holds no run'):
        write_report(tmp_path / 'nothing')
    (work_dir / 'validation.json').write_text('{')
    with pytest.raises(DataError, match='validation.json.*not valid JSON.*remove it'):
        write_report(work_dir)


def test_detections_and_names_from_data(work_dir):
    note_validation(str(work_dir), [detections()], [])
    text = write_report(work_dir).read_text()
    assert 'onerror=alert(1)&gt;' in text and '<img' not in text
    assert 'AP by class' in text and '3 objects' in text
    assert 'not shown: gone.png: the image cannot be read' in text
    assert re.search(r'Best coco/bbox_mAP: 0.1, after 4', text)


def segmentor(work_dir, tmp_path):
    rng = np.random.default_rng(0)
    image = str(tmp_path / 'picture.png')
    cv2.imwrite(image, rng.integers(0, 255, (60, 80, 3)))
    maps = dict(truth=rng.integers(0, 3, (60, 80)), predicted=rng.integers(0, 3, (60, 80)))
    worst = [dict(path=image, accuracy=0.25, **maps)]
    confusion = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]]
    examined = dict(confusion=confusion, classes=('road', EVIL, 'never'))
    note_validation(str(work_dir), [examined], worst)


def test_segmentors(work_dir, tmp_path):
    segmentor(work_dir, tmp_path)
    text = write_report(work_dir).read_text()
    row = re.search(r'<tr><th>road</th>(.*?)</tr>', text[text.index('By class') :])[1]
    cells = re.findall('<td>(.*?)</td>', row)
    # 6 of 8 labelled and of 7 predicted: IoU 6 / 9, precision 6 / 7, recall 6 / 8, F1 12 / 15
    assert cells == ['0.667', '0.667', '0.857', '0.750', '0.800']
    assert '25.0% right' in text and text.count('data:image/png') == 2


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_page_in_a_browser(work_dir, tmp_path, kind):
    """No error on the console, no sideways scrolling on a phone, values at the pointer."""
    if kind == 'detector':
        picture = str(tmp_path / 'picture.png')
        cv2.imwrite(picture, np.full((48, 64, 3), 90))
        examined = detections()
        examined['images'][0]['path'] = picture
        note_validation(str(work_dir), [examined], [])
    else:
        segmentor(work_dir, tmp_path)
    page = write_report(work_dir)
    text = page.read_text()
    assert len(text) < 5e6
    probe = """<script>
    const chart = document.querySelector('figure[data-chart] svg');
    const box = chart.getBoundingClientRect();
    chart.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2}));
    const shown = document.querySelector('output').textContent;
    const root = document.documentElement;
    document.title = JSON.stringify([innerWidth, root.scrollWidth, shown, box.height > 100]);
    </script>"""
    frame = tmp_path / 'frame.html'  # headless windows are at least 500 px wide, frames are not
    inner = tmp_path / 'inner.html'
    inner.write_text(text.replace('</html>', f'{probe}</html>'))
    frame.write_text(
        f'<iframe src="{inner.name}" width="390" height="800" style="border:0"></iframe><pre></pre>'
        '<script>onload = () => document.querySelector("pre").textContent = '
        'frames[0].document.title</script>'
    )
    for window, file in ((1200, inner), (800, frame)):
        flags = (
            '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync '
            '--disable-background-networking --disable-component-update --enable-logging=stderr '
            '--allow-file-access-from-files --virtual-time-budget=3000 --dump-dom'
        ).split()
        run = subprocess.run(
            [CHROMIUM, *flags, f'--user-data-dir={tmp_path}/{window}',
             f'--window-size={window},900', file.as_uri()],
            capture_output=True, text=True, timeout=120, env={**os.environ, 'HOME': str(tmp_path)},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-2000:]
        console = [line for line in run.stderr.splitlines() if 'CONSOLE' in line]
        assert not console, console
        found = re.search(r'<pre>(\[.*?\])</pre>|<title>(\[.*?\])</title>', run.stdout)
        width, scrolled, shown, drawn = json.loads((found[1] or found[2]).replace('&quot;', '"'))
        assert width == (390 if file == frame else window) and scrolled <= width
        assert shown == '5' and drawn


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['report', *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / 'tools' / 'report.py'), run_name='__main__')
    return ended.value.code


def test_the_tool(work_dir, tmp_path, monkeypatch, capsys):
    truth, results, page = (tmp_path / n for n in ('truth.json', 'results.json', 'page.html'))
    made = detections()
    results.write_text(json.dumps([{**made.pop('results')[0], 'score': 0.5}]))
    truth.write_text(json.dumps(made))
    given = work_dir, '--results', results
    assert call(monkeypatch, *given, '--annotations', truth, '--out', page) == 0
    assert 'AP by class' in page.read_text()
    assert call(monkeypatch, *given) == 1
    line = 'error: --results and --annotations go together: give both or neither\n'
    assert capsys.readouterr().err == line
    assert not (work_dir / 'report.html').exists()
