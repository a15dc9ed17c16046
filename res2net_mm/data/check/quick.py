"""The quick look at a config's data before a run: annotations, and a sample of the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine import Config

from ..findings import ERROR, Finding, Findings, of_split
from ..transforms import is_known_loader
from .files import check_files, check_splits
from .pixels import CheckedSet, look_at_pixels
from .survey import SplitSummary, Survey

#: Images and label maps of a dataset that are decoded, spread over it.
SAMPLE = 16
_READABLE = ('.png', '.bmp', '.tif', '.tiff')  # label maps; others may need a loader of their own


def check_data(cfg: Config, splits: Sequence[str] = ('train', 'val', 'test')) -> list[SplitSummary]:
    """Checks the data of an mmdet or mmseg config without building its datasets.

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


def _look(survey: Survey, splits: Sequence[str]) -> Iterator[Finding]:
    yield from survey.read(splits)
    for part in survey.sets:
        _look_at_sample(part)
        yield from of_split(part.split, check_files(part))
    yield from check_splits(survey.sets)


def _look_at_sample(part: CheckedSet) -> None:
    """Decodes some files; where their label maps show a single class, more and more of them."""
    loads = any(map(is_known_loader, part.node.pipeline))  # else it is a loader of the user's
    images = [image.file for image in part.used] if loads else []
    maps = (
        [image.label_map for image in part.used if image.label_map] if loads or part.ignored else []
    )
    maps = [file for file in maps if file.lower().endswith(_READABLE)]
    most = SAMPLE
    while True:
        look_at_pixels(part, _spread(images, SAMPLE), _spread(maps, most))
        if most >= len(maps) or len(part.labels()) > 1:
            return
        most *= 4


def _spread(files: Sequence[str], most: int) -> Sequence[str]:
    return files[:: max(1, len(files) // most)]
