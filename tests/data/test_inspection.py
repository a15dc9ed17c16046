"""The full check: it finds every planted fault and nothing else, and nothing in clean sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config
from PIL import Image
from planting import (
    CLASSES_KEY,
    MAKERS,
    SHAPES,
    TRAIN,
    all_classes,
    boxed,
    coco_config,
    content,
    copied,
    edit,
    error,
    file,
    first,
    found,
    half,
    make_coco,
    make_voc,
    maps_config,
    noise,
    options,
    polygon,
    told,
    turned,
    voc_config,
    warning,
)
from written_sets import DATA, HEIGHT, WIDTH, coco_box, real_data, voc_object, voc_xml

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import inspect_data
from res2net_mm.data.check.report import format_inspection
from res2net_mm.data.errors import DataError


@pytest.mark.parametrize('form', MAKERS)
def test_nothing_is_found_in_a_clean_set(tmp_path, form):
    inspection = inspect_data(MAKERS[form](tmp_path))
    assert found(inspection.findings) == set()
    assert inspection.findings.verdict == 'fit to train'
    assert [(s.split, s.images, s.same_as) for s in inspection.summaries] == [
        ('train', 4, None), ('val', 3, None), ('test', 3, 'val'),
    ]  # fmt: skip


def test_the_synthetic_set_has_no_fault(shapes, shapes_config):
    names = ('background', *SHAPES)
    for cfg in (
        shapes_config,
        voc_config(shapes / 'voc', SHAPES),
        maps_config(shapes, '{}', 'semseg/{}', names, 255, '.jpg'),
    ):
        inspection = inspect_data(cfg)
        assert told(inspection) == [] and len(inspection.sets) == 2


@real_data
def test_blood_cells():
    """What its README lists: a box of no size in either split."""
    inspection = inspect_data(voc_config(Path(DATA, 'bccd'), ('RBC', 'WBC', 'Platelets')))
    assert told(inspection) == [
        ('warning', 'train', 'zero-size box', 'BloodImage_00343.jpg'),
        ('warning', 'val', 'zero-size box', 'BloodImage_00338.jpg'),
    ]
    assert inspection.findings.verdict == 'fit to train'


@real_data
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
    assert f'of {80 - len(has["train"])} classes: ' in empty.what
    assert f'of {len(has["val"] - has["train"])} classes: ' in untrained.what


@real_data
def test_nuclei():
    """RGBA images, more than 100 objects on some to train on, objects under 4 px."""
    root = Path(DATA, 'nuclei')
    inspection = inspect_data(coco_config(root, 'images/{}/', ('nucleus',)), ['train'])
    assert told(inspection) == []
    row = next(r for r in format_inspection(inspection).splitlines() if r.startswith('train'))
    assert 'RGBA (160)' in row and ' 117 ' in row
    maps = maps_config(root, 'images/{}', 'semseg/{}', ('background', 'nucleus'), 255, '.png')
    assert told(inspect_data(maps, ['val'])) == []


@real_data
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


def deep(path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16)
    path.write_bytes(cv2.imencode('.png', values)[1])


def as_png(path: Path) -> bytes:
    return cv2.imencode('.png', cv2.imread(str(path)))[1].tobytes()


def again(part: str, **changes: object) -> Callable[[Path, Config], None]:
    return content(lambda c: c[part].append({**c[part][0], **changes}))


def corners(c: dict) -> None:
    for item in c['annotations']:
        item.update(bbox=[30, 20, 58, 38], segmentation=polygon(30, 20, 28, 18))


def without_dogs(c: dict) -> None:
    c['annotations'] = [a for a in c['annotations'] if a['category_id'] != 12]


RLE = {'size': [HEIGHT, WIDTH], 'counts': [2 * HEIGHT + 3, 12, 2305]}


# compressed, of all background: 2,400 is 0 + 11 * 32 + 2 * 1,024
EMPTY_TEXT = ''.join(chr(48 + code) for code in (0 | 32, 11 | 32, 2))


COCO = {
    'misspelt class': (
        all_classes(('cat', 'dgo', 'horse')),
        error('classes', 'train.json') | error('classes', 'val.json', 'val')
        | warning('class without objects', CLASSES_KEY),
    ),
    'other classes in val': (
        options(val_dataloader__dataset__metainfo__classes=('cat', 'dog')),
        error('classes', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'num_classes': (
        options(model__roi_head__bbox_head__num_classes=80), error('classes', 'model', ''),
    ),
    'order of the classes': (
        all_classes(('horse', 'cat', 'dog')),
        error('classes', 'train.json') | error('classes', 'val.json', 'val'),
    ),
    'annotation file': (
        options(train_dataloader__dataset__ann_file='gone.json'),
        error('files', f'{TRAIN}.ann_file'),
    ),
    'no json': (file('val.json', half), error('files', 'val.json', 'val')),
    'image missing': (file('train/1.jpg', Path.unlink), error('images missing', '1.jpg')),
    'image not listed': (
        file('val/9.jpg', noise), warning('image not listed', '9.jpg', 'val'),
    ),
    'truncated': (file('train/2.jpg', half), error('image unreadable', '2.jpg')),
    'empty': (
        file('train/2.jpg', lambda f: f.write_bytes(b'')), error('image unreadable', '2.jpg'),
    ),
    'no image': (
        file('val/2.jpg', lambda f: f.write_text('none')),
        error('image unreadable', '2.jpg', 'val'),
    ),
    'another size': (
        file('train/0.jpg', lambda f: noise(f, (WIDTH, HEIGHT + 1))),
        error('image of another size', '0.jpg'),
    ),
    'EXIF turns it': (
        file('train/3.jpg', turned(6, (WIDTH, HEIGHT))), error('image turned by EXIF', '3.jpg'),
    ),
    'EXIF turns it, as annotated': (file('train/3.jpg', turned(6, (HEIGHT, WIDTH))), set()),
    'EXIF turns it upside down': (
        file('train/3.jpg', turned(3, (WIDTH, HEIGHT))), warning('image turned by EXIF', '3.jpg'),
    ),
    '16 bits': (file('train/3.jpg', deep), warning('image of 16 bits', '3.jpg')),
    'grey': (
        file('train/3.jpg', lambda f: Image.new('L', (WIDTH, HEIGHT)).save(f)), set(),
    ),
    'zero-size box': (boxed([2, 3, 0, 12]), warning('zero-size box', '0.jpg')),
    'negative width': (boxed([12, 3, -10, 12]), warning('swapped corners', '0.jpg')),
    'outside': (boxed([WIDTH, 3, 10, 12]), warning('box outside the image', '0.jpg')),
    'beyond the border': (
        first(bbox=[55, 3, 6.5, 12], area=78, segmentation=polygon(55, 3, 5, 12)),
        warning('box beyond the border', '0.jpg'),
    ),
    'beyond by a pixel': (
        first(bbox=[51, 3, 10, 12], segmentation=polygon(51, 3, 9, 12)), set(),
    ),
    'NaN': (boxed([2, float('nan'), 10, 12]), warning('box not finite', '0.jpg')),
    'infinite': (boxed([2, 3, float('inf'), 12]), warning('box not finite', '0.jpg')),
    'half a pixel': (boxed([2, 3, 0.5, 12]), warning('box under 1 px', '0.jpg')),
    'no area': (first(area=0), warning('box without area', '0.jpg')),
    'three sides': (first(bbox=[1, 2, 3]), error('broken annotation', 'train.json')),
    'no category': (
        content(lambda c: c['annotations'][0].pop('category_id')),
        error('broken annotation', 'train.json'),
    ),
    'no width': (
        content(lambda c: c['images'][3].pop('width')),
        error('broken image', 'train.json') | warning('image not listed', '3.jpg')
        | warning('annotation of no image', 'train.json'),
    ),
    'width in words': (
        content(lambda c: c['images'][3].update(width='wide')),
        error('broken image', 'train.json') | warning('image not listed', '3.jpg')
        | warning('annotation of no image', 'train.json'),
    ),
    'width 0': (
        content(lambda c: c['images'][3].update(width=0)),
        error('broken image', 'train.json') | warning('image not listed', '3.jpg')
        | warning('annotation of no image', 'train.json'),
    ),
    'a number for a file name': (
        content(lambda c: c['images'][3].update(file_name=5)),
        error('broken image', 'train.json') | warning('image not listed', '3.jpg')
        | warning('annotation of no image', 'train.json'),
    ),
    'a list for an image id': (
        content(lambda c: c['images'][3].update(id=[30])),
        error('broken image', 'train.json') | warning('image not listed', '3.jpg')
        | warning('annotation of no image', 'train.json'),
    ),
    **{
        f'a list for {key}': (first(**{key: [1]}), error('broken annotation', 'train.json'))
        for key in ('id', 'image_id', 'category_id')
    },
    'sides in words': (
        first(bbox=['2', '3', '10', '12']), error('broken annotation', 'train.json'),
    ),
    'crowd in words': (first(iscrowd='0'), error('broken annotation', 'train.json')),
    'area beyond the box': (first(area=133), warning('area beyond its box', '0.jpg')),
    'area of the box, rounded': (first(area=131), set()),
    'no mask': (
        content(lambda c: c['annotations'][0].pop('segmentation')),
        error('broken annotation', 'train.json'),
    ),
    'boxes as corners': (
        content(corners),
        error('boxes written as corners', 'train.json')
        | {('warning', 'box beyond the border', 'train', f'{i}.jpg') for i in range(4)},
    ),
    'image id twice': (
        again('images', file_name='3.jpg', id=30),
        error('doubled id', 'train.json'),
    ),
    'annotation id twice': (
        again('annotations', bbox=[9, 9, 9, 9], area=81, segmentation=polygon(9, 9, 9, 9)),
        error('doubled id', 'train.json'),
    ),
    'category id twice': (again('categories'), error('doubled id', 'train.json')),
    'listed twice': (again('images', id=77), error('image listed twice', '0.jpg')),
    'object twice': (again('annotations', id=777), warning('object twice', '0.jpg')),
    'stray annotation': (
        again('annotations', id=777, image_id=888), warning('annotation of no image', 'train.json'),
    ),
    'no such category': (
        again('annotations', id=777, category_id=99),
        warning('annotation of no category', 'train.json'),
    ),
    'far polygon': (
        first(segmentation=[[2, 3, 12, 3, 1e9, 1e9]]), error('mask broken', '0.jpg'),
    ),
    'run lengths too few': (
        first(segmentation={**RLE, 'counts': [5, 6, 7]}), error('mask broken', '0.jpg'),
    ),
    'text too short': (
        first(segmentation={**RLE, 'counts': '123'}), error('mask broken', '0.jpg'),
    ),
    'text that is none': (
        first(segmentation={**RLE, 'counts': '~ä'}), error('mask broken', '0.jpg'),
    ),
    'no run lengths': (
        first(segmentation={'size': [1, 2]}), error('broken annotation', 'train.json'),
    ),
    'for another size': (
        first(segmentation={**RLE, 'size': [WIDTH, HEIGHT]}),
        error('broken annotation', 'train.json'),
    ),
    'two points': (first(segmentation=[[2, 3, 12, 15]]), error('mask broken', '0.jpg')),
    'odd coordinates': (
        first(segmentation=[[2, 3, 12, 3, 12, 15, 2]]), error('mask broken', '0.jpg'),
    ),
    'not a list of lists': (
        first(segmentation=[2, 3, 12, 3, 12, 15]), error('mask broken', '0.jpg'),
    ),
    'one polygon of two is none': (
        first(segmentation=[[2, 3, 12, 15], *polygon(2, 3, 10, 12)]),
        warning('polygon dropped', '0.jpg'),
    ),
    'empty mask': (
        first(segmentation={**RLE, 'counts': EMPTY_TEXT}), error('mask empty', '0.jpg'),
    ),
    'mask beside its box': (
        first(segmentation=polygon(30, 3, 10, 12)), warning('mask unlike its box', '0.jpg'),
    ),
    'in both splits': (
        file('val/1.jpg', lambda f: f.write_bytes((f.parents[1] / 'train/1.jpg').read_bytes())),
        warning('split overlap', '1.jpg', 'val'),
    ),
    'in both splits, one as a PNG': (
        file('val/1.jpg', lambda f: f.write_bytes(as_png(f.parents[1] / 'train/1.jpg'))),
        warning('split overlap', '1.jpg', 'val'),
    ),
    'the training set to measure on': (
        options(val_dataloader__dataset__ann_file='train.json',
                val_dataloader__dataset__data_prefix__img='train/'),
        {('warning', 'split overlap', 'val', f'{i}.jpg') for i in range(4)},
    ),
    'one content': (
        file('train/1.jpg', lambda f: copied(f, '2.jpg')), warning('same content twice', '2.jpg'),
    ),
    'class not trained': (
        content(without_dogs),
        warning('class without objects', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'too many objects': (
        options(model__test_cfg__rcnn__max_per_img=2),
        {('warning', 'more objects than detections', 'val', f'{i}.jpg') for i in range(3)},
    ),
    'metric': (
        options(val_evaluator={'type': 'CocoMetric', 'ann_file': 'gone.json'}),
        error('metric', 'val_evaluator.ann_file', 'val'),
    ),
    'no boxes': (
        content(lambda c: c['annotations'].clear()),
        error('nothing usable', f'{TRAIN}.ann_file') | warning('class without objects', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'own reader': (
        options(train_dataloader__dataset__type='NoSuchDataset'),
        warning('not checked', TRAIN),
    ),
}  # fmt: skip


def photo(*objects: str, size: str | None = None) -> Callable[[Path, Config], None]:
    return file('Annotations/photo.1.xml', lambda f: f.write_text(voc_xml(*objects, size=size)))


VOC = {
    'swapped corners': (
        photo(voc_object('cat', (20, 4, 3, 30))), warning('swapped corners', 'photo.1.jpg'),
    ),
    'zero-size box': (
        photo(voc_object('cat', (20, 4, 20, 4))), warning('zero-size box', 'photo.1.jpg'),
    ),
    'outside': (
        photo(voc_object('cat', (70, 4, 80, 30))), warning('box outside the image', 'photo.1.jpg'),
    ),
    'beyond the border': (
        photo(voc_object('cat', (20, 4, 63, 30))), warning('box beyond the border', 'photo.1.jpg'),
    ),
    'whole image': (photo(voc_object('cat', (0, 0, WIDTH, HEIGHT))), set()),
    'NaN': (
        photo(voc_object('cat', (20, 4, 'nan', 30))), error('broken annotation', 'photo.1.xml'),
    ),
    'object twice': (
        photo(*[voc_object('cat', (3, 4, 20, 30))] * 2), warning('object twice', 'photo.1.jpg'),
    ),
    'another size': (
        photo(size='<size><width>61</width><height>40</height></size>'),
        error('image of another size', 'photo.1.jpg'),
    ),
    'width for height': (
        photo(voc_object('cat', (3, 4, 20, 30)),
              size='<size><width>40</width><height>60</height></size>'),
        warning('width and height swapped', 'photo.1.jpg'),
    ),
    'width for height, boxes too': (
        photo(voc_object('cat', (3, 4, 30, 60)),
              size='<size><width>40</width><height>60</height></size>'),
        error('image of another size', 'photo.1.jpg'),
    ),
    'no size': (photo(voc_object('cat', (3, 4, 20, 30)), size=''), set()),
    'no xml': (
        file('Annotations/photo.1.xml', Path.unlink),
        error('annotation files missing', 'photo.1.xml'),
    ),
    'a folder for an xml file': (
        file('Annotations/photo.1.xml', lambda f: (f.unlink(), f.mkdir())),
        error('annotation files missing', 'photo.1.xml'),
    ),
    'a list that is no text': (
        file('train.txt', lambda f: f.write_bytes(b'\xff\xfe\x80')),
        error('files', 'train.txt')
        | {('warning', 'image not listed', 'val', f'photo.{i}.jpg') for i in range(4)},
    ),
    'broken xml': (
        file('Annotations/photo.6.xml', half), error('broken annotation', 'photo.6.xml', 'val'),
    ),
    'image missing': (
        file('JPEGImages/photo.1.jpg', Path.unlink), error('images missing', 'photo.1.jpg'),
    ),
    'image not listed': (
        file('JPEGImages/other.jpg', noise),
        warning('image not listed', 'other.jpg'),
    ),
    'listed twice': (
        file('train.txt', lambda f: f.write_text(f.read_text() + 'photo.0\n')),
        warning('image listed twice', 'photo.0.jpg'),
    ),
    'blank': (
        file('train.txt', lambda f: f.write_text(f.read_text() + '\n \n')),
        error('blank in a list', 'train.txt'),
    ),
    'in both splits': (
        file('val.txt', lambda f: f.write_text(f.read_text() + 'photo.0\n')),
        warning('split overlap', 'photo.0.jpg', 'val'),
    ),
    'misspelt name': (
        photo(voc_object('Cats', (3, 4, 20, 30))), set(),
    ),
    'another name': (photo(voc_object('submarine', (3, 4, 20, 30))), set()),
    'misspelt class': (
        all_classes(('cat', 'dgo', 'horse')),
        error('classes', 'train.txt') | warning('class without objects', CLASSES_KEY),
    ),
}  # fmt: skip


def saved(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


def cells(*values: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), size)


def every_map(*values: int) -> Callable[[Path, Config], None]:
    def change(root: Path, cfg: Config) -> None:
        for i in range(4):
            saved(cells(*values))(root / f'maps/train/{i}.png')

    return change


MAPS = {
    'no class': (
        file('maps/train/1.png', saved(cells(0, 1, 2, 3))),
        error('value that is no class', '1.png'),
    ),
    'ignored otherwise': (
        options(model__decode_head__ignore_index=11),
        {('error', 'value that is no class', 'train', f'{i}.png') for i in range(4)}
        | {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric ignores another': (
        options(val_evaluator={'type': 'IoUMetric', 'ignore_index': 7}),
        {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric of the test set ignores another': (
        options(test_evaluator=[{'type': 'IoUMetric', 'ignore_index': 7}]),
        {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric ignores the same': (options(val_evaluator={'type': 'A', 'ignore_index': 255}), set()),
    'all ignored': (
        file('maps/train/1.png', saved(cells(255))), warning('label map all ignored', '1.png'),
    ),
    'another size': (
        file('maps/val/1.png', saved(cells(0, 1, size=(WIDTH, HEIGHT)))),
        error('label map of another size', '1.png', 'val'),
    ),
    'missing': (file('maps/train/1.png', Path.unlink), error('label maps missing', '1.png')),
    'coloured': (
        file('maps/train/1.png', noise), error('label map unreadable', '1.png'),
    ),
    'truncated': (file('maps/train/1.png', half), error('label map unreadable', '1.png')),
    '16 bits': (
        file('maps/train/1.png', saved(cells(0, 1).astype(np.uint16))),
        warning('label map of 16 bits', '1.png'),
    ),
    'a class without pixels': (
        every_map(0, 1), warning('class without objects', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'a single class': (
        every_map(0, 255),
        error('a single class', TRAIN) | warning('class without objects', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'label map without image': (
        file('maps/train/other.png', saved(cells(0, 1))),
        warning('label map without image', 'other.png'),
    ),
    'image of another format': (
        file('photos/train/other.png', noise), warning('image not listed', 'other.png'),
    ),
    'truncated image': (
        file('photos/train/1.jpg', half), error('image unreadable', '1.jpg'),
    ),
    'EXIF turns the image': (
        file('photos/train/1.jpg', turned(6, (WIDTH, HEIGHT))),
        error('label map of another size', '1.png'),
    ),
    'in both splits': (
        file('photos/val/1.jpg',
             lambda f: f.write_bytes((f.parents[1] / 'train/1.jpg').read_bytes())),
        warning('split overlap', '1.jpg', 'val'),
    ),
}  # fmt: skip


FAULTS = {'coco': COCO, 'voc': VOC, 'maps': MAPS}


@pytest.mark.parametrize('form, fault', [(form, name) for form in FAULTS for name in FAULTS[form]])
def test_it_is_found_and_nothing_else(tmp_path, form, fault):
    cfg = MAKERS[form](tmp_path)
    plant, expected = FAULTS[form][fault]
    plant(tmp_path, cfg)
    findings = inspect_data(cfg).findings
    assert found(findings) == expected
    errors = sum(severity == 'error' for severity, *_ in expected)
    unread = ', but for what was not checked' * (fault == 'own reader')
    assert findings.errors >= errors
    assert (findings.verdict == f'fit to train{unread}') == (not errors)
    for finding in findings:
        # what is wrong and what to do are two sentences of a line each
        for said in (finding.what, finding.remedy):
            assert said and '\n' not in said and said[-1] not in ';.'


def test_all_faults_of_a_set_are_found_at_once(tmp_path):
    """Those that do not get in each other's way."""
    cfg = make_coco(tmp_path)
    names = ['image missing', 'truncated', 'EXIF turns it', 'image not listed']
    names += ['image id twice', 'num_classes', 'stray annotation', 'two points', 'metric']
    for name in names:
        COCO[name][0](tmp_path, cfg)
    findings = inspect_data(cfg).findings
    assert found(findings) == set().union(*(COCO[name][1] for name in names))
    severities = [group[0].severity for group in findings.groups()]
    assert severities == sorted(severities) and findings.errors == 7
    assert findings.verdict == 'not fit to train: 7 errors'


