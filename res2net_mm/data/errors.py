"""The error for data that cannot be used."""

from __future__ import annotations


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
