"""Reading a config: it counts what mmdet uses, and warns in a line for each kind."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from written_sets import (
    CLASSES,
    DATA,
    HEIGHT,
    WIDTH,
    check_fails,
    coco_box,
    coco_content,
    coco_dataset,
    config,
    real_data,
    voc_annotations,
    voc_dataset,
    voc_object,
    voc_xml,
    write_coco,
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import check_data, inspect_data
from res2net_mm.data.check.survey import SplitSummary, format_summary
from res2net_mm.data.transforms import harden_dataset

LOADING = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]


def used_by_mmdet(dataset: dict) -> tuple[int, Counter, int]:
    """(images, trained boxes per class, ignored ones) of mmdet's own dataset and pipeline."""
    from mmdet.registry import DATASETS

    with DefaultScope.overwrite_default_scope('mmdet'):
        built = DATASETS.build(harden_dataset(ConfigDict(dataset)))
    boxes, ignored = Counter(), 0
    for i in range(len(built)):
        results = built[i]
        for label, ignore in zip(
            results['gt_bboxes_labels'], results['gt_ignore_flags'], strict=True
        ):
            boxes[CLASSES[label]] += not ignore
            ignored += bool(ignore)
    return len(built), +boxes, ignored


def random_box(rng: random.Random) -> list[float]:
    side = lambda limit: rng.choice([0, 0.4, 1, 5, 17.5, limit, -3])  # noqa: E731
    corner = lambda limit: rng.choice([-20, -3, 0, 4, 11.25, limit - 2, limit, limit + 6])  # noqa: E731
    return [corner(WIDTH), corner(HEIGHT), side(WIDTH), side(HEIGHT)]


def random_coco(seed: int) -> dict:
    rng = random.Random(seed)
    content = coco_content(8)
    content['categories'].insert(1, {'id': 99, 'name': 'zebra'})
    content['images'][3].update(width=20, height=25)
    content['images'][4].update(width=32, height=32)
    content['annotations'] = [
        coco_box(
            i,
            rng.choice([0, 10, 20, 30, 40, 50, 1234]),
            rng.choice([7, 7, 12, 17, 99, 100]),
            random_box(rng),
            **rng.choice([{}, {}, {'iscrowd': 1}, {'ignore': 1}, {'area': 0}]),
        )
        for i in range(80)
    ]
    return content


FILTERS = [None, {'filter_empty_gt': True, 'min_size': 32}, {'min_size': 32}]


@pytest.mark.parametrize('seed, filter_cfg', [*enumerate(FILTERS)], ids=str)
def test_coco_counts_are_those_of_mmdet(tmp_path, seed, filter_cfg):
    content = random_coco(seed)
    write_coco(tmp_path, content)
    dataset = coco_dataset(tmp_path, filter_cfg=filter_cfg, pipeline=LOADING)
    (summary,) = check_data(config(dataset))
    images, boxes, ignored = used_by_mmdet(dataset)
    assert summary.images == images
    assert Counter(summary.per_class) == boxes and summary.boxes == boxes.total()
    assert summary.dropped.get('crowd', 0) == ignored
    assert sum(summary.left_out.values()) == 8 - images
    if not filter_cfg:
        strays = sum(a['image_id'] == 1234 for a in content['annotations'])
        counts = (*summary.dropped.values(), *summary.other_classes.values(), strays)
        assert summary.boxes + sum(counts) == len(content['annotations'])


def random_voc(seed: int) -> dict[str, str]:
    rng = random.Random(seed)
    annotations = {f'photo{i}': '' for i in range(8)}
    for name in annotations:
        objects = [voc_object('cat', (5, 6, 30, 30))] if name == 'photo0' else []
        for _ in range(rng.choice([0, 3, 25])):
            x, y, width, height = random_box(rng)
            flag = f'<difficult>{rng.choice([0, 0, 1])}</difficult>'
            label = rng.choice([*CLASSES, 'zebra'])
            objects.append(voc_object(label, (x, y, x + width, y + height), flag))
        annotations[name] = voc_xml(*objects)
    return annotations


