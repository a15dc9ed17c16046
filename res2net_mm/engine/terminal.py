"""What files and servers say, without what would make a terminal do something."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

# Control characters but for tabs and ends of lines, and what turns the direction of writing.
_CONTROL = re.compile('[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')
_RETURN = re.compile(r'(?<!^)\r(?!\n)')  # at the beginning it is a progress bar's
_LEVEL = re.compile(r'\x1b\[\d+m(DEBUG|INFO|WARNING|ERROR|CRITICAL)\x1b\[0m')  # of mmengine's log


def plain(text: str) -> str:
    """The text with control characters spelt out, ``\\x1b`` for one."""
    text = _CONTROL.sub(_spelt, text)
    return _RETURN.sub(_spelt, text)


def plain_record(record: logging.LogRecord) -> bool:
    """Makes the message of a log record plain; for ``addFilter``."""
    record.msg, record.args = plain(record.getMessage()), ()
    return True


def use_plain_streams() -> None:
    """Has all that this process prints from now on be plain."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if not isinstance(stream, _Plain):
            setattr(sys, name, _Plain(stream))


class _Plain:
    """A text stream that spells control characters out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = _LEVEL.split(text)
        # at odd places the levels that mmengine colours
        places = iter(_LEVEL.finditer(text))
        cleaned = [next(places)[0] if i % 2 else plain(part) for i, part in enumerate(parts)]
        self._stream.write(''.join(cleaned))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _spelt(found: re.Match) -> str:
    return found[0].encode('unicode_escape').decode()
