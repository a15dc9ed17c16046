"""What a tool does with a mistake: one line, a non-zero exit, no traceback."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

from .terminal import use_plain_streams

_DEBUG = 'RES2NET_MM_DEBUG'


class ToolError(Exception):
    """A user's mistake, told in one line: what is wrong, where, what to do."""


# What bad input raises in this package and below it. Anything else is a defect of ours, and its
# traceback is what a report of it needs.
USER_ERRORS = (ToolError, ValueError, OSError, ImportError, KeyError, NotImplementedError)
# ... and an argument of a config that its class does not know
_WRONG_ARGUMENT = re.compile(r'unexpected keyword argument|missing \d+ required')


def one_line(error: BaseException) -> str:
    """The message of an exception in one line.

    A DataLoader worker passes its exception on with the worker's traceback inside the message,
    and only the last line of that says what is wrong.
    """
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
        text = text if ' ' in text else f'key {text!r} is missing'
    if 'Original Traceback' in text:
        parts = re.split(r'^[\w.]*(?:Error|Exception)\w*: ', text, flags=re.MULTILINE)
        text = parts[-1]
    text = ' '.join(text.split())
    return text or type(error).__name__


def run_tool(main: Callable[[], int | None]) -> None:
    """Runs a tool's ``main`` and ends the process with its status.

    A user's mistake ends with status 1 and one line on stderr; ``RES2NET_MM_DEBUG=1`` shows its
    traceback as well. An interruption from the keyboard ends with status 130. What is printed
    holds no control characters: names come from files and servers.
    """
    use_plain_streams()
    try:
        status = main() or 0
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        status = 130
    except USER_ERRORS as error:
        if os.environ.get(_DEBUG):
            traceback.print_exc()
        _say(f'error: {one_line(error)}')
        status = 1
    except TypeError as error:
        if not _WRONG_ARGUMENT.search(str(error)) or os.environ.get(_DEBUG):
            raise
        _say(f'error: {one_line(error)}')
        status = 1
    except RuntimeError as error:
        # torch reports a full disk and memory that runs out as RuntimeError
        message = one_line(error)
        known = re.search(
            r'out of memory|No space left|unexpected pos|failed writing|allocate memory', message
        )
        if not known or os.environ.get(_DEBUG):
            raise
        _say(f'error: {message}')
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)


def _say(line: str) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
