"""Published data sets, laid out in the folders that the configs read.

What is there is found by counting files, so a set that was laid out by hand is complete as well,
and a second call does nothing. A part of which an interrupted call has left something in the
set's ``.prepare`` is not complete, whatever the counts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ...checks import listed, nearest
from ...files import writing
from ...weights.download import digest_of, fetch
from ..errors import DataError
from ..sets.images import check_pixels
from .archives import DATA_SETS, Archive, Count, DataSet, Part
from .unpack import disk_errors, unpack

_WORK = '.prepare'  # in the set's folder, which may lie on a disk of its own
_IGNORE = 255
# the published id -> trainId: 19 classes, everything else is not trained on
_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class Row:
    """A folder of a prepared set: its path, what its files look like, how many, whether new."""

    folder: Path
    pattern: str
    number: int
    new: bool


@dataclass(frozen=True)
class Prepared:
    """A set on disk; as text a table."""

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
    """Fetch a published data set, unpack it and check that all of its files are there.

    An interrupted call is continued by the next one, downloads and unpacking alike. Archives are
    verified by their published checksum, where there is one. RES2NET_MM_MIRROR may name folders
    and addresses that are asked for them first.

    Args:
        dataset: ``coco``, ``voc``, ``ade20k``, ``cityscapes``, or a description of another.
        root: the folder of all sets; the set gets its own below it.
        source: a folder that has the archives already; nothing is downloaded then.
        parts: what of the set; by default what most configs read.
        keep_archives: downloaded archives stay in the set's ``.prepare``; else each is removed
            once it is unpacked. Those of ``source`` always stay.

    Returns:
        What is there, folder by folder.

    Raises:
        DataError: a name is not known, an archive is missing, damaged or not the published one,
            the disk is too small, or files are missing or too many at the end.
        DownloadError: an archive cannot be downloaded.
    """
    dataset = dataset if isinstance(dataset, DataSet) else _named(dataset)
    home = Path(root) / dataset.folder
    chosen = _chosen(dataset, parts)
    work = home / _WORK
    packed = [
        part for part in chosen if not _complete(home, part.counts) or _interrupted(work, part)
    ]
    unmade = [part for part in chosen if not _complete(home, part.made)]
    if packed or unmade:
        groups = [
            [archive for archive in part.archives if not _mark(work, archive).exists()]
            for part in packed
        ]
        archives = [archive for group in groups for archive in group]
        if source is None:
            _check_addresses(dataset, archives, root)
        else:
            _check_there(archives, Path(source))
        _check_space(home, groups, source is None, keep_archives)
        with disk_errors(home):
            work.mkdir(parents=True, exist_ok=True)
            try:
                held = FileLock(work / 'lock').acquire(timeout=0)
            except Timeout as error:
                raise DataError(f'another process is preparing {home}; wait for it') from error
        with held, disk_errors(home):
            for part in chosen:
                if part in packed:
                    _unpack_part(part, home, source, keep_archives)
                if part in unmade:
                    _FINISHES[part.finish](home)
                    _check_counts(home, part.made, part.archives, source)
            _remove_work(work)
    rows = tuple(
        Row(home / count.folder, count.pattern, count.number, part in news)
        for part in chosen
        for counts, news in ((part.counts, packed), (part.made, unmade))
        for count in counts
    )
    return Prepared(dataset.licence, rows)


def _named(name: str) -> DataSet:
    if name not in DATA_SETS:
        likely = nearest(name, DATA_SETS)
        raise DataError(
            f'data set {name!r} is not known{f" (did you mean {likely!r}?)" if likely else ""}; '
            f'there are {listed(DATA_SETS)}'
        )
    return DATA_SETS[name]


def _chosen(dataset: DataSet, names: Sequence[str]) -> list[Part]:
    """The parts of these names, each after those that it needs."""
    order: list[str] = []
    for name in names or dataset.default:
        if name not in dataset.parts:
            likely = nearest(name, dataset.parts)
            raise DataError(
                f'{dataset.name} has no part {name!r}'
                f'{f" (did you mean {likely!r}?)" if likely else ""}; '
                f'its parts are {listed(dataset.parts, 10)}'
            )
        order += [*dataset.parts[name].needs, name]
    return [dataset.parts[name] for name in dict.fromkeys(order)]


def _found(home: Path, count: Count) -> int:
    return sum(not path.name.startswith('.') for path in (home / count.folder).glob(count.pattern))


def _complete(home: Path, counts: Iterable[Count]) -> bool:
    """Whether all files are there; raises where there are more, which no download repairs."""
    complete = True
    for count in counts:
        found = _found(home, count)
        if found > count.number:
            raise DataError(
                f'{home / count.folder} has {found:,} {count.pattern}, but {count.number:,} are '
                'expected; remove those that are not of the set'
            )
        complete = complete and found == count.number
    return complete


def _interrupted(work: Path, part: Part) -> bool:
    """Whether a call that began to fetch or unpack the part did not come to its end."""
    left = ('{}.files', '{}.part', '*/{}.part', '{}.unpacked')
    patterns = (kind.format(archive.name) for archive in part.archives for kind in left)
    return any(any(work.glob(pattern)) for pattern in patterns)


def _mark(work: Path, archive: Archive) -> Path:
    return work / f'{archive.name}.unpacked'


def _check_addresses(dataset: DataSet, archives: list[Archive], root: str | Path) -> None:
    closed = [archive.name for archive in archives if archive.url is None]
    if closed:
        raise DataError(
            f'{dataset.name} is given out to accounts only ({dataset.licence}): get '
            f'{" and ".join(closed)} at {dataset.site}, put them into one folder, and call again '
            f'with it: python tools/prepare_data.py {dataset.name} --root {root} --from FOLDER'
        )


def _check_there(archives: list[Archive], source: Path) -> None:
    if not source.is_dir():
        raise DataError(f'--from {source}: there is no such folder')
    missing = [archive.name for archive in archives if not (source / archive.name).is_file()]
    if missing:
        raise DataError(f'--from {source} has no {" and no ".join(missing)}; put them there')


def _check_space(home: Path, groups: list[list[Archive]], download: bool, keep: bool) -> None:
    """Raises where the disk cannot hold what is still to be fetched and unpacked.

    Args:
        groups: the archives of each part.
    """
    work = home / _WORK
    archives = [archive for group in groups for archive in group]
    needed = sum(archive.unpacked for archive in archives)
    if download and archives:
        needed += (sum if keep else max)(sum(one.size for one in group) for group in groups)
    for archive in archives:  # what an interrupted call has done already
        name = archive.name
        kinds = (name, f'{name}.part', f'*/{name}', f'*/{name}.part', f'{name}.files/**/*')
        done = (path for kind in kinds for path in work.glob(kind) if path.is_file())
        needed -= sum(path.stat().st_size for path in done)
    disk = home.resolve()
    while not disk.exists():
        disk = disk.parent
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise DataError(
            f'the disk of {disk} is too small: {needed / 1e9:.1f} GB are needed and '
            f'{free / 1e9:.1f} GB are free; make room, or give another --root'
        )


def _unpack_part(part: Part, home: Path, source: str | Path | None, keep: bool) -> None:
    work = home / _WORK
    for archive in part.archives:
        mark = _mark(work, archive)
        if not mark.exists():
            if source is None:
                path = fetch(
                    archive.url,
                    archive.sha256,
                    md5=archive.md5,
                    folder=work,
                    most=2 * archive.size + (1 << 30),
                )
            else:
                path = Path(source, archive.name)
                _verify(path, archive)
            unpack(
                path,
                work / f'{archive.name}.files',
                home,
                archive.moves,
                archive.nested,
                most=2 * archive.unpacked + (1 << 30),
            )
            mark.touch()
    _check_counts(home, part.counts, part.archives, source)
    for archive in part.archives:
        _mark(work, archive).unlink()
        if not keep:
            for path in (work / archive.name, *work.glob(f'*/{archive.name}')):
                path.unlink(missing_ok=True)


def _check_counts(
    home: Path, counts: Iterable[Count], archives: Sequence[Archive], source: str | Path | None
) -> None:
    work = home / _WORK
    for count in counts:
        found = _found(home, count)
        if found != count.number:
            for archive in archives:  # so that the next call unpacks what is missing
                _mark(work, archive).unlink(missing_ok=True)
            names = ' and '.join(archive.name for archive in archives)
            raise DataError(
                f'{home / count.folder} has {found:,} {count.pattern}, but {count.number:,} are '
                f'expected; remove {names} from {source or work} and fetch it again'
            )


def _verify(path: Path, archive: Archive) -> None:
    for kind, digits in (('sha256', archive.sha256), ('md5', archive.md5)):
        if digits and digest_of(path, kind) != digits:
            raise DataError(
                f'{path} is damaged, or not the published file: its {kind} is not {digits}; fetch '
                f'it again{f" from {archive.url}" if archive.url else ""}'
            )


def _remove_work(work: Path) -> None:
    """Remove the folder of this module unless archives were to be kept in it."""
    for mark in [*work.glob('*.unpacked'), *work.rglob('*.lock'), work / 'lock']:
        mark.unlink(missing_ok=True)
    for folder in [*filter(Path.is_dir, work.iterdir()), work]:
        if not any(folder.iterdir()):
            folder.rmdir()


def _make_all(jobs: list[Callable[[], None]], title: str) -> None:
    """Run jobs that write a file each; decoding and encoding leave Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in tqdm(futures, title, unit=' files', disable=None):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _save(labels: np.ndarray, file: Path) -> None:
    with writing(file, durable=False) as partial:
        Image.fromarray(labels).save(partial, 'png')


