"""The report of the full check: tables, files, the tool."""

from __future__ import annotations

import csv
import json
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from planting import SHAPES, coco_config, told

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check import report
from res2net_mm.data.check.inspection import check_data, inspect_data
from res2net_mm.data.check.report import format_inspection, write_inspection


def test_tables(shapes, shapes_config):
    inspection = inspect_data(shapes_config)
    rows = [row.split() for row in format_inspection(inspection).splitlines()]
    content = {
        split: json.loads((shapes / f'annotations/instances_{split}.json').read_text())
        for split in ('train', 'val')
    }
    for split, images in (('train', 16), ('val', 12)):
        boxes = np.array([a['bbox'][2:] for a in content[split]['annotations']])
        sides = np.sqrt(boxes.prod(1))
        counts = [len(boxes), (sides < 32).sum(), ((sides >= 32) & (sides < 96)).sum()]
        per_image = np.bincount([a['image_id'] for a in content[split]['annotations']]).max()
        row = next(row for row in rows if row[:1] == [split])
        assert [int(cell) for cell in row[1:5]] == [images, *counts]
        assert [float(row[6]), int(row[7])] == [boxes.min(), per_image]
        assert row[8:] == ['256x256', f'({images})', 'RGB', f'({images})']
    for i, name in enumerate(SHAPES, 1):
        row = next(row for row in rows if row[:1] == [name])
        counts = [sum(a['category_id'] == i for a in c['annotations']) for c in content.values()]
        assert list(map(int, row[1:])) == counts
    assert [s.per_class for s in inspection.summaries] == [
        s.per_class for s in check_data(shapes_config)
    ]


def test_the_table_of_many_classes_is_there(shapes, tmp_path):
    """60 classes, of which the first four have objects."""
    (tmp_path / 'annotations').mkdir()
    names = [f'class {i}' for i in range(60)]
    for split in ('train', 'val'):
        (tmp_path / split).symlink_to(shapes / split)
        file = Path('annotations') / f'instances_{split}.json'
        content = json.loads((shapes / file).read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        (tmp_path / file).write_text(json.dumps(content))
    text = format_inspection(inspect_data(coco_config(tmp_path, '{}/', tuple(names))))
    counts = [a['category_id'] for a in content['annotations']]
    for i, name in enumerate(names, 1):
        cells = re.search(rf'\b{name}  +(\d+)  +(\d+)\b', text)
        assert cells and int(cells[2]) == counts.count(i)
    table = [line for line in text.splitlines() if line.startswith('class ')]
    assert len(table) <= 21 and max(map(len, table)) <= 100


def test_a_picture_that_cannot_be_written_leaves_nothing(shapes_config, tmp_path, monkeypatch):
    def cut(inspection, file):
        Path(file).write_bytes(b'')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(report, 'draw_inspection', cut)
    with pytest.raises(OSError, match='sheet.jpg could not be written: No space left'):
        write_inspection(inspect_data(shapes_config, ['val']), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {'findings.csv'}


def test_files_and_what_cannot_be_shown(tmp_path, shapes, faulty):
    content = json.loads((tmp_path / 'train.json').read_text())
    content['images'][0]['file_name'] = 'gone.jpg'
    content['annotations'][-1]['segmentation'] = [[1, 2]]
    content['annotations'][-2]['bbox'] = [float('nan')] * 4
    (tmp_path / 'train.json').write_text(json.dumps(content))
    inspection = inspect_data(faulty)
    files = write_inspection(inspection, tmp_path)
    assert [file.name for file in files] == ['sheet.jpg', 'findings.csv']
    with open(files[1], newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert [tuple(row.values()) for row in rows] == [
        (f.severity, f.kind, f.split, f.file, f.what, f.remedy) for f in inspection.findings
    ]
    assert {'images missing', 'mask broken', 'box not finite'} <= {row['kind'] for row in rows}
    # the missing image first, as an error of a kind of its own
    sheet = cv2.imread(str(files[0]))
    assert np.abs(sheet[2, 2].astype(int) - [40, 40, 230]).max() < 40


def test_nothing_can_be_read(tmp_path, shapes):
    cfg = coco_config(shapes / 'no', '{}/', SHAPES)
    inspection = inspect_data(cfg)
    assert {severity for severity, *_ in told(inspection)} == {'error'}
    text = format_inspection(inspection)
    assert text.startswith('train: could not be read\nval: could not be read\ntest: the same as')
    assert all(file.stat().st_size for file in write_inspection(inspection, tmp_path))


def run_main(monkeypatch, capsys, *args: object) -> tuple[int, list[str], list[str]]:
    """Exit status and the lines of both outputs of the tool, run in this process."""
    tool = Path(__file__).parents[2] / 'tools/check_data.py'
    monkeypatch.setattr('sys.argv', ['check_data.py', *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name='__main__')
    out, err = capsys.readouterr()
    return ended.value.code, out.splitlines(), err.splitlines()


def test_the_tool_ends_with_0_at_warnings(tmp_path, faulty, monkeypatch, capsys):
    faulty.dump(tmp_path / 'faulty.py')
    folder = tmp_path / 'out'
    status, out, _ = run_main(monkeypatch, capsys, tmp_path / 'faulty.py', '--out', folder)
    assert (status, out[-1]) == (0, 'fit to train')
    assert 'WARNING train: zero-size box (1)' in out
    assert sorted(file.name for file in folder.iterdir()) == ['findings.csv', 'sheet.jpg']


def test_the_tool_ends_with_1_at_errors(tmp_path, faulty, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = json.loads((tmp_path / 'train.json').read_text())
    content['annotations'][0]['category_id'] = None
    content['images'].append(content['images'][0])
    (tmp_path / 'train.json').write_text(json.dumps(content))
    faulty.dump(tmp_path / 'faulty.py')
    status, out, _ = run_main(monkeypatch, capsys, 'faulty.py', '--splits', 'train')
    assert (status, out[-1]) == (1, 'not fit to train: 1 error')
    assert (tmp_path / 'work_dirs/faulty/data_check/findings.csv').is_file()


def test_the_tool_says_in_one_line_what_is_wrong_with_its_arguments(
    tmp_path, faulty, monkeypatch, capsys
):
    faulty.dump(tmp_path / 'faulty.py')
    (tmp_path / 'broken.py').write_text('model = dict(')
    (tmp_path / 'empty.py').write_text('model = dict()')
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / 'taken'
    taken.write_text('')
    for args, said in (
        (['faulty.py', '--out', taken / 'sub'], '--out'),
        (['no_such_config.py'], 'no_such_config.py does not exist'),
        (['broken.py'], 'broken.py does not parse: line 1'),
        (['empty.py'], 'the config has no data to check'),
    ):
        status, out, err = run_main(monkeypatch, capsys, *args)
        assert status == 1 and out == [] and len(err) == 1
        assert err[0].startswith('error: ') and said in err[0]
