"""Annotation files in the forms that tools and operating systems give them: right, or named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from planting import MAKERS, noise
from written_sets import (
    CLASSES,
    HEIGHT,
    WIDTH,
    check_fails,
    coco_box,
    coco_content,
    coco_dataset,
    config,
    voc_annotations,
    voc_dataset,
    voc_object,
    voc_xml,
    write_coco,
    write_image,
    write_label_maps,
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import inspect_data
from res2net_mm.data.check.pictures import draw_inspection
from res2net_mm.data.check.quick import check_data
from res2net_mm.data.check.summary import format_summary
from res2net_mm.data.transforms import harden_dataset

BIG = 10**400
LOAD = [{'type': 'LoadImageFromFile'}]


def each(part: str, **change: Callable[[dict], object]) -> Callable[[dict], object]:
    def edit(content: dict) -> None:
        for item in content[part]:
            item.update({key: value(item) for key, value in change.items()})

    return edit


def image(**parts: object) -> Callable[[dict], object]:
    return lambda content: content['images'][0].update(parts)


def annotation(**parts: object) -> Callable[[dict], object]:
    return lambda content: content['annotations'][0].update(parts)


def text_ids(content: dict) -> None:
    each('images', id=lambda i: str(i['id']))(content)
    each('annotations', image_id=lambda a: str(a['image_id']))(content)


def numbered_from_0(content: dict) -> None:
    each('categories', id=lambda c: (c['id'] - 7) // 5)(content)
    each('annotations', category_id=lambda a: (a['category_id'] - 7) // 5)(content)


RIGHT = {
    'ids as texts': text_ids,
    'categories from 0': numbered_from_0,
    'no iscrowd': lambda content: [a.pop('iscrowd') for a in content['annotations']],
}
WRONG = {
    'image_id as text': (each('annotations', image_id=lambda a: str(a['image_id'])), 'image_id'),
    'category_id as text': (annotation(category_id='7'), 'category_id'),
    'infinite width': (image(width=float('inf')), 'image 0: it is inf'),
    'width of 400 digits': (image(width=BIG), 'no image is'),
    'width true': (image(width=True), 'width is True'),
    'NUL in a name': (image(file_name='a\0.jpg'), 'file_name'),
    'box of 400 digits': (annotation(bbox=[2, 3, BIG, 12]), 'bbox is [2, 3, 9'.replace('9', '1')),
    'backslash': (image(file_name='sub\\0.jpg'), 'write /'),
    'capital suffix': (image(file_name='0.JPG'), '0.jpg is there'),
    'another size': (image(width=2 * WIDTH, height=2 * HEIGHT), '0.jpg: it has 60 x 40 px'),
    'one file twice': (
        lambda content: content['images'].append({**content['images'][0], 'id': 77}),
        '0.jpg: 2 images of',
    ),
}


@pytest.mark.parametrize('form', RIGHT)
def test_what_mmdet_reads_is_read(tmp_path, form):
    content = coco_content()
    RIGHT[form](content)
    write_coco(tmp_path, content)
    (summary,) = check_data(config(coco_dataset(tmp_path, pipeline=LOAD)))
    assert summary.per_class == dict.fromkeys(CLASSES, 3) and not summary.warnings
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(coco_dataset(tmp_path))
    labels = [one['bbox_label'] for i in range(3) for one in dataset.get_data_info(i)['instances']]
    assert labels == [0, 1, 2] * 3


@pytest.mark.parametrize('form', WRONG)
def test_what_is_wrong_is_named_by_both_checks(tmp_path, form):
    content = coco_content()
    write_coco(tmp_path, content)
    change, said = WRONG[form]
    change(content)
    (tmp_path / 'train.json').write_text(json.dumps(content))
    cfg = config(coco_dataset(tmp_path, pipeline=LOAD))
    message = check_fails(cfg, said)
    assert len(message) < 500
    assert inspect_data(cfg, workers=1).findings.errors


@pytest.mark.parametrize(
    'encoded, said',
    [
        (lambda text: text.encode('utf-8-sig'), 'BOM'),
        (lambda text: text.encode('utf-16'), 'utf-8'),
        (lambda text: text.replace('"width": 60', f'"width": {"9" * 5000}').encode(), '5000'),
    ],
)
def test_a_json_that_mmdet_cannot_read_is_named(tmp_path, encoded, said):
    file = write_coco(tmp_path, coco_content())
    file.write_bytes(encoded(file.read_text()))
    check_fails(config(coco_dataset(tmp_path)), 'JSON', said, where=file)


def test_warnings_are_printed_a_line_a_kind(tmp_path):
    content = coco_content()
    content['categories'].append({'id': 90, 'name': 'Cat'})
    content['annotations'] += [
        coco_box(100, 0, 90, [2, 3, 10, 12]),
        coco_box(101, 0, 90, [2, 3, 10, 12]),
        coco_box(102, 10, 7, [WIDTH - 5, 3, 7, 12]),
        coco_box(103, 10, 12, [-4, 3, 7, 12]),
        coco_box(104, 20, 7, [WIDTH - 5, 3, 6, 12]),  # a pixel is rounding
        coco_box(105, 20, 7, [5, 3, 6, 12], area=float('nan')),
    ]
    write_coco(tmp_path, content)
    (summary,) = check_data(config(coco_dataset(tmp_path)))
    kinds = {line.partition(':')[0]: line for line in summary.warnings}
    assert set(kinds) == {'name like a class', 'box beyond the border', 'area beyond its box'}
    assert "2 objects are named 'Cat'" in kinds['name like a class']
    assert '2 px beyond the 60 x 40 px' in kinds['box beyond the border']
    assert 'and 1 more' in kinds['box beyond the border']
    lines = format_summary([summary]).split('\n')[1:]
    assert lines == [f'WARNING: train: {line}' for line in summary.warnings]
    findings = inspect_data(config(coco_dataset(tmp_path)), workers=1).findings
    told = {finding.kind for finding in findings}
    assert set(kinds) <= told and findings.verdict == 'fit to train'


def test_classes_that_people_take_for_one_are_told(tmp_path):
    content = coco_content()
    content['categories'][1]['name'] = 'CAT'
    write_coco(tmp_path, content)
    names = ('cat', 'CAT', 'horse')
    (summary,) = check_data(config(coco_dataset(tmp_path, metainfo={'classes': names})))
    assert [line.partition(':')[0] for line in summary.warnings] == ['classes alike']


@pytest.mark.parametrize('form', MAKERS)
def test_an_image_in_two_splits_is_one_warning_in_both_checks(tmp_path, form):
    cfg: Config = MAKERS[form](tmp_path)
    cfg.val_dataloader.dataset = {**cfg.train_dataloader.dataset, 'indices': 2}
    quick = {summary.split: summary.warnings for summary in check_data(cfg)}
    assert not quick['train'] and len(quick['val']) == 1
    assert quick['val'][0].startswith('split overlap: ') and 'and 1 more' in quick['val'][0]
    findings = inspect_data(cfg, workers=1).findings
    overlaps = [f for f in findings if f.kind == 'split overlap']
    assert [(f.severity, f.split) for f in overlaps] == [('warning', 'val')] * 2
    assert findings.verdict == 'fit to train'


# ---- Pascal VOC


@pytest.mark.parametrize('suffix', ['.tif', '.tiff', '.webp', '.TIF', '.png', '.JPEG'])
def test_voc_images_of_any_suffix(tmp_path, suffix):
    write_voc(tmp_path, voc_annotations(2))
    for file in sorted((tmp_path / 'JPEGImages').iterdir()):
        file.unlink()
        noise(file.with_suffix(suffix))
    dataset = voc_dataset(tmp_path, pipeline=LOAD)
    assert not check_data(config(dataset))[0].warnings
    assert not inspect_data(config(dataset), workers=1).findings.errors
    with DefaultScope.overwrite_default_scope('mmdet'):
        sample = DATASETS.build(harden_dataset(dataset))[0]
    assert sample['img'].shape == (HEIGHT, WIDTH, 3) and sample['img_path'].endswith(suffix)


def test_another_spelling_of_a_class_is_told_before_training(tmp_path):
    other = voc_xml(voc_object('Cat', (3, 4, 20, 30)))
    write_voc(tmp_path, {**voc_annotations(2), 'a': other, 'b': other})
    (summary,) = check_data(config(voc_dataset(tmp_path)))
    (line,) = summary.warnings
    assert line.startswith('name like a class: ') and "2 objects are named 'Cat'" in line
    assert summary.per_class['cat'] == 2 and summary.other_classes == {'Cat': 2}


def test_fractions_that_mmdet_cuts_off_are_told(tmp_path):
    fractional = voc_xml(voc_object('cat', (3.5, 4, 20, 30)))
    write_voc(tmp_path, {**voc_annotations(2), 'a': fractional, 'b': fractional})
    (summary,) = check_data(config(voc_dataset(tmp_path)))
    (line,) = summary.warnings
    assert line.startswith('fractional coordinates: ') and 'a.xml' in line and '1 more' in line


def test_a_list_with_a_byte_order_mark_is_named(tmp_path):
    names = write_voc(tmp_path, voc_annotations(2))
    names.write_text(names.read_text(), encoding='utf-8-sig')
    check_fails(config(voc_dataset(tmp_path)), 'byte order mark', where=names)
    names.write_bytes(b'photo.0\r\nphoto.1\r\n')  # Windows' line ends
    assert check_data(config(voc_dataset(tmp_path)))[0].images == 2


# ---- what is no file


@pytest.mark.parametrize('kind', ['pipe', 'loop', 'folder'])
@pytest.mark.parametrize('form', MAKERS)
def test_what_is_no_file_ends_both_checks_at_once(tmp_path, form, kind):
    cfg = MAKERS[form](tmp_path)
    file = next(tmp_path.rglob('*0.jpg'))
    make = {'pipe': os.mkfifo, 'folder': os.mkdir, 'loop': lambda path: os.symlink(path, path)}
    file.unlink()
    make[kind](file)
    cfg = Config({key: value for key, value in cfg.items() if not key.startswith('test')})
    findings = [] if kind == 'loop' and form == 'maps' else inspect_data(cfg, workers=1).findings
    if form == 'maps' and kind != 'loop':  # mmseg passes over it
        assert [f.kind for f in findings if Path(f.file).name == '0.png'] == [
            'label map without image'
        ]
        return
    check_fails(cfg, file.name)
    assert all(f.severity == 'error' for f in findings if Path(f.file).name == file.name)


def test_folders_that_links_repeat(tmp_path):
    cfg = MAKERS['maps'](tmp_path)
    for folder in ('photos', 'maps'):
        for link in 'ab':
            os.symlink('../val', tmp_path / folder / f'train/{link}')
    (summary,) = check_data(cfg, ['train'])
    (line,) = summary.warnings
    assert summary.images == 4 + 2 * 3
    assert line.startswith('image listed twice') and '2 more' in line
    os.symlink('.', tmp_path / 'photos/train/again')
    check_fails(cfg, 'photos/train/again', 'symbolic links')


# ---- pictures


def test_turns_that_the_size_does_not_show_are_told(tmp_path):
    write_coco(tmp_path, coco_content(3))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.new('RGB', (WIDTH, HEIGHT)).save(tmp_path / 'train/1.jpg', exif=exif)
    (summary,) = check_data(config(coco_dataset(tmp_path, pipeline=LOAD)))
    (line,) = summary.warnings
    assert line.startswith('image turned by EXIF: ') and '1.jpg' in line and '(3)' in line


def test_images_that_mmseg_passes_over_for_their_suffix_are_told(tmp_path):
    cfg = MAKERS['maps'](tmp_path)
    (tmp_path / 'photos/train/3.jpg').rename(tmp_path / 'photos/train/3.JPG')
    (summary,) = check_data(cfg, ['train'])
    (line,) = summary.warnings
    assert summary.images == 3 and '3.JPG' in line and 'img_suffix' in line


def test_a_missing_image_is_looked_for_by_other_suffixes(tmp_path):
    write_voc(tmp_path, voc_annotations(2))
    folder = tmp_path / 'JPEGImages'
    (folder / 'photo.1.jpg').rename(folder / 'photo.1.gif')
    check_fails(config(voc_dataset(tmp_path)), 'photo.1.jpg', 'photo.1.gif is there')


def test_label_maps_are_compared_with_their_images_before_training(tmp_path):
    write_label_maps(tmp_path, {'a': np.resize([0, 1, 2], (HEIGHT, WIDTH)).astype(np.uint8)})
    write_image(tmp_path / 'photos/train/a.jpg', (HEIGHT, WIDTH))
    dataset = {
        'type': 'BaseSegDataset', 'data_root': str(tmp_path), 'metainfo': {'classes': CLASSES},
        'data_prefix': {'img_path': 'photos/train', 'seg_map_path': 'maps/train'},
        'pipeline': LOAD,
    }  # fmt: skip
    cfg = config(dataset, scope='mmseg')
    check_fails(cfg, '60 x 40 px', '40 x 60 px', where=tmp_path / 'maps/train/a.png')


def test_the_sheet_shows_images_as_the_pipeline_loads_them(tmp_path: Path):
    """Left half red, right half blue, and a tag that turns it."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = pixels[:, WIDTH // 2 :, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # clockwise: the left half comes to be the upper one
    write_coco(tmp_path, coco_content(1))
    Image.fromarray(pixels).save(tmp_path / 'train/0.jpg', exif=exif, quality=95)
    sheets = {}
    for colours in ('color', 'color_ignore_orientation'):
        pipeline = [{'type': 'LoadImageFromFile', 'color_type': colours}]
        cfg = config(coco_dataset(tmp_path, pipeline=pipeline))
        inspection = inspect_data(cfg, workers=1)
        turned = [f.kind for f in inspection.findings.copy() if f.severity == 'error']
        assert turned == (['image turned by EXIF'] if colours == 'color' else [])
        sheets[colours] = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    flat = mmcv.bgr2rgb(sheets['color_ignore_orientation'])
    assert flat[100, 150, 0] > 200 > flat[100, 150, 2] and flat[100, 300, 2] > 200
    upright = mmcv.bgr2rgb(sheets['color'])
    assert upright[100, 140, 0] > 200 and upright[220, 140, 2] > 200
