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
    'convolution': r'conv|^aten::(bmm|mm|matmul|baddbmm)$',
    'batch norm': r'batch_?norm',
    'ReLU': r'relu|clamp_min|threshold',
    'pooling': r'pool',
    'sum, split and concatenation': r'^aten::(add_?|cat)$|(add|split|cat)backward',
}
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}


def profile_kinds(
    call: Callable[[], object], rounds: int = 3, device: str | torch.device = 'cpu'
) -> dict[str, float] | None:
    """Seconds of a call by kind of operation, the least of several rounds for each kind.

    Args:
        call: It ran before.
        rounds: Times that it is called.
        device: That it runs on.

    Returns:
        Kind -> seconds, or None where the device is no CPU: there, operations run on their own.
    """
    if torch.device(device).type != 'cpu':
        return None
    least: dict[str, float] = {}
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            call()
        taken: Counter[str] = Counter()
        for event in found.events():
            taken[_kind(event)] += event.self_cpu_time_total / 1e6
        for kind, seconds in taken.items():
            least[kind] = min(least.get(kind, seconds), seconds)
    return {kind: least[kind] for kind in (*KINDS, REST) if kind in least}


def profile_calls(
    calls: Mapping[str, Callable[[], object]], device: str | torch.device
) -> dict[str, dict[str, float]] | None:
    """:func:`profile_kinds` of each call by name, or None where there is none."""
    found = {name: profile_kinds(call, device=device) for name, call in calls.items()}
    return None if None in found.values() else found


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
