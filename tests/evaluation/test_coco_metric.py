"""CocoMetric against mmdet's own and pycocotools."""

import copy
import json

import numpy as np
import pytest
import torch
from metric_samples import CLASSES, ROOM, build, coco_samples, measured, pycocotools_figures
from mmengine.logging import MMLogger
from pycocotools import mask as coco_mask
from random_sets import SIDE, random_set

import res2net_mm  # noqa: F401  (before mmdet)
from res2net_mm.evaluation.coco import evaluate, shape_of


@pytest.fixture(scope='module')
def coco_file(tmp_path_factory):
    file = tmp_path_factory.mktemp('coco') / 'truth.json'
    file.write_text(json.dumps(random_set(0)[0]))
    return str(file)


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
    metric = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **quiet)
    figures, kept = measured(metric, samples), metric.examined
    boxes = evaluate(kept, kept['results'], 'bbox').metrics()  # what a report is made of
    assert kind == 'segm' or figures['coco/bbox_mAP'] == boxes['bbox_mAP']
    assert boxes == evaluate(annotations, results['bbox'], 'bbox').metrics()
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


def test_coco_metric_without_detections_or_annotation_file(coco_file, tmp_path):
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
    out = tmp_path / 'r.json'
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, out=str(out)), samples)
    for a in annotations['annotations']:
        del a['area']  # that of the boxes counts
    expected = evaluate(annotations, results['bbox'], 'bbox').metrics()
    assert {key.removeprefix('coco/'): value for key, value in found.items()} == pytest.approx(
        expected, abs=1e-4
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ['r.json', 'r.segm.json']
    image = dict(height=SIDE, width=SIDE)
    for sample in samples:  # with masks, their areas count for boxes too, as in COCO's files
        of_image = [a for a in annotations['annotations'] if a['image_id'] == sample['img_id']]
        for instance, a in zip(sample['instances'], of_image, strict=True):
            instance['mask'] = shape_of(a, 'segm', image)
            a['area'] = float(coco_mask.area(instance['mask']))
    sample = next(s for s in samples if s['instances'])
    instance, kept = sample['instances'][0], dict(sample['instances'][0]['mask'])
    instance['mask'] = [[4, 4, 24, 4, 24, 24]]  # polygons, as mmdet reads them
    measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, metric='bbox'), samples)
    instance['mask'] = kept
    for kind in ('bbox', 'segm'):
        expected = evaluate(annotations, results[kind], kind).metrics()
        for sample in samples:
            for instance in sample['instances']:
                if isinstance(instance['mask']['counts'], str):  # after a call of mmdet's
                    instance['mask']['counts'] = instance['mask']['counts'].encode()
        found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, metric=kind), samples)
        assert {key.removeprefix('coco/'): value for key, value in found.items()} == pytest.approx(
            expected, abs=1e-4
        )


def test_coco_metric_refuses_what_it_cannot():
    for arguments, part in (
        (dict(proposal_nums=[0]), 'max_dets must be positive'),
        (dict(metric_items=['AR@200']), r"'AR@200' \(proposal_nums is \(1, 10, 100\)\)"),
        (dict(metric_items=['mAP', 'AR@1000'], proposal_nums=(100, 1)), "'AR@1000'"),
    ):
        with pytest.raises(ValueError, match=part):
            build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments)


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
    assert '6 images: the figures are for the 3 run' in said  # of the annotation file
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
        (dict(metric_items=['AR@1000'], metric='proposal'), {'AR@1000'}),
        (dict(iou_thrs=[0.5], metric_items=['mAP_50']), {'bbox_mAP_50'}),
        (dict(sort_categories=True, use_mp_eval=True, metric_items=['mAP']), {'bbox_mAP'}),
    ],
)
def test_what_mmdet_takes_is_taken(coco_file, arguments, names):
    samples = list(coco_samples(*random_set(0), CLASSES))
    metric = build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, ann_file=coco_file, **arguments)
    assert set(measured(metric, samples)) == {f'coco/{name}' for name in names}


def test_boxes_and_masks_at_once(coco_file, tmp_path, monkeypatch):
    """The figures of each, and both results whole; when they cannot be, what was there stays."""
    annotations, results = random_set(0)
    samples = list(coco_samples(annotations, results, CLASSES))
    arguments = dict(ann_file=coco_file, classwise=True, table=False)
    alone = [
        measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, metric=k, **arguments), samples)
        for k in ('bbox', 'segm')
    ]
    out, kinds = tmp_path / 'new' / 'results.json', ['bbox', 'segm']
    arguments.update(metric=kinds, out=str(out), outfile_prefix=str(tmp_path / 'other'))
    found = measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments), samples)
    for kind, figures in zip(kinds, alone, strict=True):
        names = {f'coco/{name}_precision': f'coco/{kind}_{name}_precision' for name in CLASSES}
        expected = {names.get(key, key): value for key, value in figures.items()}
        same = {key: found[key] for key in expected}
        assert same == pytest.approx(expected, abs=1e-12, nan_ok=True) and len(same) == 16
    assert len(found) == 32
    before = {file: file.read_text() for file in tmp_path.rglob('*.json')}
    assert sorted(before) == [out, tmp_path / 'new' / 'results.segm.json']
    for kind, file in zip(kinds, sorted(before), strict=True):
        written = json.loads(before[file])
        assert evaluate(annotations, written, kind).ap() == found[f'coco/{kind}_mAP']

    only = dict(arguments, format_only=True, outfile_prefix=None)
    assert measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **only), samples) == {}

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.replace', stop)
    with pytest.raises(KeyboardInterrupt):
        measured(build(f'{ROOM}.coco_metric.CocoMetric', CLASSES, **arguments), samples[:3])
    left = [file for file in tmp_path.rglob('*') if file.is_file()]
    assert {file: file.read_text() for file in left} == before


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
