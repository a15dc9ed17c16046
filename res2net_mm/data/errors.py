"""Faults in the user's data: as an error that ends a run, and as a finding of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ERROR, WARNING = 'error', 'warning'


class DataError(ValueError):
    """The user's data or its description is wrong.

    The message is one line: ``where: what; remedy``.

    Args:
        what: What is wrong, with the value.
        where: The file, config key or image that has it.
        remedy: What to do about it.
    """

    def __init__(self, what: str, where: str = '', remedy: str = '') -> None:
        self.what, self.where, self.remedy = what, where, remedy
        place = f'{where}: ' if where else ''
        super().__init__(f'{place}{what}; {remedy}' if remedy else f'{place}{what}')

    def __reduce__(self) -> tuple:
        return type(self), (self.what, self.where, self.remedy)


@dataclass(frozen=True)
class Finding:
    """One fault that a check found.

    Attributes:
        severity: ``error`` if training ends or learns something wrong, else ``warning``.
        kind: A few words that all faults of this sort share.
        split: ``train``, ``val`` or ``test``; empty if the whole config has it.
        file: The file that has it, or the config key.
        what: What is wrong.
        remedy: What to do about it.
    """

    severity: str
    kind: str
    split: str
    file: str
    what: str
    remedy: str

    def as_error(self) -> DataError:
        """The finding as an exception."""
        return DataError(self.what, self.file, self.remedy)


def error(kind: str, fault: DataError) -> Finding:
    """A :class:`DataError` as a finding."""
    return Finding(ERROR, kind, '', fault.where, fault.what, fault.remedy)


def warning(kind: str, file: str, what: str, remedy: str) -> Finding:
    """A fault that training survives."""
    return Finding(WARNING, kind, '', file, what, remedy)


def raised(kind: str, check: Callable, *args: Any) -> Iterator[Finding]:
    """The :class:`DataError` that ``check(*args)`` raises, if it raises one, as a finding."""
    try:
        check(*args)
    except DataError as fault:
        yield error(kind, fault)
