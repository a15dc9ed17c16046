"""COCO sets: what mmdet reads is read; every mistake is named, with its place and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, DefaultScope
from written_sets import (
    CLASSES,
    HEIGHT,
    WIDTH,
    check_fails,
    coco_box,
    coco_content,
    coco_dataset,
    config,
    voc_dataset,
    write_coco,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import check_data, inspect_data

TRAIN, VAL = 'train_dataloader.dataset', 'val_dataloader.dataset'


BIG = 10**400


LOAD = [{'type': 'LoadImageFromFile'}]


def each(part: str, **change: Callable[[dict], object]) -> Callable[[dict], object]:
    def edit(content: dict) -> None:
        for item in content[part]:
            item.update({key: value(item) for key, value in change.items()})

    return edit


def image(**parts: object) -> Callable[[dict], object]:
    return lambda content: content['images'][0].update(parts)


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
    'iscrowd false': each('annotations', iscrowd=lambda _: False),
}


def first_annotation(**parts: object) -> Callable[[dict], object]:
    return lambda content: content['annotations'][0].update(parts)


def test_mmdet_reads_nothing_else_of_an_ignored_object(tmp_path):
    content = coco_content()
    content['annotations'][0].update(ignore=1, bbox=None, area=None)
    write_coco(tmp_path, content)
    (summary,) = check_data(config(coco_dataset(tmp_path, pipeline=LOAD)))
    assert sum(summary.per_class.values()) == 8


WRONG = {
    'image_id as text': (each('annotations', image_id=lambda a: str(a['image_id'])), 'image_id'),
    'category_id as text': (first_annotation(category_id='7'), 'category_id'),
    'infinite width': (image(width=float('inf')), 'image 0: no image has inf x 40 px'),
    'width of 400 digits': (image(width=BIG), 'too large'),
    'width true': (image(width=True), 'width is True'),
    'no box': (first_annotation(bbox=None), 'annotation 0: bbox is None, not [x, y,'),
    'box of 400 digits': (
        first_annotation(bbox=[2, 3, BIG, 12]),
        'too large to convert',
    ),
    'backslash': (image(file_name='sub\\0.jpg'), 'sub\\0.jpg'),
    'capital suffix': (image(file_name='0.JPG'), '0.jpg is there'),
    'another size': (image(width=2 * WIDTH, height=2 * HEIGHT), '0.jpg: it has 60 x 40 px'),
    'one file twice': (
        lambda content: content['images'].append({**content['images'][0], 'id': 77}),
        '0.jpg: 2 images of the set',
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
    assert inspect_data(cfg).findings.errors


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


def changed(root: Path, **parts: object) -> dict:
    """The training set's config, parts of its json being replaced."""
    file = root / 'train.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))
    return coco_dataset(root)


def annotation(root: Path, remove: str = '', **parts: object) -> dict:
    """The training set's config, its json's first annotation being changed."""
    annotations = coco_content()['annotations']
    annotations[0].pop(remove, None)
    annotations[0].update(parts)
    return changed(root, annotations=annotations)


def test_annotation_file_missing(coco):
    message = check_fails(
        config(coco_dataset(coco, ann_file='annotations/gone.json')),
        str(coco / 'annotations/gone.json'),
        f'--cfg-options {TRAIN}.data_root=',
        where=f'{TRAIN}.ann_file',
    )
    assert 'Errno' not in message
    check_fails(config(coco_dataset(coco, ann_file='')), 'be a file', where=f'{TRAIN}.ann_file')
    several = config(coco_dataset(coco, ann_file=['a.json', 'b.json']))
    check_fails(several, 'be a file', "['a.json', 'b.json']", where=f'{TRAIN}.ann_file')
    val = coco_dataset(coco, 'val', ann_file='gone.json')
    check_fails(config(coco_dataset(coco), val), 'gone.json', where=f'{VAL}.ann_file')


def test_relative_paths_are_shown_in_full(coco, monkeypatch):
    monkeypatch.chdir(coco)
    check_fails(config(coco_dataset(coco, data_root='data')), str(coco / 'data' / 'train.json'))
    (summary,) = check_data(config(coco_dataset(coco, data_root='')))
    assert summary.images == 3


def test_image_folder_missing(coco):
    check_fails(
        config(coco_dataset(coco, data_prefix={'img': 'photos/'})),
        f'no folder {coco / "photos"}',
        '--cfg-options',
        where=f'{TRAIN}.data_prefix.img',
    )
    cfg = config(coco_dataset(coco, data_prefix={}))
    check_fails(cfg, 'be a folder', where=f'{TRAIN}.data_prefix.img')


