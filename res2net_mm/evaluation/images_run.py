"""What our metrics share: they score the images that were run, each once, and finite values."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger, print_log

from ..data.errors import DataError
from .tables import format_metrics


class ImagesRun:
    """Mixin that makes a metric of mmdet or mmseg keep each result as ``(key, path, result)``.

    The same image can come twice: samplers of several processes pad with images, and a data set can
    list one twice. Samples with the key None all count. ``table`` logs a table of the figures.
    """

    crops = False  # whether samples can be crops of one image, which differ in what is measured
    examined: dict[str, Any] | None = None  # what the figures are of, for a report
    _size: int | None = None

    def __init__(self, *args: Any, table: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        self._names: dict[str, Path] = {}

    def log_table(self, figures: Mapping[str, float]) -> None:
        """Logs the figures as a table, if that is wanted."""
        if self.table:
            text = format_metrics(figures, self.dataset_meta['classes'])
            MMLogger.get_current_instance().info('\n' + text)

    def key_of(self, sample: Mapping[str, Any], result: Any) -> Hashable:
        """What tells a sample from others: the id of its image, or its path and the result."""
        if not self.crops:
            return sample['img_id']
        path = sample.get('img_path', sample.get('img_id'))
        return path and (path, hashlib.sha256(pickle.dumps(result)).digest())

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keeps what is predicted for each sample; DataError if a value of it is not finite."""
        for sample in data_samples:
            check_finite(sample)
            before = len(self.results)
            super().process(data_batch, [sample])
            if len(self.results) > before:
                result = self.results[-1]
                self.results[-1] = (self.key_of(sample, result), sample.get('img_path'), result)

    def evaluate(self, size: int) -> dict[str, float]:
        """The figures; ``size`` is the number of images in the data set."""
        self._size = size
        return super().evaluate(size)

    def each_once(self, results: Sequence[tuple[Hashable, str | None, Any]]) -> list[Any]:
        """The results of each image once; warns of images that were not run or run again."""
        if not results:
            raise DataError(f'{type(self).__name__} has nothing to measure: no image was run')
        kept: dict[Hashable, tuple[str | None, Any]] = {}
        for i, (key, path, result) in enumerate(results):
            first, _ = kept.setdefault(('unnamed', i) if key is None else key, (path, result))
            if path != first:
                raise DataError(
                    f'two images have the id {key!r}: {first} and {path}',
                    remedy='give each data set its own metric, with MultiDatasetsEvaluator',
                )
        if again := len(results) - len(kept):
            warn(f'{again:,} of {len(results):,} images were run before: each counts once')
        if self._size is not None and len(results) < self._size:
            warn(f'only {len(kept):,} of the {self._size:,} images of the data set were run')
        return [result for _, result in kept.values()]

    def compare_with_file(self, run: Collection[Hashable], known: Collection[Hashable]) -> None:
        """Warns if not all ids of the annotation file were run; DataError if it lacks one."""
        name = f'the ann_file of {type(self).__name__}'
        if unknown := [key for key in run if key not in known]:
            raise DataError(
                f'it lacks {len(unknown):,} of the {len(run):,} images that were run (the first '
                f'has the id {unknown[0]!r})',
                name,
                'set it to the file of the data set',
            )
        if len(known) > len(run):
            warn(f'{name} has {len(known):,} images: the figures are for the {len(run):,} run')

    def with_distinct_name(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with an ``img_path`` whose file name no other image has in this process.

        mmdet and mmseg name what they write after the image, without its folder.
        """
        path = Path(sample['img_path'])
        names = (f'{path.stem}_{i}' if i else path.stem for i in count())
        name = next(name for name in names if self._names.setdefault(name, path) == path)
        return dict(sample, img_path=name + path.suffix)


def check_finite(sample: Any) -> None:
    """Raises a DataError that names the image if a value predicted in a sample is not finite."""
    sample = sample if isinstance(sample, Mapping) else sample.to_dict()
    found = sample.get('pred_instances') or {}
    names = ('bboxes', 'scores', 'mask_scores', 'keypoints', 'keypoint_scores')
    values = {key: found[key] for key in names if key in found}
    if 'seg_logits' in sample:
        values['logits'] = sample['seg_logits']['data']
    if 'pred_score' in sample:
        values['scores'] = sample['pred_score']
    for name, value in values.items():
        value = torch.as_tensor(value)
        # NaN is both the least and the largest; on logits, isfinite takes 30 times as long
        if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
            raise DataError(
                f'{name} predicted for {image_name(sample)} are not finite, so nothing is '
                'measured: the weights are damaged, or --fast or --amp overflows'
            )


def image_name(sample: Mapping[str, Any]) -> str:
    """How a message names the image of a sample."""
    return str(sample.get('img_path') or sample.get('img_id', 'an image'))


def warn(message: str) -> None:
    """Logs a warning to the terminal and to the log of the run."""
    print_log(message, logger='current', level=logging.WARNING)
