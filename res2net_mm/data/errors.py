"""The error for data that cannot be used, and the wording its messages share."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


class DataError(ValueError):
    """The user's data or its description is wrong.

    The message is one line: what is wrong, where (file, config key, value), and what to do.
    """


def nearest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option most like ``name``, whatever its case and separators; None where none is close.

    Args:
        name: a word the user wrote.
        options: the words that would have been right.
        cutoff: least similarity, 0 (anything) to 1 (equal but for case and separators).
    """
    plain = {_plain(option): option for option in options}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def listed(names: Iterable[str], most: int = 5) -> str:
    """``names`` joined by commas, at most ``most`` of them."""
    names = [str(name) for name in names]
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '')


def folded(name: str) -> str:
    """``name`` without what people do not see or care for: case, blanks, its Unicode form."""
    return ' '.join(unicodedata.normalize('NFC', str(name)).casefold().split())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Those of ``names`` that differ only in what :func:`folded` takes away, in groups."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(folded(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    return re.sub(r'[\s_-]+', '', folded(name))
