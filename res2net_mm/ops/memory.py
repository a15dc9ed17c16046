"""How this process treats memory that is freed."""

from __future__ import annotations

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def can_keep_memory() -> bool:
    """Whether :func:`keep_freed_memory` does it: with glibc and no GPU."""
    return platform.libc_ver()[0] == 'glibc' and not torch.cuda.is_available()


def keep_freed_memory() -> bool:
    """Keeps what large tensors free for the next ones, and returns whether that is possible.

    By default glibc gives it back to the system, and takes and clears new pages at every layer of a
    network. Resident memory then stays at its peak.
    """
    if not can_keep_memory():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
