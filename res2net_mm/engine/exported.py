"""Exported files where the tools take a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ..data.sets.nodes import type_name
from ..deploy.metadata import settings_of
from ..deploy.running import SUFFIXES, TOO_SMALL, ExportedModel
from ..registry import MODELS
from .errors import ToolError
from .terminal import warn


def is_exported(path: str | Path) -> bool:
    """Whether a path names an exported file rather than a checkpoint."""
    return Path(path).suffix in SUFFIXES


@MODELS.register_module()
class ExportedModule(BaseModel):
    """An exported file as a model of mmengine, so that pipelines and metrics run unchanged.

    Raises a ToolError if the file says other things about its model than the config, whose
    :func:`facts_of` are ``expected``.
    """

    def __init__(self, path: str, expected: Mapping[str, Any]) -> None:
        super().__init__()
        self.file = ExportedModel(path)
        self.warned = False  # that images are made smaller
        metadata = self.file.metadata
        pairs = {k: (metadata.get(k), value) for k, value in expected.items() if k != 'test_cfg'}
        ours, theirs = expected.get('test_cfg', {}), metadata.get('test_cfg')
        if theirs is not None:
            pairs |= {f'test_cfg.{k}': (theirs.get(k), ours.get(k)) for k in {**ours, **theirs}}
        for name, (said, value) in pairs.items():
            if said != value:
                raise ToolError(
                    f'{path}, exported from {metadata.get("config")}, has {name} {said}, but the '
                    f'config has {value}: give the config that it was exported with, or export it '
                    'again'
                )

    @property
    def meta(self) -> dict[str, Any]:
        """The classes, as the ``meta`` of a checkpoint names them."""
        metadata = self.file.metadata
        return dict(dataset_meta={key: metadata.get(key) for key in ('classes', 'palette')})

    def forward(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any], mode: str = 'predict'
    ) -> list[Any]:
        """Predicts images (3, h, w) of a test pipeline, in pixels of the images as they were."""
        for image, sample in zip(inputs, data_samples, strict=True):
            pixels = pixels_of(image)
            if not self.warned and self.file.fit(pixels).shape != pixels.shape:
                self.warned = True
                warn(f'{self.file.path} {TOO_SMALL}')
            found = self.file.predict_resized(pixels, sample.ori_shape[:2])
            _fill(sample, {name: torch.from_numpy(value) for name, value in found.items()})
        return list(data_samples)


def pixels_of(image: Tensor) -> np.ndarray:
    """(H, W, 3), RGB, of an image (3, H, W), BGR, from a pipeline that leaves it in uint8."""
    if image.dtype != torch.uint8:
        raise ToolError(
            f'an exported file takes pixels of 8 bits, but the test pipeline of the config gives '
            f'{image.dtype}: remove to_float32 and what normalises'
        )
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).cpu().numpy())


def _fill(sample: Any, found: dict[str, Tensor]) -> None:
    """Puts predictions where mmdet, mmseg and mmpretrain put theirs."""
    if 'segmentation' in found and 'boxes' in found:
        sample.pred_panoptic_seg = PixelData(sem_seg=found['segmentation'][None])
    elif 'segmentation' in found:
        sample.pred_sem_seg = PixelData(data=found['segmentation'][None])
        if 'probability' in found:
            sample.seg_logits = PixelData(data=found['probability'][None])
    elif 'boxes' not in found:
        scores = found['scores']
        sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
    else:
        found['bboxes'] = found.pop('boxes')
        sample.pred_instances = InstanceData(**found)


def exported_model(cfg: Config, path: str, fast: Any = None) -> dict[str, Any]:
    """A model config that puts an exported file in the place of a config's model."""
    if fast is not None:
        raise ToolError(f'--fast is for checkpoints: {path} is a form for inference already')
    if cfg.get('launcher', 'none') != 'none':
        raise ToolError('--launcher is for checkpoints: an exported file runs in one process')
    return dict(
        type=f'res2net_mm.{ExportedModule.__name__}', path=str(path), expected=facts_of(cfg.model)
    )


def facts_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says about its model that the metadata of its exported file says too."""
    head, mask_thr = model.get('decode_head'), None
    if head:
        task = 'segmentation'
        if isinstance(head, Mapping) and head.get('out_channels') == 1:
            mask_thr = head.get('threshold') or 0.3  # mmseg's default
    elif type_name(model).endswith('ImageClassifier'):
        task = 'classification'
    elif 'panoptic_fusion_head' in model:
        task = 'panoptic'
    else:
        task = 'instance' if 'mask_head' in (model.get('roi_head') or {}) else 'detection'
    whole = model.get('test_cfg') or {}
    test_cfg = whole.get('rcnn', whole)
    return dict(
        task=task,
        model=type_name(model).rpartition('.')[2],
        score_thr=test_cfg.get('score_thr'),
        max_per_img=test_cfg.get('max_per_img'),
        mask_thr=test_cfg.get('mask_thr_binary', mask_thr),
        test_cfg=settings_of(whole),
    )
