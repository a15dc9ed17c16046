"""VOC files: loose ones are read, in the check and in training; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, DefaultScope
from planting import noise
from written_sets import (
    DATA,
    HEIGHT,
    WIDTH,
    check_fails,
    config,
    real_data,
    voc_annotations,
    voc_dataset,
    voc_object,
    voc_xml,
    write_image,
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import check_data, inspect_data
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.voc import VocObject, read_voc
from res2net_mm.data.transforms import harden_dataset

TRAIN = 'train_dataloader.dataset'


LOADING = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]


LOAD = [{'type': 'LoadImageFromFile'}]


def build(dataset: dict) -> object:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(ConfigDict(dataset))


def test_what_tools_write():
    text = voc_xml(
        voc_object('cat', (1.9, 2.2, 30.99, '40'), '<difficult/>'),
        voc_object(' dog\n', (1, 2, 3, 4), '<difficult> 1 </difficult>'),
        voc_object('horse', ('1e1', 2, 3, 4), ''),
        size='<size><height>40.0</height><depth>3</depth><width>60.0</width></size>',
    )
    size, objects = read_voc(text.encode(), 'a.xml')
    assert (size, objects) == (
        (60, 40),
        [
            VocObject('cat', (1.9, 2.2, 30.99, 40), False),
            VocObject('dog', (1, 2, 3, 4), True),
            VocObject('horse', (10, 2, 3, 4), False),
        ],
    )
    assert objects[0].box == (1, 2, 30, 40)  # mmdet cuts the fractions off


@pytest.mark.parametrize(
    'encoding', ['gb2312', 'GB18030', 'shift_jis', 'euc-jp', 'utf-7', 'utf-8', 'utf-16']
)
def test_encodings(encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + voc_xml(voc_object('猫', (1, 2, 3, 4)))
    ((name, box),) = [(o.name, o.box) for o in read_voc(text.encode(encoding), 'a.xml')[1]]
    assert (name, box) == ('猫', (1, 2, 3, 4))


@pytest.mark.parametrize('encoding', ['klingon', 'base64', 'undefined', 'shift_jis'])
def test_an_encoding_that_is_none_or_another(encoding):
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    content = head.encode() + b'<annotation>\x81</annotation>'
    with pytest.raises(DataError, match=f'a.xml: .*{encoding}'):
        read_voc(content, 'a.xml')


@pytest.mark.parametrize('size', ['', '<size/>', '<size><width>0</width><height>0</height></size>'])
def test_a_size_that_is_not_told(size):
    assert read_voc(voc_xml(size=size).encode(), 'a.xml') == (None, [])


@pytest.mark.parametrize(
    'text, said',
    [
        ('<annotation>', 'not valid XML'),
        ('', 'not valid XML'),
        (voc_xml('<object><name>cat</name></object>'), "object 1 (cat): <bndbox/xmin> is ''"),
        (voc_xml(voc_object('cat', (1, 2, 3, 'x'))), "<bndbox/ymax> is 'x', not a number"),
        (voc_xml(voc_object('cat', (1, 'nan', 3, 4))), "<bndbox/ymin> is 'nan'"),
        (voc_xml(voc_object('cat', (1, '9' * 5000, 3, 4))), "is '9999"),
        (voc_xml(voc_object('cat', (1, 2, 'inf', 4))), "<bndbox/xmax> is 'inf'"),
        (voc_xml(voc_object('cat', (1, 2, 3, 4), '<difficult>no</difficult>')), "is 'no'"),
        (
            voc_xml(voc_object('cat', (1, 2, 3, 4)), voc_object(' ', (1, 2, 3, 4))),
            'it has no <name>',
        ),
    ],
)
def test_what_cannot_be_read(text, said):
    with pytest.raises(DataError) as caught:
        read_voc(text.encode(), 'a.xml')
    assert said in caught.value.what and caught.value.where == 'a.xml'
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'kind, filter_cfg',
    [('VOCDataset', None), ('mmdet.XMLDataset', {'filter_empty_gt': True, 'bbox_min_size': 20})],
)
def test_the_dataset_equals_that_of_mmdet(voc, kind, filter_cfg):
    odd = [('cat', (5, 5, 5, 9)), ('zebra', (1, 1, 9, 9)), ('dog', (2.5, 2, 40, 30.5))]
    hard = voc_object('horse', (1, 2, 30, 30), '<difficult>1</difficult>')
    annotations = {**voc_annotations(), 'odd': voc_xml(*(voc_object(*o) for o in odd), hard)}
    write_voc(voc, {**annotations, 'none': voc_xml()})
    dataset = voc_dataset(voc, type=kind, filter_cfg=filter_cfg)
    theirs, ours = build(dataset), build(harden_dataset(dataset))
    assert len(theirs) == len(ours) == (5 if filter_cfg is None else 4)
    assert type(ours).__name__ == type(theirs).__name__ and type(ours) is not type(theirs)
    assert isinstance(ours, type(theirs)) and ours.metainfo == theirs.metainfo
    for i in range(len(theirs)):
        assert ours.get_data_info(i) == theirs.get_data_info(i)


def test_small_objects_are_ignored_in_training_only(voc):
    write_voc(voc, voc_annotations())
    filters = dict(filter_empty_gt=True, bbox_min_size=1000)
    for test_mode in (False, True):
        dataset = voc_dataset(voc, filter_cfg=filters, test_mode=test_mode)
        ours = build(harden_dataset(dataset))
        found = [i for n in range(len(ours)) for i in ours.get_data_info(n)['instances']]
        usable = sum(not instance['ignore_flag'] for instance in found)
        assert found and usable == len(found) * test_mode
        (summary,) = inspect_data(config(dataset)).summaries
        assert sum(summary.per_class.values()) == usable


@real_data
def test_the_dataset_equals_that_of_mmdet_on_real_files():
    dataset = {
        'type': 'VOCDataset',
        'data_root': str(Path(DATA, 'bccd')),
        'ann_file': 'ImageSets/Main/trainval.txt',
        'data_prefix': {'sub_data_root': ''},
        'metainfo': {'classes': ('RBC', 'WBC', 'Platelets')},
        'pipeline': [],
    }
    theirs, ours = build(dataset), build(harden_dataset(dataset))
    assert len(theirs) == len(ours) == 292
    assert all(ours.get_data_info(i) == theirs.get_data_info(i) for i in range(len(ours)))


def test_loose_files_are_trained_on_and_counted_alike(voc):
    write_voc(
        voc,
        {
            'loose': voc_xml(
                voc_object('cat', (1.9, 2.2, 30.99, 40), '<difficult/>'),
                voc_object('dog', (9.2, 5, 9.9, 9)),
            ),
            'sizeless': voc_xml(voc_object('horse', (1, 1, 9, 9)), size=''),
            'portable': voc_xml(voc_object('horse', (1, 1, 9, 9))),
        },
    )
    (voc / 'JPEGImages' / 'portable.jpg').unlink()
    write_image(voc / 'JPEGImages' / 'portable.png')
    dataset = voc_dataset(voc, pipeline=LOADING, filter_cfg={'min_size': 32})
    hardened = harden_dataset(dataset)
    built = build(hardened)
    loose, sizeless, portable = (built[i] for i in range(3))
    np.testing.assert_array_equal(loose['gt_bboxes'].tensor, [[0, 1, 29, 39]])
    assert loose['gt_bboxes_labels'].tolist() == [0] and not loose['gt_ignore_flags'].any()
    assert (sizeless['width'], sizeless['height']) == (WIDTH, HEIGHT)
    assert portable['img_path'].endswith('portable.png')
    for checked in (dataset, hardened):
        (summary,) = check_data(config(checked))
        assert summary.per_class == {'cat': 1, 'dog': 0, 'horse': 2}
        assert summary.dropped == {'zero-size': 1}


def pipeline_boxes(dataset: dict) -> dict[str, np.ndarray]:
    built = build(harden_dataset(dataset))
    return {
        str(results['img_id']): results['gt_bboxes'].tensor.numpy()
        for results in (built[i] for i in range(len(built)))
    }


def check_empty_boxes(dataset: dict, split: str, name: str) -> None:
    boxes = pipeline_boxes({**dataset, 'pipeline': LOADING})
    (summary,) = check_data(config(dataset))
    empty = {
        image: int(((corners[:, 2:] <= corners[:, :2]).any(1)).sum())
        for image, corners in boxes.items()
    }
    if split == 'train':
        assert not any(empty.values())
        assert sum(map(len, boxes.values())) == summary.boxes
    else:  # ground truth is left alone
        assert {image for image, count in empty.items() if count} == {name}
        assert sum(map(len, boxes.values())) == summary.boxes + 1
    assert summary.dropped == {'zero-size': 1}


@pytest.mark.parametrize('split', ['train', 'val'])
def test_empty_boxes_do_not_reach_training(voc, split):
    odd = voc_xml(voc_object('cat', (5, 5, 5, 5)), voc_object('dog', (5, 5, 9, 9)))
    write_voc(voc, {**voc_annotations(), 'odd': odd}, split)
    check_empty_boxes(voc_dataset(voc, split), split, 'odd')


@real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    'split, name', [('train', 'BloodImage_00343'), ('val', 'BloodImage_00338')]
)
def test_empty_boxes_of_real_files_do_not_reach_training(split, name):
    dataset = {
        'type': 'VOCDataset',
        'data_root': str(Path(DATA, 'bccd')),
        'ann_file': f'ImageSets/Main/{split}.txt',
        'data_prefix': {'sub_data_root': ''},
        'metainfo': {'classes': ('RBC', 'WBC', 'Platelets')},
        'test_mode': split == 'val',
    }
    check_empty_boxes(dataset, split, name)


def test_voc_files_missing(voc):
    cfg = config(voc_dataset(voc, ann_file='gone.txt'))
    check_fails(cfg, 'gone.txt', where=f'{TRAIN}.ann_file')
    check_fails(
        config(voc_dataset(voc, img_subdir='photos')),
        f'no folder {voc / "photos"}',
        where=f'{TRAIN}.img_subdir',
    )
    check_fails(
        config(voc_dataset(voc, data_prefix={'sub_data_root': 'VOC2007/'})),
        str(voc / 'VOC2007'),
        where=f'{TRAIN}.data_prefix.sub_data_root',
    )
    cfg = config(voc_dataset(voc, data_prefix={}))
    check_fails(cfg, 'not set', where=f'{TRAIN}.data_prefix.sub_data_root')
    (voc / 'JPEGImages' / 'photo.1.jpg').unlink()
    file = voc / 'JPEGImages' / 'photo.1.jpg'
    check_fails(config(voc_dataset(voc)), '1 of the 3 images', where=file)
    (voc / 'Annotations' / 'photo.2.xml').unlink()
    file = voc / 'Annotations' / 'photo.2.xml'
    check_fails(config(voc_dataset(voc)), '1 of the 3 annotation files', 'train.txt', where=file)


@pytest.mark.parametrize('line', ['', ' ', 'photo.0 '])
def test_blanks_in_a_list_of_names(voc, line):
    with (voc / 'train.txt').open('a') as stream:
        stream.write(f'{line}\n')
    check_fails(config(voc_dataset(voc)), f'line 4 is {line!r}', where=voc / 'train.txt')


def test_voc_files_that_cannot_be_read(voc):
    (voc / 'Annotations/photo.2.xml').unlink()
    (voc / 'Annotations/photo.2.xml').mkdir()
    check_fails(config(voc_dataset(voc)), 'photo.2.xml', 'is there, but no file')
    (voc / 'train.txt').write_bytes(b'photo.0\n\x80\n')
    check_fails(config(voc_dataset(voc)), 'UTF-8', where=voc / 'train.txt')


def test_a_misspelt_voc_class(voc):
    dataset = voc_dataset(voc, metainfo={'classes': ('cat', 'Dogs', 'horse')})
    check_fails(
        config(dataset),
        f'{TRAIN}.metainfo.classes',
        "'Dogs'",
        "(did you mean 'dog'?)",
        'dog (3)',
        where=voc / 'train.txt',
    )
    dataset['metainfo'] = {'classes': ('apple', 'pear')}
    check_fails(config(dataset), 'apple, pear', 'cat (3), dog (3), horse (3)')


def test_a_voc_class_without_objects(voc):
    """In evaluation that is no mistake, even where an unknown name is a little like it."""
    few = {'one': voc_xml(voc_object('cat', (1, 1, 9, 9)), voc_object('doc', (1, 1, 9, 9)))}
    write_voc(voc, few, 'val')
    train, val, _ = check_data(config(voc_dataset(voc), voc_dataset(voc, 'val')))
    assert val.per_class == {'cat': 1, 'dog': 0, 'horse': 0} and val.other_classes == {'doc': 1}
    write_voc(voc, few)
    check_fails(config(voc_dataset(voc)), "'dog' (did you mean 'doc'?)", 'doc (1)')
    few = {'two': voc_xml(voc_object('cat', (1, 1, 9, 9)), voc_object('Dog', (1, 1, 9, 9)))}
    write_voc(voc, few, 'val')
    write_voc(voc, voc_annotations())
    check_fails(config(voc_dataset(voc), voc_dataset(voc, 'val')), 'val_dataloader', "'Dog'")


def test_no_usable_voc_box(voc):
    write_voc(voc, {'one': voc_xml(voc_object('cat', (5, 5, 5, 9)))})
    check_fails(config(voc_dataset(voc)), 'no usable box', where=f'{TRAIN}.ann_file')
    write_voc(voc, {})
    check_fails(config(voc_dataset(voc)), f'{TRAIN}', 'no usable image')


@pytest.mark.parametrize('suffix', ['.tiff', '.webp', '.JPEG'])
def test_voc_images_of_any_suffix(tmp_path, suffix):
    write_voc(tmp_path, voc_annotations(2))
    for file in sorted((tmp_path / 'JPEGImages').iterdir()):
        file.unlink()
        noise(file.with_suffix(suffix))
    dataset = voc_dataset(tmp_path, pipeline=LOAD)
    assert not check_data(config(dataset))[0].warnings
    assert not inspect_data(config(dataset)).findings.errors
    with DefaultScope.overwrite_default_scope('mmdet'):
        sample = DATASETS.build(harden_dataset(dataset))[0]
    assert sample['img'].shape == (HEIGHT, WIDTH, 3) and sample['img_path'].endswith(suffix)


def test_another_spelling_of_a_class_is_told(tmp_path):
    other = voc_xml(voc_object('Cat', (3, 4, 20, 30)))
    write_voc(tmp_path, {**voc_annotations(2), 'a': other, 'b': other})
    (summary,) = check_data(config(voc_dataset(tmp_path)))
    assert 'objects of other classes: Cat 2' in str(summary)
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
