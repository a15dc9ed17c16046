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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.evaluation import bbox_overlaps
from mmengine.logging import MMLogger

from ..files import write_text
from .coco import KINDS, MAX_DETS, SIZES, Scores, check_max_dets, evaluate
from .images_run import ImagesRun, check_finite, warn
from .recall import box_recalls
from .tables import format_metrics

MMDET_LIMITS = (100, 300, 1000)  # mmdet's default of proposal_nums


class CocoMetric(ImagesRun, MMDetCocoMetric):
    """mmdet's ``CocoMetric``: the same figures, not rounded, and faster.

    What differs: the figures are of the images that were run, each once, whatever else the
    annotation file has; the default of ``proposal_nums`` for boxes and masks is COCO's
    (1, 10, 100), unless ``metric_items`` names a figure of mmdet's (100, 300, 1000), and ``mAP`` is
    at the largest of them where 100 is not among them; AR is always among the figures; a class's AP
    is its own also where the annotation file does not list categories by id; and no detection at
    all is AP 0, not an empty result.

    Args:
        ann_file: mmdet's, as are ``metric``, ``classwise`` and the keyword arguments.
        proposal_nums: COCO's ``maxDets``: how many detections of an image and class count.
        table: Log a table of the figures.

    Raises:
        ValueError: ``metric_items`` names a figure that there is not.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = 'bbox',
        classwise: bool = False,
        proposal_nums: Sequence[int] | None = None,
        *,
        table: bool = True,
        **kwargs: Any,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its index
            super().__init__(ann_file, metric, classwise, **kwargs)
        self.table = table
        self.explicit_limits = proposal_nums is not None
        items, theirs = self.metric_items or (), _items(MMDET_LIMITS)
        if proposal_nums is None:
            coco = set(items) <= _items(MAX_DETS) or not set(items) <= theirs
            proposal_nums = MAX_DETS if coco else MMDET_LIMITS
        self.proposal_nums = check_max_dets(proposal_nums)
        known = _items(self.proposal_nums) if set(self.metrics) & set(KINDS) else theirs
        for item in items:
            if item in known:
                continue
            if item not in theirs:
                raise ValueError(
                    f'metric_items must be of {", ".join(sorted(known))}, but has {item!r} '
                    f'(proposal_nums is {self.proposal_nums})'
                )
            warn(f'metric_items has {item!r}, which proposal_nums={self.proposal_nums} leaves out')

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps what is predicted for each sample.

        Raises:
            ValueError: A box or score is not finite.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            check_finite(
                sample,
                **{key: found[key] for key in ('bboxes', 'scores', 'mask_scores') if key in found},
            )
            super().process(data_batch, [sample])
            self.name_last(sample, sample['img_id'])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``bbox_mAP``, ``bbox_AR@100``, ...; of each class too if asked for.

        Raises:
            ValueError: Masks are asked for and none predicted, or an image has no annotations.
        """
        truths, predicted = zip(*self.each_once(results), strict=True)
        self._prepare(truths)
        self.img_ids = [result['img_id'] for result in predicted]
        found_by_kind = self._results(predicted)
        if self.outfile_prefix is not None:
            self._write(found_by_kind)
        if self.format_only:
            return {}
        if 'segm' in self.metrics and 'segm' not in found_by_kind:
            raise ValueError("metric 'segm' needs masks, and the model predicts none")
        found: dict[str, float] = {}
        for kind in self.metrics:
            if kind == 'proposal_fast':
                found |= self._recalls(predicted)
            elif kind == 'proposal':
                found |= self._score_proposals(found_by_kind['bbox'])
            else:
                found |= self._score(kind, found_by_kind[kind])
        return found

    def _prepare(self, truths: Sequence[dict]) -> None:
        if self._coco_api is None:
            with tempfile.TemporaryDirectory() as folder:
                prefix = self.outfile_prefix or os.path.join(folder, 'results')
                with contextlib.redirect_stdout(io.StringIO()):
                    self._coco_api = _api(self.gt_to_coco_json(truths, prefix))
        if not self.format_only:
            self.compare_with_file([t['img_id'] for t in truths], self._coco_api.imgs)
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])

    def _results(self, predicted: Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
        """Detections in COCO's result format, by kind; masks have the boxes beside them."""
        found: dict[str, list[dict[str, Any]]] = dict(bbox=[])
        if 'masks' in predicted[0]:
            found['segm'] = []
        for result in predicted:
            for i, (box, label) in enumerate(zip(result['bboxes'], result['labels'], strict=True)):
                common = dict(image_id=result['img_id'], bbox=self.xyxy2xywh(box))
                common['category_id'] = self.cat_ids[label]
                found['bbox'].append({**common, 'score': float(result['scores'][i])})
                if 'segm' in found:
                    mask = dict(result['masks'][i])
                    if isinstance(mask['counts'], bytes):
                        mask['counts'] = mask['counts'].decode()
                    score = float(result.get('mask_scores', result['scores'])[i])
                    found['segm'].append({**common, 'score': score, 'segmentation': mask})
        return found

    def _write(self, found: dict[str, list[dict[str, Any]]]) -> None:
        """Writes the results; where that fails, the figures are still to come."""
        for kind, results in found.items():
            file = Path(f'{self.outfile_prefix}.{kind}.json')
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(results, default=lambda value: value.item()))
            except OSError as error:
                if self.format_only:
                    raise
                warn(f'the results are not written: {error}')

    def _evaluate(self, kind: str, results: list[dict], **options: Any) -> Scores:
        return evaluate(
            self._coco_api.dataset,
            results,
            kind,
            iou_thrs=self.iou_thrs,
            categories=self.cat_ids,
            images=self.img_ids,
            **options,
        )

    def _recalls(self, predicted: Sequence[dict]) -> dict[str, float]:
        limits = self.proposal_nums if self.explicit_limits else MMDET_LIMITS
        images = ((self._objects(p['img_id']), p['bboxes']) for p in predicted)
        recalls = box_recalls(images, limits, np.atleast_1d(self.iou_thrs), bbox_overlaps)
        return {f'AR@{n}': float(ar) for n, ar in zip(limits, recalls.mean(1), strict=True)}

    def _objects(self, image: Any) -> np.ndarray:
        entries = self._coco_api.imgToAnns[image]
        counted = [a['bbox'] for a in entries if not (a.get('iscrowd') or a.get('ignore'))]
        boxes = np.array(counted, dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _score_proposals(self, results: list[dict]) -> dict[str, float]:
        """Recall of boxes of any class, under mmdet's names: ``AR@300``, ``AR_s@1000``, ..."""
        limits = self.proposal_nums if self.explicit_limits else MMDET_LIMITS
        scores = self._evaluate('bbox', results, max_dets=limits, agnostic=True)
        found = {key.removeprefix('bbox_'): value for key, value in scores.metrics().items()}
        wanted = self.metric_items or [key for key in found if key.startswith('AR')]
        return {key: found[key] for key in wanted if key in found}

    def _score(self, kind: str, results: list[dict]) -> dict[str, float]:
        scores = self._evaluate(kind, results, max_dets=self.proposal_nums)
        logger = MMLogger.get_current_instance()
        if not results:
            warn(f'{kind}: no detection on any image')
        most = Counter((r['image_id'], r['category_id']) for r in results).values()
        if not self.explicit_limits and max(most, default=0) > self.proposal_nums[-1]:
            warn(
                f'{kind}: an image has {max(most)} detections of a class, and the best '
                f"{self.proposal_nums[-1]} count, as in COCO; for mmdet's figures set "
                f'proposal_nums={MMDET_LIMITS}'
            )
        found, by_class = scores.metrics(), scores.by_class()
        if self.table:
            logger.info('\n' + format_metrics({**found, **by_class}, self.dataset_meta['classes']))
        if self.metric_items is not None:
            names = [f'{kind}_{item}' for item in self.metric_items]
            found = {name: found[name] for name in names if name in found}
        if len(self.metrics) > 1:  # mmdet has one name for both, the last one winning
            by_class = {f'{kind}_{name}': ap for name, ap in by_class.items()}
        return {**found, **by_class} if self.classwise else found


def _items(limits: Sequence[int]) -> set[str]:
    """Names that ``metric_items`` may have."""
    sizes = [size[0] for size in SIZES]
    known = {'mAP', 'mAP_50', 'mAP_75', *(f'AR@{n}' for n in limits)}
    return known | {f'mAP_{s}' for s in sizes} | {f'AR_{s}@{limits[-1]}' for s in sizes}


def _api(path: str) -> Any:
    from mmdet.datasets.api_wrappers import COCO

    content = json.loads(Path(path).read_text())
    content.setdefault('annotations', [])  # mmdet leaves the key out where there is no object
    api = COCO()
    api.dataset = content
    api.createIndex()
    return api
