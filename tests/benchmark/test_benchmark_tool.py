"""The command: a whole run, pages of its record, mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from res2net_mm.engine.errors import ToolError, run_tool

REPO = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(REPO))


@pytest.mark.slow
def test_whole_run(tool, tmp_path, capsys):
    args = ['backbone', '--size', '64x64', '--rounds', '1', '--threads', '1']
    json_file, chart = tmp_path / 'record.json', tmp_path / 'chart.png'
    run = subprocess.run(
        [sys.executable, 'tools/benchmark.py', *args]
        + ['--peers', 'mmdet', 'timm', '--json', str(json_file), '--chart', str(chart)],
        env=ENV,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    record = json.loads(json_file.read_text())
    assert set(record) == set(
        'task title yardstick settings command date machine rows profile notes'.split()
    )
    assert (record['task'], record['yardstick']) == ('backbone', 'mmdet')
    assert record['title'] == 'Inference of res2net50_v1b_26w_4s, 1x3x64x64'
    assert record['command'].startswith('python tools/benchmark.py backbone --size 64x64')
    assert record['settings']['peers'] == ['mmdet', 'timm'] and record['settings']['batch'] == 1
    assert set(record['machine']) == set('cpu flags cores threads gpu python versions'.split())
    assert record['machine']['threads'] == 1
    for row, name in zip(record['rows'], ('mmdet', 'timm'), strict=True):
        assert row['name'] == name and len(row['times']) == 1 and row['times'][0] > 0
        assert row['difference'] < 1e-5 and row['memory_mib'] > 0 and row['note'] == ''
    ratio = record['rows'][0]['times'][0] / record['rows'][1]['times'][0]
    assert f'{ratio:.2f}' in run.stdout
    assert chart.stat().st_size > 1000 and len(list(tmp_path.iterdir())) == 2

    tool.main(['tables', str(json_file)])
    assert f'| 1x3x64x64 | timm | {ratio:.2f} |' in capsys.readouterr().out
    out = tmp_path / 'page.md'
    tool.main(['tables', str(json_file), '--out', str(out)])
    assert f'| 1x3x64x64 | timm | {ratio:.2f} |' in out.read_text()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['backbone', '--size', '10x64'], "each of 32 pixels or more, but got '10x64'"),
        (['backbone', '--size', '64x64', '64x64'], '--size must differ'),
        (['backbone', '--batch', '0'], '--batch must be at least 1'),
        (['backbone', '--peers', 'someone'], "but got 'someone'"),
        (['backbone', '--peers', 'timm', 'timm'], '--peers must differ'),
        (['backbone', '--peers', 'ours quick'], "but got 'ours quick'"),
        (['train', '--peers', 'ours fast'], 'ours fast is not for training step'),
        (['backbone', '--peers', 'ours fast float16'], 'is not for device cpu'),
        (['backbone', '--dtype', 'float16'], 'no peer of type float16 is for device cpu'),
        (
            ['backbone', '--variant', 'res2net101_v1b_26w_4s', '--peers', 'resnet50'],
            'resnet50 is not for res2net101_v1b_26w_4s',
        ),
        (['backbone', '--device', 'abacus'], '--device must be cpu or cuda, but is abacus'),
        (['backbone', '--rounds', '0'], '--rounds must be at least 1, but is 0'),
        (['backbone', '--threads', '0'], '--threads must be at least 1, but is 0'),
        (['backbone', '--json', 'none/record.json'], 'none is not a writable folder'),
        (['backbone', '--json', 'record.png'], '--json must end in .json'),
        (['sweep', '--batch', '2', '2'], 'no two the same'),
        (['train', '--size', '64x64', '96x96'], '--size must be one'),
        (['train', '--peers', 'someone'], "but got 'someone'"),
        (['dcn', '--size', 'big'], "but got 'big'"),
        (['deform_conv', '--batch', '0'], '--batch must be at least 1'),
        (['train_detector', '--size', '64x64', '96x96'], '--size must be one'),
        (['coco', '--images', '0'], '--images must be at least 1, but is 0'),
        (['tables', 'none.json'], 'none.json cannot be read'),
    ],
)
def test_mistakes_are_reported_before_anything_runs(tool, args, message):
    with pytest.raises(ToolError) as error:
        tool.main(args)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_mistake_is_one_line(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: tool.main(['backbone', '--peers', 'someone']))
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: --peers must be one of')


def test_committed_page_is_that_of_its_records(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    page = Path('docs/benchmarks.md')
    before = page.read_text()
    written = tmp_path / 'docs/benchmarks.md'
    written.parent.mkdir()
    (tmp_path / 'docs/benchmarks').symlink_to(REPO / 'docs/benchmarks')
    monkeypatch.chdir(tmp_path)
    records = sorted(str(path) for path in Path('docs/benchmarks').glob('*.json'))
    tool.main(['tables', *records, '--out', 'docs/benchmarks.md'])
    assert len(records) > 5 and written.read_text() == before
