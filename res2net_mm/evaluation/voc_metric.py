"""mmdet's VOCMetric by the rules of the VOC development kit, with AP by class.

Not imported by the package: a config's ``type`` names the class by its full path, and mmdet is
imported only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.evaluation import VOCMetric as MMDetVOCMetric
from mmengine.logging import MMLogger

from .images_run import ImagesRun, check_finite, warn
from .recall import box_recalls
from .tables import format_metrics
from .voc import MODES, average_precision, box_overlaps


class VOCMetric(ImagesRun, MMDetVOCMetric):
    """mmdet's ``VOCMetric``, but AP is the development kit's, and a class's AP is a metric too.

    Each image counts once. mmdet's differs in ``11points``: its steps 0.3, 0.6 and 0.7 are a
    rounding error above the exact tenths that they are here, so that a recall of 3 in 5 does not
    reach 0.6; in equal scores, whose order it leaves to chance; and in the table, where a data set
    below a folder ``VOC2007`` or ``VOC2012`` has the names of the 20 VOC classes whatever its own
    are.

    Args:
        eval_mode: ``'11points'`` (VOC 2007) or ``'area'`` (VOC 2010 and later), whose figures do
            not compare. Without one it is mmdet's ``'11points'``, and a warning says so.
        table: Log a table of the figures.
        kwargs: mmdet's; ``scale_ranges`` is not supported.

    Raises:
        ValueError: ``eval_mode`` is another.
    """

    def __init__(self, *, eval_mode: str | None = None, table: bool = True, **kwargs: Any) -> None:
        if eval_mode is None:
            eval_mode = '11points'
            warn(
                "eval_mode of VOCMetric is not set: it is '11points' (VOC 2007), mmdet's default; "
                "'area' is for VOC 2010 and later"
            )
        if eval_mode not in MODES:
            raise ValueError(
                f"eval_mode of VOCMetric must be '11points' (VOC 2007) or 'area' (VOC 2010 and "
                f'later), but is {eval_mode!r}'
            )
        if kwargs.get('scale_ranges') is not None:
            raise ValueError(
                'scale_ranges of VOCMetric is not supported: take CocoMetric for sizes'
            )
        super().__init__(eval_mode=eval_mode, **kwargs)
        self.table = table

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps the objects and what is predicted for each sample.

        Raises:
            ValueError: A box or score is not finite.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            check_finite(sample, bboxes=found['bboxes'], scores=found['scores'])
            super().process(data_batch, [sample])
            truth, boxes = self.results[-1]
            # several crops of an image differ in what is there or in what is predicted
            path = sample.get('img_path', sample.get('img_id'))
            arrays = (truth['bboxes'], *boxes)
            self.name_last(sample, path and (path, *(array.tobytes() for array in arrays)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``mAP``, the mean of ``AP50`` and the like, and by class ``cat_AP50``.

        With ``metric='recall'``: ``recall@100@0.5``, ... of boxes of any class, and their means
        ``AR@100``, ... where there are several thresholds.
        """
        results = self.each_once(results)
        if self.metric != 'mAP':
            return self._recalls(results)
        names = self.dataset_meta['classes']
        found: dict[str, float] = {}
        for iou_thr in self.iou_thrs:
            suffix = f'AP{round(iou_thr * 100):02d}'
            aps = [self._ap(results, label, iou_thr) for label in range(len(names))]
            known = [ap for ap in aps if ap == ap]
            found[suffix] = float(np.mean(known)) if known else float('nan')
            found |= {f'{name}_{suffix}': ap for name, ap in zip(names, aps, strict=True)}
        means = [found[f'AP{round(iou_thr * 100):02d}'] for iou_thr in self.iou_thrs]
        found = {'mAP': float(np.mean(means)), **found}
        if self.table:
            MMLogger.get_current_instance().info('\n' + format_metrics(found, names))
        return found

    def _recalls(self, results: list) -> dict[str, float]:
        images = []
        for truth, found in results:
            boxes = np.concatenate(found)
            best = np.argsort(-boxes[:, 4], kind='stable')
            images.append((truth['bboxes'], boxes[best, :4]))
        recalls = box_recalls(images, self.proposal_nums, self.iou_thrs, box_overlaps)
        rows = dict(zip(self.proposal_nums, recalls, strict=True))
        figures = {
            f'recall@{limit}@{iou_thr}': float(value)
            for limit, row in rows.items()
            for iou_thr, value in zip(self.iou_thrs, row, strict=True)
        }
        if len(self.iou_thrs) > 1:
            figures |= {f'AR@{limit}': float(row.mean()) for limit, row in rows.items()}
        return figures

    def _ap(self, results: list, label: int, iou_thr: float) -> float:
        def images() -> Any:
            for truth, found in results:
                counted = truth['bboxes'][truth['labels'] == label]
                difficult = truth['bboxes_ignore'][truth['labels_ignore'] == label]
                flags = np.repeat([False, True], [len(counted), len(difficult)])
                yield found[label], np.concatenate([counted, difficult]), flags

        return average_precision(images(), self.eval_mode, iou_thr)
