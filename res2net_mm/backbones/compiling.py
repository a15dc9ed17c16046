"""``torch.compile`` for blocks: one compilation serves all blocks that are alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..ops.internals import allow_recompiles, compilation_errors, makes_graph

# Kinds of blocks in a network: they differ in shapes, in what they do, and in their mode
_KINDS = 64


class Compilation:
    """Runs the blocks of one network under ``torch.compile``, or as they are once that failed."""

    failure: str | None = None

    def run(self, function: Callable, *args: Any) -> Any:
        """``function(*args)``, compiled; after one warning as it is, if PyTorch cannot."""
        if self.failure or makes_graph():
            return function(*args)
        try:
            return _compiled(function)(*args)
        except compilation_errors() as error:
            out = function(*args)  # raises if the arguments are at fault
            self.failure = ' '.join(str(error).split())[:300]
            warnings.warn(
                f'compile=True has no effect here, blocks run as they are: {self.failure}',
                stacklevel=2,
            )
            return out


@cache
def _compiled(function: Callable) -> Callable:
    allow_recompiles(_KINDS)
    # With dynamic shapes, Inductor's generated C++ does not compile for the cascade (PyTorch 2.11)
    return torch.compile(function, dynamic=False)
