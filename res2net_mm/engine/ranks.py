"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank

from .errors import ToolError, one_line


def on_first_rank(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in the first process; if it fails there, all processes stop.

    Returns:
        What the function returned, in all processes.

    Raises:
        Exception: The function's own, in the first process.
        ToolError: The same message, in the others.
    """
    error: Exception | None = None
    told: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            told[0] = function(*args, **kwargs)
        except Exception as caught:
            error, told[1] = caught, one_line(caught)
    broadcast_object_list(told)
    if error is not None:
        raise error
    if told[1] is not None:
        raise ToolError(f'stopped with the first process: {told[1]}')
    return told[0]
