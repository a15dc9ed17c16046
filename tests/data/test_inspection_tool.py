"""The full check of data: its pictures, its files, the tool."""

from __future__ import annotations

import csv
import json
import os
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config
from planting import WITH_MASKS, coco_config, told

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import inspect_data
from res2net_mm.data.check.pictures import draw_inspection, size_figure
from res2net_mm.data.check.report import format_inspection, make_folder, write_inspection
from res2net_mm.data.errors import DataError, Finding

SHAPES = ('disc', 'square', 'triangle', 'star')


# ---- pictures


@pytest.fixture
def faulty(tmp_path: Path, shapes: Path) -> Config:
    """A copy of the synthetic set's json in which one box of the last training image is broken."""
    file = shapes / 'annotations/instances_train.json'
    content = json.loads(file.read_text())
    box = next(a for a in content['annotations'] if a['image_id'] == content['images'][-1]['id'])
    box['bbox'] = [40, 50, 0, 60]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    cfg = coco_config(shapes, '{}/', SHAPES)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'train.json')
    return cfg


def test_the_sheet_shows_images_with_findings_first_and_marked(tmp_path, faulty, shapes):
    inspection = inspect_data(faulty)
    assert told(inspection) == [('warning', 'train', 'zero-size box', '000016.jpg')]
    sheet = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    assert sheet.shape == (4 * 284, 6 * 330, 3)
    tiles = sheet.reshape(4, 284, 6, 330, 3).swapaxes(1, 2).reshape(24, 284, 330, 3)
    edges = [tile[[0, -1]].reshape(-1, 3).tolist() for tile in tiles]
    assert all(pixel == [0, 150, 255] for pixel in edges[0])  # orange: a warning
    assert all(pixel == [0, 0, 0] for edge in edges[1:] for pixel in edge)
    # the image is the faulty one, and the cross of its box of no size is where the box is
    image = cv2.imread(str(shapes / 'train/000016.jpg'))
    shown = cv2.resize(image, (240, 240), interpolation=cv2.INTER_AREA)
    tile = tiles[0][5:245, 5:245]
    same = (np.abs(tile.astype(int) - shown) == 0).all(2).mean()
    others = [(tile == t[5:245, 5:245]).all(2).mean() for t in tiles[1:]]
    assert same > 0.3 > 3 * max(others)
    x, y = (round(side * 240 / 256) for side in (40, 50))
    assert tile[y, x].tolist() == [40, 40, 230]
    assert (tiles[1:, 5:245, 5:245] == [40, 40, 230]).all(-1).sum() == 0
    written = cv2.imread(str(tmp_path / 'sheet.jpg'))
    assert np.abs(written.astype(int) - sheet).mean() < 8


def test_an_error_is_marked_red_and_masks_are_drawn(tmp_path, shapes):
    inspection = inspect_data(coco_config(shapes, '{}/', SHAPES))
    file = inspection.sets[1].used[3].file
    inspection.findings.append(Finding('error', 'some kind', 'val', file, 'it', 'do'))
    sheet = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    assert sheet[0, 0].tolist() == [40, 40, 230] and sheet[0, 400].tolist() == [0, 0, 0]
    # within the largest object, half of each pixel is the colour of its class
    image = inspection.sets[1].used[3]
    plain = cv2.resize(cv2.imread(file), (240, 240), interpolation=cv2.INTER_AREA)
    semantic = cv2.imread(file.replace('/val/', '/semseg/val/').replace('.jpg', '.png'), 0)
    masks = cv2.resize(semantic, (240, 240), interpolation=cv2.INTER_NEAREST)
    tile = sheet[5:245, 5:245].astype(int)
    assert image.objects and (masks > 0).any()
    added = tile[masks > 0] - plain[masks > 0] // 2
    colours = {tuple(colour) for colour in np.unique(added, axis=0).tolist()}
    usual = [c for c in colours if (added == c).all(1).mean() > 0.1]
    classes = set(np.unique(masks).tolist()) - {0}
    assert 1 <= len(usual) <= len(classes)
    untouched = (tile[masks == 0] == plain[masks == 0]).all(1).mean()
    assert untouched > 0.7


