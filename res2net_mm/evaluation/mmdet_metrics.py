"""mmdet's panoptic, LVIS and occlusion metrics, of the images that were run.

Not imported by the package: a config's ``type`` names the class by its full path, and mmdet is
imported only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet import evaluation
from mmengine.evaluator import BaseMetric

from . import panoptic  # noqa: F401  (stands in for panopticapi)
from .images_run import ImagesRun, check_finite


class CocoPanopticMetric(ImagesRun, evaluation.CocoPanopticMetric):
    """mmdet's ``CocoPanopticMetric``, each image once, whatever else the annotation file has."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Counts or keeps the segments of each sample.

        Raises:
            ValueError: The annotation file does not have the image.
        """
        for sample in data_samples:
            named = sample
            if self.tmp_dir is None:  # pictures stay, named as the image without its folder
                named = dict(sample, img_path=self.distinct_path(sample['img_path']))
            super().process(data_batch, [named])
            self.name_last(sample, sample['img_id'])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``PQ``, ``SQ``, ``RQ`` in percent, and those of things and stuff."""
        keys = dict.fromkeys(key for key, _, _ in results)
        kept = self.each_once(results)
        if self._coco_api is not None:
            self.compare_with_file(keys, self._coco_api.imgs)
            objects = self._coco_api.imgToAnns
            self._coco_api.img_ann_map = {key: objects[key] for key in keys}
        return super().compute_metrics(kept)


class _OfImagesRun(ImagesRun):
    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found = sample['pred_instances']
            check_finite(sample, bboxes=found['bboxes'], scores=found['scores'])
            super().process(data_batch, [sample])
            self.name_last(sample, sample['img_id'])

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.img_ids = list(dict.fromkeys(key for key, _, _ in results))
        kept = self.each_once(results)
        api = getattr(self, '_lvis_api', None) or getattr(self, '_coco_api', None)
        if api is not None:
            self.compare_with_file(self.img_ids, api.imgs)
        return super().compute_metrics(kept)


def __getattr__(name: str) -> Any:
    """``LVISMetric`` and the like of mmdet, which score the images in ``img_ids``."""
    base = getattr(evaluation, name, None)
    if not (isinstance(base, type) and issubclass(base, BaseMetric)):
        raise AttributeError(name)
    made = type(name, (_OfImagesRun, base), {'__module__': __name__, '__doc__': base.__doc__})
    globals()[name] = made  # one class, which distributed runs can name
    return made
