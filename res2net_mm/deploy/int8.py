"""Post-training quantisation of OpenVINO files to int8, by nncf."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .running import KEY

# Quantising everything, nncf's default, cost the detector of `make demo` 0.08 AP, and 0.5 AP of
# large objects: box coordinates go through these operations, and 256 levels are too few for them.
# With these in float the AP was that of float32, at the same speed.
ELEMENTWISE = (
    'Add',
    'Clamp',
    'Concat',
    'Divide',
    'Exp',
    'Gather',
    'Maximum',
    'Minimum',
    'Multiply',
    'Power',
    'Sqrt',
    'Subtract',
)
# What else to leave in float where accuracy falls too far: names of modules, more at each step.
STEPS: tuple[tuple[str, ...], ...] = (
    (),
    ('rpn_head', 'bbox_head', 'mask_head', 'semantic_head', 'decode_head'),
    ('rpn_head', 'roi_head', 'bbox_head', 'semantic_head', 'decode_head', 'neck', 'stem', 'conv1'),
)
_INT8_FLAGS = ('avx512_vnni', 'avx_vnni', 'amx_int8', 'asimddp', 'i8mm')


def has_int8_instructions() -> bool:
    """Whether this processor has instructions for products of int8, without which int8 gains little.

    True where the system does not list a processor's instructions.
    """
    info = Path('/proc/cpuinfo')
    if not info.exists():
        return True
    flags = {word for line in info.read_text().splitlines() for word in line.split()}
    return any(flag in flags for flag in _INT8_FLAGS)


def quantize(
    source: str | Path,
    path: str | Path,
    images: Iterable[np.ndarray],
    step: int = 0,
) -> dict[str, Any]:
    """Writes an int8 version of an OpenVINO file.

    Convolutions and linear layers are quantised, arithmetic between them stays in float.

    Args:
        source: The float32 file, ``.xml``.
        path: The file to write, ``.xml``; its weights go into a ``.bin`` file beside it.
        images: Inputs for calibration, (h, w, 3) of uint8 each.
        step: Which of ``STEPS`` to leave in float.

    Returns:
        What the metadata of the file says about it: ``images``, and ``float``, what is not int8.

    Raises:
        ImportError: openvino or nncf is not installed.
        ValueError: There are no images.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ImportError(
            f"int8 needs openvino and nncf: pip install 'res2net_mm[openvino]' ({error})"
        ) from error
    inputs = [image[None] for image in images]
    if not inputs:
        raise ValueError('int8 needs images to calibrate with, but got none')
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(source)
    scope = nncf.IgnoredScope(
        types=list(ELEMENTWISE),
        patterns=[rf'.*\b{module}\b.*' for module in STEPS[step]],
        validate=False,  # not every model has all of them
    )
    quantized = nncf.quantize(
        model, nncf.Dataset(inputs), subset_size=len(inputs), ignored_scope=scope
    )
    about = dict(images=len(inputs), float=['elementwise arithmetic', *STEPS[step]])
    metadata = json.loads(model.get_rt_info([KEY]).value)
    quantized.set_rt_info(json.dumps(dict(metadata, int8=about)), [KEY])
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return about
