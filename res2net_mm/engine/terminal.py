"""Output of a tool: warnings, and names from files and servers without control characters."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from mmengine.logging import print_log

# mmengine's coloured levels, which stay; control characters except tab, newline and the carriage
# return of a progress bar; and the characters that change the direction of text
_CONTROL = re.compile(
    r'(\x1b\[\d+m(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\x1b\[0m)'
    r'|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|(?<!^)\r(?!\n)'
)


def warn(message: str) -> None:
    """Logs a warning to the terminal and the run's log file."""
    print_log(message, logger='current', level=logging.WARNING)


def plain(text: str) -> str:
    """The text with control characters spelt out, for example as ``\\x1b``."""
    return _CONTROL.sub(lambda m: m[1] or m[0].encode('unicode_escape').decode(), text)


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
    """A text stream that spells control characters out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
