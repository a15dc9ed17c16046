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
from mmdet.evaluation import eval_recalls

from ..data.errors import DataError
from ..files import write_text
from .coco import FIELDS, MAX_DETS, Scores, area_of, check_max_dets, evaluate, metric_names
from .images_run import ImagesRun, warn

MMDET_LIMITS = (100, 300, 1000)  # mmdet's default of proposal_nums


class CocoMetric(ImagesRun, MMDetCocoMetric):
    """mmdet's ``CocoMetric``: the same figures, not rounded, and faster.

    What differs: the figures are for the images that were run, each once, whatever else the
    annotation file has; the default of ``proposal_nums`` for boxes and masks is COCO's
    (1, 10, 100), unless ``metric_items`` names a figure of mmdet's (100, 300, 1000), and ``mAP`` is
    at the largest of them if 100 is not among them; AR is always among the figures; a class has its
    own AP even if the annotation file does not list categories by id, with ``bbox_`` or ``segm_``
    before its name if both are measured; and no detection at all gives AP 0, not an empty result.
    ``table`` logs a table of the figures.

    ``out`` is a file for the boxes in COCO's result format, in place of the files that
    ``outfile_prefix`` names; masks go to the file of that name with ``.segm.json``.
    """

    def __init__(
        self,
        *args: Any,
        proposal_nums: Sequence[int] | None = None,
        outfile_prefix: str | None = None,
        out: str | None = None,
        **kwargs: Any,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            super().__init__(*args, outfile_prefix=outfile_prefix or out, **kwargs)
        self.outfile_prefix, self.unwritten = outfile_prefix, ''  # why the results are not written
        self.files = {}
        if out is not None:
            self.files = dict(bbox=Path(out), segm=Path(out).with_suffix('.segm.json'))
        elif outfile_prefix is not None:
            self.files = {kind: Path(f'{outfile_prefix}.{kind}.json') for kind in FIELDS}
        sized = {*self.metrics} & {'bbox', 'proposal', 'segm'} and not self.format_only
        if self._coco_api is None and sized:
            warn('CocoMetric without ann_file: figures by size take the areas of masks, or boxes')
        items = set(self.metric_items or ())
        fitting = [n for n in (MAX_DETS, MMDET_LIMITS) if items <= {*metric_names(n)}]
        self.limits_given = proposal_nums is not None
        of_objects, of_proposals = [*fitting, MAX_DETS][0], MMDET_LIMITS
        if proposal_nums is not None:
            of_objects = of_proposals = proposal_nums
        self.proposal_nums, self.agnostic_nums = map(check_max_dets, (of_objects, of_proposals))
        limits = self.proposal_nums if {*self.metrics} & {*FIELDS} else self.agnostic_nums
        if wrong := items - set(metric_names(limits)):
            raise ValueError(
                f'metric_items must be among {", ".join(metric_names(limits))}, but has '
                f'{min(wrong)!r} (proposal_nums is {limits})'
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``bbox_mAP``, ``bbox_AR@100``, ...; those of each class too if asked for."""
        truths, predicted = zip(*self.each_once(results), strict=True)
        truth = self._truth(truths)
        categories = [c for c in truth['categories'] if c['name'] in self.dataset_meta['classes']]
        self.cat_ids = [category['id'] for category in categories]
        self.img_ids = [result['img_id'] for result in predicted]
        if not self.format_only:
            self.compare_with_file(self.img_ids, {image['id'] for image in truth['images']})
        found = self._results(predicted)
        paths = {result['img_id']: path for _, path, (_, result) in results}
        objects = [a for a in truth['annotations'] if a['image_id'] in paths]
        self.examined = dict(
            images=[{**i, 'path': paths[i['id']]} for i in truth['images'] if i['id'] in paths],
            annotations=[{k: v for k, v in a.items() if k != 'segmentation'} for a in objects],
            categories=categories,
            results=found['bbox'],
        )
        if self.files:
            self._write(found)
        if self.format_only:
            return {}
        if 'segm' in self.metrics and 'segm' not in found:
            raise DataError("metric 'segm' needs masks, and the model predicts none")
        figures: dict[str, float] = {}
        for kind in self.metrics:
            if kind == 'proposal_fast':
                new = self._recalls(objects, predicted)
            elif kind == 'proposal':
                new = self._score_proposals(truth, found['bbox'])
            else:
                new = self._score(truth, found[kind], kind)
            # mmdet has one name for AR of both proposals, and the last one wins
            figures |= {f'{kind}_{k}' if k in figures else k: value for k, value in new.items()}
        return figures

    def _truth(self, truths: Sequence[dict]) -> dict[str, Any]:
        """Content of the annotation file, or what mmdet makes of the samples' instances."""
        if self._coco_api is not None:
            return {'annotations': [], **self._coco_api.dataset}
        with tempfile.TemporaryDirectory() as folder:
            file = self.gt_to_coco_json(truths, self.outfile_prefix or f'{folder}/results')
            truth = {'annotations': [], **json.loads(Path(file).read_text())}
        sizes = {image['id']: image for image in truth['images']}
        for a in truth['annotations']:
            if 'segmentation' in a:  # mmdet writes the area of the box
                harmless = [] if 'segm' in self.metrics else [DataError]  # the mask is not measured
                with contextlib.suppress(*harmless):
                    a['area'] = area_of({**a, 'area': None}, 'segm', sizes[a['image_id']])
        return truth

    def _results(self, predicted: Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
        """Detections in COCO's result format, by kind; masks have the boxes beside them."""
        found = dict(bbox=[], segm=[]) if 'masks' in predicted[0] else dict(bbox=[])
        for result in predicted:
            for i, label in enumerate(result['labels']):
                ids = dict(image_id=result['img_id'], category_id=self.cat_ids[label])
                ids['bbox'] = self.xyxy2xywh(result['bboxes'][i])
                found['bbox'].append({**ids, 'score': float(result['scores'][i])})
                if 'segm' in found:
                    ids['score'] = float(result.get('mask_scores', result['scores'])[i])
                    found['segm'].append({**ids, 'segmentation': result['masks'][i]})
        return found

    def _write(self, found: dict[str, list[dict[str, Any]]]) -> None:
        """Writes the results; if that fails, the figures can still be computed."""
        for kind, results in found.items():
            file = self.files[kind]
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(results, default=_plain))
            except OSError as error:
                if self.format_only:
                    raise
                self.unwritten = str(error)
                warn(f'the results are not written: {error}')

    def _recalls(self, objects: Sequence[dict], predicted: Sequence[dict]) -> dict[str, float]:
        """mmdet's ``AR@100``, ...; its ``eval_recalls`` fails with numpy 2 for several images."""
        corners: dict[Any, list] = {key: [] for key in self.img_ids}
        for a in objects:
            if a['category_id'] in self.cat_ids and not (a.get('iscrowd') or a.get('ignore')):
                x, y, width, height = a['bbox']
                corners[a['image_id']].append([x, y, x + width, y + height])
        found, total = np.zeros(len(self.agnostic_nums)), 0
        limits, iou_thrs = np.array(self.agnostic_nums), np.atleast_1d(self.iou_thrs)
        for result in predicted:
            boxes = np.array(corners[result['img_id']], np.float32)
            if len(boxes):
                shares = eval_recalls([boxes], [result['bboxes']], limits, iou_thrs, 'silent')
                found += shares.mean(1) * len(boxes)
                total += len(boxes)
        means = found / (total or np.nan)
        return {f'AR@{n}': float(ar) for n, ar in zip(limits, means, strict=True)}

    def _evaluate(self, truth: dict, results: list[dict], kind: str, **options: Any) -> Scores:
        given = dict(iou_thrs=self.iou_thrs, categories=self.cat_ids, images=self.img_ids)
        return evaluate(truth, results, kind, **given, **options)

    def _score_proposals(self, truth: dict, results: list[dict]) -> dict[str, float]:
        """Recall of boxes of any class, by mmdet's names: ``AR@300``, ``AR_s@1000``, ..."""
        limits = dict(max_dets=self.agnostic_nums, agnostic=True)
        found = self._evaluate(truth, results, 'bbox', **limits).metrics()
        found = {key.removeprefix('bbox_'): value for key, value in found.items()}
        wanted = self.metric_items or [key for key in found if key.startswith('AR')]
        return {key: value for key, value in found.items() if key in wanted}

    def _score(self, truth: dict, results: list[dict], kind: str) -> dict[str, float]:
        scores = self._evaluate(truth, results, kind, max_dets=self.proposal_nums)
        if not results:
            warn(f'{kind}: no detection on any image')
        counts = Counter((r['image_id'], r['category_id']) for r in results)
        most, limit = max(counts.values(), default=0), self.proposal_nums[-1]
        if not self.limits_given and most > limit:
            warn(
                f'{kind}: an image has {most} detections of a class, and the best {limit} count, '
                f"as in COCO; for mmdet's figures set proposal_nums={MMDET_LIMITS}"
            )
        found, by_class = scores.metrics(), scores.by_class()
        self.log_table({**found, **by_class})
        if self.metric_items is not None:
            wanted = {f'{kind}_{item}' for item in self.metric_items}
            found = {key: value for key, value in found.items() if key in wanted}
        if {*FIELDS} <= {*self.metrics}:  # mmdet has one name for both, and the last one wins
            by_class = {f'{kind}_{name}': ap for name, ap in by_class.items()}
        return {**found, **by_class} if self.classwise else found


def _plain(value: Any) -> Any:
    """Texts and numbers, which JSON can hold, of bytes and numpy's numbers."""
    return value.decode() if isinstance(value, bytes) else value.item()
