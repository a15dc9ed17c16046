"""Helpers for tests that run tools."""

import atexit
import copy
import functools
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from forking import Forks, forks
from mmengine.config import Config

ORIGINALS = Path(sys.prefix, 'openmmlab')
REPO = Path(__file__).resolve().parents[1]
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(REPO))


@functools.cache
def server() -> Forks:
    """Runs tools in forks of one process, which saves them their imports: 6 s each."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forks(ENV))


def call(
    tool: str, *args: object, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    """Runs a tool as a user does, with its output captured.

    In a process of its own if it gets another environment or ``prefix``, arguments of Python.
    """
    arguments = [str(arg) for arg in args]
    if env is None and not prefix:
        with TemporaryDirectory() as folder:
            out, err = Path(folder, 'out'), Path(folder, 'err')
            status = server().call(tool, arguments, out, err)
            return subprocess.CompletedProcess(args, status, out.read_text(), err.read_text())
    return subprocess.run(
        [sys.executable, *prefix, f'tools/{tool}.py', *arguments],
        env=env or ENV,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=600,
    )


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs a command in the repository, with its output captured."""
    return subprocess.run(
        command, env=ENV, cwd=REPO, capture_output=True, text=True, timeout=600, check=False
    )


def as_arguments(options: dict) -> list[str]:
    """The options as a user would type them."""
    return ['--cfg-options'] + [f'{key}={value}'.replace(' ', '') for key, value in options.items()]


@contextmanager
def memory_for(megabytes: int) -> Iterator[None]:
    """Limits how much more memory this process may take; beyond that is a ``MemoryError``."""
    status = Path('/proc/self/status')
    if not status.exists():
        pytest.skip('needs /proc to read the memory of a process')
    taken = int(re.search(r'VmData:\s+(\d+) kB', status.read_text())[1]) << 10
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@functools.cache
def _read(path: Path) -> Config:
    from res2net_mm.engine.config import load_config  # not before a test wants it

    return load_config(path)


def loaded(path: Path) -> Config:
    """A config of this package, to change at will; each is read once, which takes 0.3 s."""
    return copy.deepcopy(_read(path))
