"""mmseg's IoUMetric with the classes' figures among the metrics.

Not imported by the package: a config's ``type`` names the class by its full path, and mmseg is
imported only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric as MMSegIoUMetric
from torch import Tensor

from .images_run import ImagesRun, check_finite, image_name
from .tables import format_metrics


class IoUMetric(ImagesRun, MMSegIoUMetric):
    """mmseg's ``IoUMetric``: the same figures in percent, not rounded, and those of each class.

    Pixels are counted exactly, where mmseg's float32 sums stop growing by ones at 16.8 million. A
    label that is neither a class nor ``ignore_index`` is an error: mmseg counts the prediction
    there as wrong. A class that is neither in the ground truth nor predicted has IoU NaN, one that
    is not in the ground truth accuracy NaN; means leave NaN out. Each image counts once.

    Args:
        args: mmseg's, as are the keyword arguments.
        table: Log a table of the classes.
    """

    def __init__(self, *args: Any, table: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Counts the pixels of each sample.

        Raises:
            ValueError: There is no label map, it holds an id that is no class and not ignored, or
                does not have the size of the prediction; or logits are not finite.
        """
        for sample in data_samples:
            if 'seg_logits' in sample:
                check_finite(sample, logits=sample['seg_logits']['data'])
            if not self.format_only and 'gt_sem_seg' not in sample:
                raise ValueError(
                    f'{image_name(sample)} has no label map to measure against: set seg_map_path '
                    f'of data_prefix and LoadAnnotations in the pipeline'
                )
            named = sample
            if self.output_dir is not None:  # mmseg names a picture as its image, without a folder
                named = dict(sample, img_path=self.distinct_path(sample['img_path']))
            try:
                super().process(data_batch, [named])
            except _WrongLabelError as error:
                where = sample.get('seg_map_path') or image_name(sample)
                raise ValueError(f'the label map of {where} {error}') from error
            if not self.format_only:
                # several crops of an image differ in what is there or in what is predicted
                path = sample.get('img_path')
                self.name_last(sample, path and (path, *torch.cat(self.results[-1]).tolist()))

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels by class that agree, of either, predicted and labelled: float64, (classes,)."""
        if pred_label.shape != label.shape:
            raise _WrongLabelError(
                f'is of {tuple(label.shape)} pixels, the prediction of {tuple(pred_label.shape)}'
            )
        counted = label != ignore_index
        predicted, truth = pred_label[counted].long(), label[counted].long()
        unknown = truth[(truth < 0) | (truth >= num_classes)].unique().tolist()
        if unknown:
            raise _WrongLabelError(
                f'holds the id {unknown[0]}, which is neither one of the {num_classes} classes nor '
                f'ignore_index {ignore_index}: set ignore_index of the evaluator and of '
                f'model.decode_head'
            )
        # one column more for predictions beyond the classes
        pairs = truth * (num_classes + 1) + predicted.clamp(max=num_classes)
        confusion = torch.bincount(pairs, minlength=num_classes * (num_classes + 1))
        confusion = confusion.reshape(num_classes, num_classes + 1).cpu().double()
        agree, labelled = confusion.diagonal(), confusion.sum(1)
        found = confusion.sum(0)[:-1]
        return agree, labelled + found - agree, found, labelled

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``aAcc``, ``mIoU``, ``mAcc``, ..., and by class ``road_IoU``, ``road_Acc``, ..."""
        if self.format_only:
            return super().compute_metrics(results)
        totals = [sum(parts) for parts in zip(*self.each_once(results), strict=True)]
        measured = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        names = self.dataset_meta['classes']
        means: dict[str, float] = {'aAcc': float(measured.pop('aAcc')) * 100}
        by_class: dict[str, float] = {}
        for kind, values in measured.items():
            known = values[~np.isnan(values)]
            means[f'm{kind}'] = float(known.mean()) * 100 if known.size else float('nan')
            by_class |= {
                f'{name}_{kind}': float(value) * 100
                for name, value in zip(names, values, strict=True)
            }
        found = {**means, **by_class}
        if self.table:
            MMLogger.get_current_instance().info('\n' + format_metrics(found, names))
        return found


class _WrongLabelError(ValueError):
    pass
