"""Output of a tool: warnings, and names from files and servers without control characters."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from mmengine.logging import print_log

# Control characters except tab and newline, and those that change the direction of text.
_CONTROL = {
    code: chr(code).encode('unicode_escape').decode()
    for first, last in ((0, 8), (11, 12), (14, 31), (127, 159), (0x202A, 0x202E), (0x2066, 0x2069))
    for code in range(first, last + 1)
}
_RETURN = re.compile(r'(?<!^)\r(?!\n)')  # at the start of a text it is a progress bar's
_LEVEL = re.compile(r'(\x1b\[\d+m(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\x1b\[0m)')  # mmengine's


def warn(message: str) -> None:
    """Logs a warning to the terminal and the run's log file."""
    print_log(message, logger='current', level=logging.WARNING)


def plain(text: str) -> str:
    """The text with control characters spelt out, for example as ``\\x1b``."""
    return _RETURN.sub(r'\\r', text.translate(_CONTROL))


def plain_record(record: logging.LogRecord) -> bool:
    """Makes the message of a log record plain; for ``addFilter``."""
    record.msg, record.args = plain(record.getMessage()), ()
    return True


def use_plain_streams() -> None:
    """Makes everything that this process prints from now on plain."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if not isinstance(stream, _Plain):
            setattr(sys, name, _Plain(stream))


class _Plain:
    """A text stream that spells control characters out, except in mmengine's coloured levels."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = _LEVEL.split(text)  # levels at odd places
        parts[::2] = map(plain, parts[::2])
        self._stream.write(''.join(parts))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