def test_findings_name_value_and_place(tmp_path):
    cfg = make_coco(tmp_path)
    for item in (0, 1, 3, 4):
        edit(tmp_path, lambda c, i=item: c['annotations'][i].update(bbox=[2, 3, 0, 12]))
    (group,) = inspect_data(cfg).findings.groups()
    assert len(group) == 4
    finding = group[0]
    assert finding.file == str(tmp_path / 'train/0.jpg')
    assert 'annotation 0 (cat), box 2, 3, 2, 15' in finding.what
    text = str(group).split('\n')
    assert text[0] == 'WARNING train: zero-size box (4)' and text[4] == '    ... and 1 more'
    assert text[1] == f'    {finding.file}: {finding.what}'
    assert text[5] == f'    what to do: {finding.remedy}'


def test_a_misspelt_class_comes_with_the_likely_one(tmp_path):
    cfg = make_coco(tmp_path)
    all_classes(('cat', 'Dogs', 'horse'))(tmp_path, cfg)
    finding = inspect_data(cfg).findings[0]
    assert "'Dogs' (did you mean 'dog'?)" in finding.what


def test_only_the_splits_that_are_asked_for(tmp_path):
    cfg = make_coco(tmp_path)
    (tmp_path / 'train/1.jpg').unlink()
    noise(tmp_path / 'val/9.jpg')
    assert found(inspect_data(cfg, ['train']).findings) == error('images missing', '1.jpg')
    val = warning('image not listed', '9.jpg', 'val')
    assert found(inspect_data(cfg, ['val']).findings) == val
    assert found(inspect_data(cfg, ['test']).findings) == val  # the same data
    cfg.pop('train_dataloader')
    with pytest.raises(DataError, match='no data to check .train_dataloader.; name splits'):
        inspect_data(cfg, ['train'])


