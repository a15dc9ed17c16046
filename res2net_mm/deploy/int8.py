"""Post-training quantisation of OpenVINO files to int8, by nncf."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from .metadata import save_openvino
from .running import ExportedModel, openvino_core

# Quantising everything, nncf's default, costs a detector AP, most of all of large objects: box
# coordinates go through these operations, and 256 levels are too few for them.
ELEMENTWISE = (
    *('Add', 'BatchNormInference', 'Clamp', 'Concat', 'Divide', 'Exp', 'Gather', 'Maximum'),
    *('Minimum', 'Multiply', 'Power', 'Sqrt', 'Subtract'),
)
# What else to leave in float if accuracy falls too far, by names of modules: more at each step. In
# Semantic FPN on CamVid the loss came from the first layers (seen with --check).
_FIRST = ('backbone.stem', 'backbone.conv1')
_HEADS = ('rpn_head', 'bbox_head', 'mask_head', 'semantic_head', 'decode_head', 'head')
STEPS = ((), _FIRST, _FIRST + _HEADS, (*_FIRST, *_HEADS, 'roi_head', 'neck'))
_INT8_FLAGS = {'avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp', 'i8mm'}


def has_int8_instructions() -> bool:
    """Whether this processor can multiply int8 fast; without that, int8 gains little.

    True where the system does not list what its processor can do.
    """
    info = Path('/proc/cpuinfo')
    return not info.exists() or not _INT8_FLAGS.isdisjoint(info.read_text().split())


def require_nncf() -> None:
    """Raises ``ImportError`` saying what to install, unless openvino and nncf are there."""
    loggers = logging.getLoggerClass()
    try:
        with patch.dict(os.environ, NNCF_CI='1'):  # else it reports its use over the net
            import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"int8 needs openvino and nncf: pip install 'res2net_mm[openvino]' ({error})"
        ) from error
    finally:
        logging.setLoggerClass(loggers)  # nncf sets its own


def quantize(
    source: str | Path, path: str | Path, images: Sequence[np.ndarray], step: int = 0
) -> dict[str, Any]:
    """Writes an int8 version of an OpenVINO file, and returns its metadata.

    Convolutions and linear layers are quantised; the arithmetic between them stays in float.

    Args:
        source: The float32 file, ``.xml``.
        path: The file to write, ``.xml``, which may be ``source``; its weights go into a ``.bin``
            file beside it.
        images: To calibrate with, (h, w, 3), uint8, RGB, resized as the config resizes; they are
            read twice.
        step: Which of ``STEPS`` to leave in float.
    """
    require_nncf()
    import nncf

    if not len(images):
        raise ValueError('int8 needs images to calibrate with, but got none')
    file, model = ExportedModel(source), openvino_core().read_model(source)
    in_float = ['elementwise arithmetic', *STEPS[step]]
    layers = _layers(model, STEPS[step]) if step else []
    logger = logging.getLogger('nncf')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images, lambda image: file.fit(image)[None]),
            subset_size=len(images),
            # no model has all of the types
            ignored_scope=nncf.IgnoredScope(types=list(ELEMENTWISE), names=layers, validate=False),
        )
    finally:
        logger.setLevel(level)
    metadata = dict(file.metadata, int8=dict(images=len(images), float=in_float))
    save_openvino(quantized, path, metadata)
    return metadata


def _layers(model: Any, modules: Sequence[str]) -> list[str]:
    """Names of the convolutions and linear layers that these modules hold."""
    found = []
    pattern = re.compile(rf'\.({"|".join(map(re.escape, modules))})[./]')
    for layer in model.get_ordered_ops():
        if layer.get_type_name() in ('Convolution', 'GroupConvolution', 'MatMul'):
            node = layer
            # a layer with a folded batch norm has lost its name, but what follows it has one
            while '__module' not in node.get_friendly_name() and node.outputs():
                node = next(iter(node.output(0).get_target_inputs())).get_node()
            if pattern.search(node.get_friendly_name()):
                found.append(layer.get_friendly_name())
    return found
