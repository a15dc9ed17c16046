"""The checks of a config's data: a quick look before a run, and one at everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from mmengine import Config

from ...checks import listed
from ..errors import DataError
from ..findings import ERROR, Finding, Findings, of_split, warning
from ..transforms import is_known_loader
from .faults import (
    check_classes,
    check_copies,
    check_files,
    check_left_over,
    check_limit,
    check_objects,
)
from .pixels import CheckedSet, spread
from .survey import SplitSummary, Survey

SPLITS = ('train', 'val', 'test')
#: Images and label maps of a dataset that the quick look decodes, spread over it.
SAMPLE = 16


@dataclass
class Inspection:
    """All that the full check found out."""

    findings: Findings
    summaries: list[SplitSummary]  # one for each split
    sets: list[CheckedSet]  # the datasets that were read; only one of two that are the same


def inspect_data(cfg: Config, splits: Sequence[str] = SPLITS) -> Inspection:
    """Looks at all data of an mmdet or mmseg config: annotations, images, masks and label maps.

    A fault that ends training or teaches it something wrong is an error; one that training survives
    is a warning.

    Raises:
        DataError: The config has none of the dataloaders that ``splits`` names.
    """
    survey = Survey(cfg)
    # all splits: an image that another split lists is not left over
    found = list(survey.read(SPLITS))
    summaries = [summary for summary in survey.summaries if summary.split in splits]
    if not summaries:
        what = f'the config has no data to check ({listed(f"{s}_dataloader" for s in splits)})'
        raise DataError(what, remedy='name splits that it has')
    # if two splits are the same, the first is looked at, whichever was asked for
    asked = {*splits, *(summary.same_as for summary in summaries)}
    findings = Findings(finding for finding in found if finding.split in {'', *asked})
    parts = [part for part in survey.sets if part.split in asked]
    for part in parts:
        part.look(part.used)
        left_over, limit = check_left_over(part, survey.sets), check_limit(part, survey.model)
        found = chain(check_files(part), check_objects(part, masks=True), left_over, limit)
        findings.extend(of_split(part.split, found))
    findings.extend(check_copies(parts))
    unread = {s.split: s.unchecked for s in summaries if s.unchecked and not s.same_as}
    for split, names in unread.items():
        what = f'{listed(names)} reads annotations in its own way, or not from local files'
        unchecked = warning('not checked', f'{split}_dataloader.dataset', what)
        findings.append(unchecked._replace(split=split))
    if 'train' not in unread:
        findings.extend(check_classes(parts))
    return Inspection(findings.once(), summaries, parts)


def check_data(cfg: Config, splits: Sequence[str] = SPLITS) -> list[SplitSummary]:
    """Checks the data of a config of mmdet, mmseg or mmpretrain without building its datasets.

    Reads annotation files and lists image folders; of images and label maps, it decodes a sample.
    Counts boxes as training uses them with pipelines from
    :func:`~res2net_mm.data.transforms.harden_dataset`.

    Returns:
        A summary for each of ``splits`` that the config has.

    Raises:
        DataError: The first error that is found.
    """
    survey, warnings = Survey(cfg), Findings()
    for finding in _look(survey, splits):
        if finding.severity == ERROR:
            raise DataError(finding.what, finding.file, finding.remedy)
        warnings.append(finding)
    for summary in survey.summaries:
        summary.warnings = [g.line for g in warnings.groups() if g[0].split == summary.split]
    return survey.summaries


def _look(survey: Survey, splits: Sequence[str]) -> Iterator[Finding]:
    yield from survey.read(splits)
    for part in survey.sets:
        loads = any(map(is_known_loader, part.node.pipeline))  # else the user has their own loader
        most = SAMPLE
        part.look(spread(part.used, most), loads, quick=True)
        least = 2 - part.chosen  # others than those chosen may fill the maps
        while part.ignored and most < len(part.used) and len(part.labels()) < least:
            most *= 4  # perhaps other label maps have more classes
            part.look(spread(part.used, most), loads=False, quick=True)
        found = chain(check_files(part), check_objects(part, masks=False))
        yield from of_split(part.split, found)
    yield from (f for f in check_copies(survey.sets) if f.kind == 'split overlap')