VOC_FILTERS = [*FILTERS, {'filter_empty_gt': True, 'bbox_min_size': 6}]


@pytest.mark.parametrize('seed, filter_cfg', [*enumerate(VOC_FILTERS)], ids=str)
def test_voc_counts_are_those_of_mmdet(tmp_path, seed, filter_cfg):
    write_voc(tmp_path, random_voc(seed))
    dataset = voc_dataset(tmp_path, filter_cfg=filter_cfg, pipeline=LOADING)
    (summary,) = check_data(config(dataset))
    images, boxes, ignored = used_by_mmdet(dataset)
    assert summary.images == images
    assert Counter(summary.per_class) == boxes and summary.boxes == boxes.total()
    assert summary.dropped.get('difficult', 0) + summary.dropped.get('under 6 px', 0) == ignored
    assert sum(summary.left_out.values()) == 8 - images


def test_every_reason_is_counted_and_told(tmp_path):
    content = coco_content(4)
    content['categories'].append({'id': 50, 'name': 'zebra'})
    content['annotations'] += [
        coco_box(100, 0, 7, [5, 5, 0, 4]),
        coco_box(101, 10, 7, [5, 5, 4, 0]),
        coco_box(102, 20, 7, [5, 5, 0, 0]),
        coco_box(103, 30, 12, [5, 5, 0, 0]),
        coco_box(104, 0, 12, [WIDTH, 5, 3, 3]),
        coco_box(105, 0, 12, [5, 5, 0.5, 3]),
        coco_box(106, 0, 12, [5, 5, 3, 3], iscrowd=1),
        coco_box(107, 0, 50, [5, 5, 3, 3]),
        coco_box(108, 77, 12, [5, 5, 3, 3]),
        coco_box(109, 0, 12, [5, 5, 3, 3], ignore=1),
        coco_box(110, 0, 12, [5, float('nan'), 3, 3]),
        coco_box(111, 0, 12, [5, 5, 3, 3], area=0),
    ]
    write_coco(tmp_path, content)
    (summary,) = check_data(config(coco_dataset(tmp_path)))
    assert summary.dropped == {
        'zero-size': 4,
        'outside the image': 1,
        'under 1 px': 1,
        'crowd': 1,
        'marked ignore': 1,
        'not finite': 1,
        'without area': 1,
    }
    assert summary.other_classes == {'zebra': 1}
    text = format_summary([summary])
    assert text.startswith('train: 4 images, 12 boxes (cat 4, dog 4, horse 4); other boxes: ')
    assert ' 4 zero-size, ' in text and '1 crowd' in text and '1 outside the image' in text
    first, *warnings = text.split('\n')
    assert first.endswith('; objects of other classes: zebra 1')
    assert [line.split(': ')[:3] for line in warnings] == [
        ['WARNING', 'train', kind]
        for kind in (
            'annotation of no image',
            'zero-size box',
            'box outside the image',
            'box under 1 px',
            'box not finite',
            'box without area',
        )
    ]


def test_the_lines_of_all_splits(voc):
    empty = voc_xml(voc_object('cat', (5, 5, 5, 5)), voc_object('dog', (5, 5, 9, 9)))
    write_voc(voc, {**voc_annotations(), 'odd': empty})
    write_voc(voc, {**voc_annotations(2), 'odd': empty}, 'val')
    summaries = check_data(config(voc_dataset(voc), voc_dataset(voc, 'val')))
    assert [summary.split for summary in summaries] == ['train', 'val', 'test']
    photo = (
        f'{voc}/JPEGImages/odd.jpg: object 1 (cat), box 4, 4, 4, 4: it is not trained on; annotate '
        'the object again, or remove it'
    )
    assert format_summary(summaries).split('\n') == [
        'train: 4 images, 10 boxes (cat 3, dog 4, horse 3); other boxes: 1 zero-size',
        f'WARNING: train: zero-size box: {photo}',
        'val: 3 images, 7 boxes (cat 2, dog 3, horse 2); other boxes: 1 zero-size',
        f'WARNING: val: zero-size box: {photo}',
        f'WARNING: val: split overlap: {voc}/JPEGImages/photo.0.jpg: it is trained on: what is '
        'measured on it says nothing, and 2 more; remove it from one of the two splits',
        'test: the same as val',
    ]