def test_images_missing(coco):
    check_fails(
        config(coco_dataset(coco, data_prefix={'img': ''})),
        f'all 3 images listed by {TRAIN}.ann_file',
        '0.jpg, 1.jpg, 2.jpg',
        f'--cfg-options {TRAIN}.data_root=',
        where=coco / '0.jpg',
    )
    (coco / 'train' / '1.jpg').unlink()
    check_fails(config(coco_dataset(coco)), '1 of the 3 images', where=coco / 'train/1.jpg')


def test_images_that_are_not_used_may_be_missing(coco):
    (coco / 'train' / '2.jpg').unlink()
    annotations = [a for a in coco_content()['annotations'] if a['image_id'] != 20]
    dataset = changed(coco, annotations=annotations)
    check_fails(config(dataset), '2.jpg')
    (summary,) = check_data(config({**dataset, 'filter_cfg': {'filter_empty_gt': True}}))
    assert (summary.images, summary.left_out) == (2, {'without objects': 1})


def test_images_in_folders_of_folders(coco):
    images = coco_content()['images']
    for image in images:
        (coco / 'train' / 'a' / 'b').mkdir(parents=True, exist_ok=True)
        (coco / 'train' / image['file_name']).rename(coco / 'train/a/b' / image['file_name'])
        image['file_name'] = f'a/../a/b/{image["file_name"]}'
    (summary,) = check_data(config(changed(coco, images=images)))
    assert summary.images == 3


def test_not_json(coco):
    (coco / 'train.json').write_text('{"images": [')
    check_fails(config(coco_dataset(coco)), 'JSON', 'line 1', where=coco / 'train.json')
    (coco / 'train.json').write_bytes(b'\xff\xfe\x00')
    check_fails(config(coco_dataset(coco)), 'JSON', where=coco / 'train.json')
    (coco / 'train.json').write_text('[' * 200_000)
    check_fails(config(coco_dataset(coco)), 'JSON', 'recursion', where=coco / 'train.json')


@pytest.mark.parametrize('part', ['images', 'annotations', 'categories'])
def test_not_coco(coco, part):
    for wrong in (None, {}, [1]):
        check_fails(config(changed(coco, **{part: wrong})), repr(part), where=coco / 'train.json')
    (coco / 'train.json').write_text('[]')
    check_fails(config(coco_dataset(coco)), "no list of 'images'")


@pytest.mark.parametrize('key', ['id', 'image_id', 'category_id', 'bbox', 'area'])
def test_an_annotation_lacks_something(coco, key):
    cfg = config(annotation(coco, remove=key))
    check_fails(cfg, 'annotation ', f'has no {key!r}', where=coco / 'train.json')


@pytest.mark.parametrize(
    'bbox',
    [None, [1, 2, 3], [1, 2, 3, 'x'], 'none', ['2', '3', '10', '12'], [True] * 4],
)
def test_a_box_is_no_box(coco, bbox):
    check_fails(config(annotation(coco, bbox=bbox)), 'annotation 0: ', repr(bbox))


@pytest.mark.parametrize('key', ['id', 'file_name', 'width', 'height'])
def test_an_image_lacks_something(coco, key):
    images = coco_content()['images']
    del images[0][key]
    cfg = config(changed(coco, images=images))
    check_fails(cfg, 'image ', f'has no {key!r}', where=coco / 'train.json')


@pytest.mark.parametrize(
    'part, wrong, said',
    [
        ('images', {'width': 0}, 'image 0: no image has 0 x 40 px'),
        ('images', {'height': -5}, 'image 0: no image has 60 x -5 px'),
        ('images', {'width': float('nan')}, 'image 0: no image has nan x 40 px'),
        ('images', {'file_name': 5}, "'file_name': 5"),
        ('images', {'file_name': None}, "'file_name': None"),
        ('images', {'id': [1]}, "image [1]: unhashable type: 'list'"),
        ('annotations', {'id': {}}, "annotation {}: unhashable type: 'dict'"),
        ('annotations', {'image_id': [0]}, "'image_id': [0]"),
        ('annotations', {'category_id': [7]}, "'category_id': [7]"),
        ('annotations', {'iscrowd': '0'}, "annotation 0: iscrowd is '0'"),
        ('annotations', {'iscrowd': None}, 'annotation 0: iscrowd is None'),
        ('categories', {'id': [7]}, "category [7]: unhashable type: 'list'"),
    ],
)
def test_values_of_a_wrong_kind(coco, part, wrong, said):
    items = coco_content()[part]
    items[0].update(wrong)
    check_fails(config(changed(coco, **{part: items})), said, where=coco / 'train.json')


