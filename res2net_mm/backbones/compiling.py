"""``torch.compile`` of single blocks: one compilation serves all blocks that are alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ..ops.internals import allow_recompiles, makes_graph

# Blocks of a network that differ in shapes or in what they do, in training and in evaluation
_FAMILIES = 64
_failures: list[str] = []


def run_compiled(function: Callable, *args: Any) -> Any:
    """``function(*args)``, compiled; as it is, after one warning, where compiling fails."""
    if _failures or makes_graph():
        return function(*args)
    from torch._dynamo.exc import TorchDynamoException

    try:
        return _compile(function)(*args)
    except TorchDynamoException as error:
        out = function(*args)  # raises what is wrong with the arguments
        _failures.append(' '.join(str(error).split())[:300])
        warnings.warn(
            f'compile=True has no effect here, blocks run as they are: {_failures[0]}',
            stacklevel=2,
        )
        return out


@lru_cache
def _compile(function: Callable) -> Callable:
    allow_recompiles(_FAMILIES)
    # With dynamic shapes, Inductor's generated C++ does not compile for the cascade (PyTorch 2.11)
    return torch.compile(function, dynamic=False)