def test_many_classes_and_thousands():
    names = [f'class{i}' for i in range(80)]
    summary = SplitSummary('train', images=1234, classes=tuple(names))
    summary.per_class = {name: i for i, name in enumerate(names)}
    summary.left_out = {'without objects': 1021, 'under 32 px': 1}
    assert format_summary([summary]) == (
        'train: 1,234 images, 3,160 boxes (80 classes, 1 of them without a box); '
        'images left out: 1,021 without objects, 1 under 32 px'
    )


def test_wrappers_are_opened_and_their_parts_added(coco):
    part = coco_dataset(coco)
    wrapped = {
        'type': 'RepeatDataset',
        'times': 3,
        'dataset': {
            'type': 'ConcatDataset',
            'datasets': [
                part,
                {'type': 'ClassBalancedDataset', 'oversample_thr': 0.1, 'dataset': part},
                {'type': 'MultiImageMixDataset', 'dataset': part, 'pipeline': []},
            ],
        },
    }
    (summary,) = check_data(config(wrapped))
    assert (summary.images, summary.boxes) == (9, 27)
    broken = copy.deepcopy(wrapped)
    broken['dataset']['datasets'][1]['dataset'] = {**part, 'ann_file': 'gone.json'}
    key = 'train_dataloader.dataset.dataset.datasets.1.dataset.ann_file'
    check_fails(config(broken), 'gone.json', where=key)


@pytest.mark.parametrize('kind', ['mmdet.CocoDataset', 'class', 'subclass'])
def test_ways_to_name_a_type(coco, kind):
    from mmdet.datasets import CocoDataset

    class Own(CocoDataset):
        METAINFO = {'classes': CLASSES}

    named = {'class': CocoDataset, 'subclass': Own}.get(kind, kind)
    (summary,) = check_data(config(coco_dataset(coco, type=named), scope='mmengine'))
    assert summary.boxes == 9
    if kind == 'subclass':
        (summary,) = check_data(config(coco_dataset(coco, type=named, metainfo={})))
        assert summary.classes == CLASSES


