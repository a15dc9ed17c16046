"""docs/classification.md: cells are cut from boxes, and the config for them trains on them."""

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from layouts import BOXES, HEIGHT, WIDTH, voc
from PIL import Image
from running import call

from res2net_mm.data.check.inspection import check_data
from res2net_mm.engine.config import load_config

PAGE = Path(__file__).resolve().parents[1] / 'docs/classification.md'


@pytest.fixture(scope='module')
def cut_cells():
    (code,) = re.findall(r'^```python\n(.*?def cut_cells.*?)^```', PAGE.read_text(), re.S | re.M)
    names = {}
    exec(compile(code.rpartition('```python\n')[2], PAGE.name, 'exec'), names)
    return names['cut_cells']


def counts(root, split):
    files = [file for file in Path(root, split).rglob('*.png')]
    return Counter(file.parent.name for file in files)


def test_cells_are_the_pixels_of_their_boxes(cut_cells, tmp_path):
    voc(tmp_path / 'voc', ('train', 'val'), ('RBC', 'Platelets'))
    cut_cells(tmp_path / 'voc', tmp_path / 'cells')
    assert counts(tmp_path / 'cells', 'train') == dict(RBC=2, Platelets=2)
    pixels = np.asarray(Image.open(tmp_path / 'voc/JPEGImages/000001.jpg'))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    for i, (name, (x1, y1, x2, y2)) in enumerate(zip(('RBC', 'Platelets'), BOXES, strict=True)):
        cell = np.asarray(Image.open(tmp_path / f'cells/train/{name}/000001_{i}.png'))
        assert np.array_equal(cell, pixels[y1 : y2 + 1, x1 : x2 + 1])


@pytest.mark.slow
def test_cells_of_bccd(cut_cells, real_data, tmp_path):
    cut_cells(real_data / 'bccd', tmp_path / 'cells')
    for split in ('train', 'val'):
        expected = Counter()
        names = (real_data / f'bccd/ImageSets/Main/{split}.txt').read_text().split()
        for name in names:
            for item in ElementTree.parse(real_data / f'bccd/Annotations/{name}.xml').iter(
                'object'
            ):
                sides = {side.tag: int(side.text) for side in item.find('bndbox')}
                sized = sides['xmax'] > sides['xmin'] and sides['ymax'] > sides['ymin']
                expected[item.find('name').text] += sized
        assert counts(tmp_path / 'cells', split) == expected and len(expected) == 3
    cfg = load_config('res2net14_cells.py', {'data_root': str(tmp_path / 'cells')})
    summaries = check_data(cfg)
    assert summaries[0].per_class == counts(tmp_path / 'cells', 'train')


@pytest.mark.slow
def test_training_on_cells_of_bccd(cut_cells, real_data, tmp_path):
    cut_cells(real_data / 'bccd', tmp_path / 'cells')
    options = ['--cfg-options', f'data_root={tmp_path}/cells', 'randomness.seed=0']
    run = call('train', 'configs/res2net14_cells.py', '--work-dir', tmp_path / 'run', *options)
    assert run.returncode == 0, run.stderr
    (top1,) = re.findall(r'accuracy/top1: ([\d.]+)', run.stdout)[-1:]
    (recall,) = re.findall(r'single-label/recall: ([\d.]+)', run.stdout)[-1:]
    assert float(top1) > 95 and float(recall) > 90