def test_mmdet_uses_no_object_of_an_image_without_width(coco):
    from mmdet.registry import DATASETS

    images = coco_content()['images']
    images[0]['width'] = 0
    built = DATASETS.build(changed(coco, images=images))
    assert [len(built.get_data_info(i)['instances']) for i in range(3)] == [0, 3, 3]


def test_ids_twice(coco):
    content = coco_content()
    for part, what in (('images', 'image'), ('annotations', 'annotation')):
        twice = [*content[part], content[part][-1]]
        number = content[part][-1]['id']
        check_fails(config(changed(coco, **{part: twice})), f'{what} {number} occurs twice')
        changed(coco, **content)


def test_no_usable_box(coco):
    boxes = [coco_box(1, 0, 7, [3, 3, 0, 5]), coco_box(2, 0, 7, [3, 3, 5, 5], iscrowd=1)]
    check_fails(
        config(changed(coco, annotations=boxes)),
        'no usable box',
        '1 zero-size, 1 crowd',
        where=f'{TRAIN}.ann_file',
    )
    check_fails(config(changed(coco, annotations=[])), 'no usable box', 'boxes: none')
    dataset = {**coco_dataset(coco), 'filter_cfg': {'filter_empty_gt': True}}
    check_fails(config(dataset), 'no usable image', '3 without objects')
    too_small = {**changed(coco, **coco_content()), 'filter_cfg': {'min_size': 100}}
    check_fails(config(too_small), 'no usable image', '3 under 100 px')


