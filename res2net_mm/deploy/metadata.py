"""What an exported file says about itself: one JSON text under the key ``res2net_mm``.

ONNX files have it in ``metadata_props``, OpenVINO files in ``rt_info``. Fields:

- ``format``: 1, the version of this list; ``version``: of this package.
- ``task``: ``'detection'``, ``'instance'``, ``'panoptic'``, ``'segmentation'``,
  ``'classification'`` or ``'backbone'``.
- ``config``: name of the config; ``model``: class of the model; ``weights``: a hash of its weights.
- ``classes``, ``palette``: names and (r, g, b) of the labels.
- ``input``: ``kind`` (``'image'``: uint8, (1, h, w, 3), RGB; ``'raw'``: normalised float32,
  (N, C, h, w)); ``height`` and ``width``: the largest image, null where they are open; ``divisor``
  of the padded size; ``mean`` and ``std`` of pixels from 0 to 255, in the order ``channels`` of the
  raw input; ``resize``: the config's rule, ``scale`` [w, h], ``keep_ratio`` and ``backend``, or
  null. Of classifiers also ``crop`` [w, h], and with ``edge`` a single number as scale.
- ``outputs``: names; ``score_thr``, ``max_per_img``, ``mask_thr``: of detectors, the last also of
  segmentors with one channel; ``test_cfg``: all such settings by dotted key.
- ``opset``: of ONNX files; ``bin``: of OpenVINO files, a hash of the ``.bin`` file.
- ``int8``: null, or what a quantised file leaves in float.
- ``variant`` (null if it has no name), ``first_block``, ``style``: of backbones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..backbones import Backbone
from ..backbones.layers import BATCH_NORMS
from ..checks import check_choice
from ..data.sets.nodes import type_name
from ..version import __version__
from ..weights.architecture import architecture_of, variants_like
from ..weights.zoo import IMAGENET_MEAN, IMAGENET_STD
from .running import FORMAT, KEY, file_hash


def normalisation_of(model: nn.Module, channels: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """``mean`` and ``std``, a number a channel, and ``channels``, their order: 'RGB' or 'BGR'.

    They are ``given``, or the model's own, or for a backbone of three channels ImageNet's.
    """
    found = dict(mean=(0.0,) * channels, std=(1.0,) * channels, channels='RGB')
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None and channels == 3:  # what all published weights were trained with
        found.update(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    elif preprocessor is not None:
        if getattr(preprocessor, 'mean', None) is not None:  # only if it normalises
            for name in ('mean', 'std'):
                values = getattr(preprocessor, name).double().flatten().tolist()
                found[name] = tuple(round(value, 4) for value in values)  # of float32's noise
        # images come from mmcv as BGR; the second name is that of mmsegmentation 1.2.2, the third
        # mmpretrain's
        names = ('_channel_conversion', 'channel_conversion', 'to_rgb')
        converts = any(getattr(preprocessor, name, False) for name in names)
        found['channels'] = 'RGB' if converts else 'BGR'
    found |= {name: given[name] for name in found if given.get(name) is not None}
    for name in ('mean', 'std'):
        values = found[name]
        if len(values) != channels or not all(map(math.isfinite, values)):
            raise ValueError(f'{name} must be {channels} finite numbers, but got {values!r}')
    if min(found['std']) <= 0:
        raise ValueError(f'std must be positive, but got {found["std"]!r}')
    check_choice('channels', found['channels'], ('RGB', 'BGR'))
    return found


def resize_rule(pipeline: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How a test pipeline resizes and crops, as the metadata has it; None if it does not.

    Raises:
        ValueError: It changes images in a way that no rule describes.
    """
    pipeline = list(pipeline)
    crops = any(type_name(step).endswith('PackInputs') for step in pipeline)  # a classifier's
    rule: dict[str, Any] = {}
    for step in pipeline:
        name, scale = type_name(step).rpartition('.')[2], step.get('scale')
        bilinear = scale and step.get('interpolation', 'bilinear') == 'bilinear'
        turned = step.get('color_type') in ('color_ignore_orientation', 'unchanged')
        changes_nothing = 'Annotations' in name or name in ('CheckLabelMap', 'DropEmptyBoxes')
        changes_nothing |= name == 'RandomFlip' and step.get('prob') == 0
        if changes_nothing or (name.startswith(('Load', 'Pack')) and not turned):
            continue
        if crops and name == 'CenterCrop' and not step.get('auto_pad') and 'crop' not in rule:
            size = step['crop_size']
            rule['crop'] = [size] * 2 if isinstance(size, int) else list(size)
        elif name in ('Resize', *['ResizeEdge'] * crops) and bilinear and not rule:
            rule = dict(scale=scale, backend=step.get('backend', 'cv2'))
            if name == 'ResizeEdge':
                rule['edge'] = step.get('edge', 'short')
            else:
                rule['scale'] = [scale] * 2 if isinstance(scale, int) else list(scale)
                rule['keep_ratio'] = bool(step.get('keep_ratio'))
        else:
            known = 'Resize or ResizeEdge, and then CenterCrop' if crops else 'Resize with a scale'
            raise ValueError(
                f'the test pipeline prepares images by {dict(step)}, and an exported file cannot '
                f'say so: use one bilinear {known}'
            )
    return rule or None


