"""How this process treats memory that is freed."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = -1
_MADV_HUGEPAGE = 14  # of Linux
_HUGE_PAGE = 2**21
_RESERVED = 2**31  # bytes of addresses, not of memory


def can_keep_memory() -> bool:
    """Whether :func:`keep_freed_memory` does it: with glibc and no GPU."""
    return platform.libc_ver()[0] == 'glibc' and not torch.cuda.is_available()


def keep_freed_memory() -> bool:
    """Keeps what large tensors free for the next ones, rather than give it back to the system.

    By default glibc returns it, and takes and clears new pages at every layer of a network. PyTorch
    on a GPU keeps its memory likewise. Resident memory then stays at its peak. The first 2 GiB are
    huge pages where Linux has them for programs that ask (``madvise``, its default): features and
    gradients are larger than what a processor finds by small ones without a detour.

    Returns:
        Whether it was done.
    """
    return can_keep_memory() and _keep()


@cache
def _keep() -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    done = mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER)
    if done:
        ask_for_huge_pages()
    return bool(done)


def ask_for_huge_pages() -> None:
    """Asks for them where the heap of a process that keeps memory grows.

    Addresses are taken once, and freed untouched.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(_RESERVED)
    if start is None:  # there is a limit
        return
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    last = (start + _RESERVED) // _HUGE_PAGE * _HUGE_PAGE
    libc.madvise(first, last - first, _MADV_HUGEPAGE)
    libc.free(start)
