"""Stands in for panopticapi, which is not on PyPI: colours and panoptic quality.

Importing this module (a config's ``custom_imports``) makes it importable as panopticapi if that is
not installed, so that mmdet's own panoptic data sets and metric run unchanged.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class PQStat:
    """Counts by category id, and their panoptic quality (arXiv 1801.00868, section 4)."""

    def __init__(self) -> None:
        self.by_category: defaultdict[int, Counts] = defaultdict(Counts)

    def __getitem__(self, category: int) -> Counts:
        return self.by_category[category]

    def __iadd__(self, other: PQStat) -> PQStat:
        for category, counts in other.by_category.items():
            for name, value in vars(counts).items():
                setattr(self[category], name, getattr(self[category], name) + value)
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Panoptic, segmentation and recognition quality.

        Args:
            categories: Category id -> its entry in the annotation file, with ``isthing``.
            isthing: Only things, only stuff, or (None) both.

        Returns:
            Means over the classes that are in the ground truth or the predictions, NaN if there is
            none, and their number ``n``; and the figures of each class, zero for the others.
        """
        nothing, there, by_class = dict(pq=0.0, sq=0.0, rq=0.0), [], {}
        for category, entry in categories.items():
            if isthing is not None and bool(entry['isthing']) != isthing:
                continue
            counts = self[category]
            total = counts.tp + counts.fp / 2 + counts.fn / 2
            by_class[category] = nothing
            if total:
                segmentation = counts.iou / counts.tp if counts.tp else 0.0
                by_class[category] = dict(
                    pq=counts.iou / total, sq=segmentation, rq=counts.tp / total
                )
                there.append(by_class[category])
        means = {
            name: float(np.mean([figures[name] for figures in there])) if there else float('nan')
            for name in nothing
        }
        return {**means, 'n': len(there)}, by_class


def _stand_in() -> None:
    if 'panopticapi' in sys.modules or importlib.util.find_spec('panopticapi'):
        return
    utils = dict(rgb2id=rgb2id, id2rgb=id2rgb)
    evaluation = dict(OFFSET=OFFSET, VOID=VOID, PQStat=PQStat)
    package = _module('panopticapi', __doc__=__doc__, __path__=[])
    package.utils = _module('panopticapi.utils', **utils)
    package.evaluation = _module('panopticapi.evaluation', **evaluation)
    # modules of mmdet imported earlier have None instead
    found = {'panopticapi': package, **utils, **evaluation}
    for name in ('functional.panoptic_utils', 'metrics.coco_panoptic_metric'):
        module = sys.modules.get(f'mmdet.evaluation.{name}')
        if module:
            vars(module).update({k: v for k, v in found.items() if hasattr(module, k)})


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package='__path__' in content)
    vars(module).update(content)
    sys.modules[name] = module
    return module


_stand_in()
