"""Which type operators compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest type among the tensors, and at least float32.

    torchvision's CPU kernels lack bfloat16, and coordinates in half precision lose whole pixels
    beyond 256 (bfloat16) or 2048 (float16).
    """
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which operators keep the types of their inputs; ``device`` is a device type."""
    return nullcontext() if device == 'meta' else torch.autocast(device, enabled=False)
