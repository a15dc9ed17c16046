"""Our metrics against references by hand and mmdet's and mmseg's own, on both stacks."""

import contextlib
import copy
import io
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
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
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
    quiet = dict(arguments, classwise=True, table=False, proposal_nums=(1, 10, 100))
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
        (dict(proposal_nums=[0]), 'max_dets must be positive'),
        (dict(metric_items=['AR@200']), r"'AR@200' \(proposal_nums is \(1, 10, 100\)\)"),
    ):
        with pytest.raises(ValueError, match=part):
            build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments)


def pycocotools_figures(annotations, results, kind, images, limits=(1, 10, 100), use_cats=1):
    """``stats``, and AP by category id, of these images only."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        run.params.imgIds, run.params.maxDets = list(images), list(limits)
        run.params.useCats = use_cats
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval['precision'][..., 0, -1]
    by_class = [part[part > -1] for part in np.moveaxis(precision, 2, 0)]
    aps = [part.mean() if part.size else np.nan for part in by_class]
    return run.stats, dict(zip(run.params.catIds, aps, strict=True))


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_coco_metric_scores_the_images_that_were_run(coco_file, kind, caplog):
    """The annotation file has 6 images: 3 were run, one of them twice, one without detections."""
    annotations, results = random_set(0)
    run = [2, 31, 5, 2]
    samples = {s['img_id']: s for s in coco_samples(annotations, results, CLASSES)}
    metric = build(
        f'{ROOM}.coco_metric.CocoMetric',
        CLASSES,
        ann_file=coco_file,
        metric=kind,
        classwise=True,
        table=False,
    )
    for key in run:
        metric.process({}, [copy.deepcopy(samples[key])])
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        ours = metric.evaluate(5)
    finally:
        logger.removeHandler(caplog.handler)
    stats, aps = pycocotools_figures(annotations, results[kind], kind, set(run))
    assert list(ours.values())[:12] == pytest.approx(stats.tolist(), abs=1e-4)
    for category in annotations['categories']:
        name = f'coco/{category["name"]}_precision'
        assert ours[name] == pytest.approx(aps[category['id']], abs=1e-4, nan_ok=True)
    everything, _ = pycocotools_figures(annotations, results[kind], kind, samples)
    assert abs(everything[0] - stats[0]) > 0.01
    said = ' '.join(record.getMessage() for record in caplog.records)
    assert '6 images, of which 3 were run' in said  # of the annotation file
    assert '3 of the 5 images' in said and '1 of 4 images were run before' in said


def test_coco_metric_of_images_that_it_cannot_score(coco_file):
    annotations, results = random_set(0)
    samples = list(coco_samples(annotations, results, CLASSES))
    for changes, part in (
        ([dict(img_id=77)], 'id 77'),
        ([dict(img_path='a/1.jpg'), dict(img_id=9, img_path='b/1.jpg')], 'a/1.jpg and b/1.jpg'),
    ):
        metric = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, ann_file=coco_file)
        for sample, change in zip(samples, changes, strict=False):
            metric.process({}, [{**sample, **change}])
        with pytest.raises(ValueError, match=part):
            metric.evaluate(2)
    for key in ('bboxes', 'scores'):
        broken = copy.deepcopy(samples[1])
        broken['pred_instances'][key][0] = float('nan')
        with pytest.raises(ValueError, match=f'{key} predicted for x.jpg are not finite'):
            metric.process({}, [dict(broken, img_path='x.jpg')])


@pytest.mark.parametrize('proposal_nums', [None, (1, 10, 100)])
def test_proposals(coco_file, proposal_nums):
    annotations, results = random_set(0)
    samples = {s['img_id']: s for s in coco_samples(annotations, results, CLASSES)}
    for run in ([9, 2, 31], list(samples)):
        given = {} if proposal_nums is None else dict(proposal_nums=proposal_nums)
        metric = build(
            f'{ROOM}.coco_metric.CocoMetric',
            CLASSES,
            ann_file=coco_file,
            metric=['proposal', 'bbox'],
            **given,
        )
        ours = measured(metric, [samples[key] for key in run])
        limits = proposal_nums or (100, 300, 1000)
        stats, _ = pycocotools_figures(annotations, results['bbox'], 'bbox', run, limits, 0)
        names = [f'AR@{n}' for n in limits] + [f'AR_{s}@{limits[-1]}' for s in 'sml']
        found = [ours[f'coco/{name}'] for name in names]
        assert found == pytest.approx(stats[6:].tolist(), abs=1e-4)
        stats, _ = pycocotools_figures(annotations, results['bbox'], 'bbox', run)
        assert ours['coco/bbox_mAP'] == pytest.approx(stats[0], abs=1e-4)


def test_fast_recall_pairs_each_image_with_its_own_objects(coco_file, tmp_path):
    """Two images, run in an order that is not the file's; a crowd counts as nothing."""
    truth = dict(
        images=[dict(id=i, width=100, height=100, file_name=f'{i}.jpg') for i in (1, 2, 3)],
        categories=[dict(id=1, name='cat')],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 10, 10], area=100, iscrowd=0),
            dict(id=2, image_id=2, category_id=1, bbox=[50, 50, 10, 10], area=100),
            dict(id=3, image_id=2, category_id=1, bbox=[0, 0, 20, 10], area=200, iscrowd=0),
            dict(id=4, image_id=2, category_id=1, bbox=[0, 0, 90, 90], area=8100, iscrowd=1),
            dict(id=5, image_id=3, category_id=1, bbox=[0, 0, 10, 10], area=100, iscrowd=0),
        ],
    )
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(truth))
    boxes = {2: [[50, 50, 60, 60], [0, 0, 20, 7]], 1: [[0, 0, 10, 10]]}  # IoU 1, 0.7 and 1
    samples = [
        dict(
            img_id=key,
            ori_shape=(100, 100),
            pred_instances=dict(
                bboxes=torch.tensor(found, dtype=torch.float32),
                scores=torch.linspace(0.9, 0.8, len(found)),
                labels=torch.zeros(len(found), dtype=torch.long),
            ),
        )
        for key, found in boxes.items()
    ]
    metric = build(
        f'{ROOM}.coco_metric.CocoMetric',
        ('cat',),
        ann_file=str(file),
        metric='proposal_fast',
        proposal_nums=(1, 2),
        iou_thrs=[0.5, 0.75],
    )
    ours = measured(metric, samples)
    assert ours == pytest.approx({'coco/AR@1': 2 / 3, 'coco/AR@2': (1 + 2 / 3) / 2})


