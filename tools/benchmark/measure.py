"""Measures contenders, each in its own process, and describes the machine.

What one contender loads, caches or keeps cannot help or hinder another. They take turns, so that
whatever disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.util
import multiprocessing
import os
import platform
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # waits for a GPU
from tqdm import tqdm

from res2net_mm import __version__
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops.memory import keep_freed_memory

FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')  # decide how fast a CPU convolves
MODULES = 'torch torchvision mmengine mmcv mmdet timm faster_coco_eval pycocotools'.split()
TOP, REST = 10, 'the rest'  # operations in a profile
_CLEAR_REFS = Path('/proc/self/clear_refs')
_CALL: list[Callable[[], object]] = []  # what this process measures


def measure(
    contenders: Mapping[str, bool],
    prepare: Callable[..., Callable[[], object]],
    *args: Any,
    settings: argparse.Namespace,
    profiled: Sequence[str] = (),
    profiles: int = 5,
    warmup: int = 1,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]] | None]:
    """Measures the time and memory of contenders.

    Args:
        contenders: Name -> whether its process keeps freed memory.
        prepare: Makes the call to measure from ``(name, *args)``, in the contender's process. It
            must be a function of a module.
        *args: Small, as they are pickled.
        settings: Has ``rounds`` and ``device``.
        profiled: Names of the contenders to profile.
        profiles: How often each of them is profiled; the shortest one is kept.
        warmup: Rounds that are not timed, after the one that is measured for memory.

    Returns:
        A row for each contender (name, times in seconds, peak memory, a note); and for the profiled
        ones seconds by operation (None on a GPU).

    Raises:
        ToolError: A process was killed.
    """
    with ExitStack() as stack:
        processes = {}
        for name, keep in tqdm(contenders.items(), desc='starting', unit='process'):
            own = own_process(name, prepare, name, *args, keep=keep)
            processes[name] = stack.enter_context(own)
        # the first call: later ones reuse memory that the process has kept
        memory = {n: p.ask(_on_call, peak_memory, settings.device) for n, p in processes.items()}
        calls = {name: partial(own.ask, _on_call, seconds) for name, own in processes.items()}
        times = interleave(calls, settings.rounds, warmup)
        on_cpu = torch.device(settings.device).type == 'cpu'
        takes = {n: partial(processes[n].ask, _on_call, profile_operations) for n in profiled}
        found = least_profiles(takes, profiles) if on_cpu and profiled else None
    kept = {name: 'keeps freed memory' * own.keeps for name, own in processes.items()}
    rows = [dict(name=n, times=times[n], memory_mib=memory[n], note=kept[n]) for n in contenders]
    return rows, found


class OwnProcess:
    """A process that has prepared one call."""

    def __init__(self, pool: ProcessPoolExecutor, name: str) -> None:
        self.pool, self.name = pool, name

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of a module returns in the process."""
        try:
            return self.pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise ToolError(
                f'the process of {self.name} was killed: perhaps there is too little memory'
            ) from error


@contextmanager
def own_process(
    name: str, prepare: Callable[..., Any], *args: Any, keep: bool = False
) -> Iterator[OwnProcess]:
    """A process that has prepared ``prepare(*args)``, with as many threads as this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        process = OwnProcess(pool, name)
        process.keeps = process.ask(_start, prepare, args, torch.get_num_threads(), keep)
        yield process


def _start(prepare: Callable[..., Any], args: tuple, threads: int, keep: bool) -> bool:
    """Returns whether the process keeps what tensors free."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keeps = keep and keep_freed_memory()
    _CALL.append(prepare(*args))
    return keeps


def _end_with_parent() -> None:
    """A parent that is killed cannot end its children."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _on_call(function: Callable[..., Any], *args: Any) -> Any:
    return function(_CALL[0], *args)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, a GPU's work included."""
    start = timer()
    call()
    return timer() - start


def interleave(
    calls: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 0
) -> dict[str, list[float]]:
    """What calls return in each round. Each round begins with the next call.

    Args:
        calls: Name -> what gives its seconds.
        rounds: Seconds to collect from each call.
        warmup: Earlier rounds, which are not collected.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(warmup + rounds) * len(names), desc='timing', unit='call') as progress:
        for turn in range(-warmup, rounds):
            first = max(turn, 0) % len(names)
            for name in names[first:] + names[:first]:
                taken = calls[name]()
                if turn >= 0:
                    times[name].append(taken)
                progress.update()
    return times


def peak_memory(call: Callable[[], object], device: str = 'cpu') -> float | None:
    """MiB that a call needs at its peak, beyond what was in use before it.

    On the CPU that is resident memory, including what a first call loads and keeps; None if the
    system does not report it. On a GPU it is what PyTorch allocates.
    """
    if torch.device(device).type != 'cpu':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not os.access(_CLEAR_REFS, os.W_OK):
        call()
        return None
    # free memory that was not given back to the system would be reused without being seen
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    _CLEAR_REFS.write_text('5')  # resets the peak to what is in use now
    before = _resident()
    call()
    return (_resident() - before) / 2**10


def _resident() -> int:
    """Peak of the resident memory, in KiB."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'^VmHWM:\s*(\d+)', status, re.MULTILINE)[1])


def profile_operations(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call on the CPU in the operations that take longest, and in the others."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    taken = Counter({e.key: e.self_cpu_time_total / 1e6 for e in found.key_averages()})
    longest = dict(taken.most_common(TOP))
    return {**longest, REST: taken.total() - sum(longest.values())}


def least_profiles(
    takes: Mapping[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Profiles by name, taken in turns; of each, the one with the shortest time is kept."""
    found = [{name: take() for name, take in takes.items()} for _ in range(rounds)]
    return {n: min((f[n] for f in found), key=lambda parts: sum(parts.values())) for n in takes}


def exactly() -> AbstractContextManager:
    """Within it, a GPU does not round the float32 numbers of convolutions to TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def type_name(dtype: torch.dtype) -> str:
    """``'float32'`` for ``torch.float32``."""
    return str(dtype).removeprefix('torch.')


def machine(device: str) -> dict[str, Any]:
    """What a time depends on: processor, threads, versions."""
    info = Path('/proc/cpuinfo')
    text = info.read_text() if info.exists() else ''
    fields = dict(re.findall(r'^(model name|flags)\s*: (.*)$', text, re.MULTILINE))
    has = fields.get('flags', '').split()
    on_gpu = torch.device(device).type == 'cuda'
    return dict(
        cpu=fields.get('model name') or platform.processor() or platform.machine(),
        flags=[flag for flag in FLAGS if flag in has],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if on_gpu else None,
        python=platform.python_version(),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Versions of modules, with the package if it has another name."""
    packages = metadata.packages_distributions()
    found = {}
    for module in MODULES:
        if importlib.util.find_spec(module) is not None and module in packages:
            package = packages[module][0]  # of several, the first one on the path is imported
            found[module] = metadata.version(package) + f' ({package})' * (package != module)
    return {**found, 'res2net_mm': __version__}


def make_record(
    settings: argparse.Namespace,
    title: str,
    rows: list[dict[str, Any]],
    profile: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """A record; its yardstick is the first row."""
    aside = ('command', 'json', 'chart')
    return dict(
        task=settings.task,
        title=title,
        yardstick=rows[0]['name'],
        settings={key: value for key, value in vars(settings).items() if key not in aside},
        command=getattr(settings, 'command', ''),
        date=datetime.date.today().isoformat(),
        machine=machine(settings.device),
        rows=rows,
        profile=profile,
        notes=list(notes),
    )
