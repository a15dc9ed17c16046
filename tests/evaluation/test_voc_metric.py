"""VOCMetric against the development kit's rules and mmdet's own."""

import cv2
import numpy as np
import pytest
import torch
from metric_samples import ROOM, build, measured
from mmengine.registry import DATASETS, METRICS, init_default_scope
from voc_reference import devkit_ap, voc_set

import res2net_mm  # noqa: F401  (before mmdet)


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
    metric = build(f'{ROOM}.voc_metric.VOCMetric', names, **arguments)
    ours, kept = measured(metric, samples), metric.examined
    counts = [len(kept[key]) for key in ('images', 'annotations', 'results')]
    assert counts == [
        len(samples),
        sum(len(boxes) for images in sets for _, boxes, _ in images),
        sum(len(found) for images in sets for found, *_ in images),
    ]
    crowds = sum(a['iscrowd'] for a in kept['annotations'])
    assert crowds == sum(flags.sum() for images in sets for *_, flags in images)
    x, y, width, height = kept['results'][0]['bbox']
    first = next(found for found, *_ in sets[0] if len(found))[0]
    assert [x, y, x + width, y + height, kept['results'][0]['score']] == pytest.approx(first)
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
    with pytest.raises(ValueError, match="eval_mode must be one of '11points', 'area'"):
        build(f'{ROOM}.voc_metric.VOCMetric', ('cat',), eval_mode='12points')
    for more in (dict(metric='recall'), dict(scale_ranges=[(0, 32)])):
        with pytest.raises(ValueError, match='not supported: use CocoMetric'):
            build(f'{ROOM}.voc_metric.VOCMetric', ('cat',), eval_mode='area', **more)
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
