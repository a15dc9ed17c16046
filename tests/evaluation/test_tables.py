"""Evaluators as the tools use them, and their figures as tables."""

import re

import pytest

from res2net_mm.evaluation.tables import (
    collect_results,
    format_metrics,
    ignored_label,
    split_coco_metrics,
    use_our_metrics,
)


def test_each_result_type_has_a_metric_of_its_own(tmp_path):
    evaluator = [
        dict(type='mmdet.CocoMetric', metric=['bbox', 'segm'], ann_file='a.json'),
        dict(type='VOCMetric'),
    ]
    split = split_coco_metrics(evaluator, tmp_path / 'out.json')
    assert [m.get('metric') for m in split] == ['bbox', 'segm', None]
    assert [m.get('prefix') for m in split] == ['coco_bbox', 'coco_segm', None]
    assert split[0]['classwise'] and split[2] == dict(type='VOCMetric')
    assert evaluator[0]['metric'] == ['bbox', 'segm'], "the caller's config is not touched"
    assert 'outfile_prefix' not in split_coco_metrics(dict(type='CocoMetric'))[0]


def test_results_get_their_names_when_they_are_whole(tmp_path):
    out = tmp_path / 'results.json'
    split = split_coco_metrics(dict(type='CocoMetric', metric=['bbox', 'segm']), out)
    for metric in split:
        for kind in ('bbox', 'segm', 'gt'):
            (tmp_path / f'{metric["outfile_prefix"]}.{kind}.json').write_text(kind)
    assert collect_results(out) == [out, tmp_path / 'results.segm.json']
    assert out.read_text() == 'bbox'
    assert sorted(f.name for f in tmp_path.iterdir()) == ['results.json', 'results.segm.json']


def test_table():
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    metrics = {f'coco_bbox/bbox_{n}': i / 10 for i, n in enumerate(names)}
    metrics |= {'coco_bbox/bbox_mAP_l': -1.0, 'coco_bbox/a cat_precision': 0.25}
    metrics |= {'coco_bbox/dog_precision': float('nan'), 'mIoU': 71.5}
    assert format_metrics(metrics, ['dog', 'a cat']).splitlines() == [
        'bbox      AP   AP50   AP75    APs    APm  APl',
        'all    0.000  0.100  0.200  0.300  0.400  -',
        'dog        -',
        'a cat  0.250',
        'mIoU: 71.5',
    ]


def test_tables_of_recall_voc_and_segmentation():
    metrics = {'coco/segm_mAP': 0.5, 'coco/segm_AR@1': 0.25, 'coco/segm_AR_s@1000': -1.0}
    metrics |= {'pascal_voc/mAP': 0.375, 'pascal_voc/AP50': 0.375}
    metrics |= {'pascal_voc/cat_AP50': 0.5, 'pascal_voc/a/b_AP50': float('nan')}
    metrics |= {'mIoU': 80.0, 'cat_IoU': 75.0, 'cat_Acc': 80.5, 'a/b_IoU': 85.0}
    metrics |= {'a/b_Acc': float('nan')}
    assert format_metrics(metrics, ['cat', 'a/b']).splitlines() == [
        'segm     AP  AP50  AP75  APs  APm  APl',
        'all   0.500  -     -     -    -    -',
        'segm recall   AR@1  AR_s@1000',
        'all          0.250  -',
        'VOC   AP50',
        'cat  0.500',
        'a/b      -',
        'segmentation     IoU     Acc',
        'cat           75.000  80.500',
        'a/b           85.000       -',
        'pascal_voc/mAP: 0.375',
        'pascal_voc/AP50: 0.375',
        'mIoU: 80',
    ]


@pytest.mark.parametrize('classes', [21, 80, 150])
def test_tables_of_many_classes_are_there_and_fit(classes):
    names = [f'class {i}' for i in range(classes)]
    metrics = {'coco/bbox_mAP': 0.5} | {
        f'coco/{name}_precision': i / 1000 for i, name in enumerate(names)
    }
    metrics |= {f'{name}_IoU': i / 10 for i, name in enumerate(names)} | {'class 0_Acc': 3.0}
    lines = format_metrics(metrics, names).splitlines()
    assert len(lines) < classes + 10 and max(map(len, lines)) <= 100
    text = '\n'.join(lines)
    for i in range(classes):
        assert re.search(rf'class {i} +{i / 1000:.3f}\b', text)
        assert re.search(rf'class {i} +{i / 10:.3f}\b', text)


def test_metrics_of_two_files_keep_their_prefixes(tmp_path):
    evaluator = [
        dict(type='CocoMetric', ann_file='a.json', prefix='day', outfile_prefix='mine'),
        dict(type='CocoMetric', ann_file='b.json', prefix='night'),
    ]
    split = split_coco_metrics(evaluator, tmp_path / 'out.json')
    assert [metric['prefix'] for metric in split] == ['day_bbox', 'night_bbox']
    assert 'outfile_prefix' in split[0] and 'outfile_prefix' not in split[1]
    metrics = {'day_bbox/bbox_mAP': 0.25, 'day_bbox/cat_precision': 0.25}
    metrics |= {'night_bbox/bbox_mAP': 0.5, 'night_bbox/cat_precision': 0.75}
    lines = [line.split() for line in format_metrics(metrics, ['cat']).splitlines()]
    assert [line[:2] for line in lines] == [
        ['day_bbox/bbox', 'AP'], ['all', '0.250'], ['cat', '0.250'],
        ['night_bbox/bbox', 'AP'], ['all', '0.500'], ['cat', '0.750'],
    ]  # fmt: skip


def test_which_metrics_are_replaced():
    room = 'res2net_mm.evaluation'
    ours = use_our_metrics(
        dict(
            type='MultiDatasetsEvaluator',
            metrics=[
                dict(type='mmdet.CocoMetric', metric=['bbox', 'segm']),
                dict(type='CocoMetric', metric='proposal_fast'),
                dict(type='mine.CocoMetric'),
                dict(type='LVISMetric'),
                dict(type='IoUMetric'),
                dict(type='mmdet.FasterCocoMetric', ann_file='a.json'),
            ],
        ),
        ignore_index=11,
    )
    assert [metric['type'] for metric in ours['metrics']] == [
        f'{room}.coco_metric.CocoMetric',
        f'{room}.coco_metric.CocoMetric',
        'mine.CocoMetric',
        f'{room}.mmdet_metrics.LVISMetric',
        f'{room}.iou_metric.IoUMetric',
        f'{room}.coco_metric.CocoMetric',
    ]
    assert ours['metrics'][4]['ignore_index'] == 11 and 'ignore_index' not in ours['metrics'][0]
    assert use_our_metrics(ours) == ours
    split = split_coco_metrics(use_our_metrics(dict(type='VOCMetric')))
    assert split == [dict(type=f'{room}.voc_metric.VOCMetric', table=False)]
    assert use_our_metrics(None) is None and ignored_label(None) is None
    assert ignored_label(dict(decode_head=dict(ignore_index=3))) == 3


def test_a_class_named_like_the_end_of_another():
    figures = {'wall_IoU': 90.0, 'inner/wall_IoU': 10.0}
    rows = [line.split() for line in format_metrics(figures, ['wall', 'inner/wall']).splitlines()]
    assert ['wall', '90.000'] in rows and ['inner/wall', '10.000'] in rows
