"""What is checked whenever a checkpoint of a whole model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from ..weights import CheckpointError, not_finite, say_not_finite, say_unknown_rules
from .resuming import model_differences
from .terminal import warn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without mmengine's wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model


@contextmanager
def exact_fit(filename: str) -> Iterator[None]:
    """Turns torch's error for weights that are missing, left over or misshapen into our own."""
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            f'checkpoint {filename} does not fit the model of the config: '
            f'{" ".join(str(error).split())[:600]}. Give the config that it was trained with'
        ) from error


def check_finite(values: Any, filename: str, constants: Collection[str] = ()) -> None:
    """Raises CheckpointError if tensors hold NaN or infinity, except the named ``constants``."""
    if broken := not_finite(values, constants):
        raise CheckpointError(f'checkpoint {filename}: {say_not_finite(broken)}')


def warn_of_differences(
    model: nn.Module, checkpoint: Mapping[str, Any], cfg: Config, filename: str
) -> None:
    """Warns if a model was not trained as the config says, or under an unknown first-block rule."""
    say_unknown_rules(model, checkpoint)
    if line := model_differences(cfg, checkpoint.get('meta'), filename):
        warn(line)
