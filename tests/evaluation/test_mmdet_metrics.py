"""mmdet's other metrics, of the images that were run, against numbers by hand and pycocotools."""

import json

import cv2
import numpy as np
import pytest
import torch
from metric_samples import CLASSES, coco_samples, pycocotools_figures
from mmengine.registry import METRICS
from random_sets import random_set

import res2net_mm  # noqa: F401  (before mmdet)
from res2net_mm.evaluation import mmdet_metrics
from res2net_mm.evaluation.panoptic import id2rgb
from res2net_mm.evaluation.tables import use_our_metrics

META = dict(classes=('cat', 'sky'), thing_classes=('cat',), stuff_classes=('sky',))


@pytest.fixture
def panoptic_set(tmp_path):
    """Three images of 10 x 10: a cat in rows 0 to 5 and sky in 6 and 7."""
    (tmp_path / 'masks').mkdir()
    ids = np.zeros((10, 10), int)
    ids[:6], ids[6:8] = 300, 70_000
    entries = []
    for i in (1, 2, 3):
        cv2.imwrite(str(tmp_path / 'masks' / f'{i}.png'), id2rgb(ids)[..., ::-1])
        segments = [
            dict(id=300, category_id=8, iscrowd=0, area=60, bbox=[0, 0, 10, 6]),
            dict(id=70_000, category_id=9, iscrowd=0, area=20, bbox=[0, 6, 10, 2]),
        ]
        entries.append(dict(image_id=i, file_name=f'{i}.png', segments_info=segments))
    truth = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=10, height=10) for i in (1, 2, 3)],
        annotations=entries,
        categories=[dict(id=8, name='cat', isthing=1), dict(id=9, name='sky', isthing=0)],
    )
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    return tmp_path


def sample_of(image, rows, path=None):
    """A cat predicted in these rows, and nothing else."""
    predicted = torch.full((1, 10, 10), len(META['classes']))
    predicted[:, rows] = 0 + 1000  # class 0, first instance
    return dict(
        img_id=image,
        img_path=path or f'{image}.jpg',
        ori_shape=(10, 10),
        pred_panoptic_seg=dict(sem_seg=predicted),
    )


@pytest.mark.parametrize('kept', [False, True])
def test_panoptic_quality_is_of_the_images_that_were_run(panoptic_set, kept):
    """Two of three images, one twice: IoU 50/70 and 1 for the cat, no sky."""
    config = dict(
        type='mmdet.CocoPanopticMetric',
        ann_file=str(panoptic_set / 'truth.json'),
        seg_prefix=str(panoptic_set / 'masks'),
        nproc=1,
    )
    if kept:
        config['outfile_prefix'] = str(panoptic_set / 'kept')
    metric = METRICS.build(use_our_metrics(config))
    metric.dataset_meta = META
    paths = ('a/1.jpg', 'b/1.jpg') if kept else (None, None)  # pictures of one name
    first, second = sample_of(1, slice(1, 7), paths[0]), sample_of(2, slice(0, 6), paths[1])
    for sample in (first, second, first):
        sample['pred_panoptic_seg'] = {'sem_seg': sample['pred_panoptic_seg']['sem_seg'].clone()}
        metric.process({}, [sample])
    found = metric.evaluate(3)
    pq = (50 / 70 + 1) / 2 * 100
    assert found['coco_panoptic/PQ_th'] == pytest.approx(pq)
    assert found['coco_panoptic/PQ_st'] == 0
    assert found['coco_panoptic/PQ'] == pytest.approx(pq / 2)
    metric.process({}, [sample_of(2, slice(0, 6))])
    known = metric._coco_api.imgs
    del known[2]
    with pytest.raises(ValueError, match='lacks 1 of the 1 images .* id 2'):
        metric.evaluate(1)


def test_other_metrics_score_the_images_that_were_run(tmp_path):
    """LVIS's package is not here, so mmdet's CocoMetric stands for the metrics made like it."""
    annotations, results = random_set(0)
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(annotations))
    samples = {s['img_id']: s for s in coco_samples(annotations, results, CLASSES)}
    metric = METRICS.build(
        dict(
            type='res2net_mm.evaluation.mmdet_metrics.CocoMetric',
            ann_file=str(file),
            proposal_nums=(1, 10, 100),
        )
    )
    metric.dataset_meta = dict(classes=CLASSES)
    for key in (2, 31, 2):
        metric.process({}, [samples[key]])
    stats, _ = pycocotools_figures(annotations, results['bbox'], 'bbox', [2, 31])
    assert metric.evaluate(3)['coco/bbox_mAP'] == pytest.approx(stats[0], abs=6e-4)  # rounded
    with pytest.raises(AttributeError):
        mmdet_metrics.bbox_overlaps  # noqa: B018
