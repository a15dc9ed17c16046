"""Published data sets, laid out in the folders that the configs read.

Files are counted to find out what is there, so a set that was laid out by hand is complete too,
and a second call does nothing. A part is incomplete, whatever the counts, while the set's
``.prepare`` holds a folder into which an interrupted call unpacked it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ...checks import did_you_mean, listed
from ...columns import aligned
from ...files import writing
from ...weights.download import fetch, file_problem
from ..convert.formats import mask_values
from ..errors import DataError
from .archives import DATA_SETS, Archive, DataSet, SetPart
from .unpack import unpack

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
) -> Prepared:
    """Fetches a published data set, unpacks it and checks that all of its files are there.

    The next call continues what an interrupted one downloaded. Archives are verified by their
    published checksum, if there is one. RES2NET_MM_MIRROR may name folders and addresses to be
    asked for them first. Downloaded archives are removed once they are unpacked.

    Args:
        dataset: ``coco``, ``voc``, ``ade20k``, ``cityscapes``, or the description of another set.
        root: The folder of all sets, in which the set gets its own.
        source: A folder that has the archives already; nothing is downloaded then.
        parts: The parts of the set to prepare; by default those that most configs read.

    Raises:
        DataError: A name is unknown, an archive is missing, damaged or not the published one, the
            disk is too small, or files are missing or too many at the end.
        DownloadError: An archive cannot be downloaded.
        OSError: The folder cannot be written to.
    """
    if not isinstance(dataset, DataSet):
        dataset = _named('data set', dataset, DATA_SETS)
    home = Path(root) / dataset.folder
    work, source = home / _WORK, source and Path(source)
    names = []
    for name in parts or dataset.default:
        names += [*_named(f'part of {dataset.name}', name, dataset.parts).needs, name]
    chosen = [dataset.parts[name] for name in dict.fromkeys(names)]
    packed = [
        part
        for part in chosen
        if not _complete(home, part.counts)
        or any((work / f'{archive.name}.files').exists() for archive in part.archives)
    ]
    unmade = [part for part in chosen if not _complete(home, part.made)]
    if packed or unmade:
        archives = [archive for part in packed for archive in part.archives]
        _check_archives(dataset, archives, source, root)
        _check_space(home, archives, source is None)
        work.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(work / 'lock').acquire(timeout=0)
        except Timeout as error:
            raise DataError(f'another process is preparing {home}; wait for it') from error
        with held:
            for part in chosen:
                again = ' and '.join(archive.name for archive in part.archives)
                again = f'remove {again} from {source or work} and fetch it again'
                if part in packed:
                    files = [_unpack_archive(home, archive, source) for archive in part.archives]
                    _complete(home, part.counts, again)
                    for file in files:
                        if work in file.parents:  # neither in the user's folder nor in a mirror
                            file.unlink()
                if part in unmade:
                    _FINISHES[part.finish](home)
                    _complete(home, part.made, again)
            for lock in work.rglob('*lock'):
                lock.unlink()
        for folder in (*filter(Path.is_dir, work.iterdir()), work):
            with suppress(OSError):  # an archive of another part
                folder.rmdir()
    rows = [
        (str(home / pattern), number, part in news)
        for part in chosen
        for counts, news in ((part.counts, packed), (part.made, unmade))
        for pattern, number in counts.items()
    ]
    return Prepared(dataset.licence, rows)


def _named(what: str, name: str, known: Mapping[str, DataSet | SetPart]) -> DataSet | SetPart:
    if name not in known:
        remedy = f'choose from {listed(known, 10)}{did_you_mean(name, known)}'
        raise DataError(f'there is no {what} named {name!r}', remedy=remedy)
    return known[name]


def _complete(home: Path, counts: Mapping[str, int], remedy: str = '') -> bool:
    """Whether all files are there; raises if there are too many, or with a remedy, too few."""
    complete = True
    for pattern, number in counts.items():
        found = sum(p.is_file() and not p.name.startswith('.') for p in home.glob(pattern))
        if found > number or (remedy and found < number):
            what = f'{found:,} files are there, but {number:,} are expected'
            remedy = remedy or 'remove those that are not of the set'
            raise DataError(what, str(home / pattern), remedy)
        complete = complete and found == number
    return complete


def _check_archives(
    dataset: DataSet, archives: Sequence[Archive], source: Path | None, root: str | Path
) -> None:
    """Raises if an archive is missing in ``source``, or can only be fetched with an account."""
    closed = ' and '.join(archive.name for archive in archives if archive.url is None)
    if source is None and closed:
        command = f'python tools/prepare_data.py {dataset.name} --root {root} --from FOLDER'
        raise DataError(
            f'{dataset.name} is given out to accounts only ({dataset.licence})',
            remedy=f'get {closed} at {dataset.site}, put them into one folder, and call again '
            f'with it: {command}',
        )
    missing = [a.name for a in archives if source and not (source / a.name).is_file()]
    if missing:
        what = f'it has no {" and no ".join(missing)}'
        raise DataError(what, f'--from {source}', 'put them there')


def _check_space(home: Path, archives: Sequence[Archive], download: bool) -> None:
    """Raises if the disk cannot hold what is to be fetched and unpacked."""
    sizes = [archive.size for archive in archives]
    # An archive takes about as much room again when it is unpacked, and is then removed.
    needed = sum(sizes) + (max(sizes, default=0) if download else 0)
    # what an interrupted call has already stored
    needed -= sum(path.stat().st_size for path in (home / _WORK).rglob('*') if path.is_file())
    disk = next(folder for folder in (home, *home.parents) if folder.exists()).resolve()
    free = shutil.disk_usage(disk).free
    if free < needed:
        room = f'{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free'
        remedy = 'make room, or give another --root'
        raise DataError(f'its disk is too small: {room}', str(disk), remedy)


def _unpack_archive(home: Path, archive: Archive, source: Path | None) -> Path:
    """Unpacks an archive into its places; returns its verified file."""
    work = home / _WORK
    if source is None:
        most = 2 * archive.size + (1 << 30)
        file = fetch(archive.url, archive.checksum, folder=work, most=most)
    else:
        file = source / archive.name
        if problem := file_problem(file, archive.checksum):
            what = f'it is damaged, or not the published file: {problem}'
            raise DataError(what, str(file), f'fetch it again from {archive.url or "its site"}')
    stage = work / f'{archive.name}.files'  # from here, its files are moved
    unpack(file, stage, tuple(archive.moves), most=10 * archive.size + (1 << 30))
    for name, place in archive.moves.items():
        if (stage / name).exists():
            _merge(stage / name, home / place)
    shutil.rmtree(stage)
    return file


def _merge(source: Path, target: Path) -> None:
    """Moves a file or folder; files of a folder that exists already join those in it."""
    if source.is_dir() and target.exists():
        for entry in list(source.iterdir()):
            _merge(entry, target / entry.name)
        return
    if target.is_dir():  # the file would be moved into it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)  # not os.replace: a folder of a set may be a link to another disk


def _make_train_ids(home: Path) -> None:
    """Cityscapes: ``*_labelTrainIds.png`` next to every ``*_labelIds.png``."""
    table = np.full(256, _IGNORE, np.uint8)
    table[list(_TRAIN_IDS)] = range(len(_TRAIN_IDS))
    files = sorted((home / 'gtFine').glob('*/*/*_gtFine_labelIds.png'))
    for file in tqdm(files, 'train ids', unit=' files', disable=None):
        target = file.with_name(file.name.replace('_labelIds', '_labelTrainIds'))
        if not target.exists():
            _write_map(target, table[mask_values(file)])


def _make_voc_aug(home: Path) -> None:
    """VOC2012: ``SegmentationClassAug`` with SBD's label maps and VOC's own, and the lists.

    The literature trains on VOC's list and all of SBD except VOC's validation images; ``aug.txt``
    lists those that only SBD has. VOC's labels are used for images that both have.
    """
    from scipy.io import loadmat  # here: the other sets do not need scipy

    benchmark, voc = home / 'VOCaug/dataset', home / 'VOC2012'
    lists = voc / 'ImageSets/Segmentation'

    def names(folder: Path) -> list[set[str]]:
        return [set((folder / f'{split}.txt').read_text().split()) for split in ('train', 'val')]

    train, val = names(lists)
    added = set.union(*names(benchmark)) - train - val
    out = voc / 'SegmentationClassAug'
    out.mkdir(exist_ok=True)
    for name in tqdm(sorted(added | train | val), 'label maps', unit=' files', disable=None):
        target = out / f'{name}.png'
        if not target.exists() and name in added:
            content = loadmat(benchmark / f'cls/{name}.mat')
            _write_map(target, content['GTcls'][0, 0]['Segmentation'].astype(np.uint8))
        elif not target.exists():
            _write_map(target, mask_values(voc / f'SegmentationClass/{name}.png'))
    for name, stems in (('aug', added), ('trainaug', added | train)):
        (lists / f'{name}.txt').write_text(''.join(f'{stem}\n' for stem in sorted(stems)))


def _write_map(file: Path, values: np.ndarray) -> None:
    with writing(file, durable=False) as partial:
        Image.fromarray(values).save(partial)


_FINISHES = {'voc_aug': _make_voc_aug, 'train_ids': _make_train_ids}
