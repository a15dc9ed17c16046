"""mmdet's CocoMetric by faster-coco-eval.

A config's ``type`` names the class by its full path; only then is this module, and mmdet, imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.evaluation import bbox_overlaps

from ..data.errors import DataError
from ..files import write_text
from .coco import KINDS, MAX_DETS, Scores, check_max_dets, evaluate, metric_names
from .images_run import ImagesRun, warn
from .voc import box_recalls

MMDET_LIMITS = (100, 300, 1000)  # mmdet's default of proposal_nums


class CocoMetric(ImagesRun, MMDetCocoMetric):
    """mmdet's ``CocoMetric``: the same figures, not rounded, and faster.

    What differs: the figures are for the images that were run, each once, whatever else the
    annotation file has; the default of ``proposal_nums`` for boxes and masks is COCO's
    (1, 10, 100), unless ``metric_items`` names a figure of mmdet's (100, 300, 1000), and ``mAP`` is
    at the largest of them if 100 is not among them; AR is always among the figures; a class has its
    own AP even if the annotation file does not list categories by id; and no detection at all gives
    AP 0, not an empty result.

    Args:
        ann_file: mmdet's, as are ``metric``, ``classwise`` and the keyword arguments.
        proposal_nums: COCO's ``maxDets``: how many detections of an image and class count.
        table: Log a table of the figures.

    Raises:
        ValueError: ``metric_items`` names a figure that does not exist.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = 'bbox',
        classwise: bool = False,
        proposal_nums: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            super().__init__(ann_file, metric, classwise, **kwargs)
        items, theirs = set(self.metric_items or ()), set(metric_names(MMDET_LIMITS))
        self.limits_given = proposal_nums is not None
        if not self.limits_given:
            only_theirs = items <= theirs and not items <= set(metric_names(MAX_DETS))
            proposal_nums = MMDET_LIMITS if only_theirs else MAX_DETS
        self.proposal_nums = check_max_dets(proposal_nums)
        known = set(metric_names(self.proposal_nums)) if {*self.metrics} & {*KINDS} else theirs
        limits = f'proposal_nums is {self.proposal_nums}'
        if wrong := items - known - theirs:
            raise ValueError(
                f'metric_items must be among {", ".join(sorted(known))}, but has {min(wrong)!r} '
                f'({limits})'
            )
        for item in sorted(items - known):
            warn(f'metric_items has {item!r}, which is left out, as {limits}')

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``bbox_mAP``, ``bbox_AR@100``, ...; those of each class too if asked for.

        Raises:
            DataError: Masks are asked for and none is predicted, or an image has no annotations.
        """
        truths, predicted = zip(*self.each_once(results), strict=True)
        truth = self._truth(truths)
        names = self.dataset_meta['classes']
        self.img_ids = [result['img_id'] for result in predicted]
        self.cat_ids = [c['id'] for c in truth['categories'] if c['name'] in names]
        if not self.format_only:
            self.compare_with_file(self.img_ids, {image['id'] for image in truth['images']})
        found = self._results(predicted)
        paths = {result['img_id']: path for _, path, (_, result) in results}
        self.examined = dict(
            images=[{**i, 'path': paths[i['id']]} for i in truth['images'] if i['id'] in paths],
            annotations=[
                {key: value for key, value in a.items() if key != 'segmentation'}
                for a in truth['annotations']
                if a['image_id'] in paths
            ],
            categories=[c for c in truth['categories'] if c['id'] in self.cat_ids],
            results=found['bbox'],
        )
        if self.outfile_prefix is not None:
            self._write(found)
        if self.format_only:
            return {}
        if 'segm' in self.metrics and 'segm' not in found:
            raise DataError("metric 'segm' needs masks, and the model predicts none")
        figures: dict[str, float] = {}
        for kind in self.metrics:
            if kind == 'proposal_fast':
                figures |= self._recalls(truth, predicted)
            elif kind == 'proposal':
                figures |= self._score_proposals(truth, found['bbox'])
            else:
                figures |= self._score(truth, found[kind], kind)
        return figures

    def _truth(self, truths: Sequence[dict]) -> dict[str, Any]:
        """Content of the annotation file, or what mmdet makes of the samples' instances."""
        if self._coco_api is not None:
            return self._coco_api.dataset
        with tempfile.TemporaryDirectory() as folder:
            file = self.gt_to_coco_json(truths, self.outfile_prefix or f'{folder}/results')
            return {'annotations': [], **json.loads(Path(file).read_text())}

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
        """Writes the results; if that fails, the figures can still be computed."""
        for kind, results in found.items():
            file = Path(f'{self.outfile_prefix}.{kind}.json')
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(results, default=lambda value: value.item()))
            except OSError as error:
                if self.format_only:
                    raise
                warn(f'the results are not written: {error}')

    def _evaluate(self, truth: dict, results: list[dict], kind: str, **options: Any) -> Scores:
        given = dict(iou_thrs=self.iou_thrs, categories=self.cat_ids, images=self.img_ids)
        return evaluate(truth, results, kind, **given, **options)

    @property
    def _proposal_limits(self) -> Sequence[int]:
        return self.proposal_nums if self.limits_given else MMDET_LIMITS

    def _recalls(self, truth: dict, predicted: Sequence[dict]) -> dict[str, float]:
        objects: dict[Any, list] = {key: [] for key in self.img_ids}
        for a in truth['annotations']:
            if a['image_id'] in objects and not (a.get('iscrowd') or a.get('ignore')):
                objects[a['image_id']].append(a['bbox'])
        images = []
        for result in predicted:
            boxes = np.array(objects[result['img_id']], dtype=np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            images.append((boxes, result['bboxes']))
        limits = self._proposal_limits
        recalls = box_recalls(images, limits, np.atleast_1d(self.iou_thrs), bbox_overlaps)
        return {f'AR@{n}': float(ar) for n, ar in zip(limits, recalls.mean(1), strict=True)}

    def _score_proposals(self, truth: dict, results: list[dict]) -> dict[str, float]:
        """Recall of boxes of any class, by mmdet's names: ``AR@300``, ``AR_s@1000``, ..."""
        limits = self._proposal_limits
        scores = self._evaluate(truth, results, 'bbox', max_dets=limits, agnostic=True)
        found = {key.removeprefix('bbox_'): value for key, value in scores.metrics().items()}
        wanted = self.metric_items or [key for key in found if key.startswith('AR')]
        return {key: found[key] for key in wanted if key in found}

    def _score(self, truth: dict, results: list[dict], kind: str) -> dict[str, float]:
        scores = self._evaluate(truth, results, kind, max_dets=self.proposal_nums)
        if not results:
            warn(f'{kind}: no detection on any image')
        counts = Counter((r['image_id'], r['category_id']) for r in results).values()
        most, limit = max(counts, default=0), self.proposal_nums[-1]
        if not self.limits_given and most > limit:
            warn(
                f'{kind}: an image has {most} detections of a class, and the best {limit} count, '
                f"as in COCO; for mmdet's figures set proposal_nums={MMDET_LIMITS}"
            )
        found, by_class = scores.metrics(), scores.by_class()
        self.log_table({**found, **by_class})
        if self.metric_items is not None:
            names = [f'{kind}_{item}' for item in self.metric_items]
            found = {name: found[name] for name in names if name in found}
        if len(self.metrics) > 1:  # mmdet has one name for both, and the last one wins
            by_class = {f'{kind}_{name}': ap for name, ap in by_class.items()}
        return {**found, **by_class} if self.classwise else found
