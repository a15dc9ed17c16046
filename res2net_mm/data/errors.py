"""The error for data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """The user's data or its description is wrong.

    The message is one line: what is wrong, where (file, config key, value), and what to do.
    """
