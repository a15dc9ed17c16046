"""The full check of data: sets without faults, and what it counts and measures."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from PIL import Image
from planting import MAKERS, coco_config, found, maps_config, told, voc_config

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.anchors import anchor_sizes, best_ious, resize_factors
from res2net_mm.data.check.inspection import inspect_data
from res2net_mm.data.check.pictures import size_figure
from res2net_mm.data.check.quick import check_data
from res2net_mm.data.check.report import format_inspection, write_inspection
from res2net_mm.data.sets.masks import mask_fault, mask_runs

DATA = os.environ.get('RES2NET_MM_DATA')
real_data_wanted = pytest.mark.skipif(not DATA, reason='RES2NET_MM_DATA, the real data, is not set')

SHAPES = ('disc', 'square', 'triangle', 'star')


# ---- sets without faults


@pytest.mark.parametrize('form', MAKERS)
def test_nothing_is_found_in_a_clean_set(tmp_path, form):
    inspection = inspect_data(MAKERS[form](tmp_path))
    assert found(inspection.findings) == set()
    assert inspection.findings.verdict == 'fit to train'
    assert [(s.split, s.images, s.same_as) for s in inspection.summaries] == [
        ('train', 4, None), ('val', 3, None), ('test', 3, 'val'),
    ]  # fmt: skip


@pytest.fixture(scope='module')
def shapes_config(shapes: Path) -> Config:
    return coco_config(shapes, '{}/', SHAPES)


def test_the_synthetic_set_has_no_fault(shapes, shapes_config):
    names = ('background', *SHAPES)
    for cfg in (
        shapes_config,
        voc_config(shapes / 'voc', SHAPES),
        maps_config(shapes, '{}', 'semseg/{}', names, 255, '.jpg'),
    ):
        inspection = inspect_data(cfg)
        assert told(inspection) == [] and len(inspection.sets) == 2


@real_data_wanted
def test_blood_cells():
    """What its README lists: a box of no size in either split."""
    inspection = inspect_data(voc_config(Path(DATA, 'bccd'), ('RBC', 'WBC', 'Platelets')))
    assert told(inspection) == [
        ('warning', 'train', 'zero-size box', 'BloodImage_00343.jpg'),
        ('warning', 'val', 'zero-size box', 'BloodImage_00338.jpg'),
    ]
    assert inspection.findings.verdict == 'fit to train'


@real_data_wanted
def test_photographs():
    """Of many of the 80 classes there is no object to train on, of some there is one to find."""
    root = Path(DATA, 'coco_ccby')
    inspection = inspect_data(coco_config(root, '{}/', None))
    has = {}
    for split in ('train', 'val'):
        content = json.loads((root / f'annotations/instances_{split}.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        has[split] = {names[a['category_id']] for a in content['annotations'] if not a['iscrowd']}
    key = '{}_dataloader.dataset.metainfo.classes'
    assert told(inspection) == [
        ('warning', 'train', 'class without objects', key.format('train')),
        ('warning', 'val', 'class never trained', key.format('val')),
    ]
    empty, untrained = inspection.findings
    assert empty.what.startswith(f'{80 - len(has["train"])} classes (')
    assert untrained.what.startswith(f'{len(has["val"] - has["train"])} classes (')


@real_data_wanted
def test_nuclei():
    """RGBA images, more than 100 objects on some to train on, objects under 4 px."""
    root = Path(DATA, 'nuclei')
    inspection = inspect_data(coco_config(root, 'images/{}/', ('nucleus',)))
    assert told(inspection) == []
    row = next(r for r in format_inspection(inspection).splitlines() if r.startswith('train'))
    assert 'RGBA (160)' in row and ' 117 ' in row
    maps = maps_config(root, 'images/{}', 'semseg/{}', ('background', 'nucleus'), 255, '.png')
    assert told(inspect_data(maps)) == []


@real_data_wanted
def test_street_scenes():
    """The value 11 is ignored, and is a fault where it is not."""
    root = Path(DATA, 'camvid')
    names = tuple(root.joinpath('classes.txt').read_text().split()[:11])
    cfg = maps_config(root, 'img_dir/{}', 'ann_dir/{}', names, 11, '.png')
    assert told(inspect_data(cfg)) == []
    cfg.model.decode_head.ignore_index = 255
    findings = inspect_data(cfg, ['val']).findings
    assert {(f.severity, f.kind) for f in findings} == {('error', 'value that is no class')}
    assert 'holds the value 11' in findings[0].what


# ---- what it counts


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
    import matplotlib.figure

    def cut(self, file, **kwargs):
        Path(file).write_bytes(b'')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', cut)
    with pytest.raises(OSError, match='sizes.png could not be written: No space left'):
        write_inspection(inspect_data(shapes_config, ['val']), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {'sheet.jpg', 'findings.csv'}


def test_shares_of_the_classes_in_label_maps(shapes):
    names = ('background', *SHAPES)
    inspection = inspect_data(maps_config(shapes, '{}', 'semseg/{}', names, 255, '.jpg'))
    pixels = [np.array(Image.open(f)) for f in (shapes / 'semseg/train').glob('*.png')]
    shares = np.bincount(np.stack(pixels).ravel(), minlength=5) / np.stack(pixels).size
    rows = [row.split() for row in format_inspection(inspection).splitlines()]
    for name, share in zip(names, shares, strict=True):
        assert next(row for row in rows if row[:1] == [name])[1] == f'{share:.2%}'
    figure = size_figure(inspection)
    bars = [bar.get_height() for bar in figure.axes[0].containers[0]]
    np.testing.assert_allclose(bars, shares, rtol=1e-12)


@pytest.mark.parametrize('seed', range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    mask = np.zeros((70, 130), np.uint8, order='F')
    if seed:
        mask[rng.random(mask.shape) < 0.1 * seed] = 1
        mask[:, 20:60] = seed % 2  # long runs
    rle = coco_mask.encode(mask)
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *([0] if flat[0] else []), *changes, len(flat)])
    np.testing.assert_array_equal(mask_runs(rle['counts']), runs)
    np.testing.assert_array_equal(mask_runs(rle['counts'].decode()), runs)
    if seed:
        box = [0, 0, 130, 70]
        assert mask_fault({'size': [70, 130], 'counts': runs.tolist()}, box, 130, 70) is None
        assert mask_fault({**rle, 'size': [70, 130]}, box, 130, 70) is None


RESIZES = [
    {'type': 'Resize', 'scale': (1333, 800), 'keep_ratio': True},
    {'type': 'Resize', 'scale': (320, 320), 'keep_ratio': True},
    {'type': 'Resize', 'scale': (300, 200)},
    {'type': 'Resize', 'scale_factor': 1.5},
    {'type': 'Resize', 'scale_factor': (2.0, 0.5)},
    {'type': 'RandomResize', 'scale': (480, 360), 'ratio_range': (1.0, 1.0), 'keep_ratio': True},
    {'type': 'RandomChoiceResize', 'scales': [(640, 480)], 'keep_ratio': True},
]


@pytest.mark.parametrize('step', RESIZES, ids=str)
def test_objects_are_resized_as_mmcv_does(step):
    from mmcv.transforms import TRANSFORMS

    transform = TRANSFORMS.build(step)
    sizes = np.array([(640, 480), (200, 500), (333, 100)])
    pipeline = [{'type': 'LoadImageFromFile'}, step, {'type': 'RandomFlip'}]
    factors = resize_factors(pipeline, sizes)
    for (width, height), factor in zip(sizes, factors, strict=True):
        results = transform({'img': np.zeros((height, width, 3), np.uint8)})
        wanted = results['img'].shape[1] / width, results['img'].shape[0] / height
        # mmcv rounds to whole pixels
        np.testing.assert_allclose(factor, wanted, atol=0.51 / min(width, height))


def test_resizes_that_choose_count_with_their_middle():
    sizes = np.array([(100, 100)])
    step = {'type': 'RandomResize', 'scale': (200, 200), 'ratio_range': (1, 3), 'keep_ratio': True}
    np.testing.assert_allclose(resize_factors([step], sizes), [[4, 4]])
    step = {'type': 'RandomChoiceResize', 'scales': [(200, 100), (400, 300)], 'keep_ratio': True}
    np.testing.assert_allclose(resize_factors([step], sizes), [[2, 2]])
    choice = {'type': 'RandomChoice', 'transforms': [[step], [{'type': 'RandomCrop'}]]}
    np.testing.assert_allclose(resize_factors([choice], sizes), [[2, 2]])
    np.testing.assert_allclose(resize_factors([{'type': 'RandomFlip'}], sizes), [[1, 1]])


def test_anchors_and_overlaps_by_hand():
    generator = {
        'type': 'AnchorGenerator', 'scales': [2], 'ratios': [0.25, 1.0], 'strides': [8, 16],
    }  # fmt: skip
    head = {'anchor_generator': generator}
    training = {'assigner': {'type': 'MaxIoUAssigner'}}
    key, sizes = anchor_sizes({'rpn_head': head, 'train_cfg': {'rpn': training}})
    assert key == 'model.rpn_head.anchor_generator'
    # a ratio of 0.25 is height by width, the area stays
    np.testing.assert_allclose(sizes, [(32, 8), (16, 16), (64, 16), (32, 32)])
    assert anchor_sizes({'bbox_head': head, 'train_cfg': training})[0].startswith('model.bbox_head')
    other = {'assigner': {'type': 'ATSSAssigner'}}  # takes the nearest, whatever their IoU
    assert anchor_sizes({'bbox_head': head, 'train_cfg': other}) is None
    assert anchor_sizes({'bbox_head': {'type': 'FCOSHead'}}) is None
    boxes = np.array([(16, 16), (4, 4), (32, 64), (8, 32)])
    np.testing.assert_allclose(best_ious(boxes, sizes), [1, 16 / 256, 0.5, 128 / 384])