@pytest.mark.parametrize(
    ('arguments', 'names'),
    [
        (dict(metric_items=['mAP', 'AR@300']), {'bbox_mAP', 'bbox_AR@300'}),
        (dict(metric_items=['mAP_s', 'AR_s@1000']), {'bbox_mAP_s', 'bbox_AR_s@1000'}),
        (dict(metric_items=['AR@100', 'mAP']), {'bbox_AR@100', 'bbox_mAP'}),
        (dict(metric_items=['mAP', 'AR@1000'], proposal_nums=(100, 1, 10)), {'bbox_mAP'}),
        (dict(metric_items=['AR@1000'], metric='proposal'), {'AR@1000'}),
        (dict(iou_thrs=[0.5], metric_items=['mAP_50']), {'bbox_mAP_50'}),
        (dict(sort_categories=True, use_mp_eval=True, metric_items=['mAP']), {'bbox_mAP'}),
    ],
)
def test_what_mmdet_takes_is_taken(coco_file, arguments, names):
    samples = list(coco_samples(*random_set(0), CLASSES))
    metric = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, ann_file=coco_file, **arguments)
    assert set(measured(metric, samples)) == {f'coco/{name}' for name in names}


def test_figures_are_there_though_results_cannot_be_written(coco_file, tmp_path):
    annotations, results = random_set(0)
    samples = list(coco_samples(annotations, results, CLASSES))
    (tmp_path / 'file').write_text('')
    arguments = dict(ann_file=coco_file, outfile_prefix=str(tmp_path / 'file' / 'out'))
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments), samples)
    assert found['coco/bbox_mAP'] > 0.1
    only = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments, format_only=True)
    with pytest.raises(OSError, match=str(tmp_path / 'file')):
        measured(only, samples)
    arguments['outfile_prefix'] = str(tmp_path / 'new' / 'out')
    only = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments, format_only=True)
    assert measured(only, samples) == {}
    written = json.loads((tmp_path / 'new' / 'out.bbox.json').read_text())
    assert len(written) == len(results['bbox'])


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


def test_voc_mode():
    """mmdet's default is taken and said; what is no mode is refused."""
    with pytest.raises(ValueError, match="eval_mode of VOCMetric must be .*'12points'"):
        build(f'{ROOM}.voc_metric.VOCMetric', ('cat',), eval_mode='12points')
    sets = voc_set(7)
    ours = measured(
        build(f'{ROOM}.voc_metric.VOCMetric', ('cat', 'dog', 'a bird')), list(voc_samples(sets))
    )
    aps = [devkit_ap(images, '11points', 0.5) for images in sets]
    assert ours['pascal_voc/mAP'] == pytest.approx(np.mean(aps), abs=1e-6)