def test_masks_are_looked_at_where_they_are_used(tmp_path):
    cfg = make_coco(tmp_path)
    COCO['two points'][0](tmp_path, cfg)
    cfg.train_dataloader.dataset.pipeline = []
    assert found(inspect_data(cfg).findings) == set()
    edit(tmp_path, lambda c: c['annotations'][0].update(segmentation=[[1, 2, 3]]), 'val')
    cfg.val_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline = []
    cfg.val_evaluator = {'type': 'CocoMetric', 'metric': ['bbox', 'segm']}
    # to measure the same data in two ways is not to look at it twice
    inspection = inspect_data(cfg)
    assert [part.split for part in inspection.sets] == ['train', 'val']
    assert found(inspection.findings) == error('mask broken', '0.jpg', 'val')
    assert found(inspect_data(cfg, ['test']).findings) == error('mask broken', '0.jpg', 'val')


def test_crowds_are_checked_too(tmp_path):
    cfg = make_coco(tmp_path)
    crowd = coco_box(999, 0, 7, [2, 3, 1, 12], iscrowd=1, segmentation=RLE)
    edit(tmp_path, lambda c: c['annotations'].append(crowd))
    assert found(inspect_data(cfg).findings) == set()
    edit(tmp_path, lambda c: c['annotations'][-1]['segmentation'].update(counts=[2400]))
    assert found(inspect_data(cfg).findings) == error('mask empty', '0.jpg')


def test_images_of_a_folder_that_splits_share(tmp_path):
    """An image that another split lists is not left over, though that split is not looked at."""
    cfg = make_voc(tmp_path)
    assert found(inspect_data(cfg, ['train']).findings) == set()
