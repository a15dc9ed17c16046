"""Several processes: starting them, work that one does for all, one training run in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_rank, init_dist
from mmengine.utils.dl_utils import set_multi_processing

from .errors import ToolError, one_line
from .terminal import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = '.training'


def start_processes(cfg: Config, launcher: str) -> None:
    """Starts the process group, which the seed and the report need before there is a Runner."""
    cfg.launcher = launcher
    if torch.distributed.is_initialized():
        return
    if launcher == 'none':
        if 'TORCHELASTIC_RUN_ID' in os.environ and int(os.environ['WORLD_SIZE']) > 1:
            raise ToolError('torchrun started several processes: add --launcher pytorch')
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ToolError('--launcher pytorch needs torchrun: torchrun --nproc_per_node N tools/...')
    env = cfg.get('env_cfg') or {}
    set_multi_processing(**(env.get('mp_cfg') or {}), distributed=True)
    if torch.cuda.is_available():
        init_dist(launcher, **(env.get('dist_cfg') or {}))
    elif launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')  # init_dist would set a CUDA device
    else:
        raise ToolError(f'--launcher {launcher} needs CUDA devices; without them use pytorch')


def on_first_rank(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in the first process and returns its result, or raises, in all processes."""
    result = failure = None
    if get_rank() == 0:
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            failure = error
    shared = [result, failure and one_line(failure)]
    broadcast_object_list(shared)
    if failure:
        raise failure
    if shared[1]:
        raise ToolError(f'stopped with the first process: {shared[1]}')
    return shared[0]


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Keeps other training runs out of a work dir while the block runs; makes the folder.

    The lock ends with the process, however that ends; workers that outlive it do not hold it. If
    another process trains there, a ToolError names it.
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
                'there. Wait until it ends, stop it, or give another folder'
            ) from None
        except OSError as error:
            warn(f'work dir {folder} cannot be locked ({error}): run only one training there')
        file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        print(f'process {os.getpid()} on {socket.gethostname()}, since {since},', file=file)
        file.flush()
        yield
