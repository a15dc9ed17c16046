"""Reading checkpoint files without running anything that is in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read, or that is refused."""


def _history_method(owner: Any, name: str) -> Any:
    """``getattr`` as far as mmengine's HistoryBuffer, which pickles its methods, needs it."""
    if owner is not HistoryBuffer:
        of = getattr(owner, '__name__', type(owner).__name__)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr:{of}.{name}')
    return getattr(owner, name)


# What mmengine writes besides tensors: histories of logged values, numpy numbers and arrays (of
# plain numbers: object arrays stay out). numpy 1 calls its module core, numpy 2 _core.
_ALLOWED: list[Any] = [
    HistoryBuffer,
    (_history_method, 'builtins.getattr'),
    slice,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    *(
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (multiarray._reconstruct, multiarray.scalar)
        for core in ('core', '_core')
    ),
]


def read_checkpoint(
    path: str | Path, map_location: Any = 'cpu', *, trust: bool = False
) -> dict[str, Any]:
    """Reads a checkpoint written by torch or mmengine; code in it is not run.

    Args:
        path: The file.
        map_location: Device of the tensors, as in ``torch.load``.
        trust: Read with pickle, which runs whatever the file says. Only for files whose author
            you trust.

    Returns:
        The dict that was saved.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is no checkpoint, or wants to run code.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is a folder; give the .pth file in it')
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            checkpoint = torch.load(path, map_location=map_location, weights_only=not trust)
    except pickle.UnpicklingError as error:
        wanted = re.search(r'GLOBAL (\S+)', str(error))
        if wanted is None:
            raise CheckpointError(f'checkpoint {path} is damaged or no checkpoint') from error
        raise CheckpointError(
            f'checkpoint {path} asks for {wanted[1]} when it is read, which could run code, and '
            'was refused; --trust-checkpoint reads it all the same, if you trust its author'
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        raise CheckpointError(
            f'checkpoint {path} ({path.stat().st_size} bytes) is damaged or no checkpoint: '
            f'{str(error).splitlines()[0] if str(error) else type(error).__name__}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}; a dict with the weights is '
            'needed'
        )
    return checkpoint
