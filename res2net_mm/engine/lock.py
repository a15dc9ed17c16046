"""One training run at a time in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ToolError
from .terminal import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = '.training'


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Keeps other training runs out of a work dir while the block runs.

    The lock ends with the process, however that ends; workers that outlive it do not hold it.

    Args:
        folder: The work dir; it is made.

    Raises:
        ToolError: Another process trains there; the message names it.
    """
    if fcntl is None:
        yield
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open('a+') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by forks
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ToolError(
                f'work dir {folder} is in use: {file.read().strip() or "another process"} trains '
                'there. Wait until it ends, stop it, or give another --work-dir'
            ) from None
        except OSError as error:
            warn(f'work dir {folder} cannot be locked ({error}): run only one training there')
        file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        print(f'process {os.getpid()} on {socket.gethostname()}, since {since},', file=file)
        file.flush()
        yield
