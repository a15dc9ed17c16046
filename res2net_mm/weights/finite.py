"""Finds weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .layouts import listing


def not_finite(values: Any, known: Collection[str] = ()) -> list[str]:
    """Names of the tensors that have NaN or infinite values, except those that are ``known``.

    In nested dicts and lists of tensors, a name is the keys joined by dots.
    """
    found: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in _tensors(values, ''):
        if name not in known:
            wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8
            found.setdefault(tensor.device, {})[name] = torch.isfinite(wide).all()
    # one transfer per device, not one per tensor
    return [
        name
        for finite in found.values()
        for name, is_finite in zip(finite, torch.stack([*finite.values()]).tolist(), strict=True)
        if not is_finite
    ]


def constants(model: nn.Module) -> list[str]:
    """Names of the buffers that are not finite when a model is built, such as masks of -inf."""
    return not_finite(dict(model.named_buffers()))


def say_not_finite(names: list[str]) -> str:
    """The part of an error that names the tensors."""
    verb = 'has' if len(names) == 1 else 'have'
    return f'{listing(names)} {verb} values that are NaN or infinite'


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        real = value.is_floating_point() or value.is_complex()
        plain = value.layout is torch.strided and not (value.is_meta or is_lazy(value))
        if real and plain:
            yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _tensors(inner, f'{name}.{key}' if name else str(key))
