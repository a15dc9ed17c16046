"""Stands in for panopticapi, which is not on PyPI: colours and panoptic quality.

Importing this module (a config's ``custom_imports``) makes it importable as panopticapi if that is
not installed, so that mmdet's own panoptic data sets and metric run unchanged.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

OFFSET = 256**3
VOID = 0


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) of a panoptic picture (H, W, 3): R + 256 G + 256^2 B."""
    return np.asarray(color).astype(np.int64) @ (1, 256, 256**2)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) of segment ids (H, W) below 256^3."""
    ids = np.asarray(ids).astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2 % 256], -1).astype(np.uint8)


@dataclass
class Counts:
    """One class: pairs that match (IoU above 0.5), the sum of their IoUs, and what has no match."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0


class PQStat(dict):
    """Counts by category id, and their panoptic quality (arXiv 1801.00868, section 4)."""

    def __missing__(self, category: int) -> Counts:
        return self.setdefault(category, Counts())

    def __iadd__(self, other: PQStat) -> PQStat:
        for category, counts in other.items():
            for name, value in vars(counts).items():
                setattr(self[category], name, getattr(self[category], name) + value)
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Panoptic, segmentation and recognition quality of things, of stuff, or (None) of both.

        Returns means over the classes that are in the ground truth or the predictions, NaN if there
        is none, with their number ``n``; and the figures of each class, zero for the others.
        """
        by_class = {}
        for category, entry in categories.items():
            if isthing in (None, bool(entry['isthing'])):
                c = self[category]
                total = c.tp + c.fp / 2 + c.fn / 2 or 1
                by_class[category] = dict(pq=c.iou / total, sq=c.iou / (c.tp or 1), rq=c.tp / total)
        there = [figures for key, figures in by_class.items() if self[key] != Counts()]
        means = {
            name: float(np.mean([figures[name] for figures in there])) if there else float('nan')
            for name in ('pq', 'sq', 'rq')
        }
        return {**means, 'n': len(there)}, by_class


def _stand_in() -> None:
    if 'panopticapi' in sys.modules or importlib.util.find_spec('panopticapi'):
        return
    this = sys.modules[__name__]
    names = ('panopticapi', 'panopticapi.utils', 'panopticapi.evaluation')
    sys.modules.update(dict.fromkeys(names, this))
    vars(this).update(utils=this, evaluation=this)
    # modules of mmdet imported earlier have None instead
    found = dict(panopticapi=this, rgb2id=rgb2id, id2rgb=id2rgb)
    found |= dict(OFFSET=OFFSET, VOID=VOID, PQStat=PQStat)
    for name in ('functional.panoptic_utils', 'metrics.coco_panoptic_metric'):
        module = sys.modules.get(f'mmdet.evaluation.{name}')
        if module:
            vars(module).update({k: v for k, v in found.items() if hasattr(module, k)})


_stand_in()
