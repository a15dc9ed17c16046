"""Where the time of a call on a CPU goes, by kind of operation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

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
    'pooling': r'pool|^aten::(maximum|bitwise_and_)$',  # ops/rectified_pool.py
    'sum, split and concatenation': r'^aten::(add_?|cat)$|(add|split|cat)backward',
}
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}


def profile_kinds(
    call: Callable[[], object], device: str | torch.device = 'cpu'
) -> dict[str, float] | None:
    """Seconds of a call by kind of operation.

    Args:
        call: It ran before.
        device: That it runs on.

    Returns:
        Kind -> seconds, or None where the device is no CPU: there, operations run on their own.
    """
    if torch.device(device).type != 'cpu':
        return None
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    taken: Counter[str] = Counter()
    for event in found.events():
        taken[_kind(event)] += event.self_cpu_time_total / 1e6
    return {kind: taken[kind] for kind in (*KINDS, REST) if taken[kind]}


def least_profiles(
    profiles: Mapping[str, Callable[[], dict[str, float] | None]], rounds: int = 5
) -> dict[str, dict[str, float]] | None:
    """Profiles by name, taken in turns, each that of the shortest call.

    Args:
        profiles: Name -> what gives a profile.
        rounds: Times that each is taken.

    Returns:
        Name -> kind -> seconds; None where a profile is.
    """
    least: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, take in profiles.items():
            found = take()
            if found is None:
                return None
            least[name] = min(least.get(name, found), found, key=lambda kinds: sum(kinds.values()))
    return least


def _kind(event: FunctionEvent) -> str:
    names = [event.name]
    while event.cpu_parent is not None:
        event = event.cpu_parent
        names.append(event.name)
    for name in reversed(names):
        for kind, pattern in _PATTERNS.items():
            if pattern.search(name):
                return kind
    return REST
