"""Evaluators as the tools use them, and their figures as tables."""

import copy
import re

import numpy as np
import pytest

from res2net_mm.evaluation.tables import (
    format_metrics,
    ignored_label,
    report_classes,
    use_our_metrics,
)

COCO_METRIC = 'res2net_mm.evaluation.coco_metric.CocoMetric'


def test_metrics_report_classes_and_no_table(tmp_path):
    evaluator = [
        dict(type='mine.CocoMetric'),
        dict(type=COCO_METRIC, metric=['bbox', 'segm'], ann_file='a.json'),
        dict(type='VOCMetric'),
    ]
    found, given = report_classes(evaluator, tmp_path / 'out.json'), copy.deepcopy(evaluator)
    ours = dict(given[1], table=False, classwise=True)
    assert found == [given[0], dict(ours, out=str(tmp_path / 'out.json')), given[2]]
    assert evaluator == given, "the caller's config is not touched"
    assert report_classes(evaluator[1]) == [ours]


def test_table():
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    metrics = {f'coco/bbox_{n}': i / 10 for i, n in enumerate(names)}
    metrics |= {'coco/bbox_mAP_l': -1.0, 'coco/a cat_precision': 0.25}
    metrics |= {'coco/dog_precision': float('nan'), 'mIoU': 71.5}
    assert format_metrics(metrics, ['dog', 'a cat']).splitlines() == [
        'bbox      AP   AP50   AP75    APs    APm  APl',
        'all    0.000  0.100  0.200  0.300  0.400  -',
        'dog        -',
        'a cat  0.250',
        'mIoU: 71.5',
    ]


def test_what_is_no_number_is_shown_as_it_is():
    text = format_metrics({'top1': 50.0, 'precision': [0.5, 1.0], 'matrix': np.eye(2)}, [])
    assert 'top1: 50' in text and 'precision: [0.5, 1.0]' in text and 'matrix: [[1. 0.]' in text


def test_boxes_and_masks_have_a_table_each():
    metrics = {'coco/bbox_mAP': 0.5, 'coco/bbox_cat_precision': 0.5, 'coco/segm_mAP': 0.25}
    metrics |= {'coco/segm_cat_precision': 0.25}
    lines = [line.split()[:2] for line in format_metrics(metrics, ['cat']).splitlines()]
    assert lines == [
        ['bbox', 'AP'], ['all', '0.500'], ['cat', '0.500'],
        ['segm', 'AP'], ['all', '0.250'], ['cat', '0.250'],
    ]  # fmt: skip


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
        dict(type=COCO_METRIC, ann_file='a.json', prefix='day', outfile_prefix='mine'),
        dict(type=COCO_METRIC, ann_file='b.json', prefix='night'),
        dict(type=COCO_METRIC, ann_file='b.json', prefix='night', metric='segm'),
    ]
    found = report_classes(evaluator, tmp_path / 'out.json')
    assert [metric['prefix'] for metric in found] == ['day', 'night', 'night_segm']
    assert ['out' in metric for metric in found] == [True, False, False]
    metrics = {'day/bbox_mAP': 0.25, 'day/cat_precision': 0.25}
    metrics |= {'night/bbox_mAP': 0.5, 'night/cat_precision': 0.75}
    lines = [line.split() for line in format_metrics(metrics, ['cat']).splitlines()]
    assert [line[:2] for line in lines] == [
        ['day/bbox', 'AP'], ['all', '0.250'], ['cat', '0.250'],
        ['night/bbox', 'AP'], ['all', '0.500'], ['cat', '0.750'],
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
    quiet = report_classes(use_our_metrics(dict(type='VOCMetric')))
    assert quiet == [dict(type=f'{room}.voc_metric.VOCMetric', table=False)]
    assert use_our_metrics(None) is None and ignored_label(None) is None
    assert ignored_label(dict(decode_head=dict(ignore_index=3))) == 3


def test_a_class_named_like_the_end_of_another():
    figures = {'wall_IoU': 90.0, 'inner/wall_IoU': 10.0}
    rows = [line.split() for line in format_metrics(figures, ['wall', 'inner/wall']).splitlines()]
    assert ['wall', '90.000'] in rows and ['inner/wall', '10.000'] in rows
