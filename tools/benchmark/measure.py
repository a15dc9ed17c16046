"""Measures contenders, each in a process of its own, and describes the machine.

What one contender loads, caches or keeps cannot help or hinder another. All of them take turns, so
whatever disturbs the machine disturbs them all.
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
import timeit
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
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
REST = 'the rest'
# kind -> names of operations; an operation within another one is of the outer one's kind
KINDS = {
    'optimizer': r'Optimizer\.',
    'deformable convolution, backward': r'deform_?conv.*backward|CppNode<vision',
    'deformable convolution': r'deform_?conv',
    'convolution, backward': r'conv.*backward',
    'linear': r'linear|addmm',
    'convolution': r'conv|^aten::(bmm|mm|matmul|baddbmm)$',
    'batch norm': r'batch_?norm',
    'ReLU': r'relu|clamp_min|threshold',
    'pooling': r'pool',
    'sum, split and concatenation': r'^aten::(add_?|cat)$|(add|split|cat)backward',
}
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
    """Measures the time and the memory of contenders.

    Args:
        contenders: Name -> whether its process keeps freed memory.
        prepare: Makes the call to measure from ``(name, *args)``, in the contender's process. It
            must be a function of a module.
        *args: Small, as they are pickled.
        settings: Has ``rounds`` and ``device``.
        profiled: Names of the contenders to profile.
        profiles: Times that each of them is profiled; the shortest is kept.
        warmup: Rounds that are not timed, after the one that is measured for memory.

    Returns:
        A row for each contender (name, times in seconds, peak memory, a note); and for the profiled
        ones what the call's ``profile()`` returns, or else seconds by kind of operation (None on a
        GPU).

    Raises:
        ToolError: A process was killed.
    """
    with ExitStack() as stack:
        processes = {}
        for name, keep in tqdm(contenders.items(), desc='starting', unit='process'):
            own = own_process(name, prepare, name, *args, keep=keep)
            processes[name] = stack.enter_context(own)
        # the first call: later ones reuse memory that the process has kept
        memory = {name: p.ask(_peak, settings.device) for name, p in processes.items()}
        calls = {name: partial(own.ask, _seconds) for name, own in processes.items()}
        times = interleave(calls, settings.rounds, warmup)
        takes = {n: partial(processes[n].ask, _profile, settings.device) for n in profiled}
        found = least_profiles(takes, profiles)
    kept = {name: 'keeps freed memory' * own.keeps for name, own in processes.items()}
    rows = [dict(name=n, times=times[n], memory_mib=memory[n], note=kept[n]) for n in contenders]
    return rows, found if any(found.values()) else None


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


def _seconds() -> float:
    return seconds(_CALL[0])


def _peak(device: str) -> float | None:
    return peak_memory(_CALL[0], device)


def _profile(device: str) -> dict[str, float]:
    if hasattr(_CALL[0], 'profile'):
        return _CALL[0].profile()
    return profile_kinds(_CALL[0]) if torch.device(device).type == 'cpu' else {}


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, a GPU's work included."""
    start = timer()
    call()
    return timer() - start


def interleave(
    calls: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 0
) -> dict[str, list[float]]:
    """What calls return in each round. Every round begins with the next call.

    Args:
        calls: Name -> what gives its seconds.
        rounds: Seconds to collect from each call.
        warmup: Rounds before, which are not collected.
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

    On the CPU that is resident memory, with what a first call loads and keeps; None where the
    system does not report it. On a GPU it is what PyTorch allocates.
    """
    if torch.device(device).type != 'cpu':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not os.access(_CLEAR_REFS, os.W_OK):
        call()
        return None
    # memory that is free but was not given back to the system would be used without being seen
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


def profile_kinds(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call on the CPU by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    taken: Counter[str] = Counter()
    for event in found.events():
        taken[kind_of(event)] += event.self_cpu_time_total / 1e6
    return {kind: taken[kind] for kind in (*KINDS, REST) if taken[kind]}


def kind_of(event: Any) -> str:
    """The kind of an operation that the profiler has seen."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for name in reversed(names):
        for kind, pattern in KINDS.items():
            if re.search(pattern, name, re.IGNORECASE):
                return kind
    return REST


def least_profiles(
    takes: Mapping[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Profiles by name, taken in turns; of each, the one with the shortest time is kept."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in takes}
    for _ in range(rounds):
        for name, take in takes.items():
            found[name].append(take())
    return {name: min(all_, key=lambda kinds: sum(kinds.values())) for name, all_ in found.items()}


@contextmanager
def tf32(products: bool, convolutions: bool) -> Iterator[None]:
    """Within it, a GPU may round float32 to TF32, or may not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def matmul_gflops(dtype: torch.dtype, device: str = 'cpu') -> float:
    """Rate of a large matrix product, in 1e9 operations a second: the best of 50."""
    # a large GPU is not busy with a smaller one
    side = 1024 if torch.device(device).type == 'cpu' else 8192
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    rounded = torch.backends.cudnn.allow_tf32  # products as convolutions
    with tf32(rounded, rounded):
        least = min(timeit.repeat(lambda: a @ b, timer=timer, number=1, repeat=50))
    return 2 * side**3 / least / 1e9


def type_name(dtype: torch.dtype) -> str:
    """``'float32'`` for ``torch.float32``."""
    return str(dtype).removeprefix('torch.')


def machine(device: str, dtypes: Iterable[str] = ()) -> dict[str, Any]:
    """What a time depends on: processor, threads, versions, rate of matrix products by type."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(':') for x in lines)}
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
        matmul_gflops={name: matmul_gflops(getattr(torch, name), device) for name in dtypes},
    )


def _versions() -> dict[str, str]:
    """Versions of modules; the package is named where it has another name."""
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
        machine=machine(
            settings.device, dict.fromkeys(row.get('dtype', 'float32') for row in rows)
        ),
        rows=rows,
        profile=profile,
        notes=list(notes),
    )
