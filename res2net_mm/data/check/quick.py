"""The quick look at a config's data before a run: annotations, and a sample of the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine import Config

from ..findings import ERROR, Finding, Findings, of_split
from ..transforms import is_known_loader
from .files import check_files, check_splits
from .pixels import CheckedSet, look_at_pixels, spread
from .survey import SplitSummary, Survey

#: Images and label maps of a dataset that are decoded, spread over it.
SAMPLE = 16
_READABLE = ('.png', '.bmp', '.tif', '.tiff')  # label maps; others may need a loader of their own


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[SplitSummary]:
    """Checks the data of a config of mmdet, mmseg or mmpretrain without building its datasets.

    Reads annotation files and lists image folders; of images and label maps, it decodes a sample.
    Counts boxes as training uses them with pipelines from
    :func:`~res2net_mm.data.transforms.harden_dataset`.

    Args:
        cfg: The config.
        splits: Which of its dataloaders to check; those that it does not have are skipped.

    Returns:
        A summary for each split, in the order of ``splits``. ``unchecked`` names the types of
        datasets that read in their own way, or not from a local file system.

    Raises:
        DataError: Files are missing or do not parse; the classes of the config, the annotations,
            the splits and the model disagree; or there is no usable box.
    """
    survey = Survey(cfg, splits)
    warnings = Findings()
    for finding in _look(survey, splits):
        if finding.severity == ERROR:
            raise finding.as_error()
        warnings.append(finding)
    for summary in survey.summaries:
        summary.warnings = [g.line for g in warnings.groups() if g[0].split == summary.split]
    return survey.summaries


def format_summary(summaries: Sequence[SplitSummary]) -> str:
    """The summaries as text: a line for each split, and for each of its warnings."""
    lines = []
    for summary in summaries:
        twin = any(earlier.split == summary.same_as for earlier in summaries)
        lines.append(f'{summary.split}: {f"the same as {summary.same_as}" if twin else summary}')
        lines += [f'WARNING: {summary.split}: {warning}' for warning in summary.warnings]
    return '\n'.join(lines)


def _look(survey: Survey, splits: Sequence[str]) -> Iterator[Finding]:
    yield from survey.read(splits)
    for part in survey.sets:
        _look_at_sample(part)
        yield from of_split(part.split, check_files(part))
    yield from check_splits(survey.sets)


def _look_at_sample(part: CheckedSet) -> None:
    """Decodes some files; where their label maps show a single class, more and more of them."""
    loads = any(map(is_known_loader, part.node.pipeline))  # else the user has their own loader
    images = [image.file for image in part.used if loads]
    maps = [image.label_map for image in part.used if image.label_map and (loads or part.ignored)]
    maps = [file for file in maps if file.lower().endswith(_READABLE)]
    most = SAMPLE
    look_at_pixels(part, spread(images, most), spread(maps, most))
    while part.ignored and most < len(maps) and len(part.labels()) < 2:
        most *= 4
        look_at_pixels(part, spread(images, SAMPLE), spread(maps, most))
