"""Metrics, the samples that mmdet gives them, and the figures of pycocotools."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.registry import METRICS
from random_sets import SIDE
from reference_coco import pycocotools_eval

import res2net_mm  # noqa: F401  (before mmdet)

ROOM = 'res2net_mm.evaluation'
CLASSES = ('kite', 'a cat', 'dog', 'person')  # as the file lists them


def build(kind, classes, **kwargs):
    metric = METRICS.build(dict(type=kind, **kwargs))
    metric.dataset_meta = dict(classes=classes)
    return metric


def measured(metric, samples):
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples))


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


def pycocotools_figures(annotations, results, kind, images, limits=(1, 10, 100), use_cats=1):
    """``stats``, and AP by category id, of these images only."""
    images = list(images)
    run = pycocotools_eval(annotations, results, kind, limits, images=images, use_cats=use_cats)
    precision = run.eval['precision'][..., 0, -1]
    by_class = [part[part > -1] for part in np.moveaxis(precision, 2, 0)]
    aps = [part.mean() if part.size else np.nan for part in by_class]
    return run.stats, dict(zip(run.params.catIds, aps, strict=True))
