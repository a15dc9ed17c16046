"""What the data of a split amounts to, in one line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...checks import listed
from ..sets.records import IGNORED, ZERO_SIZE, Image, count_others

_OTHER_CLASSES = 'other classes'
_MOST_CLASSES = 12  # that are listed
_MOST_EXAMPLES = 3


@dataclass
class SplitSummary:
    """What the data of one split amounts to."""

    split: str  # train, val or test
    dataset: str = ''  # the dataset's type
    images: int = 0  # that the run uses, after filter_cfg and indices
    boxes: int = 0  # usable ones in these images
    dropped: dict[str, int] = field(default_factory=dict)  # why a box is not usable -> how many
    # whether the dropped boxes still count in the ground truth that is measured by
    kept: bool = False
    # names that are no class -> objects; these are in no ground truth, and in dropped as well
    other_classes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(
        default_factory=dict
    )  # why filter_cfg drops images -> how many
    classes: tuple[str, ...] = ()  # in the order of the labels
    per_class: dict[str, int] = field(default_factory=dict)  # usable boxes; empty for label maps
    examples: list[str] = field(default_factory=list)  # first images with a box of no size
    unchecked: list[str] = field(default_factory=list)  # types of datasets that were not read
    same_as: str | None = None  # an earlier split that has the same data
    warnings: list[str] = field(default_factory=list)

    def count(self, images: Sequence[Image], stray: int, detection: bool) -> None:
        """Fills in the figures.

        Args:
            images: Those that the run uses.
            stray: Objects of images that are not listed.
            detection: Whether there are boxes to count.
        """
        self.images = len(images)
        if not detection:
            return
        dropped, per_class = Counter(), Counter(dict.fromkeys(self.classes, 0))
        for image in images:
            reasons = Counter(item.reason for item in image.objects if item.reason)
            dropped.update(reasons)
            per_class.update(image.boxes)
            if reasons[ZERO_SIZE] and len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(os.path.splitext(os.path.basename(image.file))[0])
        others = count_others(images)
        dropped.update({'of images not listed': stray, _OTHER_CLASSES: others.total()})
        self.dropped, self.per_class = dict(+dropped), dict(per_class)
        self.other_classes = dict(others.most_common())
        self.boxes = per_class.total()

    def __str__(self) -> str:
        own_way = f'{", ".join(dict.fromkeys(self.unchecked))} not checked'
        if not self.images:
            return own_way if self.unchecked else 'could not be read'
        text = f'{self.images:,} image{"s" * (self.images != 1)}'
        if self.per_class:
            boxes = f'{self.boxes:,} box{"es" * (self.boxes != 1)}'
            text += f', {boxes} ({_class_text(self.per_class)})'
        else:
            text += f' with label maps, {len(self.classes)} classes'
        parts = [text]
        dropped = ', '.join(
            self._dropped_text(reason, count)
            for reason, count in self.dropped.items()
            if reason != _OTHER_CLASSES
        )
        if dropped:
            kept = f'{dropped} kept in the ground truth'
            parts.append(kept if self.kept else f'dropped {dropped}')
        if self.other_classes:
            names = listed(f'{name} {count:,}' for name, count in self.other_classes.items())
            parts.append(f'ignored objects of other classes ({names})')
        if self.left_out:
            parts.append(f'left out images: {counted(self.left_out)}')
        if self.unchecked:
            parts.append(own_way)
        return '; '.join(parts)

    def _dropped_text(self, reason: str, count: int) -> str:
        boxes = 'box' if count == 1 else 'boxes'
        if reason == ZERO_SIZE:
            more = ', ...' * (count > len(self.examples))
            return f'{count:,} {reason} {boxes} ({listed(self.examples)}{more})'
        return f'{count:,} {reason} {boxes}' if reason in IGNORED else f'{count:,} {boxes} {reason}'


def format_summary(summaries: Sequence[SplitSummary]) -> str:
    """The summaries as text: a line for each split, and for each of its warnings."""
    lines = []
    for summary in summaries:
        twin = any(earlier.split == summary.same_as for earlier in summaries)
        lines.append(f'{summary.split}: {f"the same as {summary.same_as}" if twin else summary}')
        lines += [f'WARNING: {summary.split}: {warning}' for warning in summary.warnings]
    return '\n'.join(lines)


def counted(counts: Mapping[str, int]) -> str:
    """``'3 without objects, 1 under 32 px'``."""
    return ', '.join(f'{count:,} {what}' for what, count in counts.items())


def _class_text(per_class: Mapping[str, int]) -> str:
    if len(per_class) <= _MOST_CLASSES:
        return ', '.join(f'{name} {count:,}' for name, count in per_class.items())
    empty = sum(1 for count in per_class.values() if not count)
    return f'{len(per_class)} classes' + (f', {empty} of them without a box' if empty else '')
