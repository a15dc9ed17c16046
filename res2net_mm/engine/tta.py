"""Test-time augmentation: predictions for mirrored and resized images, merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner

from ..data.sets.nodes import type_name
from ..data.transforms import harden_pipeline
from .config import walk_dicts
from .errors import ToolError, building_config
from .exported import facts_of
from .loading import unwrapped

_SCALES = (1.0, 0.75, 1.25)
_META = ('flip', 'flip_direction')  # what merging needs to know of an image


class MergingHook(Hook):
    """Puts mmdet's or mmseg's model that merges predictions, without ``module``, around a model."""

    priority = 'LOWEST'

    def __init__(self, merging: Mapping[str, Any]) -> None:
        self.merging = merging

    def before_test_epoch(self, runner: Runner) -> None:
        with building_config('tta_model'):
            runner.model = MODELS.build(dict(self.merging, module=unwrapped(runner.model)))


def use_tta(cfg: Config) -> MergingHook:
    """Makes the test data of a config give each image in three sizes, as it is and mirrored.

    ``tta_pipeline`` and ``tta_model`` of the config, if it has them, say how instead. Raises a
    ToolError if mmdet and mmseg cannot merge what the model predicts.
    """
    merging, own = cfg.get('tta_model'), cfg.get('tta_pipeline')
    if not merging or type_name(merging).rpartition('.')[2] in ('DetTTAModel', 'SegTTAModel'):
        merging = {**_merging(cfg), **(merging or {})}
    for part in walk_dicts(cfg.test_dataloader.dataset):
        if 'pipeline' in part:
            part['pipeline'] = harden_pipeline(own) if own else _views(part.pipeline)
    return MergingHook(merging)


def _merging(cfg: Config) -> dict[str, Any]:
    facts = facts_of(cfg.model)
    one_channel = facts['mask_thr'] is not None  # whose sigmoid mmseg would apply twice
    if facts['task'] == 'segmentation' and not one_channel:
        from mmseg.models import SegTTAModel

        return dict(type=SegTTAModel)
    measured = [part.get('metric') or () for part in walk_dicts(cfg.test_evaluator)]
    masks = any('segm' in metric for metric in measured) or 'mask_head' in str(cfg.model)
    boxes = facts['task'] == 'detection' and cfg.get('default_scope', 'mmdet') == 'mmdet'
    if masks or not boxes:
        raise ToolError(
            '--tta merges the boxes of detectors and the label maps of segmentors with several '
            f'channels, but not what this {type_name(cfg.model)} predicts'
        )
    from mmdet.models import DetTTAModel

    test_cfg = cfg.model.get('test_cfg') or {}
    test_cfg = test_cfg.get('rcnn', test_cfg)
    nms = test_cfg.get('nms', dict(type='nms', iou_threshold=0.5))
    merged = ConfigDict(nms=nms, max_per_img=test_cfg.get('max_per_img', 100))
    return dict(type=DetTTAModel, tta_cfg=merged)


def _views(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A test pipeline that gives an image in all sizes, first as it is."""
    names = [type_name(step).rpartition('.')[2] for step in pipeline]
    place = names.index('Resize') if 'Resize' in names else 1
    rest = [dict(step) for step in pipeline[place:]]
    resize = rest.pop(0) if 'Resize' in names else dict(type='Resize', keep_ratio=True)
    for step in rest:
        if 'meta_keys' in step:
            step['meta_keys'] = tuple(dict.fromkeys((*step['meta_keys'], *_META)))
    scales = _SCALES[:1] if 'Pad' in names else _SCALES  # no room in one size
    views = [
        [_resized(resize, scale) for scale in scales],
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        *([step] for step in rest),
    ]
    return [*pipeline[:place], dict(type='TestTimeAug', transforms=views)]


def _resized(resize: Mapping[str, Any], factor: float) -> dict[str, Any]:
    scale = resize.get('scale')
    if not scale:
        given = resize.get('scale_factor') or 1
        sides = given if isinstance(given, tuple | list) else (given, given)
        return dict(resize, scale_factor=tuple(side * factor for side in sides))
    sides = [scale] if isinstance(scale, int) else scale
    sides = tuple(round(side * factor) for side in sides)
    return dict(resize, scale=sides[0] if isinstance(scale, int) else sides)