def _make_train_ids(home: Path) -> None:
    """Cityscapes: ``*_labelTrainIds.png`` beside every ``*_labelIds.png``."""
    table = np.full(256, _IGNORE, np.uint8)
    table[list(_TRAIN_IDS)] = range(len(_TRAIN_IDS))

    def make(source: Path, file: Path) -> None:
        _save(table[_indices(source)], file)

    jobs = []
    for source in sorted((home / 'gtFine').glob('*/*/*_gtFine_labelIds.png')):
        file = source.with_name(source.name.replace('_labelIds', '_labelTrainIds'))
        if not file.exists():
            jobs.append(lambda source=source, file=file: make(source, file))
    _make_all(jobs, 'train ids')


def _make_voc_aug(home: Path) -> None:
    """VOC2012: ``SegmentationClassAug`` with SBD's label maps and VOC's own, and the lists.

    The training list of the literature is VOC's and all of SBD without VOC's validation images;
    ``aug.txt`` is the part of it that is of SBD alone. Where both have an image VOC's labels count.
    """
    benchmark, voc = home / 'VOCaug/dataset', home / 'VOC2012'
    lists = voc / 'ImageSets/Segmentation'
    train, val = (_names(lists / f'{split}.txt') for split in ('train', 'val'))
    both = [name for split in ('train', 'val') for name in _names(benchmark / f'{split}.txt')]
    own = {*train, *val}
    added = sorted(set(both) - own)
    out = voc / 'SegmentationClassAug'
    out.mkdir(exist_ok=True)
    jobs = []
    for name in [*added, *sorted(own)]:
        file = out / f'{name}.png'
        if file.exists():
            continue
        if name in own:
            source, read = voc / 'SegmentationClass' / f'{name}.png', _indices
        else:
            source, read = benchmark / 'cls' / f'{name}.mat', _of_mat
        jobs.append(lambda source=source, read=read, file=file: _save(read(source), file))
    _make_all(jobs, 'label maps')
    for name, content in (('aug', added), ('trainaug', sorted({*train, *added}))):
        (lists / f'{name}.txt').write_text(''.join(f'{stem}\n' for stem in content))


def _names(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _indices(file: Path) -> np.ndarray:
    """The values of a png with one channel; of one with a palette, its indices."""
    check_pixels(file, f'label map {file}')
    with Image.open(file) as image:
        if image.mode not in ('L', 'P'):
            raise DataError(f'{file} is no label map: its mode is {image.mode}, not L or P')
        return np.array(image)


def _of_mat(file: Path) -> np.ndarray:
    from scipy.io import loadmat  # here: nothing else of the package needs scipy

    try:
        return loadmat(file)['GTcls'][0, 0]['Segmentation'].astype(np.uint8)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f'{file} is no annotation of SBD ({error}); fetch it again') from error


_FINISHES = {'voc_aug': _make_voc_aug, 'train_ids': _make_train_ids}
