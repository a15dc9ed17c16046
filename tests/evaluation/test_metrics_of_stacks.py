"""Our metrics against references by hand and mmdet's and mmseg's own, on both stacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from random_sets import SIDE, random_set
from running import ORIGINALS
from voc_reference import devkit_ap, voc_set

import res2net_mm  # noqa: F401  (before mmdet)
from res2net_mm.engine.runner import prepare_config
from res2net_mm.evaluation.coco import evaluate

REPO = Path(__file__).resolve().parents[2]
ROOM = 'res2net_mm.evaluation'


def build(kind, classes, **kwargs):
    metric = METRICS.build(dict(type=kind, **kwargs))
    metric.dataset_meta = dict(classes=classes)
    return metric


def measured(metric, samples):
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


# COCO


def coco_samples(annotations, results, classes):
    """What mmdet gives its metrics; labels are places in ``classes``."""
    names = {c['id']: classes.index(c['name']) for c in annotations['categories']}
    for image in annotations['images']:
        mine = [i for i, r in enumerate(results['bbox']) if r['image_id'] == image['id']]
        boxes = np.array([results['bbox'][i]['bbox'] for i in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield dict(
            img_id=image['id'],
            ori_shape=(SIDE, SIDE),
            pred_instances=dict(
                bboxes=torch.tensor(boxes, dtype=torch.float64),
                scores=torch.tensor(
                    [results['bbox'][i]['score'] for i in mine], dtype=torch.float64
                ),
                labels=torch.tensor(
                    [names[results['bbox'][i]['category_id']] for i in mine], dtype=torch.long
                ),
                masks=[dict(results['segm'][i]['segmentation']) for i in mine],
            ),
        )


@pytest.fixture(scope='module')
def coco_file(tmp_path_factory):
    file = tmp_path_factory.mktemp('coco') / 'truth.json'
    file.write_text(json.dumps(random_set(0)[0]))
    return str(file)


CLASSES = ('kite', 'a cat', 'dog', 'person')  # as the file lists them


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_coco_metric_has_the_figures_of_mmdet(coco_file, kind, capsys):
    annotations, results = random_set(0)
    samples = list(coco_samples(annotations, results, CLASSES))
    arguments = dict(ann_file=coco_file, metric=kind)
    theirs = measured(
        build('mmdet.CocoMetric', CLASSES, proposal_nums=(1, 10, 100), **arguments), samples
    )
    for limits in ((100, 300, 1000), (10, 100, 120)):
        both = [
            measured(build(metric, CLASSES, proposal_nums=limits, **arguments), samples)
            for metric in ('mmdet.CocoMetric', f'{ROOM}.coco_metric.CocoMetric')
        ]
        assert {key: round(both[1][key], 3) for key in both[0]} == both[0]
    capsys.readouterr()
    quiet = dict(arguments, classwise=True, table=False)
    ours = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **quiet), samples)
    assert capsys.readouterr().out == ''
    assert theirs and {key: round(ours[key], 3) for key in theirs} == theirs
    # mmdet gives classes another's AP where the file does not list them by id
    scores = evaluate(annotations, results[kind], kind)
    for name, ap in scores.by_class().items():
        assert ours[f'coco/{name}'] == pytest.approx(ap, abs=1e-4, nan_ok=True)
    limited = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, proposal_nums=[5], **arguments)
    found = measured(limited, samples)
    expected = evaluate(annotations, results[kind], kind, max_dets=[5]).ap()
    assert (
        found[f'coco/{kind}_mAP'] == pytest.approx(expected, abs=1e-4) != ours[f'coco/{kind}_mAP']
    )
    assert f'coco/{kind}_AR@5' in found and f'coco/{kind}_AR@100' not in found
    chosen = dict(arguments, metric_items=['mAP_s', 'AR@10', 'AR_l@100'])
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **chosen), samples)
    assert found == {key: ours[key] for key in found} and len(found) == 3


def test_coco_metric_without_detections_or_annotation_file(coco_file):
    annotations, results = random_set(0)
    none = list(coco_samples(annotations, dict(bbox=[], segm=[]), CLASSES))
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, ann_file=coco_file), none)
    assert found['coco/bbox_mAP'] == 0 and found['coco/bbox_AR@100'] == 0

    samples = list(coco_samples(annotations, results, CLASSES))
    for sample in samples:
        sample['instances'] = [
            dict(
                bbox=[*a['bbox'][:2], *np.add(a['bbox'][:2], a['bbox'][2:]).tolist()],
                bbox_label=CLASSES.index(
                    {c['id']: c['name'] for c in annotations['categories']}[a['category_id']]
                ),
                ignore_flag=a['iscrowd'],
            )
            for a in annotations['annotations']
            if a['image_id'] == sample['img_id']
        ]
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES), samples)
    expected = evaluate(annotations, results['bbox'], 'bbox').ap()
    assert found['coco/bbox_mAP'] == pytest.approx(expected, abs=1e-4)


def test_coco_metric_refuses_what_it_cannot():
    for arguments, part in (
        (dict(metric='proposal'), 'take mmdet.CocoMetric'),
        (dict(proposal_nums=[0]), 'max_dets must be positive'),
        (dict(metric_items=['AR@300']), r"'AR@300' \(proposal_nums is \(1, 10, 100\)\)"),
    ):
        with pytest.raises(ValueError, match=part):
            build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments)


# VOC


def voc_samples(classes):
    for images in zip(*classes, strict=True):
        parts = dict(bboxes=[], labels=[]), dict(bboxes=[], labels=[])
        found = dict(bboxes=[], labels=[], scores=[])
        for label, (detections, boxes, difficult) in enumerate(images):
            for part, chosen in zip(parts, (boxes[~difficult], boxes[difficult]), strict=True):
                part['bboxes'].append(chosen)
                part['labels'].append(np.full(len(chosen), label))
            found['bboxes'].append(detections[:, :4])
            found['scores'].append(detections[:, 4])
            found['labels'].append(np.full(len(detections), label))
        yield dict(
            gt_instances=joined(parts[0]),
            ignored_instances=joined(parts[1]),
            pred_instances=joined(found),
        )


def joined(arrays):
    return {key: torch.from_numpy(np.concatenate(value)) for key, value in arrays.items()}


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_voc_metric(mode):
    names, sets = ('cat', 'dog', 'a bird'), voc_set(7)
    samples = list(voc_samples(sets))
    arguments = dict(eval_mode=mode, iou_thrs=[0.5, 0.75])
    ours = measured(build(f'{ROOM}.voc_metric.VOCMetric', names, **arguments), samples)
    for iou_thr, suffix in ((0.5, 'AP50'), (0.75, 'AP75')):
        aps = [devkit_ap(images, mode, iou_thr) for images in sets]
        for name, ap in zip(names, aps, strict=True):
            assert ours[f'pascal_voc/{name}_{suffix}'] == pytest.approx(ap, abs=1e-6)
        assert ours[f'pascal_voc/{suffix}'] == pytest.approx(np.mean(aps), abs=1e-6)
    means = [ours['pascal_voc/AP50'], ours['pascal_voc/AP75']]
    assert ours['pascal_voc/mAP'] == pytest.approx(np.mean(means), abs=1e-12)
    if mode == 'area':  # where mmdet is right but for the order of equal scores
        theirs = measured(build('mmdet.VOCMetric', names, **arguments), samples)
        assert theirs['pascal_voc/mAP'] == pytest.approx(ours['pascal_voc/mAP'], abs=1e-6)


def test_recall_of_three_in_five_reaches_six_tenths():
    """Why there is a VOCMetric of ours: mmdet's steps are 0.1 * k, and 0.1 * 6 is above 0.6."""
    boxes = np.array([[100 * i, 0, 100 * i + 50, 50] for i in range(5)], dtype=np.float32)
    found = np.column_stack([boxes[:3], [0.9, 0.8, 0.7]])
    images = [(found, boxes, np.zeros(5, dtype=bool))]
    expected = devkit_ap(images, '11points')
    assert expected == pytest.approx(7 / 11, abs=1e-12)  # recalls 0, 0.1 ... 0.6
    samples = list(voc_samples([images]))
    ours = build(f'{ROOM}.voc_metric.VOCMetric', ('cat',), eval_mode='11points')
    theirs = build('mmdet.VOCMetric', ('cat',), eval_mode='11points')
    assert measured(ours, samples)['pascal_voc/mAP'] == pytest.approx(expected, abs=1e-12)
    assert measured(theirs, samples)['pascal_voc/mAP'] == pytest.approx(6 / 11, abs=1e-6)


