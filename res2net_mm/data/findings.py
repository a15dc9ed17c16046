"""What a check of data finds: the kinds of faults with their remedies, and lists of faults."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..files import writing
from .errors import DataError

ERROR, WARNING = 'error', 'warning'
_MOST_EXAMPLES = 3
_ANNOTATE = 'annotate the object again, or remove it'
#: Kind of finding -> what to do about it; an error may say something more exact.
REMEDIES = {
    # config
    'not checked': 'check this data yourself',
    'classes alike': 'make them one, if they are meant to be: voc2coco does with --merge',
    'more objects than detections': 'raise it, and the number that the metric counts (100 in COCO)',
    # classes
    'name like a class': 'write the name like the others, or leave it if it is intended',
    'class without objects': 'add images of it, or remove it from the classes; it is not learnt',
    'class without images': 'add images of it, or remove its folder; it is not learnt',
    'class without pixels': 'add images of it, or remove it from the classes; it is not learnt',
    'class never trained': 'move images of it to the training set, or it will never be found',
    # images
    'image listed twice': 'remove it there; as it is, it counts for more than others',
    'same content twice': 'keep one of them; as it is, it counts for more than others',
    'split overlap': 'remove it from one of the two splits',
    'image not listed': 'list and annotate it, if it was meant to be; as it is, it is not used',
    'suffix in another case': 'rename it',
    'image of 16 bits': 'look whether 8 bits show enough (contact sheet); if not, write 8 bits',
    'image turned by EXIF': 'look at it (contact sheet of check_data.py); to be safe, write it '
    'upright without the tag',
    'image of another size': 'annotate the image as it is, or restore the one that was annotated',
    'width and height swapped': 'correct <size>',
    # annotations
    'annotation of no image': 'add the image to the list, or remove the annotation; it is not used',
    'annotation of no category': 'add the category, or correct the annotation; it is not used',
    'doubled id': 'renumber them',
    'blank in a list': 'remove the blank',
    'fractional coordinates': 'nothing, if a pixel makes no difference; else train on what '
    'voc2coco writes, which keeps them',
    # boxes
    'object twice': 'remove all but one; the others count as objects that are not found',
    'boxes written as corners': 'write them as [x, y, width, height]',
    'negative size': 'write the box as [x, y, width, height]',
    'swapped corners': 'write xmin < xmax and ymin < ymax',
    'zero-size box': _ANNOTATE,
    'box not finite': _ANNOTATE,
    'box under 1 px': 'look whether coordinates are in pixels; if so, remove the object',
    'box outside the image': 'look whether the image is the one that was annotated; if so, remove '
    'the object',
    'box beyond the border': 'nothing, if the border cuts objects; else look whether boxes and '
    'image agree',
    'object without area': "write its area in px to 'area'",
    'area beyond its box': 'write the number of its pixels, by which AP by size is counted',
    # masks
    'mask broken': 'write the mask again, or remove the object',
    'mask empty': 'draw the mask, or remove the object',
    'thin mask': 'nothing, or remove the object: its box is trained on, its mask says background',
    'mask unlike its box': 'look which of the two is right (contact sheet), and write the other '
    'again',
    'polygon dropped': 'nothing, or remove the polygon: the others of the object are used',
    # label maps
    'label map of another size': 'write the map for the image as it is loaded',
    'label map of 16 bits': 'write it with 8 bits per pixel',
    'label map without image': 'add its image, or remove it',
    'label map all ignored': 'label it, or remove it from the set',
}


@dataclass(frozen=True)
class Finding:
    """One fault that a check found."""

    severity: str  # error if training ends or learns something wrong, else warning
    kind: str  # a few words that all faults of this sort share
    split: str  # train, val or test; empty if the whole config has it
    file: str  # the file that has it, or the config key
    what: str  # what is wrong
    remedy: str  # what to do about it

    def as_error(self) -> DataError:
        """The finding as an exception."""
        return DataError(self.what, self.file, self.remedy)


def warning(kind: str, file: str, what: str) -> Finding:
    """A fault that training survives."""
    return Finding(WARNING, kind, '', file, what, REMEDIES[kind])


def error(kind: str, file: str, what: str, remedy: str = '') -> Finding:
    """A fault with which training ends or learns something wrong."""
    return Finding(ERROR, kind, '', file, what, remedy or REMEDIES[kind])


def caught(kind: str, fault: DataError) -> Finding:
    """A :class:`DataError` as a finding."""
    return Finding(ERROR, kind, '', fault.where, fault.what, fault.remedy)


def raised(kind: str, check: Callable, *args: Any) -> Iterator[Finding]:
    """The :class:`DataError` that ``check(*args)`` raises, if it raises one, as a finding."""
    try:
        check(*args)
    except DataError as fault:
        yield caught(kind, fault)


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
