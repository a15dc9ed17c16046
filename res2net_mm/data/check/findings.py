"""What a full check of a data set found, one by one and together."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from ...checks import listed
from ...files import writing
from ..errors import DataError
from ..sets.nodes import Watch

ERROR, WARNING = 'error', 'warning'
_MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        severity: ``error``, with which training is wrong or ends, or ``warning``.
        kind: a few words that all faults of this sort share.
        split: ``train``, ``val`` or ``test``; empty where it is the whole config's.
        file: the file it is in; where it is no file's, the config's key.
        what: what is wrong.
        remedy: what to do about it.
    """

    severity: str
    kind: str
    split: str
    file: str
    what: str
    remedy: str


@dataclass
class Group:
    """The findings of one severity, kind and split."""

    severity: str
    kind: str
    split: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.findings)

    @property
    def examples(self) -> list[str]:
        """The first few, with their files."""
        return [f'{finding.file}: {finding.what}' for finding in self.findings[:_MOST_EXAMPLES]]

    def __str__(self) -> str:
        split = f'{self.split}: ' if self.split else ''
        more = self.count - _MOST_EXAMPLES
        return '\n'.join(
            [
                f'{self.severity.upper()} {split}{self.kind} ({self.count:,})',
                *(f'    {example}' for example in self.examples),
                *([f'    ... and {more:,} more'] if more > 0 else []),
                f'    what to do: {self.findings[0].remedy}',
            ]
        )


class Findings(list[Finding]):
    """All findings of a check."""

    @property
    def errors(self) -> int:
        """How many of them are errors."""
        return sum(finding.severity == ERROR for finding in self)

    def once(self) -> Findings:
        """Without those that an earlier split has in the same file, as splits may share files."""
        first = {(f.severity, f.kind, f.file, f.what): f for f in reversed(self)}
        return Findings(f for f in self if first[f.severity, f.kind, f.file, f.what] is f)

    def groups(self) -> list[Group]:
        """The findings put together, errors first, else in the order they were made in."""
        found: dict[tuple[str, str, str], Group] = {}
        for finding in self:
            key = finding.severity, finding.kind, finding.split
            found.setdefault(key, Group(*key)).findings.append(finding)
        return sorted(found.values(), key=lambda group: group.severity != ERROR)

    def write_csv(self, file: str | Path) -> None:
        """Write every finding as a line of ``file``."""
        with writing(file) as partial, partial.open('w', newline='', encoding='utf-8') as stream:
            writer = csv.writer(stream)
            writer.writerow(column.name for column in fields(Finding))
            writer.writerows(astuple(finding) for finding in self)

    @property
    def verdict(self) -> str:
        """``fit to train``, or that it is not."""
        if not self.errors:
            return 'fit to train'
        return f'not fit to train: {self.errors:,} error{"s" * (self.errors != 1)}'


class Collector(Watch):
    """Makes a finding of every fault, after which the readers go on.

    Attributes:
        findings: those made so far.
        split: the split whose data is being looked at.
    """

    keeps_objects = True

    def __init__(self) -> None:
        self.findings = Findings()
        self.split = ''

    def begin(self, split: str) -> None:
        """See :class:`Watch`."""
        self.split = split

    def guard(self, kind: str, file: str = '') -> _Guard:
        """See :class:`Watch`; the DataError becomes an error, and goes no further."""
        return _Guard(self, kind, file)

    def batches(self, items: Iterable) -> list[list]:
        """See :class:`Watch`."""
        return [[item] for item in items]

    def error(self, kind: str, file: str, what: str, remedy: str) -> None:
        """Make an error."""
        self.findings.append(Finding(ERROR, kind, self.split, file, what, remedy))

    def warn(self, kind: str, file: str, what: str, remedy: str) -> None:
        """See :class:`Watch`; it becomes a warning."""
        self.findings.append(Finding(WARNING, kind, self.split, file, what, remedy))

    def warn_of_names(self, kind: str, key: str, names: list[str], what: str, remedy: str) -> None:
        """Make a warning of each of ``names``, if there are few; else one of all."""
        if len(names) > _MOST_EXAMPLES:
            names = [f'{len(names):,} classes ({listed(names, 10)})']
        for name in names:
            self.warn(kind, key, f'{name}: {what}', remedy)


class _Guard:
    def __init__(self, collector: Collector, kind: str, file: str) -> None:
        self.collector, self.kind, self.file = collector, kind, file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DataError):
            return False
        # by what DataError promises, what to do comes last
        what, _, remedy = ' '.join(str(error).split()).rpartition('; ')
        # ... and a finding has its file already
        named = re.compile(rf'^(image |label map )?{re.escape(self.file)}:? ')
        what = named.sub(r'\1', what) if self.file else what
        self.collector.error(self.kind, self.file, what or remedy, remedy)
        return True