def test_voc_mode_has_no_default():
    for arguments in ({}, dict(eval_mode='12points')):
        with pytest.raises(ValueError, match="eval_mode of VOCMetric must be '11points'"):
            build(f'{ROOM}.voc_metric.VOCMetric', ('cat',), **arguments)


VOC_OBJECT = (
    '<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
    '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)


def test_voc_data_set_and_metric_together(tmp_path):
    """From the files of a folder VOC2007 to AP: a difficult object counts as nothing."""
    root = tmp_path / 'VOC2007'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    objects = {
        'one': [('cat', 0, 11, 11, 60, 60), ('cat', 1, 101, 11, 150, 60), ('ox', 0, 1, 71, 40, 90)],
        'two': [('cat', 0, 21, 31, 50, 90), ('cat', '', 61, 31, 90, 90)],
    }
    for name, lines in objects.items():
        text = ''.join(VOC_OBJECT.format(*line) for line in lines)
        size = '<size><width>160</width><height>100</height></size>'
        file = root / 'Annotations' / f'{name}.xml'
        file.write_text(f'<annotation>{size}{text}</annotation>')
        cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), np.zeros((100, 160, 3), np.uint8))
    (root / 'ImageSets' / 'Main' / 'val.txt').write_text('one\ntwo\n')
    names = ('cat', 'ox')
    init_default_scope('mmdet')
    data_set = DATASETS.build(
        dict(
            type='res2net_mm.data.voc_dataset.VOCDataset',
            data_root=f'{root}/',
            ann_file='ImageSets/Main/val.txt',
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=names),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(320, 200), keep_ratio=True),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ],
        )
    )
    samples = [data_set[i]['data_samples'].to_dict() for i in range(2)]
    found = {  # pixels from 0, as a detector gives them; the second is on the difficult cat
        'one': [[10, 10, 59, 59, 0.9], [100, 10, 149, 59, 0.8], [0, 20, 9, 29, 0.7]],
        'two': [[20, 30, 49, 89, 0.6]],
    }
    for name, sample in zip(objects, samples, strict=True):
        boxes = torch.tensor(found[name], dtype=torch.float32)
        labels = torch.zeros(len(boxes), dtype=torch.long)
        sample['pred_instances'] = dict(bboxes=boxes[:, :4], scores=boxes[:, 4], labels=labels)
        for key in ('gt_instances', 'ignored_instances'):
            sample[key] = dict(sample[key], bboxes=sample[key]['bboxes'].tensor)
    metric = METRICS.build(dict(type=f'{ROOM}.voc_metric.VOCMetric', eval_mode='area'))
    metric.dataset_meta = data_set.metainfo
    ours = measured(metric, samples)
    # cats: right, nothing, wrong, right, of three
    assert ours['pascal_voc/cat_AP50'] == pytest.approx(1 / 3 + 2 / 3 / 3, abs=1e-12)
    assert ours['pascal_voc/ox_AP50'] == 0
    assert ours['pascal_voc/mAP'] == pytest.approx((1 / 3 + 2 / 9) / 2, abs=1e-12)