def test_types_with_a_reader_of_their_own_are_not_checked(coco):
    from mmdet.datasets import CocoDataset

    class Own(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return {}

    for kind in ('NoSuchDataset', 'nowhere.NoSuchDataset', 'ReIDDataset', 'V3DetDataset', Own):
        dataset = {'type': kind, 'ann_file': 'train.json', 'data_root': str(coco)}
        (summary,) = check_data(config(dataset))
        assert re.fullmatch(r'train: \S+ not checked', format_summary([summary]))
    remote = coco_dataset(coco, data_root='s3://bucket/data')
    assert 'not checked' in format_summary(check_data(config(remote)))
    mixed = {'type': 'ConcatDataset', 'datasets': [coco_dataset(coco), {'type': 'NoSuchDataset'}]}
    assert format_summary(check_data(config(mixed))).endswith('; NoSuchDataset not checked')


def test_indices_choose_images(coco):
    for indices, images in ((2, 2), (-1, 1), ([0, 2], 2), (99, 3)):
        (summary,) = check_data(config(coco_dataset(coco, indices=indices)))
        assert (summary.images, summary.boxes) == (images, 3 * images)


def test_splits_asked_for_and_splits_there_are(coco):
    cfg = config(coco_dataset(coco, ann_file='gone.json'), coco_dataset(coco, 'val'))
    assert [summary.split for summary in check_data(cfg, ('test',))] == ['test']
    assert check_data(config(coco_dataset(coco)), ('val', 'test')) == []


def test_a_test_set_without_ground_truth(coco):
    content = coco_content(2)
    del content['annotations']
    write_coco(coco, content, 'test')
    cfg = config(coco_dataset(coco), coco_dataset(coco, 'val'))
    cfg.test_dataloader.dataset = ConfigDict(coco_dataset(coco, 'test'))
    check_fails(cfg, 'test.json', "'annotations'")
    cfg.test_evaluator = ConfigDict(type='CocoMetric', format_only=True)
    assert check_data(cfg)[-1].images == 2


@real_data
def test_bccd():
    """Its boxes of no size: each split has one."""
    root = Path(DATA, 'bccd')
    classes = ('RBC', 'WBC', 'Platelets')
    files = {
        split: {
            'type': 'VOCDataset',
            'data_root': str(root),
            'ann_file': f'ImageSets/Main/{split}.txt',
            'data_prefix': {'sub_data_root': ''},
            'metainfo': {'classes': classes},
            'pipeline': [],
            'test_mode': split == 'val',
        }
        for split in ('train', 'val')
    }
    train, val, _ = check_data(config(files['train'], files['val']))
    for summary, images in ((train, 205), (val, 87)):
        names = (root / files[summary.split]['ann_file']).read_text().split()
        text = ''.join((root / 'Annotations' / f'{name}.xml').read_text() for name in names)
        there = Counter(re.findall(r'<name>(.*?)</name>', text))
        there['RBC'] -= 1  # the one of no size
        assert summary.images == images and summary.per_class == there
        assert summary.dropped == {'zero-size': 1}
    files['train']['metainfo'] = {'classes': ('RBC', 'WBC', 'Platelet')}
    check_fails(config(files['train']), "'Platelet'", "'Platelets'", 'metainfo.classes')


@real_data
@pytest.mark.parametrize(
    'folder, prefix, classes, boxes, crowd',
    [
        ('coco_ccby', '{}/', None, (73, 109), 1),
        ('nuclei', 'images/{}/', ('nucleus',), (5217, 1711), 0),
    ],
)
def test_real_coco(folder, prefix, classes, boxes, crowd):
    root = Path(DATA, folder)
    files = {
        split: {
            'type': 'CocoDataset',
            'data_root': str(root),
            'ann_file': f'annotations/instances_{split}.json',
            'data_prefix': {'img': prefix.format(split)},
            'filter_cfg': {'filter_empty_gt': True, 'min_size': 32},
            'metainfo': {'classes': classes} if classes else {},
            'pipeline': [{'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}],
            'test_mode': split == 'val',
        }
        for split in ('train', 'val')
    }
    metric = {'type': 'CocoMetric', 'ann_file': str(root / files['val']['ann_file'])}
    model = {'roi_head': {'bbox_head': {'num_classes': len(classes or range(80))}}}
    cfg = config(files['train'], files['val'], val_evaluator=metric, model=model)
    train, val, _ = check_data(cfg)
    assert (train.boxes, val.boxes) == boxes
    assert train.dropped.get('crowd', 0) == val.dropped.get('crowd', 0) == crowd


def test_files_that_a_loader_of_the_users_reads_are_its_own_affair(tmp_path):
    """A loader whose name ends as ours does, on files that ours cannot decode."""
    write_coco(tmp_path, coco_content())
    for image in (tmp_path / 'train').iterdir():
        image.write_bytes(b'\x93NUMPY, and no image')
    pipeline = [{'type': 'mypackage.NpyLoadImageFromFile'}]
    (summary,) = check_data(config(coco_dataset(tmp_path, pipeline=pipeline)))
    assert summary.images == 3
    pipeline = [{'type': 'LoadImageFromFile'}]
    check_fails(config(coco_dataset(tmp_path, pipeline=pipeline)), '.jpg')


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
    assert set(kinds) == {'box beyond the border', 'area beyond its box'}
    assert summary.other_classes == {'Cat': 2}
    assert '2 px beyond the 60 x 40 px' in kinds['box beyond the border']
    assert 'and 1 more' in kinds['box beyond the border']
    lines = format_summary([summary]).split('\n')[1:]
    assert lines == [f'WARNING: train: {line}' for line in summary.warnings]
    findings = inspect_data(config(coco_dataset(tmp_path))).findings
    told = {finding.kind for finding in findings}
    assert set(kinds) <= told and findings.verdict == 'fit to train'
