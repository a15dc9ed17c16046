"""mmdet's panoptic, LVIS and occlusion metrics, computed on the images that were run.

A config's ``type`` names a class by its full path; only then is this module, and mmdet, imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet import evaluation
from mmengine.evaluator import BaseMetric

from . import panoptic  # noqa: F401  (stands in for panopticapi)
from .images_run import ImagesRun


class _OfImagesRun(ImagesRun):
    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = list(dict.fromkeys(key for key, _, _ in results))
        kept = self.each_once(results)
        api = getattr(self, '_lvis_api', None) or getattr(self, '_coco_api', None)
        if api is not None:
            self.compare_with_file(self.img_ids, api.imgs)
        return super().compute_metrics(kept)


class CocoPanopticMetric(_OfImagesRun, evaluation.CocoPanopticMetric):
    """mmdet's ``CocoPanopticMetric``, each image once, whatever else the annotation file has."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Counts or keeps the segments of each sample."""
        if self.tmp_dir is None:  # pictures are kept, named after the image without its folder
            data_samples = [self.with_distinct_name(sample) for sample in data_samples]
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``PQ``, ``SQ``, ``RQ`` in percent, and those of things and stuff."""
        if self._coco_api is not None:
            objects = self._coco_api.imgToAnns
            run = {key: objects[key] for key, _, _ in results}  # also those without objects
            self._coco_api.img_ann_map = run
        return super().compute_metrics(results)


def __getattr__(name: str) -> Any:
    """``LVISMetric`` and other metrics of mmdet that score the images in ``img_ids``."""
    base = getattr(evaluation, name, None)
    if not (isinstance(base, type) and issubclass(base, BaseMetric)):
        raise AttributeError(name)
    made = type(name, (_OfImagesRun, base), {'__module__': __name__, '__doc__': base.__doc__})
    globals()[name] = made  # one class, so that distributed runs can pickle it
    return made
