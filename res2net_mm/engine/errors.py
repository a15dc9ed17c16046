"""What a tool does with a mistake: one line, a non-zero exit, no traceback."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .terminal import use_plain_streams

_DEBUG = 'RES2NET_MM_DEBUG'


class ToolError(Exception):
    """A user's mistake, told in one line: what is wrong, where, what to do."""


# What bad input raises in this package and below it. Anything else is a defect of ours, and its
# traceback is what a report of it needs.
USER_ERRORS = (ToolError, ValueError, OSError, ImportError, KeyError, NotImplementedError)
# ... and an argument of a config that its class does not know
_WRONG_ARGUMENT = re.compile(r'unexpected keyword argument|missing \d+ required')
# ... and a full disk and memory that runs out, as torch reports them
NO_ROOM = re.compile('out of memory|No space left|unexpected pos|failed writing|allocate memory')


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
    traceback as well. Ctrl-C, SIGTERM and SIGHUP end with 128 + the signal's number and one line,
    after what is unfinished was cleared away; a second Ctrl-C ends at once. What is printed holds
    no control characters: names come from files and servers.
    """
    use_plain_streams()
    with interruptions() as received:
        try:
            status = main() or 0
        except KeyboardInterrupt:
            received = received or [signal.SIGINT]
        except BaseException as error:
            # mmengine makes a SyntaxError of an interruption while it formats a config
            if not received:
                status = _report(error)
        if received:
            number = signal.Signals(received[0])
            _say('interrupted' if number == signal.SIGINT else f'interrupted by {number.name}')
            status = 128 + number
        logging.shutdown()
        sys.stdout.flush()
    sys.exit(status)


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Makes SIGTERM and SIGHUP raise what Ctrl-C does, and collects which signal came.

    A signal that the process was started to ignore, as nohup does, stays ignored. Workers that
    were forked leave a Ctrl-C and a hang-up to the process that started them.

    Yields:
        The signal; empty as long as none came.
    """
    owner, received = os.getpid(), []

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        received.append(number)
        for other in before:
            # a second Ctrl-C ends at once; but torchrun sends on one that its processes have had
            ends = other == signal.SIGINT and 'TORCHELASTIC_RUN_ID' not in os.environ
            signal.signal(other, signal.SIG_DFL if ends else signal.SIG_IGN)
        if hasattr(signal, 'SIGCHLD'):  # torch raises at workers that end, which they do now
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    def again(ignored: Any) -> None:
        """Raises once more what Python swallowed because it came in a destructor."""
        if not received:
            unraisable(ignored)
        elif issubclass(ignored.exc_type, KeyboardInterrupt):
            number = received.pop()
            signal.signal(number, interrupt)
            threading.Timer(0.1, os.kill, (owner, number)).start()

    names = [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    unraisable, sys.unraisablehook = sys.unraisablehook, again
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(error: BaseException) -> int:
    """Says a user's mistake and returns the status; raises what is none."""
    debug = os.environ.get(_DEBUG)
    message = one_line(error)
    if isinstance(error, USER_ERRORS):
        if debug:
            traceback.print_exception(error)
    elif (
        debug
        or not (isinstance(error, TypeError) and _WRONG_ARGUMENT.search(str(error)))
        and not (isinstance(error, RuntimeError) and NO_ROOM.search(message))
    ):
        raise
    _say(f'error: {message}')
    return 1


def _say(line: str) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
