"""Published data sets, laid out in the folders that the configs read.

Files are counted to find out what is there, so a set that was laid out by hand is complete too,
and a second call does nothing. A part is incomplete, whatever the counts, while the set's
``.prepare`` holds a folder into which an interrupted call unpacked it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ...checks import did_you_mean, listed
from ...columns import aligned
from ...files import writing
from ...weights.download import fetch, file_problem
from ..errors import DataError
from ..sets.images import check_pixels
from .archives import DATA_SETS, Archive, DataSet, SetPart
from .unpack import merge, unpack

_WORK = '.prepare'  # in the set's own folder, which may be on another disk
_IGNORE = 255
# the published ids of the 19 classes that are trained on, in the order of their trainIds
_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Prepared:
    """A set on disk; as text, a table."""

    licence: str
    rows: list[tuple[str, int, bool]]  # pattern of paths, number of files, whether they are new

    def __str__(self) -> str:
        rows = [('files', 'number', '')]
        for path, count, new in self.rows:
            rows.append((path, f'{count:,}', 'new' if new else 'was there'))
        return '\n'.join([*aligned(rows), f'licence: {self.licence}'])


def prepare_data(
    dataset: str | DataSet,
    root: str | Path = 'data',
    *,
    source: str | Path | None = None,
    parts: Sequence[str] = (),
    keep_archives: bool = False,
) -> Prepared:
    """Fetches a published data set, unpacks it and checks that all of its files are there.

    The next call continues what an interrupted one downloaded. Archives are verified by their
    published checksum, if there is one. RES2NET_MM_MIRROR may name folders and addresses to be
    asked for them first.

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
        OSError: The folder cannot be written to.
    """
    dataset = dataset if isinstance(dataset, DataSet) else _named(dataset)
    home = Path(root) / dataset.folder
    source = None if source is None else Path(source)
    work = home / _WORK
    chosen = _chosen(dataset, parts)
    packed = [
        part
        for part in chosen
        if not _complete(home, part.counts)
        or any(_stage(work, archive).exists() for archive in part.archives)
    ]
    unmade = [part for part in chosen if not _complete(home, part.made)]
    if packed or unmade:
        archives = [archive for part in packed for archive in part.archives]
        _check_archives(dataset, archives, source, root)
        _check_space(home, archives, source is None, keep_archives)
        work.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(work / 'lock').acquire(timeout=0)
        except Timeout as error:
            raise DataError(f'another process is preparing {home}; wait for it') from error
        with held:
            for part in chosen:
                if part in packed:
                    _unpack_part(home, part, source, keep_archives)
                if part in unmade:
                    _FINISHES[part.finish](home)
                    _check_counts(home, part.made, part.archives, source)
            for lock in work.rglob('*lock'):
                lock.unlink()
        for folder in (*filter(Path.is_dir, work.iterdir()), work):
            with suppress(OSError):  # an archive that is kept, or not needed yet
                folder.rmdir()
    rows = [
        (str(home / pattern), number, part in news)
        for part in chosen
        for counts, news in ((part.counts, packed), (part.made, unmade))
        for pattern, number in counts.items()
    ]
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


def _count(home: Path, pattern: str) -> int:
    return sum(p.is_file() and not p.name.startswith('.') for p in home.glob(pattern))


def _complete(home: Path, counts: Mapping[str, int]) -> bool:
    """Whether all files are there; raises if there are more, which no download repairs."""
    found = {pattern: _count(home, pattern) for pattern in counts}
    for pattern, number in counts.items():
        if found[pattern] > number:
            remedy = 'remove those that are not of the set'
            raise _wrong_count(home, pattern, found[pattern], number, remedy)
    return found == counts


def _check_counts(
    home: Path, counts: Mapping[str, int], archives: Sequence[Archive], source: Path | None
) -> None:
    for pattern, number in counts.items():
        found = _count(home, pattern)
        if found != number:
            names = ' and '.join(archive.name for archive in archives)
            remedy = f'remove {names} from {source or home / _WORK} and fetch it again'
            raise _wrong_count(home, pattern, found, number, remedy)


def _wrong_count(home: Path, pattern: str, found: int, number: int, remedy: str) -> DataError:
    what = f'{found:,} files are there, but {number:,} are expected'
    return DataError(what, str(home / pattern), remedy)


def _stage(work: Path, archive: Archive) -> Path:
    """The folder in which an archive is unpacked before its files are moved."""
    return work / f'{archive.name}.files'


def _check_archives(
    dataset: DataSet, archives: Sequence[Archive], source: Path | None, root: str | Path
) -> None:
    """Raises if an archive is missing in ``source``, or can only be fetched with an account."""
    if source is None:
        if closed := [archive.name for archive in archives if archive.url is None]:
            raise DataError(
                f'{dataset.name} is given out to accounts only ({dataset.licence})',
                remedy=f'get {" and ".join(closed)} at {dataset.site}, put them into one '
                'folder, and call again with it: python tools/prepare_data.py '
                f'{dataset.name} --root {root} --from FOLDER',
            )
        return
    if not source.is_dir():
        raise DataError('there is no such folder', f'--from {source}')
    if missing := [a.name for a in archives if not (source / a.name).is_file()]:
        what = f'it has no {" and no ".join(missing)}'
        raise DataError(what, f'--from {source}', 'put them there')


def _check_space(home: Path, archives: Sequence[Archive], download: bool, keep: bool) -> None:
    """Raises if the disk cannot hold what is to be fetched and unpacked.

    An archive takes about as much room again when it is unpacked.
    """
    sizes = [archive.size for archive in archives]
    needed = sum(sizes)
    if download:  # each part's archives are removed once they are unpacked
        needed += sum(sizes) if keep else max(sizes, default=0)
    # what an interrupted call has already stored
    needed -= sum(path.stat().st_size for path in (home / _WORK).rglob('*') if path.is_file())
    disk = home.resolve()
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise DataError(
            f'its disk is too small: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are '
            'free',
            str(disk),
            'make room, or give another --root',
        )


def _unpack_part(home: Path, part: SetPart, source: Path | None, keep: bool) -> None:
    work = home / _WORK
    files = []
    for archive in part.archives:
        file, stage = _archive_file(archive, source, work), _stage(work, archive)
        unpack(file, stage, tuple(archive.moves), most=10 * archive.size + (1 << 30))
        for name, place in archive.moves.items():
            if (stage / name).exists():
                merge(stage / name, home / place)
        shutil.rmtree(stage)
        files.append(file)
    _check_counts(home, part.counts, part.archives, source)
    for file in files:
        if work in file.parents and not keep:  # neither in the user's folder nor in a mirror
            file.unlink()


def _archive_file(archive: Archive, source: Path | None, work: Path) -> Path:
    """The archive on disk, verified."""
    if source is None:
        most = 2 * archive.size + (1 << 30)
        return fetch(archive.url, archive.checksum, folder=work, most=most)
    path = source / archive.name
    if problem := file_problem(path, archive.checksum):
        raise DataError(
            f'it is damaged, or not the published file: {problem}',
            str(path),
            'fetch it again' + (f' from {archive.url}' if archive.url else ''),
        )
    return path


def _write_maps(maps: dict[Path, Callable[[], np.ndarray]], title: str) -> None:
    """Writes label maps where there are none yet."""
    missing = [file for file in maps if not file.exists()]
    for file in tqdm(missing, title, unit=' files', disable=None):
        with writing(file, durable=False) as unfinished:
            Image.fromarray(maps[file]()).save(unfinished, 'png')


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
