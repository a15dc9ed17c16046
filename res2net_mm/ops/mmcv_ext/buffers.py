"""Operators of mmcv's compiled extension, made of functions that return their result.

The extension takes tensors by position and numbers by name, and writes into buffers that the caller
made. Each operator is described by the names of its tensors in the extension's order; names of
scratch buffers are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Sizes = dict[str, Any]
Compute = Callable[[Tensors, Sizes], Tensor]


def forward(compute: Compute, names: str) -> Callable[..., Tensor | None]:
    """An operator that writes the result into ``output``, or returns it without such a name."""

    def operator(*tensors: Tensor, **sizes: Any) -> Tensor | None:
        given = dict(zip(names.split(), tensors, strict=True))
        result = compute(given, sizes)
        if 'output' not in given:
            return result
        given['output'].copy_(result)
        return None

    operator.tensors = names.split()
    return operator


def backward(compute: Compute, names: str, adds: str | None = None) -> Callable[..., None]:
    """An operator that writes the gradient for each tensor ``x`` into its buffer ``grad_x``.

    Args:
        compute: The forward pass.
        names: Names of the tensors; ``grad_output``, the gradient of the result, is else 1.
        adds: A tensor to which its own gradient, times ``scale``, is added instead.
    """

    def operator(*tensors: Tensor, **sizes: Any) -> None:
        given = dict(zip(names.split(), tensors, strict=True))
        wanted = [adds] if adds else [name for name in given if f'grad_{name}' in given]
        leaves = {name: given[name].detach().requires_grad_() for name in wanted}
        with torch.enable_grad():
            result = compute(given | leaves, sizes)
        grad = given.get('grad_output', torch.ones_like(result)).to(result.dtype)
        found = torch.autograd.grad(result, leaves.values(), grad, allow_unused=True)
        for name, grad in zip(wanted, found, strict=True):
            if adds:
                given[adds].add_(grad, alpha=sizes.get('scale', 1))
            elif grad is not None:
                given[f'grad_{name}'].copy_(grad)

    operator.tensors = names.split()
    return operator
