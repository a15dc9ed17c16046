"""The measures of salient object detection, by PySODMetrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from ..data.errors import DataError
from .images_run import ImagesRun, image_name, warn


class _Measures(BaseMetric):
    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found, truth = _maps(sample)
            if self.normalize:
                found, truth = (found * 255).round().astype(np.uint8), truth * np.uint8(255)
            sod = self.sod
            f = sod.FmeasureV2({'f': sod.FmeasureHandler(with_dynamic=True, with_adaptive=True)})
            values: dict[str, Any] = {}
            for part in (sod.MAE(), f, sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure()):
                part.step(found, truth, self.normalize)
                values |= part.get_results()
            if np.isnan(values['sm']):  # a quarter of the image is empty
                warn(f'PySODMetrics has no S-measure of {image_name(sample)}, so Sm is NaN')
            f, e = values.pop('f'), values.pop('em')
            values |= dict(f=f['dynamic'], adpf=f['adaptive'], e=e['curve'], adpe=e['adp'])
            self.results.append(values)  # not the maps, which would fill the memory


class SaliencyMetric(ImagesRun, _Measures):
    """Measures of the probability map of a head with one channel, at the size of the image.

    ``MAE``; ``maxF``, ``meanF`` and ``adpF`` (beta squared 0.3, at 256 thresholds and at twice the
    map's mean); ``Sm``; ``maxE``, ``meanE`` and ``adpE``; ``wF``: means over images, from 0 to 1.
    Max and mean are those of the images' mean curve. Needs PySODMetrics (ImportError).

    With ``normalize``, the default of PySODMetrics and of papers that measure saved pictures, each
    map is rounded to 8 bits and stretched from its least value to its largest.
    """

    crops = True
    default_prefix = 'saliency'

    def __init__(self, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize = normalize
        try:
            import py_sod_metrics
        except ImportError as error:
            raise ImportError(
                f"SaliencyMetric needs PySODMetrics: pip install 'res2net_mm[saliency]' ({error})"
            ) from error
        self.sod = py_sod_metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The figures by name."""
        parts = self.each_once(results)
        mean = {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
        f, e = mean['f'], mean['e']
        found = dict(MAE=mean['mae'], maxF=f.max(), meanF=f.mean(), adpF=mean['adpf'])
        found |= dict(Sm=mean['sm'], maxE=e.max(), meanE=e.mean(), adpE=mean['adpe'])
        found = {name: float(value) for name, value in {**found, 'wF': mean['wfm']}.items()}
        self.log_table(found)
        return found


def _maps(sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Probability and ground truth, float64 and bool, (H, W)."""
    maps = [sample.get(key) for key in ('seg_logits', 'gt_sem_seg')]
    if None in maps or len(maps[0]['data']) != 1:
        raise DataError(
            'SaliencyMetric needs its mask and a model with one channel',
            image_name(sample),
            'load the mask in the pipeline, and set out_channels=1 of model.decode_head',
        )
    found, truth = (part['data'].squeeze(0).double().cpu().numpy() for part in maps)
    if found.shape != truth.shape or truth.min() < 0 or truth.max() > 1:
        what = f'{truth.shape} pixels of {truth.min():g} to {truth.max():g}'
        what = f'its mask has {what}, but needs {found.shape} of 0 and 1'
        raise DataError(what, image_name(sample))
    return found, truth == 1
