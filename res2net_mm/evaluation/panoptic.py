"""What mmdet takes from panopticapi, which is no published package: colours, and panoptic quality.

Importing this module (a config's ``custom_imports``) puts it in the place of panopticapi where that
is not installed, so that mmdet's own panoptic data sets and metric run unchanged.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np

OFFSET = 256**3
VOID = 0


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Segment ids (H, W) of a panoptic picture (H, W, 3): R + 256 G + 256^2 B."""
    red, green, blue = np.moveaxis(np.asarray(color).astype(np.uint32), -1, 0)
    return (red + 256 * green + 256**2 * blue).astype(np.int64)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) of segment ids (H, W) below 256^3."""
    ids = np.asarray(ids).astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2 % 256], -1).astype(np.uint8)


@dataclass
class Counts:
    """Of one class: pairs that match (IoU above 0.5), their IoUs' sum, and what has no match."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        for name in ('iou', 'tp', 'fp', 'fn'):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


class PQStat:
    """Counts by category id, and panoptic quality of them (arXiv 1801.00868, section 4)."""

    def __init__(self) -> None:
        self.by_category: defaultdict[int, Counts] = defaultdict(Counts)

    def __getitem__(self, category: int) -> Counts:
        return self.by_category[category]

    def __iter__(self) -> Iterator[tuple[int, Counts]]:
        return iter(self.by_category.items())

    def __iadd__(self, other: PQStat) -> PQStat:
        for category, counts in other:
            self.by_category[category] += counts
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Panoptic, segmentation and recognition quality.

        Args:
            categories: Category id -> its entry in the annotation file, with ``isthing``.
            isthing: Things alone, stuff alone, or (None) both.

        Returns:
            Means over the classes that are in the ground truth or the predictions, NaN where there
            is none, and their number ``n``; and the figures of each class, zero for the others.
        """
        of_class = {
            category: _quality(self[category])
            for category, entry in categories.items()
            if isthing is None or bool(entry['isthing']) == isthing
        }
        there = [figures for figures in of_class.values() if figures]
        nothing = dict(pq=0.0, sq=0.0, rq=0.0)
        means = {
            name: float(np.mean([figures[name] for figures in there])) if there else float('nan')
            for name in nothing
        }
        by_class = {category: figures or nothing for category, figures in of_class.items()}
        return {**means, 'n': len(there)}, by_class


def _quality(counts: Counts) -> dict[str, float]:
    total = counts.tp + counts.fp / 2 + counts.fn / 2
    if not total:
        return {}
    segmentation = counts.iou / counts.tp if counts.tp else 0.0
    return dict(pq=counts.iou / total, sq=segmentation, rq=counts.tp / total)


def _stand_in() -> None:
    if 'panopticapi' in sys.modules or importlib.util.find_spec('panopticapi'):
        return
    here = sys.modules[__name__]
    parts = {
        'utils': dict(rgb2id=rgb2id, id2rgb=id2rgb),
        'evaluation': dict(OFFSET=OFFSET, VOID=VOID, PQStat=PQStat),
    }
    package = _module('panopticapi', __doc__=here.__doc__, __path__=[])
    for name, content in parts.items():
        setattr(package, name, _module(f'panopticapi.{name}', **content))
    # modules of mmdet that were imported before, and hold None
    found = {'panopticapi': package, **parts['utils'], **parts['evaluation']}
    for name in ('functional.panoptic_utils', 'metrics.coco_panoptic_metric'):
        module = sys.modules.get(f'mmdet.evaluation.{name}')
        for key in vars(module) if module else ():
            if key in found:
                setattr(module, key, found[key])


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package='__path__' in content)
    vars(module).update(content)
    sys.modules[name] = module
    return module


_stand_in()
