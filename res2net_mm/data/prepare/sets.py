"""Published data sets, laid out in the folders that the configs read.

Files are counted to find out what is there, so a set that was laid out by hand is complete too,
and a second call does nothing. A part is incomplete, whatever the counts, while the set's
``.prepare`` holds something that an interrupted call left of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ...checks import did_you_mean, listed
from ...files import writing
from ...weights.download import digest_of, fetch
from ..errors import DataError
from ..sets.images import check_pixels
from .archives import DATA_SETS, Archive, Count, DataSet, SetPart
from .unpack import disk_errors, unpack

_WORK = '.prepare'  # in the set's own folder, which may be on another disk
_IGNORE = 255
# the published ids of the 19 classes that are trained on, in the order of their trainIds
_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Row:
    """A folder of a prepared set: its files' pattern and number, and whether they are new."""

    folder: Path
    pattern: str
    number: int
    new: bool


@dataclass(frozen=True)
class Prepared:
    """A set on disk; as text, a table."""

    licence: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        folders = [f'{row.folder}/{row.pattern}' for row in self.rows]
        width = max(map(len, folders))
        lines = [
            f'{folder:<{width}}{row.number:>9,}  {"new" if row.new else "was there"}'
            for folder, row in zip(folders, self.rows, strict=True)
        ]
        return '\n'.join([*lines, f'licence: {self.licence}'])


def prepare_data(
    dataset: str | DataSet,
    root: str | Path = 'data',
    *,
    source: str | Path | None = None,
    parts: Sequence[str] = (),
    keep_archives: bool = False,
) -> Prepared:
    """Fetches a published data set, unpacks it and checks that all of its files are there.

    The next call continues what an interrupted one downloaded or unpacked. Archives are verified
    by their published checksum, if there is one. RES2NET_MM_MIRROR may name folders and addresses
    to be asked for them first.

    Args:
        dataset: ``coco``, ``voc``, ``ade20k``, ``cityscapes``, or the description of another set.
        root: The folder of all sets, in which the set gets its own.
        source: A folder that has the archives already; nothing is downloaded then.
        parts: The parts of the set to prepare; by default those that most configs read.
        keep_archives: Keep downloaded archives in the set's ``.prepare`` instead of removing each
            after unpacking. The archives in ``source`` always stay.

    Returns:
        What is there, folder by folder.

    Raises:
        DataError: A name is unknown, an archive is missing, damaged or not the published one, the
            disk is too small, or files are missing or too many at the end.
        DownloadError: An archive cannot be downloaded.
    """
    dataset = dataset if isinstance(dataset, DataSet) else _named(dataset)
    home = Path(root) / dataset.folder
    chosen = _chosen(dataset, parts)
    job = _Job(home, None if source is None else Path(source), keep_archives)
    packed = [part for part in chosen if not _complete(home, part.counts) or job.interrupted(part)]
    unmade = [part for part in chosen if not _complete(home, part.made)]
    if packed or unmade:
        groups = [[a for a in part.archives if not job.mark(a).exists()] for part in packed]
        job.check_archives(dataset, [archive for group in groups for archive in group], root)
        job.check_space(groups)
        with disk_errors(home):
            job.work.mkdir(parents=True, exist_ok=True)
            try:
                held = FileLock(job.work / 'lock').acquire(timeout=0)
            except Timeout as error:
                raise DataError(f'another process is preparing {home}; wait for it') from error
        with held, disk_errors(home):
            for part in chosen:
                if part in packed:
                    job.unpack(part)
                if part in unmade:
                    _FINISHES[part.finish](home)
                    job.check_counts(part.made, part.archives)
            job.clean_up()
    rows = tuple(
        Row(home / count.folder, count.pattern, count.number, part in news)
        for part in chosen
        for counts, news in ((part.counts, packed), (part.made, unmade))
        for count in counts
    )
    return Prepared(dataset.licence, rows)


