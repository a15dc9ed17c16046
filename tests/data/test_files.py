"""Files that are missing, are no files, are listed twice or do not fit, in both checks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from PIL import Image
from planting import MAKERS
from written_sets import (
    CLASSES,
    HEIGHT,
    WIDTH,
    check_fails,
    coco_content,
    coco_dataset,
    config,
    voc_annotations,
    voc_dataset,
    write_coco,
    write_image,
    write_label_maps,
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import check_data, inspect_data

LOAD = [{'type': 'LoadImageFromFile'}]


@pytest.mark.parametrize('form', MAKERS)
def test_an_image_in_two_splits_is_one_warning_in_both_checks(tmp_path, form):
    cfg: Config = MAKERS[form](tmp_path)
    cfg.val_dataloader.dataset = {**cfg.train_dataloader.dataset, 'indices': 2}
    quick = {summary.split: summary.warnings for summary in check_data(cfg)}
    assert not quick['train'] and len(quick['val']) == 1
    assert quick['val'][0].startswith('split overlap: ') and 'and 1 more' in quick['val'][0]
    findings = inspect_data(cfg).findings
    overlaps = [f for f in findings if f.kind == 'split overlap']
    assert [(f.severity, f.split) for f in overlaps] == [('warning', 'val')] * 2
    assert findings.verdict == 'fit to train'


@pytest.mark.parametrize('kind', ['pipe', 'loop', 'folder'])
@pytest.mark.parametrize('form', MAKERS)
def test_what_is_no_file_ends_both_checks_at_once(tmp_path, form, kind):
    cfg = MAKERS[form](tmp_path)
    file = next(tmp_path.rglob('*0.jpg'))
    make = {'pipe': os.mkfifo, 'folder': os.mkdir, 'loop': lambda path: os.symlink(path, path)}
    file.unlink()
    make[kind](file)
    cfg = Config({key: value for key, value in cfg.items() if not key.startswith('test')})
    findings = [] if kind == 'loop' and form == 'maps' else inspect_data(cfg).findings
    if form == 'maps' and kind != 'loop':  # mmseg passes over it
        assert [f.kind for f in findings if Path(f.file).name == '0.png'] == [
            'label map without image'
        ]
        return
    if form == 'maps':
        with pytest.raises(OSError, match=file.name):
            check_data(cfg)
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
    with pytest.raises(OSError, match='symbolic links: .*photos/train/again'):
        check_data(cfg)


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
    inspection = inspect_data(cfg)
    unused = [Path(f.file).name for f in inspection.findings if f.kind == 'image not listed']
    assert inspection.summaries[0].images == 3 and unused == ['3.JPG']


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
