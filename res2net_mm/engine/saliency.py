"""Pictures of what a segmentor with one channel predicts: the probability of the object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def probability(sample: Any) -> np.ndarray | None:
    """(H, W) of a data sample, 0 to 1; None if the model has not one channel."""
    found = sample.get('seg_logits')  # mmseg has applied the sigmoid
    return None if found is None or len(found.data) != 1 else found.data[0].float().cpu().numpy()


def overlay(pixels: np.ndarray, found: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """An image (H, W, 3) of uint8, tinted by the probability (H, W), to 60 % where it is 1."""
    share = 0.6 * found[..., None]
    return (pixels * (1 - share) + np.asarray(colour) * share).round().astype(np.uint8)
