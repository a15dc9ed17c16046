"""What tests run the tools with."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ORIGINALS = Path(sys.prefix, 'openmmlab')


def as_arguments(options: dict) -> list[str]:
    """The options as a user types them."""
    return ['--cfg-options'] + [f'{key}={value}'.replace(' ', '') for key, value in options.items()]


@contextmanager
def memory_for(megabytes: int) -> Iterator[None]:
    """Lets this process take so much more memory than it has; more is a MemoryError."""
    status = Path('/proc/self/status')
    if not status.exists():
        pytest.skip('the memory of a process is read from /proc')
    taken = int(re.search(r'VmData:\s+(\d+) kB', status.read_text())[1]) << 10
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
