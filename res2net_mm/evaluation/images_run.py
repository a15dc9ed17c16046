"""What a metric measures: the images that were run, each once, and nothing that is not finite."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log


class ImagesRun:
    """Mixin of metrics that keep each result as ``(key, path, result)``.

    The same image can come twice: samplers of several processes pad with images, and a data set can
    list one twice. Samples without a name have the key None and all count.
    """

    _size: int | None = None

    def evaluate(self, size: int) -> dict[str, float]:
        """The figures; ``size`` is the number of images in the data set."""
        self._size = size
        return super().evaluate(size)

    def name_last(self, sample: Mapping[str, Any], key: Hashable) -> None:
        """Adds the image's key and path to the result that ``process`` of mmdet or mmseg kept."""
        self.results[-1] = (key, sample.get('img_path'), self.results[-1])

    def each_once(self, results: Sequence[tuple[Hashable, str | None, Any]]) -> list[Any]:
        """The results of each image once; says how many images were not run or run again.

        Raises:
            ValueError: There is no result, or two pictures have the same key.
        """
        if not results:
            raise ValueError(f'{type(self).__name__} has nothing to measure: no image was run')
        kept: dict[Hashable, tuple[str | None, Any]] = {}
        for i, (key, path, result) in enumerate(results):
            first, _ = kept.setdefault(('unnamed', i) if key is None else key, (path, result))
            if path != first:
                raise ValueError(
                    f'two images have the id {key!r}: {first} and {path}. Give each data set a '
                    f'metric of its own, with mmdet.MultiDatasetsEvaluator'
                )
        again = len(results) - len(kept)
        if again:
            warn(f'{again:,} of {len(results):,} images were run before: each counts once')
        if self._size is not None and len(kept) < self._size:
            warn(
                f'{len(kept):,} of the {self._size:,} images of the data set were run: the figures '
                f'are of these'
            )
        return [result for _, result in kept.values()]


def check_finite(sample: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError naming the image unless all predicted values of a sample are finite."""
    for name, value in values.items():
        if value is not None and not torch.isfinite(torch.as_tensor(value)).all():
            raise ValueError(
                f'{name} predicted for {image_name(sample)} are not finite, so nothing is '
                f'measured: the weights are damaged, or --fast or --amp overflows'
            )


def image_name(sample: Mapping[str, Any]) -> str:
    """The image of a sample as a message names it."""
    return str(sample.get('img_path') or sample.get('img_id', 'an image'))


def warn(message: str) -> None:
    """A line on the terminal and in the log of the run."""
    print_log(message, logger='current', level=logging.WARNING)
