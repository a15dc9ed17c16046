"""What a metric measures: the images that were run, each once, and nothing that is not finite."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
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

    def compare_with_file(self, run: Collection[Hashable], known: Collection[Hashable]) -> None:
        """Says how many images of the annotation file were not run.

        Args:
            run: Ids of the images that were run.
            known: Ids that the file has.

        Raises:
            ValueError: The file lacks one that was run.
        """
        name = f'the ann_file of {type(self).__name__}'
        unknown = [key for key in run if key not in known]
        if unknown:
            raise ValueError(
                f'{name} lacks {len(unknown):,} of the {len(run):,} images that were run (the '
                f'first has the id {unknown[0]!r}): set it to the file of the data set'
            )
        if len(known) > len(run):
            warn(
                f'{name} has {len(known):,} images, of which {len(run):,} were run: the figures '
                f'are of these {len(run):,}'
            )

    def distinct_path(self, path: str) -> str:
        """``path`` with a file name that no other image has in this process.

        mmdet and mmseg name what they write as the image, without its folder.
        """
        taken = self.__dict__.setdefault('_names', {})
        *folders, name = Path(path).parts
        stem, suffix = os.path.splitext(name)
        names = ['_'.join([*folders[i:], stem]) for i in range(len(folders), -1, -1)]
        names.append(f'{names[-1]}_{suffix[1:]}')
        return next(n for n in names if taken.setdefault(n, path) == path) + suffix


def check_finite(sample: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError naming the image unless all predicted values of a sample are finite."""
    for name, value in values.items():
        value = torch.as_tensor(value)
        # NaN is the least and the largest of all; isfinite takes 30 times as long on logits
        if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
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
