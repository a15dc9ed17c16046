"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import broadcast_object_list, get_rank

from .errors import ToolError, one_line


def on_first_rank(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in the first process and returns its result in all processes.

    Raises:
        Exception: The function's own error, in the first process.
        ToolError: In the other processes, with the same message.
    """
    error: Exception | None = None
    shared: list[Any] = [None, None]  # result, message of the error
    if get_rank() == 0:
        try:
            shared[0] = function(*args, **kwargs)
        except Exception as caught:
            error, shared[1] = caught, one_line(caught)
    broadcast_object_list(shared)
    if error is not None:
        raise error
    if shared[1] is not None:
        raise ToolError(f'stopped with the first process: {shared[1]}')
    return shared[0]
