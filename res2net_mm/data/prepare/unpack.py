"""Unpacks downloaded archives: only plain files, and only into one folder."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from ..errors import DataError

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    NotImplementedError,
)  # fmt: skip
# raised if a file and a folder have the same name
_CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)


class _Member(NamedTuple):
    name: str
    size: int
    plain: bool  # otherwise a link, a device or a pipe
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    stage: Path,
    target: Path,
    moves: tuple[tuple[str, str], ...],
    nested: bool = False,
    most: int | None = None,
) -> int:
    """Unpacks the members that ``moves`` names into ``stage``, then moves them to ``target``.

    Files that an interrupted call left in either folder are not unpacked again, unless their size
    differs from the member's.

    Args:
        archive: A zip or tar file, compressed or not.
        stage: A folder for this archive only; it is removed at the end.
        target: The folder to which the files are moved; existing folders are added to.
        moves: Beginnings of members' names, and what replaces them below ``target``.
        nested: Whether zip files in it are unpacked too, as if their members were next to them.
        most: Largest number of bytes that it may unpack to.

    Returns:
        The number of files that were unpacked.

    Raises:
        DataError: The archive is damaged, has nothing of ``moves``, unpacks to more than ``most``,
            or has a member that is no plain file or would be put outside the target. Nothing is
            moved to ``target`` then. Or the disk is full or cannot be written to; the next call
            continues.
    """
    part = stage.with_name(f'{stage.name}.part')  # what is being written; no member's place
    with disk_errors(target):
        stage.mkdir(parents=True, exist_ok=True)
        try:
            written = _fill(archive, stage, target, moves, nested, most)
        except DataError:
            shutil.rmtree(stage)  # or the next archive of this name would mix with it
            part.unlink(missing_ok=True)
            raise
        part.unlink(missing_ok=True)
        _merge(stage, target)
    return written


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the system in a block that writes to ``folder`` into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not an error of the system
            raise
        where = ' -> '.join(str(f) for f in (error.filename, error.filename2) if f) or folder
        todo = 'make room there' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'correct that'
        raise DataError(
            f'it cannot be completed ({error.strerror}: {where})',
            str(folder),
            f'{todo} and call again, which goes on from here, or give another --root',
        ) from error


def _foreign(archive: Path, what: str) -> DataError:
    return DataError(what, str(archive), 'it is not the published archive, get it from there')


def _fill(
    archive: Path,
    stage: Path,
    target: Path,
    moves: tuple[tuple[str, str], ...],
    nested: bool,
    most: int | None,
) -> int:
    written = taken = total = 0
    part = stage.with_name(f'{stage.name}.part')
    try:
        # disable=None: shown on a terminal only
        bar = tqdm(desc=archive.name, unit=' files', disable=None)
        with bar, _opened(archive) as opened:
            for member in _members(opened, archive.name, nested):
                relative = _placed(member.name, moves, archive)
                if relative is None:
                    continue
                if not member.plain:
                    raise _foreign(archive, f'{member.name!r} in it is a link or a device')
                taken += 1
                total += member.size
                if most is not None and total > most:  # a few bytes can unpack to any number
                    raise _foreign(archive, f'it would unpack to more than {most / 1e9:.1f} GB')
                bar.update()
                there = (stage / relative, target / relative)
                if any(path.is_file() and path.stat().st_size == member.size for path in there):
                    continue
                _write(member, stage / relative, part)
                written += 1
    except _CLASHES as error:
        name = error.filename2 or error.filename
        raise _foreign(archive, f'it has a file and a folder of one name ({name})') from error
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the disk; a decompressor's has no number
        why = str(error).partition('\n')[0].rstrip(':') or type(error).__name__
        raise DataError(
            f'it is damaged ({why})', str(archive), 'remove it and fetch it again'
        ) from error
    if not taken:
        wanted = ', '.join(beginning for beginning, _ in moves)
        raise _foreign(archive, f'it has nothing below {wanted}')
    return written


class _Header(tarfile.TarInfo):
    """A header of a tar file. Those that tarfile reads at once, such as long names, are short."""

    _READ_AT_ONCE = (
        tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )  # fmt: skip

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in cls._READ_AT_ONCE and header.size > 1 << 20:
            raise tarfile.ReadError(f'a header of {header.size:,} bytes')
        return header


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    return tarfile.open(archive, tarinfo=_Header)


def _members(
    opened: zipfile.ZipFile | tarfile.TarFile, name: str, nested: bool
) -> Iterator[_Member]:
    if isinstance(opened, tarfile.TarFile):
        for info in opened:
            if not info.isdir():
                content = partial(opened.extractfile, info)
                yield _Member(info.name, info.size, info.isreg(), content)
        while opened.fileobj.read(1 << 20):  # a compressed one has its checksum at the end
            pass
        return
    # In the file's order: seeking back in a zip inside a zip would read it again from the start.
    for info in sorted(opened.infolist(), key=lambda info: info.header_offset):
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise zipfile.BadZipFile(f'{info.filename} is encrypted')
        if nested and info.filename.endswith('.zip') and not _is_litter(info.filename):
            folder = str(PurePosixPath(info.filename).parent)
            with opened.open(info) as stream, zipfile.ZipFile(stream) as inner:
                for member in _members(inner, info.filename, False):
                    yield member._replace(name=f'{folder}/{member.name}')
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG)
        yield _Member(info.filename, info.file_size, plain, partial(opened.open, info))


def _is_litter(name: str) -> bool:
    """Whether a member is one that macOS adds to every archive."""
    parts = PurePosixPath(name).parts
    return '__MACOSX' in parts or any(part[:2] == '._' or part == '.DS_Store' for part in parts)


def _placed(name: str, moves: tuple[tuple[str, str], ...], archive: Path) -> str | None:
    """Where a member is put; None if it stays in the archive."""
    if name.startswith('/') or '..' in PurePosixPath(name).parts or set('\\:\0') & set(name):
        raise _foreign(archive, f'{name!r} in it would be unpacked outside of the target')
    name = str(PurePosixPath(name))  # without ./ and double slashes
    if _is_litter(name):
        return None
    for beginning, place in moves:
        if name.startswith(beginning):
            return place + name.removeprefix(beginning)
    return None


def _write(member: _Member, path: Path, part: Path) -> None:
    with member.open() as source, open(part, 'wb') as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if part.stat().st_size != member.size:
        raise EOFError(f'{member.name} ends too early')
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)


def _merge(source: Path, target: Path) -> None:
    """Moves all of a folder, in one step if the target does not exist."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    for entry in list(source.iterdir()):
        if entry.is_dir():
            _merge(entry, target / entry.name)
        elif (target / entry.name).is_dir():  # shutil.move would put the file into it
            message = os.strerror(errno.EISDIR)
            raise IsADirectoryError(errno.EISDIR, message, str(target / entry.name))
        else:
            # not os.replace: a folder of a set may be a link to another disk
            shutil.move(entry, target / entry.name)
    source.rmdir()
