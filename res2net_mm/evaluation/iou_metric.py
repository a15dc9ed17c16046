"""mmseg's IoUMetric with the figures of each class.

A config's ``type`` names the class by its full path; only then is this module, and mmseg, imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric as MMSegIoUMetric
from torch import Tensor

from ..data.errors import DataError
from .images_run import ImagesRun, image_name


class IoUMetric(ImagesRun, MMSegIoUMetric):
    """mmseg's ``IoUMetric``: the same figures in percent, not rounded, and those of each class.

    Pixels are counted exactly; mmseg's float32 sums stop growing at 16.8 million. A label that is
    neither a class nor ``ignore_index`` is an error; mmseg counts the prediction there as wrong. A
    class that is neither in the ground truth nor predicted has IoU NaN, one that is not in the
    ground truth has accuracy NaN; means leave NaN out.
    """

    crops = True

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Counts the pixels of each sample; DataError if it cannot be measured."""
        if not self.format_only:
            for sample in data_samples:
                self._check_labels(sample)
        if self.output_dir is not None:
            data_samples = [self.with_distinct_name(sample) for sample in data_samples]
        super().process(data_batch, data_samples)

    def _check_labels(self, sample: Mapping[str, Any]) -> None:
        if 'gt_sem_seg' not in sample:
            remedy = 'set seg_map_path of data_prefix and LoadAnnotations in the pipeline'
            raise DataError('it has no label map to measure against', image_name(sample), remedy)
        where = f'the label map of {sample.get("seg_map_path") or image_name(sample)}'
        found, label = (sample[key]['data'].squeeze() for key in ('pred_sem_seg', 'gt_sem_seg'))
        if found.shape != label.shape:
            raise DataError(
                f'it has {tuple(label.shape)} pixels, the prediction {tuple(found.shape)}', where
            )
        classes = len(self.dataset_meta['classes'])
        unknown = label[(label != self.ignore_index) & ((label < 0) | (label >= classes))]
        if len(unknown):
            raise DataError(
                f'it holds the id {int(unknown.min())}, which is neither one of the {classes} '
                f'classes nor ignore_index {self.ignore_index}',
                where,
                'set ignore_index of the evaluator and of model.decode_head',
            )

    def key_of(self, sample: Mapping[str, Any], result: Any) -> None:
        """None: crops of one image may have equal counts, and all count."""

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the flat confusion matrix, (classes, classes + 1), that occur; their pixels.

        A row is what is labelled, the last column predictions beyond the classes.
        """
        counted = label != ignore_index
        predicted = pred_label[counted].long().clamp(max=num_classes)
        pixels = torch.bincount(label[counted].long() * (num_classes + 1) + predicted).cpu().numpy()
        cells = np.flatnonzero(pixels)
        return cells, pixels[cells]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``aAcc``, ``mIoU``, ``mAcc``, ..., and by class ``road_IoU``, ``road_Acc``, ..."""
        if self.format_only:
            return super().compute_metrics(results)
        names = self.dataset_meta['classes']
        confusion = torch.zeros(len(names), len(names) + 1, dtype=torch.float64)
        for cells, pixels in self.each_once(results):
            confusion.view(-1)[cells] += torch.from_numpy(pixels)
        self.examined = dict(confusion=confusion.tolist(), classes=names)
        agree, labelled, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)[:-1]
        areas = agree, labelled + found - agree, found, labelled
        measured = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        figures = {'aAcc': float(measured.pop('aAcc')) * 100}
        by_class: dict[str, float] = {}
        for kind, values in measured.items():
            known = values[~np.isnan(values)]
            figures[f'm{kind}'] = float(known.mean()) * 100 if known.size else float('nan')
            by_class |= {f'{n}_{kind}': float(v) * 100 for n, v in zip(names, values, strict=True)}
        figures |= by_class
        self.log_table(figures)
        return figures