# semantic segmentation


def label_samples(seed, classes, ignore):
    """Predictions and label maps; class 2 is not in these, class 3 in neither."""
    rng = np.random.default_rng(seed)
    for i in range(3):
        truth = rng.choice([0, 1, *range(4, classes), ignore], (20, 30))
        guess = rng.choice([0, 1, 2, *range(4, classes)], (20, 30))
        predicted = np.where((rng.random((20, 30)) < 0.7) & (truth != ignore), truth, guess)
        yield dict(
            pred_sem_seg=dict(data=torch.from_numpy(predicted)[None]),
            gt_sem_seg=dict(data=torch.from_numpy(truth)[None]),
            img_path=f'{i}.jpg',
            seg_map_path=f'{i}.png',
        )


@pytest.mark.parametrize(('ignore', 'arguments'), [(255, {}), (11, dict(ignore_index=11))])
def test_iou_metric(ignore, arguments):
    names = tuple('abcdefghijk')
    samples = list(label_samples(3, 11, ignore))
    confusion = np.zeros((11, 11))
    for sample in samples:
        truth, predicted = (
            sample[key]['data'].numpy().ravel() for key in ('gt_sem_seg', 'pred_sem_seg')
        )
        for t, p in zip(truth, predicted, strict=True):
            if t != ignore:
                confusion[t, p] += 1
    ours = measured(build(f'{ROOM}.iou_metric.IoUMetric', names, **arguments), samples)
    hits, labelled, guessed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid='ignore'):
        iou, accuracy = hits / (labelled + guessed - hits) * 100, hits / labelled * 100
    assert ours['aAcc'] == pytest.approx(hits.sum() / confusion.sum() * 100, abs=1e-9)
    assert ours['mIoU'] == pytest.approx(np.nanmean(iou), abs=1e-9)
    assert ours['mAcc'] == pytest.approx(np.nanmean(accuracy), abs=1e-9)
    for k, name in enumerate(names):
        assert ours[f'{name}_IoU'] == pytest.approx(iou[k], abs=1e-9, nan_ok=True)
        assert ours[f'{name}_Acc'] == pytest.approx(accuracy[k], abs=1e-9, nan_ok=True)
    assert np.isnan(ours['d_IoU']) and np.isnan(ours['c_Acc']) and ours['c_IoU'] == 0
    theirs = measured(build('mmseg.IoUMetric', names, **arguments), samples)
    assert {key: round(ours[key], 2) for key in theirs} == pytest.approx(theirs, abs=0.011)


