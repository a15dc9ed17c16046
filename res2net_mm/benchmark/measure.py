"""Times and memory that can be compared, and the machine that they were measured on."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.util
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..engine.errors import ToolError
from ..ops.memory import keep_freed_memory
from ..version import __version__

# those of the CPU that decide how fast convolutions are
FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
# module -> packages that bring it
PACKAGES = {
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'timm': ('timm',),
    'faster_coco_eval': ('faster-coco-eval',),
    'pycocotools': ('pycocotools',),
}
_CLEAR_REFS = Path('/proc/self/clear_refs')
# sides of the matrices: a large GPU is idle for most of a smaller product
_SIDES = {'cuda': 8192}


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str | torch.device = 'cpu',
    warmup: int = 2,
) -> dict[str, list[float]]:
    """Times calls in turn, so that what disturbs the machine disturbs all of them.

    Every round runs each call once, and begins with the next one.

    Args:
        calls: Name -> what is timed; one that returns a float tells its seconds by itself.
        rounds: Times that are taken of each call.
        device: That the calls run on; its queue is empty when a time is taken.
        warmup: Rounds before them, that are not timed.

    Returns:
        Name -> seconds, one a round.

    Raises:
        ValueError: ``rounds`` is less than 1 or ``warmup`` less than 0.
    """
    for name, value, least in (('rounds', rounds, 1), ('warmup', warmup, 0)):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, but is {value}')
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(warmup + rounds) * len(names), desc='timing', unit='call') as progress:
        for turn in range(-warmup, rounds):
            first = turn % len(names) if turn > 0 else 0
            for name in names[first:] + names[:first]:
                start = now(device)
                told = calls[name]()
                taken = told if isinstance(told, float) else now(device) - start
                if turn >= 0:
                    times[name].append(taken)
                progress.update()
    return times


def now(device: str | torch.device) -> float:
    """Seconds of a clock, when a device has done all that it was given."""
    if torch.device(device).type != 'cpu':
        torch.accelerator.synchronize(torch.device(device))
    return time.perf_counter()


def peak_memory(
    function: Callable[..., Any],
    *args: Any,
    device: str | torch.device = 'cpu',
    prepared: bool = False,
    keep: bool = False,
) -> float | None:
    """Memory that a call needs at its peak beyond what was in use before it.

    It runs in a process of its own, as many threads as here. On the CPU it is the resident set,
    which includes what a first call loads and keeps.

    Args:
        function: Of a module, so that another process finds it.
        *args: Of the function; small, as they are pickled.
        device: That the function uses; on a GPU it is what PyTorch has allocated.
        prepared: ``function(*args)`` is not measured, but the call that it returns.
        keep: The process keeps freed memory.

    Returns:
        MiB, or None where the system does not tell.

    Raises:
        ToolError: The process was ended, as it is where memory runs out.
    """
    device = torch.device(device)
    if device.type == 'cpu' and not os.access(_CLEAR_REFS, os.W_OK):
        return None
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        settings = torch.get_num_threads(), list(_tf32()), keep
        task = pool.submit(_peak, function, args, str(device), prepared, *settings)
        try:
            return task.result() / 2**20
        except BrokenProcessPool as error:
            raise ToolError(
                f'the process that measured the memory of {function.__name__} was ended: '
                'perhaps there is too little of it'
            ) from error


def _peak(
    function: Callable[..., Any],
    args: tuple,
    device: str,
    prepared: bool,
    threads: int,
    tf32: list[bool],
    keep: bool,
) -> int:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    _set_tf32(*tf32)
    call = function(*args) if prepared else lambda: function(*args)
    if device != 'cpu':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # what is free but not given back to the system would be used without being seen
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    _CLEAR_REFS.write_text('5')  # the peak is what is in use now
    before = _resident()
    call()
    return _resident() - before


def _resident() -> int:
    """Peak of the resident memory, in bytes."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:'))


def matmul_gflops(dtype: torch.dtype, device: str | torch.device = 'cpu') -> float:
    """Rate of a large matrix product, in 1e9 operations a second: the best of several.

    On a GPU float32 products may use TF32 where convolutions may.
    """
    side = _SIDES.get(torch.device(device).type, 1024)
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    before = _tf32()
    _set_tf32(before[1], before[1])
    try:
        times = []
        for _ in range(50):
            start = now(device)
            a @ b
            times.append(now(device) - start)
    finally:
        _set_tf32(*before)
    return 2 * side**3 / min(times) / 1e9


def _tf32() -> tuple[bool, bool]:
    """Whether products and convolutions of float32 may be rounded, on a GPU that does it."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(matmul: bool, convolution: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it, float32 on a GPU is not rounded to TF32, so that outputs can be compared."""
    before = _tf32()
    _set_tf32(False, False)
    try:
        yield
    finally:
        _set_tf32(*before)


def machine(device: str | torch.device, dtypes: Iterable[torch.dtype] = ()) -> dict[str, Any]:
    """What a time depends on: processor, threads, versions, rate of matrix products.

    Args:
        device: That is measured on.
        dtypes: Types of which the rate is measured.
    """
    device = torch.device(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(':') for x in lines)}
    has = fields.get('flags', '').split()
    return dict(
        cpu=fields.get('model name') or platform.processor() or platform.machine(),
        flags=[flag for flag in FLAGS if flag in has],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
        python=platform.python_version(),
        versions=_versions(),
        matmul_gflops={type_name(dtype): matmul_gflops(dtype, device) for dtype in dtypes},
    )


def _versions() -> dict[str, str]:
    """Versions of what is imported, where several packages bring the same module."""
    found = {}
    for module, packages in PACKAGES.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).resolve().parent
        for package in packages:
            try:
                distribution = metadata.distribution(package)
            except metadata.PackageNotFoundError:
                continue
            if Path(str(distribution.locate_file(module))).resolve() == folder:
                name = '' if package == packages[0] == module else f' ({package})'
                found[module] = distribution.version + name
    return {**found, 'res2net_mm': __version__}


def type_name(dtype: torch.dtype) -> str:
    """``'float32'`` for ``torch.float32``."""
    return str(dtype).removeprefix('torch.')


def circumstances(
    args: argparse.Namespace, dtypes: Iterable[torch.dtype] = (torch.float32,)
) -> dict[str, Any]:
    """Settings, command, date and machine of a record."""
    aside = ('command', 'json', 'chart')
    return dict(
        settings={k: v for k, v in vars(args).items() if k not in aside},
        command=getattr(args, 'command', ''),
        date=datetime.date.today().isoformat(),
        machine=machine(args.device, dtypes),
    )