def test_voc_image_counts_once():
    """The sampler of several processes repeats images; two crops of one file are two images."""
    names, sets = ('cat', 'dog', 'a bird'), voc_set(7)
    samples = list(voc_samples(sets))
    named = [dict(sample, img_path=f'{i // 2}.jpg') for i, sample in enumerate(samples)]
    alone, repeated = (
        measured(build(f'{ROOM}.voc_metric.VOCMetric', names, eval_mode='area'), part)
        for part in (samples, [*named, named[0], named[0]])
    )
    assert repeated == pytest.approx(alone, nan_ok=True)
    named[0]['pred_instances']['scores'][0] = float('inf')
    with pytest.raises(ValueError, match='scores predicted for 0.jpg are not finite'):
        build(f'{ROOM}.voc_metric.VOCMetric', names, eval_mode='area').process({}, named[:1])


def test_voc_recall():
    """3 objects, legacy pixels: IoU 1, 0.5 and none; the best scored box of two counts alone."""
    objects = np.array([[0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 59, 59]], np.float32)
    found = np.array([[20, 20, 29, 24, 0.5], [0, 0, 9, 9, 0.9]], np.float32)
    samples = list(voc_samples([[(found, objects, np.zeros(3, bool))]]))
    metric = build(
        f'{ROOM}.voc_metric.VOCMetric',
        ('cat',),
        eval_mode='area',
        metric='recall',
        proposal_nums=(1, 2),
        iou_thrs=[0.5, 0.75],
    )
    ours = {key.partition('/')[2]: value for key, value in measured(metric, samples).items()}
    assert ours == pytest.approx(
        {
            'recall@1@0.5': 1 / 3,
            'recall@1@0.75': 1 / 3,
            'recall@2@0.5': 2 / 3,
            'recall@2@0.75': 1 / 3,
            'AR@1': 1 / 3,
            'AR@2': 1 / 2,
        }
    )


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
    with pytest.raises(ValueError, match='0.png.* the id 11.*set ignore_index'):
        metric.process({}, samples)


def test_iou_metric_measures_each_image_once(tmp_path):
    names = tuple('abcdefghijk')
    samples = list(label_samples(3, 11, 255))
    alone, repeated = (
        measured(build(f'{ROOM}.iou_metric.IoUMetric', names), part)
        for part in (samples, [*samples, samples[0]])
    )
    assert repeated == pytest.approx(alone, nan_ok=True)
    # two crops of one image without objects, of which one is predicted wrongly
    right, wrong = (torch.full((1, 10, 30), label) for label in (0, 1))
    truth = dict(gt_sem_seg=dict(data=right), img_path='whole.jpg')
    crops = [dict(truth, pred_sem_seg=dict(data=found)) for found in (right, wrong)]
    assert measured(build(f'{ROOM}.iou_metric.IoUMetric', names), crops)['aAcc'] == 50
    metric = build(f'{ROOM}.iou_metric.IoUMetric', names, output_dir=str(tmp_path))
    paths = ('x/1.jpg', 'y/1.jpg', 'y/1.png', 'x/1.jpg')
    for path in paths:
        metric.process({}, [dict(samples[0], img_path=path)])
    metric.process({}, [dict(samples[1], img_path='x/2.jpg')])
    assert len(list(tmp_path.glob('*.png'))) == 4
    assert {'1.png', '2.png'} < {file.name for file in tmp_path.iterdir()}


def test_samples_that_iou_metric_cannot_measure():
    names = tuple('abcdefghijk')
    sample = next(label_samples(3, 11, 255))
    metric = build(f'{ROOM}.iou_metric.IoUMetric', names)
    without = {key: value for key, value in sample.items() if key != 'gt_sem_seg'}
    with pytest.raises(ValueError, match='0.jpg has no label map'):
        metric.process({}, [without])
    smaller = dict(sample, gt_sem_seg=dict(data=sample['gt_sem_seg']['data'][:, :10]))
    with pytest.raises(ValueError, match=r'0.png.* \(10, 30\) pixels'):
        metric.process({}, [smaller])
    logits = torch.zeros(11, 20, 30)
    logits[3, 4, 5] = float('nan')
    with pytest.raises(ValueError, match='logits predicted for 0.jpg are not finite'):
        metric.process({}, [dict(sample, seg_logits=dict(data=logits))])


@pytest.mark.parametrize(
    'arguments',
    [
        dict(iou_metrics=['mDice', 'mFscore'], beta=2),
        dict(iou_metrics='mFscore', nan_to_num=0),
        dict(iou_metrics=['mIoU', 'mDice'], prefix='seg'),
    ],
)
def test_iou_metric_takes_what_mmseg_takes(arguments):
    names, samples = tuple('abcdefghijk'), list(label_samples(3, 11, 255))
    theirs, ours = (
        measured(build(kind, names, **arguments), samples)
        for kind in ('mmseg.IoUMetric', f'{ROOM}.iou_metric.IoUMetric')
    )
    assert {key: round(ours[key], 2) for key in theirs} == pytest.approx(theirs, abs=0.011)


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