def test_label_that_is_no_class_is_named():
    samples = list(label_samples(3, 11, 11))
    metric = build(f'{ROOM}.iou_metric.IoUMetric', tuple('abcdefghijk'))
    with pytest.raises(ValueError, match='0.png holds the id 11.*set ignore_index'):
        metric.process({}, samples)


# where the tools put them


def test_configs_get_our_metrics():
    cfg = prepare_config(Config.fromfile(REPO / 'configs' / 'faster_rcnn_r2n14_voc.py'))
    for key in ('val_evaluator', 'test_evaluator'):
        assert cfg[key].type == f'{ROOM}.coco_metric.CocoMetric'
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=[dict(type='A'), dict(type='B', ignore_index=11)]),
            val_evaluator=[dict(type='IoUMetric'), dict(type='mmdet.VOCMetric', eval_mode='area')],
            test_evaluator=dict(type='mmseg.IoUMetric', ignore_index=7),
        )
    )
    ready = prepare_config(cfg)
    assert ready.val_evaluator[0] == dict(type=f'{ROOM}.iou_metric.IoUMetric', ignore_index=11)
    assert ready.val_evaluator[1].type == f'{ROOM}.voc_metric.VOCMetric'
    assert ready.test_evaluator.ignore_index == 7
    assert cfg.val_evaluator[0] == dict(type='IoUMetric'), 'the config is not touched'
    METRICS.build(ready.test_evaluator)


def test_metrics_on_the_originals():
    """All of the above with the original mmdet and mmseg."""
    if not ORIGINALS.is_dir():
        pytest.skip(f'the original packages are not in {ORIGINALS}: make test lays them there')
    code = (
        'import sys, res2net_mm, mmdet, mmseg, pytest\n'
        f'assert mmdet.__file__.startswith({str(ORIGINALS)!r})\n'
        f'assert mmseg.__file__.startswith({str(ORIGINALS)!r})\n'
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not originals', "
        f'{__file__!r}]))'
    )
    path = os.pathsep.join([str(ORIGINALS), str(REPO), str(REPO / 'tests' / 'evaluation')])
    run = subprocess.run(
        [sys.executable, '-c', code],
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout and 'failed' not in run.stdout
