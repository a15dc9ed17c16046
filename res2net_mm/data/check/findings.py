"""The findings of a check, as groups for people and as a table for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import astuple, fields, replace
from pathlib import Path

from ...files import writing
from ..errors import ERROR, Finding

_MOST_EXAMPLES = 3


def of_split(split: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """``findings`` with their split set."""
    return (replace(finding, split=split) for finding in findings)


class Group(list[Finding]):
    """The findings of one severity, kind and split."""

    @property
    def examples(self) -> list[str]:
        """The first few, with their files."""
        return [f'{finding.file}: {finding.what}' for finding in self[:_MOST_EXAMPLES]]

    @property
    def line(self) -> str:
        """All in one line: the first, and how many more there are."""
        more = f', and {len(self) - 1:,} more' if len(self) > 1 else ''
        return f'{self[0].kind}: {self.examples[0]}{more}; {self[0].remedy}'

    def __str__(self) -> str:
        first, more = self[0], len(self) - _MOST_EXAMPLES
        split = f'{first.split}: ' if first.split else ''
        lines = [f'{first.severity.upper()} {split}{first.kind} ({len(self):,})']
        lines += [f'    {example}' for example in self.examples]
        lines += [f'    ... and {more:,} more'] if more > 0 else []
        return '\n'.join([*lines, f'    what to do: {first.remedy}'])


class Findings(list[Finding]):
    """All findings of a check."""

    @property
    def errors(self) -> int:
        """How many of them are errors."""
        return sum(finding.severity == ERROR for finding in self)

    @property
    def verdict(self) -> str:
        """``fit to train``, or that it is not."""
        if not self.errors:
            return 'fit to train'
        return f'not fit to train: {self.errors:,} error{"s" * (self.errors != 1)}'

    def once(self) -> Findings:
        """Without those that an earlier split has in the same file, as splits may share files."""
        first = {(f.severity, f.kind, f.file, f.what): f for f in reversed(self)}
        return Findings(f for f in self if first[f.severity, f.kind, f.file, f.what] is f)

    def groups(self) -> list[Group]:
        """The findings in groups, errors first, else in the order in which they were made."""
        found: dict[tuple[str, str, str], Group] = {}
        for finding in self:
            key = finding.severity, finding.kind, finding.split
            found.setdefault(key, Group()).append(finding)
        return sorted(found.values(), key=lambda group: group[0].severity != ERROR)

    def write_csv(self, file: str | Path) -> None:
        """Writes every finding as a line of ``file``."""
        with writing(file) as partial, partial.open('w', newline='', encoding='utf-8') as stream:
            writer = csv.writer(stream)
            writer.writerow(column.name for column in fields(Finding))
            writer.writerows(map(astuple, self))
