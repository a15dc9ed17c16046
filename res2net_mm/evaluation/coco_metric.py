"""mmdet's CocoMetric by faster-coco-eval.

Not imported by the package: a config's ``type`` names the class by its full path, and mmdet is
imported only then.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.logging import MMLogger

from .coco import KINDS, MAX_DETS, SIZES, check_max_dets, evaluate
from .tables import format_metrics


class CocoMetric(MMDetCocoMetric):
    """mmdet's ``CocoMetric`` for boxes and masks: the same figures, not rounded, and faster.

    What differs: the default of ``proposal_nums`` is COCO's (1, 10, 100), and ``mAP`` is at the
    largest of them where 100 is not among them; AR is always among the figures; a class's AP is its
    own also where the annotation file does not list categories by id; and no detection at all is AP
    0, not an empty result.

    Args:
        args: mmdet's, as are the keyword arguments.
        proposal_nums: COCO's ``maxDets``: how many detections of an image and class count.
        table: Log a table of the figures.

    Raises:
        ValueError: ``metric`` is other than ``'bbox'`` and ``'segm'``, or ``metric_items`` names a
            figure that there is not.
    """

    def __init__(
        self,
        *args: Any,
        proposal_nums: Sequence[int] = MAX_DETS,
        table: bool = True,
        **kwargs: Any,
    ) -> None:
        limits = check_max_dets(proposal_nums)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its index
            super().__init__(*args, proposal_nums=limits, **kwargs)
        self.table = table
        for kind in self.metrics:
            if kind not in KINDS:
                raise ValueError(
                    f'metric must be bbox or segm, but is {kind!r}: take mmdet.CocoMetric for it'
                )
        if self.metric_items is not None:
            known = {'mAP', 'mAP_50', 'mAP_75', *(f'AR@{n}' for n in limits)}
            known |= {f'mAP_{size[0]}' for size in SIZES}
            known |= {f'AR_{size[0]}@{limits[-1]}' for size in SIZES}
            unknown = [item for item in self.metric_items if item not in known]
            if unknown:
                raise ValueError(
                    f'metric_items must be of {", ".join(sorted(known))}, but has {unknown[0]!r} '
                    f'(proposal_nums is {limits})'
                )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``bbox_mAP``, ``bbox_AR@100``, ...; of each class too if asked for."""
        truths, predicted = zip(*results, strict=True)
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or os.path.join(folder, 'results')
            self._prepare(truths, prefix)
            files = self.results2json(predicted, prefix)
            if self.format_only:
                return {}
            missing = [kind for kind in self.metrics if kind not in files]
            if missing:
                raise ValueError(f'metric {missing[0]!r} needs masks, and the model predicts none')
            found: dict[str, float] = {}
            for kind in self.metrics:
                found |= self._score(kind, json.loads(Path(files[kind]).read_text()))
        return found

    def _prepare(self, truths: Sequence[dict], prefix: str) -> None:
        if self._coco_api is None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = _api(self.gt_to_coco_json(truths, prefix))
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        self.img_ids = self._coco_api.get_img_ids()

    def _score(self, kind: str, results: list[dict]) -> dict[str, float]:
        scores = evaluate(
            self._coco_api.dataset,
            results,
            kind,
            max_dets=self.proposal_nums,
            iou_thrs=self.iou_thrs,
            categories=self.cat_ids,
        )
        logger = MMLogger.get_current_instance()
        if not results:
            logger.warning(f'{kind}: no detection on any image')
        found, by_class = scores.metrics(), scores.by_class()
        if self.table:
            logger.info('\n' + format_metrics({**found, **by_class}, self.dataset_meta['classes']))
        if self.metric_items is not None:
            found = {f'{kind}_{item}': found[f'{kind}_{item}'] for item in self.metric_items}
        if len(self.metrics) > 1:  # mmdet has one name for both, the last one winning
            by_class = {f'{kind}_{name}': ap for name, ap in by_class.items()}
        return {**found, **by_class} if self.classwise else found


def _api(path: str) -> Any:
    from mmdet.datasets.api_wrappers import COCO

    content = json.loads(Path(path).read_text())
    content.setdefault('annotations', [])  # mmdet leaves the key out where there is no object
    api = COCO()
    api.dataset = content
    api.createIndex()
    return api
