"""How a tool ends: a user's mistake in one line, a defect with its traceback, Ctrl-C quietly."""

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
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.logging import MMLogger

from ..data.errors import DataError
from ..weights import CheckpointError
from .terminal import use_plain_streams

_DEBUG = 'RES2NET_MM_DEBUG'
_ENDING = ('SIGINT', 'SIGTERM', 'SIGHUP')  # Windows lacks the last
_PACKAGE = Path(__file__).resolve().parents[1]
# how Python reports an argument that a class does not take
_WRONG_ARGUMENT = re.compile(r'unexpected keyword argument|missing \d+ required')
_NO_MEMORY = re.compile('out of memory|allocate memory|No space left')  # in torch's RuntimeErrors


class ToolError(Exception):
    """A user's mistake: one line that says what is wrong, where, and what to do."""


USER_ERRORS = (ToolError, DataError, CheckpointError, OSError, ImportError, NotImplementedError)

# while active, a signal that :func:`interruptions` receives is only noted, until a step ends
deferral = SimpleNamespace(active=False, signal=None)


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend an error. Anything else is a defect and needs its traceback."""
    frame = _origin(error)
    if isinstance(error, USER_ERRORS):
        return True
    if isinstance(error, ValueError):  # raised on purpose, as checks of arguments do
        return _is_ours(frame) and (frame.line or '').startswith('raise ')
    if isinstance(error, TypeError):  # a wrong argument in a config
        return bool(_WRONG_ARGUMENT.search(str(error))) and not _is_ours(frame)
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


@contextmanager
def building_config(part: str = 'config') -> Iterator[None]:
    """Turns what mmengine, mmdet and mmseg raise for a mistake in a config into a ToolError.

    They have no error type of their own for an unknown ``type``, a wrong argument or a missing key.
    Also a decorator for functions that build what a config describes, ``part``.
    """
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        frame = _origin(error)
        if is_mistake(error) or _is_ours(frame):
            raise
        text = one_line(error)
        if isinstance(error, AssertionError) and not error.args and frame:
            text = f'it needs "{(frame.line or "").removeprefix("assert ")}"'
        raise ToolError(f'the {part} cannot be built: {text}') from error


def one_line(error: BaseException) -> str:
    """The message of an exception in one line."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
        text = text if ' ' in text else f'key {text!r} is missing'
    if 'Original Traceback' in text:  # a DataLoader worker's, whose last line says what is wrong
        text = re.split(r'^[\w.]*(?:Error|Exception)\w*: ', text, flags=re.MULTILINE)[-1]
    return ' '.join(text.split()) or type(error).__name__


def run_tool(main: Callable[[], int | None]) -> None:
    """Runs a tool's ``main`` and ends the process with its status.

    Any error ends with status 1 and one line on stderr. A defect also leaves its traceback in the
    run's log file, or on stderr if there is none; ``RES2NET_MM_DEBUG=1`` always prints it. Ctrl-C,
    SIGTERM and SIGHUP end with 128 + the signal's number and one line, after unfinished files are
    removed; a second Ctrl-C ends at once.
    """
    use_plain_streams()
    with interruptions() as received:
        try:
            status = main() or 0
        except KeyboardInterrupt:
            received = received or [signal.SIGINT]
        except BaseException as error:
            # mmengine turns an interruption while it formats a config into a SyntaxError
            if not received:
                if not isinstance(error, Exception):
                    raise
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
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, and records the signal.

    A signal that the process was started to ignore, as nohup does, stays ignored. Forked workers
    leave Ctrl-C and SIGHUP to the process that started them. Yields a list that gets the signal.
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
            # a second Ctrl-C ends at once; but torchrun repeats one that its processes already had
            ends = other == signal.SIGINT and 'TORCHELASTIC_RUN_ID' not in os.environ
            signal.signal(other, signal.SIG_DFL if ends else signal.SIG_IGN)
        if hasattr(signal, 'SIGCHLD'):  # torch raises an error when workers end, as they do now
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if deferral.active:
            deferral.signal = number
            return
        raise KeyboardInterrupt

    def again(ignored: Any) -> None:
        """Repeats an interruption that Python swallowed because it came in a destructor."""
        if not received:
            unraisable(ignored)
        elif issubclass(ignored.exc_type, KeyboardInterrupt):
            number = received.pop()
            signal.signal(number, interrupt)
            threading.Timer(0.1, os.kill, (owner, number)).start()

    kinds = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in kinds}
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


def _report(error: Exception) -> int:
    line, known = one_line(error), is_mistake(error)
    # a transform fails at bad data, or for a reason that may be a defect of ours
    log = None if known and not isinstance(error, DataError) else _log_traceback(error)
    if os.environ.get(_DEBUG) or not (known or log):
        traceback.print_exception(error)
    if not known:
        line = f'{type(error).__name__}: {line}'
    if log:
        line += f' (the traceback is in {log}; {_DEBUG}=1 prints it here)'
    _say(f'error: {line}')
    return 1


def _log_traceback(error: Exception) -> str | None:
    """Writes the traceback into the run's log file, if there is one, and returns its path."""
    logger = MMLogger.get_current_instance()
    files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    text = ''.join(traceback.format_exception(error))
    for handler in files:
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None))
    return files[0].baseFilename if files else None


def _origin(error: BaseException) -> traceback.FrameSummary | None:
    """The line of code that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1] if frames else None


def _is_ours(frame: traceback.FrameSummary | None) -> bool:
    return frame is not None and _PACKAGE in Path(frame.filename).parents


def _say(line: str) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