def _named(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise DataError(
            f'data set {name!r} is not known',
            remedy=f'there are {listed(DATA_SETS)}{did_you_mean(name, DATA_SETS)}',
        )
    return DATA_SETS[name]


def _chosen(dataset: DataSet, names: Sequence[str]) -> list[SetPart]:
    """The parts of these names, each after those that it needs."""
    order: list[str] = []
    for name in names or dataset.default:
        if name not in dataset.parts:
            raise DataError(
                f'{dataset.name} has no part {name!r}',
                remedy=f'its parts are {listed(dataset.parts, 10)}'
                f'{did_you_mean(name, dataset.parts)}',
            )
        order += [*dataset.parts[name].needs, name]
    return [dataset.parts[name] for name in dict.fromkeys(order)]


def _found(home: Path, count: Count) -> int:
    return sum(not path.name.startswith('.') for path in (home / count.folder).glob(count.pattern))


def _complete(home: Path, counts: Iterable[Count]) -> bool:
    """Whether all files are there; raises if there are more, which no download repairs."""
    complete = True
    for count in counts:
        found = _found(home, count)
        if found > count.number:
            raise DataError(
                f'it has {found:,} {count.pattern}, but {count.number:,} are expected',
                str(home / count.folder),
                'remove those that are not of the set',
            )
        complete = complete and found == count.number
    return complete


@dataclass
class _Job:
    """Where archives come from, and the folder in which they are unpacked."""

    home: Path
    source: Path | None
    keep: bool

    @property
    def work(self) -> Path:
        return self.home / _WORK

    def mark(self, archive: Archive) -> Path:
        """A file that says that an archive is unpacked."""
        return self.work / f'{archive.name}.unpacked'

    def interrupted(self, part: SetPart) -> bool:
        """Whether a call that began to fetch or unpack the part did not finish."""
        left = ('{}.files', '{}.part', '*/{}.part', '{}.unpacked')
        patterns = (kind.format(archive.name) for archive in part.archives for kind in left)
        return any(any(self.work.glob(pattern)) for pattern in patterns)

    def check_archives(self, dataset: DataSet, archives: list[Archive], root: str | Path) -> None:
        """Raises if an archive is missing in ``source``, or can only be fetched with an account."""
        if self.source is None:
            if closed := [archive.name for archive in archives if archive.url is None]:
                raise DataError(
                    f'{dataset.name} is given out to accounts only ({dataset.licence})',
                    remedy=f'get {" and ".join(closed)} at {dataset.site}, put them into one '
                    'folder, and call again with it: python tools/prepare_data.py '
                    f'{dataset.name} --root {root} --from FOLDER',
                )
            return
        if not self.source.is_dir():
            raise DataError('there is no such folder', f'--from {self.source}')
        missing = [a.name for a in archives if not (self.source / a.name).is_file()]
        if missing:
            what = f'it has no {" and no ".join(missing)}'
            raise DataError(what, f'--from {self.source}', 'put them there')

    def check_space(self, groups: list[list[Archive]]) -> None:
        """Raises if the disk cannot hold what is still to be fetched and unpacked.

        Args:
            groups: The archives of each part.
        """
        archives = [archive for group in groups for archive in group]
        needed = sum(archive.unpacked for archive in archives)
        if self.source is None and archives:
            needed += (sum if self.keep else max)(sum(a.size for a in group) for group in groups)
        for archive in archives:  # what an interrupted call has already stored
            name = archive.name
            kinds = (name, f'{name}.part', f'*/{name}', f'*/{name}.part', f'{name}.files/**/*')
            done = (path for kind in kinds for path in self.work.glob(kind) if path.is_file())
            needed -= sum(path.stat().st_size for path in done)
        disk = self.home.resolve()
        while not disk.exists():
            disk = disk.parent
        free = shutil.disk_usage(disk).free
        if free < needed:
            raise DataError(
                f'its disk is too small: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB '
                'are free',
                str(disk),
                'make room, or give another --root',
            )

    def unpack(self, part: SetPart) -> None:
        for archive in part.archives:
            if self.mark(archive).exists():
                continue
            stage = self.work / f'{archive.name}.files'
            most = 2 * archive.unpacked + (1 << 30)
            unpack(self._file(archive), stage, self.home, archive.moves, archive.nested, most)
            self.mark(archive).touch()
        self.check_counts(part.counts, part.archives)
        for archive in part.archives:
            self.mark(archive).unlink()
            if not self.keep:
                for path in (self.work / archive.name, *self.work.glob(f'*/{archive.name}')):
                    path.unlink(missing_ok=True)

    def _file(self, archive: Archive) -> Path:
        """The archive on disk, verified."""
        if self.source is None:
            most = 2 * archive.size + (1 << 30)
            return fetch(archive.url, archive.sha256, md5=archive.md5, folder=self.work, most=most)
        path = self.source / archive.name
        for kind, digits in (('sha256', archive.sha256), ('md5', archive.md5)):
            if digits and digest_of(path, kind) != digits:
                raise DataError(
                    f'it is damaged, or not the published file: its {kind} is not {digits}',
                    str(path),
                    'fetch it again' + (f' from {archive.url}' if archive.url else ''),
                )
        return path

    def check_counts(self, counts: Iterable[Count], archives: Sequence[Archive]) -> None:
        """Raises unless all files are there; the next call then unpacks the archives again."""
        for count in counts:
            found = _found(self.home, count)
            if found != count.number:
                for archive in archives:
                    self.mark(archive).unlink(missing_ok=True)
                names = ' and '.join(archive.name for archive in archives)
                raise DataError(
                    f'it has {found:,} {count.pattern}, but {count.number:,} are expected',
                    str(self.home / count.folder),
                    f'remove {names} from {self.source or self.work} and fetch it again',
                )

    def clean_up(self) -> None:
        """Removes the working folder unless archives are kept in it."""
        work = self.work
        for file in [*work.glob('*.unpacked'), *work.rglob('*.lock'), work / 'lock']:
            file.unlink(missing_ok=True)
        for folder in [*filter(Path.is_dir, work.iterdir()), work]:
            if not any(folder.iterdir()):
                folder.rmdir()


def _write_maps(maps: dict[Path, Callable[[], np.ndarray]], title: str) -> None:
    """Writes label maps where there are none yet; decoding and encoding release Python's lock."""

    def write(file: Path) -> None:
        with writing(file, durable=False) as unfinished:
            Image.fromarray(maps[file]()).save(unfinished, 'png')

    missing = [file for file in maps if not file.exists()]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        written = pool.map(write, missing)  # after an error it cancels the others
        for _ in tqdm(written, title, len(missing), unit=' files', disable=None):
            pass


def _make_train_ids(home: Path) -> None:
    """Cityscapes: ``*_labelTrainIds.png`` next to every ``*_labelIds.png``."""
    table = np.full(256, _IGNORE, np.uint8)
    table[list(_TRAIN_IDS)] = range(len(_TRAIN_IDS))
    maps = {
        file.with_name(file.name.replace('_labelIds', '_labelTrainIds')): (
            lambda file=file: table[_read_png(file)]
        )
        for file in sorted((home / 'gtFine').glob('*/*/*_gtFine_labelIds.png'))
    }
    _write_maps(maps, 'train ids')


def _make_voc_aug(home: Path) -> None:
    """VOC2012: ``SegmentationClassAug`` with SBD's label maps and VOC's own, and the lists.

    The literature trains on VOC's list and all of SBD except VOC's validation images; ``aug.txt``
    lists those that only SBD has. VOC's labels are used for images that both have.
    """
    benchmark, voc = home / 'VOCaug/dataset', home / 'VOC2012'
    lists = voc / 'ImageSets/Segmentation'
    train, val = (_names(lists / f'{split}.txt') for split in ('train', 'val'))
    own = {*train, *val}
    both = {name for split in ('train', 'val') for name in _names(benchmark / f'{split}.txt')}
    added = sorted(both - own)
    out = voc / 'SegmentationClassAug'
    out.mkdir(exist_ok=True)
    maps = {out / f'{n}.png': partial(_read_mat, benchmark / f'cls/{n}.mat') for n in added}
    for name in sorted(own):
        maps[out / f'{name}.png'] = partial(_read_png, voc / f'SegmentationClass/{name}.png')
    _write_maps(maps, 'label maps')
    for name, content in (('aug', added), ('trainaug', sorted({*train, *added}))):
        (lists / f'{name}.txt').write_text(''.join(f'{stem}\n' for stem in content))


def _names(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _read_png(file: Path) -> np.ndarray:
    """The values of a png with one channel; for one with a palette, its indices."""
    check_pixels(file, f'label map {file}')
    with Image.open(file) as image:
        if image.mode not in ('L', 'P'):
            raise DataError(f'it is no label map: its mode is {image.mode}, not L or P', str(file))
        return np.array(image)


def _read_mat(file: Path) -> np.ndarray:
    from scipy.io import loadmat  # here: nothing else in the package needs scipy

    try:
        return loadmat(file)['GTcls'][0, 0]['Segmentation'].astype(np.uint8)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(
            f'it is no annotation of SBD ({error})', str(file), 'fetch it again'
        ) from error


_FINISHES = {'voc_aug': _make_voc_aug, 'train_ids': _make_train_ids}
