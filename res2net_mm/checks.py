"""Checks of arguments and the wording of their errors, for every room."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


def check_choice(argument: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ``ValueError`` naming the argument, the rule and the value, unless it is a choice."""
    if value not in choices:
        allowed = ', '.join(repr(choice) for choice in choices)
        raise ValueError(f'{argument} must be one of {allowed}, but got {value!r}')


def check_positive(argument: str, value: Any) -> None:
    """Raises ``ValueError`` naming the argument and the value, unless it is an integer > 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{argument} must be a positive integer, but got {value!r}')


def nearest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option most similar to ``name``, ignoring case and separators; None if none is close.

    ``cutoff`` is the least similarity, from 0 to 1 (equal except for case and separators).
    """
    plain = {_plain(option): option for option in options}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def did_you_mean(name: str, options: Iterable[str], cutoff: float = 0.4) -> str:
    """``'; did you mean X?'`` with the :func:`nearest` option, or ``''``: the end of an error."""
    likely = nearest(name, options, cutoff)
    return f'; did you mean {likely}?' if likely else ''


def listed(names: Iterable[str], most: int = 5) -> str:
    """``names`` joined by commas, at most ``most`` of them."""
    names = [str(name) for name in names]
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def folded(name: str) -> str:
    """``name`` without what people overlook: case, blanks, its Unicode form."""
    return ' '.join(unicodedata.normalize('NFC', str(name)).casefold().split())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of ``names`` that differ only in what :func:`folded` removes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    return re.sub(r'[\s_-]+', '', folded(name))
