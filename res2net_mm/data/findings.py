"""What a check of data finds: the kinds of faults with their remedies, and lists of faults."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..files import writing
from .errors import DataError

ERROR, WARNING = 'error', 'warning'
_MOST_EXAMPLES = 3
#: Kind of finding -> what to do about it; an error may say something more exact.
REMEDIES = {
    # config
    'not checked': 'check this data yourself',
    'more objects than detections': 'raise it, and the number that the metric counts (100 in COCO)',
    # classes
    'class without objects': 'add images of it, or remove it from the classes',
    'class without images': 'add images of it, or remove its folder',
    'class never trained': 'move images of it to the training set, or it will never be found',
    # images
    'image listed twice': 'remove it there; as it is, it counts for more than others',
    'same content twice': 'keep one of them; as it is, it counts for more than others',
    'split overlap': 'remove it from one of the two splits',
    'image not listed': 'list and annotate it, if it was meant to be used',
    'image of 16 bits': 'look whether 8 bits show enough (contact sheet); if not, write 8 bits',
    'image turned by EXIF': 'look at it (contact sheet); to be safe, write it without the tag',
    'image of another size': 'annotate the image as it is, or restore the annotated one',
    'width and height swapped': 'correct <size>',
    # annotations
    'annotation of no image': 'add the image to the list, or remove the annotation',
    'annotation of no category': 'add the category, or correct the annotation',
    'doubled id': 'renumber them',
    'blank in a list': 'remove the blank',
    'fractional coordinates': 'nothing, or train on what voc2coco writes, which keeps them',
    # boxes
    'object twice': 'remove all but one; the others count as objects that are not found',
    'boxes written as corners': 'write them as [x, y, width, height]',
    'swapped corners': 'write xmin < xmax and ymin < ymax, or width and height above 0',
    'zero-size box': 'annotate the object again, or remove it',
    'box not finite': 'annotate the object again, or remove it',
    'box under 1 px': 'look whether coordinates are in pixels; if so, remove the object',
    'box outside the image': 'look whether it is the annotated image; if so, remove the object',
    'box beyond the border': 'nothing, if the border cuts objects; else look at the box',
    'box without area': "write its area in px to 'area'",
    'area beyond its box': 'write the number of its pixels, by which AP by size is counted',
    # masks
    'mask broken': 'write the mask again, or remove the object',
    'mask empty': 'draw the mask, or remove the object',
    'thin mask': 'nothing, or remove the object: its box is trained on, its mask says background',
    'mask unlike its box': 'look which of the two is right, and write the other again',
    'polygon dropped': 'nothing, or remove the polygon: the others of the object are used',
    # label maps
    'label map of another size': 'write the map for the image as it is loaded',
    'label map of 16 bits': 'write it with 8 bits per pixel',
    'label map without image': 'add its image, or remove it',
    'label map all ignored': 'label it, or remove the image: nothing is learnt from it',
}


class Finding(NamedTuple):
    """One fault that a check found."""

    severity: str  # error if training ends or learns something wrong, else warning
    kind: str  # a few words that all faults of this sort share
    split: str  # train, val or test; empty if the whole config has it
    file: str  # the file that has it, or the config key
    what: str  # what is wrong
    remedy: str  # what to do about it


def warning(kind: str, file: str, what: str) -> Finding:
    """A fault that training survives."""
    return Finding(WARNING, kind, '', file, what, REMEDIES[kind])


def error(kind: str, file: str, what: str, remedy: str = '') -> Finding:
    """A fault with which training ends or learns something wrong."""
    return Finding(ERROR, kind, '', file, what, remedy or REMEDIES[kind])


def guarded(kind: str, findings: Generator[Finding, None, Any]) -> Generator[Finding, None, Any]:
    """``findings``; a :class:`DataError` that ends them is the last, and then None is returned."""
    try:
        return (yield from findings)
    except DataError as fault:
        yield error(kind, fault.where, fault.what, fault.remedy)


def of_split(split: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """``findings`` with their split set."""
    return (finding._replace(split=split) for finding in findings)


class Group(list[Finding]):
    """The findings of one severity, kind and split."""

    @property
    def line(self) -> str:
        """All in one line: the first, and how many more there are."""
        first, more = self[0], f', and {len(self) - 1:,} more' if len(self) > 1 else ''
        return f'{first.kind}: {first.file}: {first.what}{more}; {first.remedy}'

    def __str__(self) -> str:
        first, more = self[0], len(self) - _MOST_EXAMPLES
        split = f'{first.split}: ' if first.split else ''
        lines = [f'{first.severity.upper()} {split}{first.kind} ({len(self):,})']
        lines += [f'    {finding.file}: {finding.what}' for finding in self[:_MOST_EXAMPLES]]
        lines += [f'    ... and {more:,} more'] if more > 0 else []
        return '\n'.join([*lines, f'    what to do: {first.remedy}'])


class Findings(list[Finding]):
    """All findings of a check."""

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self)

    @property
    def verdict(self) -> str:
        """``fit to train``, or that it is not."""
        if not self.errors:
            unread = any(finding.kind == 'not checked' for finding in self)
            return 'fit to train' + ', but for what was not checked' * unread
        return f'not fit to train: {self.errors:,} error{"s" * (self.errors != 1)}'

    def once(self) -> Findings:
        """Without those that an earlier split has in the same file, as splits may share files."""
        first: dict[Finding, Finding] = {}
        for finding in self:
            first.setdefault(finding._replace(split='', remedy=''), finding)
        return Findings(first.values())

    def groups(self) -> list[Group]:
        """The findings in groups, errors first, else in the order in which they were made."""
        found: dict[tuple[str, str, str], Group] = {}
        for finding in self:
            found.setdefault(finding[:3], Group()).append(finding)
        return sorted(found.values(), key=lambda group: group[0].severity != ERROR)

    def write_csv(self, file: str | Path) -> None:
        """Writes every finding as a line of ``file``."""
        with writing(file) as partial, partial.open('w', newline='', encoding='utf-8') as stream:
            csv.writer(stream).writerows([Finding.__annotations__, *self])
