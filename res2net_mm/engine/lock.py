"""One training run at a time in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log

from .errors import ToolError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = '.training'


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Keeps other training runs out of a work dir, from this block's start to its end.

    The first process of a distributed run holds it for all. It ends with the process, however that
    ends, and workers that outlive a killed process do not hold it.

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
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a process: forks do not have it
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ToolError(
                f'work dir {folder} is in use: {file.read().strip() or "another process"} trains '
                'there. Wait until it ends, stop it, or give another --work-dir'
            ) from None
        except OSError as error:
            print_log(f'work dir {folder} cannot be locked ({error}): run one training there only')
        file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        print(f'process {os.getpid()} on {socket.gethostname()}, since {since},', file=file)
        file.flush()
        yield