def test_the_histogram_holds_every_object(faulty):
    faulty.model = {
        'rpn_head': {
            'anchor_generator': {
                'type': 'AnchorGenerator', 'scales': [8], 'ratios': [1.0], 'strides': [4, 8, 16],
            }
        },
        'train_cfg': {'rpn': {'assigner': {'type': 'MaxIoUAssigner'}}},
    }  # fmt: skip
    resize = {'type': 'Resize', 'scale': (512, 512), 'keep_ratio': True}
    faulty.train_dataloader.dataset.pipeline = [*WITH_MASKS, resize]
    inspection = inspect_data(faulty)
    axes = size_figure(inspection).axes[0]
    drawn = {}
    for patch in axes.patches:
        label, count = patch.get_label().split()
        corners = patch.get_xy()
        drawn[label] = int(count)
        assert corners[:, 1].max() > 0
    assert drawn == {s.split: s.boxes for s in inspection.summaries[:2]}
    lines = [line.get_xdata()[0] for line in axes.lines]
    # anchors of 32, 64, 128 px find objects of half that, as training enlarges images twofold
    assert lines == [32, 96, 16, 32, 64]


def test_files_and_what_cannot_be_shown(tmp_path, shapes, faulty):
    content = json.loads((tmp_path / 'train.json').read_text())
    content['images'][0]['file_name'] = 'gone.jpg'
    content['annotations'][-1]['segmentation'] = [[1, 2]]
    content['annotations'][-2]['bbox'] = [float('nan')] * 4
    (tmp_path / 'train.json').write_text(json.dumps(content))
    inspection = inspect_data(faulty)
    files = write_inspection(inspection, tmp_path)
    assert [file.name for file in files] == ['sheet.jpg', 'sizes.png', 'findings.csv']
    with open(files[2], newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert [tuple(row.values()) for row in rows] == [
        (f.severity, f.kind, f.split, f.file, f.what, f.remedy) for f in inspection.findings
    ]
    assert {'images missing', 'mask broken', 'box not finite'} <= {row['kind'] for row in rows}
    assert (cv2.imread(str(files[1])) < 200).mean() > 0.01
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


# ---- the tool


def test_the_tool(tmp_path, faulty, python):
    faulty.dump(tmp_path / 'faulty.py')
    env = dict(os.environ, OMP_NUM_THREADS='1')
    out = tmp_path / 'out'
    done = python('tools/check_data.py', tmp_path / 'faulty.py', '--out', out, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'fit to train'
    assert 'WARNING train: zero-size box (1)' in done.stdout
    assert sorted(file.name for file in out.iterdir()) == [
        'findings.csv', 'sheet.jpg', 'sizes.png',
    ]  # fmt: skip


def run_main(monkeypatch, capsys, *args: object) -> tuple[int, list[str], list[str]]:
    """Exit status and the lines of both outputs of the tool, run in this process."""
    tool = Path(__file__).parents[2] / 'tools/check_data.py'
    monkeypatch.setattr('sys.argv', ['check_data.py', *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name='__main__')
    out, err = capsys.readouterr()
    return ended.value.code, out.splitlines(), err.splitlines()


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
        (['faulty.py', '--out', taken / 'sub'], 'name another folder with --out'),
        (['no_such_config.py'], 'no_such_config.py does not exist'),
        (['broken.py'], 'broken.py does not parse: line 1'),
        (['empty.py'], 'the config has no data to check'),
    ):
        status, out, err = run_main(monkeypatch, capsys, *args)
        assert status == 1 and out == [] and len(err) == 1
        assert err[0].startswith('error: ') and said in err[0]
    with pytest.raises(DataError, match='cannot be written to'):
        make_folder(taken)
