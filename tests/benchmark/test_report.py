"""Tables, pages and pictures of a record made by hand."""

import copy
import json

import cv2
import numpy as np
import pytest
from benchmark import report

from res2net_mm.engine.errors import ToolError

# medians 6, 2, 4, 16 seconds; quartiles 4 and 8, 1.5 and 2.5
RECORD = dict(
    task='backbone',
    title='Inference of a net',
    yardstick='peer',
    settings={},
    command='python tools/benchmark.py backbone',
    date='2026-01-02',
    machine=dict(
        cpu='Abacus',
        flags=['avx2'],
        threads=3,
        gpu=None,
        versions=dict(torch='9.1'),
    ),
    rows=[
        dict(name='peer', group='small', times=[2, 10, 4, 8, 6], difference=2e-6),
        dict(name='ours', group='small', dtype='bfloat16', times=[3, 1, 2]),
        dict(name='peer', group='large', times=[4.0], memory_mib=64.4),
        dict(name='ours', group='large', times=[16.0], memory_mib=32.6, note='slow'),
    ],
    profile=None,
)


def test_figures_are_those_computed_by_hand():
    before = copy.deepcopy(RECORD)
    rows = report.summarise(RECORD)
    assert before == RECORD
    keys = ('median', 'ratio', 'spread')
    figures = [[row[key] for key in keys] for row in rows]
    assert figures == [[6, 1, 4 / 6], [2, 3, 0.5], [4, 1, None], [16, 0.25, None]]


def test_table_of_the_terminal():
    record = dict(
        RECORD,
        profile=dict(peer=dict(load=0.5, rest=0.25), ours=dict(load=0.125)),
        notes=['one is left out'],
    )
    assert report.format_record(record).splitlines() == [
        'Inference of a net',
        'Abacus, avx2, 3 threads, torch 9.1',
        'ratio: times as fast as peer, by medians; spread: of quartiles',
        '',
        'at     name        ms  ratio  spread  MiB  difference  note',
        'small  peer   6000.00   1.00   66.7%          2.0e-06',
        'small  ours   2000.00   3.00   50.0%',
        'large  peer   4000.00   1.00           64',
        'large  ours  16000.00   0.25           33              slow',
        '',
        'ms of each part    peer    ours',
        'load             500.00  125.00',
        'rest             250.00',
        '',
        'one is left out',
    ]


def test_table_in_markdown_has_ratios_only():
    alone = dict(RECORD, rows=[dict(row, group='') for row in RECORD['rows'][:2]])
    assert report.markdown(RECORD).splitlines() == [
        '**Inference of a net** (Abacus, avx2, 3 threads, torch 9.1; 2026-01-02)',
        '',
        '| at |  | times as fast as peer | spread | memory (MiB) | note |',
        '| --- | --- | ---: | ---: | ---: | --- |',
        '| small | peer | 1.00 | 66.7% |  |  |',
        '| small | ours | 3.00 | 50.0% |  |  |',
        '| large | peer | 1.00 |  | 64 |  |',
        '| large | ours | 0.25 |  | 33 | slow |',
        '',
        '`python tools/benchmark.py backbone`',
    ]
    assert report.markdown(alone).splitlines() == [
        '**Inference of a net** (Abacus, avx2, 3 threads, torch 9.1; 2026-01-02)',
        '',
        '|  | times as fast as peer | spread |',
        '| --- | ---: | ---: |',
        '| peer | 1.00 | 66.7% |',
        '| ours | 3.00 | 50.0% |',
        '',
        '`python tools/benchmark.py backbone`',
    ]


def test_profile_in_markdown_is_of_the_last_one_of_the_type():
    times = dict(peer=dict(load=3, norm=1), other=dict(load=9), ours=dict(load=1.5, cache=0.5))
    times['half'] = dict(load=0.5)
    rows = [dict(RECORD['rows'][0], name=name, dtype='float32') for name in times]
    rows[-1]['dtype'] = 'bfloat16'
    lines = report.markdown(dict(RECORD, rows=rows, profile=times)).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('| part'))
    assert lines[first : first + 5] == [
        '| part | share of peer | share of ours | times as fast as peer |',
        '| --- | ---: | ---: | ---: |',
        '| load | 75% | 75% | 2.00 |',
        '| norm | 25% | 0% |  |',
        '| cache | 0% | 25% |  |',
    ]


def test_page_of_records(tmp_path):
    folder, out = tmp_path / 'records', tmp_path / 'page.md'
    folder.mkdir()
    (folder / 'b.png').write_bytes(b'')
    records = {folder / 'a.json': RECORD, folder / 'b.json': dict(RECORD, title='B')}
    report.write_page(out, records)
    text = out.read_text()
    assert f'tables {folder}/*.json --out {out}\n' in text
    assert [text.count(f'{report.markdown(record)}\n') for record in records.values()] == [1, 1]
    assert '![B](records/b.png)' in text and text.count('![') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['page.md', 'records']


def without(key):
    return {k: v for k, v in RECORD.items() if k != key}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'cannot be read'),
        ('[1]', "has no 'task'"),
        (json.dumps(without('machine')), "has no 'machine'"),
        (json.dumps(dict(RECORD, rows=[])), 'rows without times'),
        (json.dumps(dict(RECORD, rows=[dict(name='peer', times=[])])), 'rows without times'),
        (json.dumps(dict(RECORD, yardstick='x')), 'no row of its yardstick, x'),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, message):
    path = tmp_path / 'record.json'
    path.write_text(content)
    with pytest.raises(ToolError, match=message):
        report.read_record(path)
    path.write_text(json.dumps(RECORD))
    assert report.read_record(path) == RECORD


def test_bars_are_as_long_as_the_ratios(tmp_path):
    report.draw(dict(RECORD, rows=RECORD['rows'][:2]), tmp_path / 'bars.png')
    picture = cv2.imread(str(tmp_path / 'bars.png')).astype(int)  # BGR

    def length(color):
        found = np.abs(picture - color).max(2) < 8
        return found.sum(1).max()  # pixels of the fullest line

    assert length((14, 127, 255)) / length((127, 127, 127)) == pytest.approx(3, rel=0.05)


def test_lines_of_a_sweep_are_the_medians(tmp_path, monkeypatch):
    rows = [
        dict(name=name, size=[height, 1000], batch=batch, group=f'{height} {batch}', times=[time])
        for name, factor in (('peer', 4), ('ours', 1))
        for height, batch, time in ((1000, 1, 1.0), (500, 1, 0.25), (1000, 2, 3.0), (500, 2, 0.5))
        for time in [time * factor]
    ]
    record = dict(RECORD, rows=rows, task='sweep')
    figures = []
    make = report.lines_of
    monkeypatch.setattr(report, 'lines_of', lambda *args: figures.append(make(*args)) or figures[0])
    report.draw(record, tmp_path / 'sweep.png')
    assert cv2.imread(str(tmp_path / 'sweep.png')).std() > 1
    (axes,) = figures[0].axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        'peer, batch 1': [[0.5, 1000], [1, 4000]],
        'peer, batch 2': [[0.5, 2000], [1, 12000]],
        'ours, batch 1': [[0.5, 250], [1, 1000]],
        'ours, batch 2': [[0.5, 500], [1, 3000]],
    }
    assert axes.get_xscale() == axes.get_yscale() == 'log'
