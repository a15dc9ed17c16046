"""Pictures of what a segmentor with one channel predicts: the probability of the object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from ..files import writing

_OPACITY = 0.6  # of the colour where the object is certain


def probability(sample: Any) -> np.ndarray | None:
    """(H, W) of a data sample of mmseg, 0 to 1; None if its model has not one channel."""
    found = sample.get('seg_logits')  # after the sigmoid
    return None if found is None or len(found.data) != 1 else found.data[0].float().cpu().numpy()


def overlay(pixels: np.ndarray, found: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """An image (H, W, 3) of uint8, tinted by the probability (H, W)."""
    share = _OPACITY * found[..., None]
    return (pixels * (1 - share) + np.asarray(colour) * share).round().astype(np.uint8)


def write_picture(picture: np.ndarray, out: Path) -> None:
    """Writes (H, W, 3), RGB, of uint8, or a probability (H, W) as grey levels from 0 to 255."""
    grey = picture.ndim == 2
    picture = (picture * 255).round().astype(np.uint8) if grey else mmcv.rgb2bgr(picture)
    with writing(out, durable=False) as partial:
        mmcv.imwrite(picture, str(partial))