def test_masks_wanted_and_not_there(coco):
    load = [{'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    dataset = coco_dataset(coco, pipeline=load)
    check_fails(config(dataset), 'annotation 0', 'no segmentation', 'with_mask=True')
    for item in (annotations := coco_content()['annotations']):
        item['segmentation'] = [[0, 0, 9, 0, 9, 9]]
    changed(coco, annotations=annotations)
    assert check_data(config(dataset))[0].boxes == 9
    # as mmdet would decode it, whatever the memory
    annotations[0]['segmentation'] = dict(size=[10**9, 10**9], counts=[10**18])
    changed(coco, annotations=annotations)
    check_fails(config(dataset), 'annotation 0', '[1000000000, 1000000000]')


def test_a_misspelt_class(coco):
    dataset = coco_dataset(coco, metainfo={'classes': ('cat', 'Dogs', 'horse')})
    check_fails(
        config(dataset),
        f'{TRAIN}.metainfo.classes: 1 of 3',
        "'Dogs' (did you mean 'dog'?)",
        'cat, dog, horse',
        where=coco / 'train.json',
    )
    dataset['metainfo'] = {'classes': ('cat', 'submarine', 'horse')}
    assert 'did you mean' not in check_fails(config(dataset), "'submarine'")
    # in evaluation alone it is as bad: the labels shift
    val = coco_dataset(coco, 'val', metainfo={'classes': ('cat', 'dgo', 'horse')})
    check_fails(config(coco_dataset(coco), val), VAL, "'dgo' (did you mean 'dog'?)")


def test_the_classes_of_the_dataset_type_are_told_apart(coco):
    dataset = coco_dataset(coco, metainfo={})
    check_fails(
        config(dataset),
        f'{TRAIN}.metainfo.classes',
        "77 of CocoDataset's own classes",
        'cat, dog, horse',
    )


def test_classes_in_another_order_than_the_categories(coco):
    """mmdet numbers labels in the file's order and names them in the config's."""
    from mmdet.registry import DATASETS

    dataset = coco_dataset(coco, metainfo={'classes': ('horse', 'cat', 'dog')})
    check_fails(config(dataset), 'another order', "classes=('cat', 'dog', 'horse')")
    built = DATASETS.build(dataset)
    names = [built.metainfo['classes'][label] for label in built.get_cat_ids(0)]
    assert names == ['horse', 'cat', 'dog']  # though the file says cat, dog, horse


def test_fewer_classes_than_categories_will_do(coco):
    (summary,) = check_data(config(coco_dataset(coco, metainfo={'classes': ('cat', 'horse')})))
    assert summary.per_class == {'cat': 3, 'horse': 3} and summary.other_classes == {'dog': 3}


def test_two_categories_of_one_name(coco):
    categories = [*coco_content()['categories'], {'id': 1, 'name': 'dog'}]
    check_fails(config(changed(coco, categories=categories)), 'category', 'named dog')


@pytest.mark.parametrize(
    'classes, said',
    [
        ('cat', "'cat' is a string"),
        ((), 'is empty'),
        (('cat', 'cat'), 'names cat twice'),
        (('cat', 5), 'holds 5'),
        (('cat', ' '), "holds ' '"),
    ],
)
def test_classes_that_are_none(coco, classes, said):
    dataset = coco_dataset(coco, metainfo={'classes': classes})
    message = check_fails(config(dataset), said, where=f'{TRAIN}.metainfo.classes')
    assert ("classes=('cat',)" in message) == isinstance(classes, str)


def test_classes_by_file_and_none(coco):
    names = coco / 'classes.txt'
    names.write_text('cat\ndog\nhorse\n')
    (summary,) = check_data(config(coco_dataset(coco, metainfo={'classes': str(names)})))
    assert summary.classes == CLASSES
    cfg = config(voc_dataset(coco, type='XMLDataset', metainfo={}))
    check_fails(cfg, 'not set', where=f'{TRAIN}.metainfo.classes')


def test_splits_with_different_classes(coco):
    val = coco_dataset(coco, 'val', metainfo={'classes': ('cat', 'dog')})
    check_fails(
        config(coco_dataset(coco), val),
        f'{TRAIN}.metainfo.classes',
        "lacks 'horse'",
        where=f'{VAL}.metainfo.classes',
    )


TWO_STAGE = {
    'backbone': {'num_classes': 1000},
    'rpn_head': {'num_classes': 1},
    'roi_head': {
        'bbox_head': [{'num_classes': 3}, {'num_classes': 80}],
        'mask_head': {'num_classes': 80},
        'semantic_head': {'num_classes': 183},
    },
}


def test_num_classes_of_the_model(coco):
    message = check_fails(
        config(coco_dataset(coco), model=TWO_STAGE),
        'model.roi_head.bbox_head.1.num_classes=80, model.roi_head.mask_head.num_classes=80',
        'has 3 classes (cat, dog, horse)',
        '--cfg-options model.roi_head.bbox_head.1.num_classes=3 '
        'model.roi_head.mask_head.num_classes=3',
    )
    for part in ('rpn_head', 'semantic_head', 'backbone', 'bbox_head.0'):
        assert part not in message
    cfg = config(coco_dataset(coco), model=TWO_STAGE)
    # what the message says to do is enough
    options = (option.split('=') for option in message.split('--cfg-options ')[1].split())
    cfg.merge_from_dict({key: int(value) for key, value in options})
    assert check_data(cfg)[0].boxes == 9
    for model in (
        {'bbox_head': {'num_classes': 80}, 'language_model': {}},
        {'mask_head': {'num_classes': 80, 'class_agnostic': True}},
        {'panoptic_head': {'num_things_classes': 3, 'num_stuff_classes': 0}},
    ):
        check_data(config(coco_dataset(coco), model=model))
    head = {'num_things_classes': 80, 'num_stuff_classes': 0}
    check_fails(config(coco_dataset(coco), model={'panoptic_head': head}), 'num_things_classes=80')


def test_a_metric_with_the_file_of_another_set(coco):
    cfg = config(coco_dataset(coco), coco_dataset(coco, 'val'))
    for file in (coco / 'val.json', coco / 'train.json'):  # one holds all images of the other
        cfg.val_evaluator = {'type': 'mmdet.CocoMetric', 'ann_file': str(file)}
        check_data(cfg)
    other = coco_content(1)
    other['images'][0]['file_name'] = 'other.jpg'
    file = write_coco(coco, other, 'other')
    cfg.val_evaluator = [{'type': 'CocoMetric', 'ann_file': str(file)}]
    check_fails(
        cfg,
        str(file),
        'does not hold 2 images',
        '(0.jpg, 1.jpg)',
        f'--cfg-options val_evaluator.0.ann_file={coco / "val.json"}',
        where='val_evaluator.0.ann_file',
    )
    cfg.val_evaluator = {'type': 'CocoMetric', 'ann_file': str(coco / 'gone.json')}
    check_fails(cfg, 'gone.json', '--cfg-options', where='val_evaluator.ann_file')


@pytest.mark.parametrize('change', [lambda c: c[::-1], lambda c: c[1:]])
def test_a_metric_whose_file_numbers_the_classes_otherwise(coco, change):
    """mmdet's metric takes label i for the i-th category of its own file."""
    cfg = config(coco_dataset(coco), coco_dataset(coco, 'val'))
    other = coco_content(2)
    other['categories'].append({'id': 99, 'name': 'of no class'})
    file = write_coco(coco, other, 'other')
    cfg.val_evaluator = {'type': 'CocoMetric', 'ann_file': str(file)}
    check_data(cfg)
    write_coco(coco, {**other, 'categories': change(other['categories'])}, 'other')
    own = str(coco / 'val.json')
    check_fails(cfg, str(file), 'cat, dog, horse', own, where='val_evaluator.ann_file')