def test_size(
    resize: Mapping[str, Any] | None, images: Iterable[np.ndarray] = ()
) -> tuple[int, int] | None:
    """(height, width) of the images if they have one size, else of what holds any resized image.

    The latter is landscape, and None if there is no rule.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) == 1:
        return sizes.pop()
    if resize is None:
        return None
    width, height = resize['scale']
    return (min(width, height), max(width, height)) if resize['keep_ratio'] else (height, width)


def settings_of(node: Any, key: str = '') -> dict[str, Any]:
    """The values of nested dicts by dotted key, as JSON gives them back."""
    if not isinstance(node, Mapping):
        return {key: json.loads(json.dumps(node, default=str))}
    found = {}
    for name, part in node.items():
        found |= settings_of(part, f'{key}.{name}' if key else str(name))
    return found


def save_openvino(model: Any, path: str | Path, metadata: dict[str, Any]) -> None:
    """Writes an OpenVINO model with its metadata, and in that a hash of its ``.bin`` file."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    metadata['bin'] = file_hash(Path(path).with_suffix('.bin'))
    model.set_rt_info(json.dumps(metadata, ensure_ascii=False), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def weights_hash(model: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of all weights in float32."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()[:16]


def describe(graph: Any, normalisation: Mapping[str, Any], about: Mapping[str, Any]) -> dict:
    """The metadata of a :class:`~res2net_mm.deploy.graphs.Graph`.

    ``about`` has ``config``, ``classes``, ``palette`` and ``resize``, where they are known.
    """
    model = graph.model
    height, width = graph.size or (None, None)
    test_cfg = dict(getattr(model, 'test_cfg', None) or {})
    test_cfg = test_cfg.get('rcnn', test_cfg)
    threshold = test_cfg.get('mask_thr_binary')
    if 'probability' in graph.outputs:
        threshold = model.decode_head.threshold
    text = dict(
        format=FORMAT,
        version=__version__,
        task=graph.task,
        config=about.get('config'),
        model=type(model).__name__,
        weights=weights_hash(model),
        classes=list(about.get('classes') or ()),
        palette=[list(colour) for colour in about.get('palette') or ()],
        input=dict(
            kind='raw' if graph.raw else 'image',
            height=height,
            width=width,
            divisor=graph.divisor,
            mean=list(normalisation['mean']),
            std=list(normalisation['std']),
            channels=normalisation['channels'],
            resize=about.get('resize'),
        ),
        outputs=list(graph.outputs),
        score_thr=test_cfg.get('score_thr'),
        max_per_img=test_cfg.get('max_per_img'),
        mask_thr=threshold,
        test_cfg=settings_of(model.test_cfg) if getattr(model, 'test_cfg', None) else {},
        opset=None,
        bin=None,
        int8=None,
    )
    backbone = getattr(model, 'backbone', model)
    if isinstance(backbone, Backbone):
        text.update(variant=variant_of(backbone), **backbone.convention)
    return text


def variant_of(net: Backbone) -> str | None:
    """Name of the variant that a network is, by its weights, convention and layers."""
    shown, own = {**architecture_of(net.state_dict()), **net.convention}, _layers(net)
    twins = ((name, twin) for name, twin in variants_like(shown) if type(twin) is type(net))
    return next((name for name, twin in twins if _layers(twin) == own), None)


def _layers(net: Backbone) -> Any:
    """What features depend on besides the weights: the convention, every layer's arguments."""
    layers = []
    for name, module in net.named_modules():
        if isinstance(module, BATCH_NORMS):  # of one process or of several
            layers.append((name, module.num_features, module.eps))
        else:
            layers.append((name, type(module).__name__, module.extra_repr()))
    return net.convention, layers
