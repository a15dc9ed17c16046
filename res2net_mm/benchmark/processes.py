"""Calls in processes of their own, each with its own way of handling memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from ..engine.errors import ToolError
from ..ops.memory import can_keep_memory, keep_freed_memory
from .measure import now
from .profiling import profile_kinds

KEPT = ' kept memory'  # at the end of a name: as the one without, in a process that keeps it
_CALLS: list[Callable[[], object]] = []  # what this process does when it is told


def without_kept(names: Iterable[str], device: str) -> list[str]:
    """Names of contenders, but for those that differ by kept memory alone where none is kept."""
    keeps = torch.device(device).type == 'cpu' and can_keep_memory()
    return [name for name in names if keeps or not name.endswith(KEPT)]


class OwnProcess:
    """A process that does one call, as often as it is told.

    Args:
        pool: Of this process alone; it has prepared the call.
        name: For errors.
        device: That the call runs on.

    Attributes:
        keeps: It keeps freed memory.
    """

    keeps = False

    def __init__(self, pool: ProcessPoolExecutor, name: str, device: str) -> None:
        self.pool, self.name, self.device = pool, name, device

    def __call__(self) -> float:
        """Does the call; its seconds."""
        return self.ask(_call, self.device)

    def profile(self) -> dict[str, float] | None:
        """:func:`profile_kinds` of the call."""
        return self.ask(_profile, self.device)

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of a module returns there.

        Raises:
            ToolError: The process was ended, as it is where memory runs out.
        """
        try:
            return self.pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise ToolError(
                f'the process of {self.name} was ended: perhaps there is too little memory'
            ) from error


@contextmanager
def own_process(
    name: str, device: str, keep: bool, prepare: Callable[..., Callable[[], object]], *args: Any
) -> Iterator[OwnProcess]:
    """A process that has prepared a call, with as many threads as here.

    Args:
        name: For errors.
        device: That the call runs on.
        keep: The process keeps freed memory, as our tools do, where that can be.
        prepare: Of a module, so that another process finds it; it returns the call.
        *args: Of ``prepare``; small, as they are pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        process = OwnProcess(pool, name, device)
        process.keeps = process.ask(_start, prepare, args, torch.get_num_threads(), keep)
        yield process


def _start(prepare: Callable[..., Any], args: tuple, threads: int, keep: bool) -> bool:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keeps = keep and keep_freed_memory()
    _CALLS.append(prepare(*args))
    return keeps


def _end_with_parent() -> None:
    """Waits for the parent's end: one that is killed does not say so."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(device: str) -> float:
    start = now(device)
    _CALLS[0]()
    return now(device) - start


def _profile(device: str) -> dict[str, float] | None:
    return profile_kinds(_CALLS[0], device=device)
