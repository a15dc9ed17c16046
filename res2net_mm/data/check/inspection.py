"""The full check of a config's data before anyone trains: every fault, not only the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmengine import Config

from ..errors import DataError
from ..findings import Findings, of_split, warning
from .files import check_copies, check_files, check_left_over, check_splits
from .objects import check_classes, check_most_objects, check_objects
from .pixels import CheckedSet, look_at_pixels
from .survey import SplitSummary, Survey

SPLITS = ('train', 'val', 'test')


@dataclass
class Inspection:
    """All that the full check found out."""

    findings: Findings
    summaries: list[SplitSummary]  # one for each split
    sets: list[CheckedSet]  # the datasets that were read; only one of two that are the same

    @property
    def splits(self) -> list[str]:
        """The splits of its sets."""
        return list(dict.fromkeys(part.split for part in self.sets))


def inspect_data(
    cfg: Config, splits: Sequence[str] = SPLITS, workers: int | None = None
) -> Inspection:
    """Looks at all data of an mmdet or mmseg config: annotations, images, masks and label maps.

    Covers what the quick :func:`~res2net_mm.data.check.quick.check_data` covers, decodes every
    image and label map, and finds what only the whole set shows. A fault that ends training or
    teaches it something wrong is an error; one that training survives is a warning.

    Args:
        cfg: The config.
        splits: Which of its dataloaders to check.
        workers: Threads that decode; by default one per processor, but at most 16.

    Raises:
        DataError: The config has none of the dataloaders, or its model is no config.
    """
    if not any((cfg.get(f'{split}_dataloader') or {}).get('dataset') for split in splits):
        wanted = ', '.join(f'{split}_dataloader' for split in splits)
        raise DataError(
            f'the config has no data to check ({wanted})', remedy='name splits that it has'
        )
    survey = Survey(cfg, splits)
    # all splits: an image that another split lists is not left over
    found = list(survey.read(SPLITS))
    summaries = [summary for summary in survey.summaries if summary.split in splits]
    # if two splits are the same, the first is looked at, whichever was asked for
    asked = {*splits, *(summary.same_as for summary in summaries)}
    findings = Findings(finding for finding in found if finding.split in {'', *asked})
    parts = [part for part in survey.sets if part.split in asked]
    for part in parts:
        images = [image.file for image in part.used]
        maps = [image.label_map for image in part.used if image.label_map]
        look_at_pixels(part, images, maps, workers, bar=True)
        for check in (check_files, check_copies, check_objects):
            findings.extend(of_split(part.split, check(part)))
        findings.extend(of_split(part.split, check_left_over(part, survey.sets)))
        findings.extend(of_split(part.split, check_most_objects(part, survey.model)))
    findings.extend(check_splits(parts))
    for summary in summaries:
        for name in dict.fromkeys(summary.unchecked if not summary.same_as else ()):
            unread = warning(
                'not checked',
                f'{summary.split}_dataloader.dataset',
                f'{name} reads its annotations in its own way, or not from local files',
            )
            findings.extend(of_split(summary.split, [unread]))
    if not any(summary.unchecked for summary in summaries if summary.split == 'train'):
        findings.extend(check_classes(parts))
    return Inspection(findings.once(), summaries, parts)
