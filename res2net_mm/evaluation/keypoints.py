"""COCO's keypoint AP with mmpose, and what mmpose imports as xtcocotools.

Its wheels are built for numpy 1. If it is missing or does not load, importing this module (a
config's ``custom_imports``) puts faster-coco-eval in its place. ``import res2net_mm`` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import Any

import faster_coco_eval
from faster_coco_eval.core.cocoeval import Params

from ..data.errors import DataError
from .images_run import ImagesRun, warn


class _Params(Params):
    useSegm = None  # mmpose assigns it, which would make Params score boxes


class COCOeval(faster_coco_eval.COCOeval_faster):
    """faster-coco-eval's evaluation with the arguments of xtcocotools."""

    def __init__(
        self, truth: Any, found: Any, kind: str, sigmas: Any = None, use_area: bool = True
    ) -> None:
        super().__init__(truth, found, kind, kpt_oks_sigmas=sigmas, use_area=use_area)
        self.params.__class__ = _Params


try:
    import_module('xtcocotools.cocoeval')
except Exception:  # a build for another numpy raises various errors
    sys.modules |= {
        'xtcocotools': faster_coco_eval,
        'xtcocotools.coco': faster_coco_eval.coco,
        'xtcocotools.cocoeval': sys.modules[__name__],
        'xtcocotools.mask': faster_coco_eval.mask,
    }
try:
    from mmpose.evaluation import CocoMetric
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'poses need mmpose 1.3.2 ({error}): see docs/pose.md') from None


class KeypointMetric(ImagesRun, CocoMetric):
    """mmpose's ``CocoMetric``: AP by object keypoint similarity, each person once.

    As in COCO, persons without a labelled keypoint cannot be missed; those in images not run are.
    """

    def key_of(self, sample: Mapping[str, Any], result: Any) -> Hashable:
        """A top-down model has one sample per person."""
        return f'{sample["img_id"]}, {sample["id"]}'

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``AP``, ``AP .5``, ... ``AR (L)``."""
        kept = self.each_once(results)
        run = {predicted['img_id'] for predicted, _ in kept}
        persons = self.coco.anns.values() if self.coco else ()
        for person in persons:  # without the number, each would be ignored
            if self.use_area and 'area' not in person:
                what = f'annotation {person["id"]} has no area, on which the similarity depends'
                raise DataError(what, 'the ann_file of KeypointMetric', 'write it into the file')
            seen = sum(flag > 0 for flag in person.get('keypoints', ())[2::3])
            person.setdefault('num_keypoints', seen)
        people = [person for person in persons if person['num_keypoints']]
        if missed := sum(person['image_id'] not in run for person in people):
            warn(f'{missed:,} of {len(people):,} persons are in images not run: counted as missed')
        return super().compute_metrics(kept)
