"""Unpacking of archives from elsewhere: nothing but plain files, nowhere but in one folder."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from tqdm import tqdm

from ..errors import DataError

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    NotImplementedError,
)  # fmt: skip
# what a file and a folder of one name come to
_CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)


class _Open(Protocol):
    def __call__(self) -> IO[bytes]: ...


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool  # else a link, a device, a pipe
    open: _Open


def unpack(
    archive: Path,
    stage: Path,
    target: Path,
    moves: tuple[tuple[str, str], ...],
    nested: bool = False,
    most: int | None = None,
) -> int:
    """Unpack the members that ``moves`` names, first into ``stage``, then at once to ``target``.

    What an earlier call that was interrupted left in either folder is not unpacked again; a file
    there of another size than the member's is replaced.

    Args:
        archive: a zip or tar file, compressed or not.
        stage: a folder for this archive alone; it is removed at the end.
        target: the folder that the files come to; folders that are there are added to.
        moves: beginnings of members' names, and what takes their place below ``target``.
        nested: zip files in it are unpacked as well, as if their members lay beside them.
        most: bytes that it may unpack to.

    Returns:
        How many files were unpacked.

    Raises:
        DataError: the archive is damaged, has nothing of ``moves`` or more than ``most``, or a
            member that would come to lie outside, or is no plain file. Then nothing has come to
            ``target``. Or the disk is full or cannot be written to; then the next call goes on
            where this one stopped.
    """
    part = stage.with_name(f'{stage.name}.part')  # what is being written; no member's place
    with disk_errors(target):
        stage.mkdir(parents=True, exist_ok=True)
        try:
            written = _fill(archive, stage, target, moves, nested, part, most)
        except DataError:
            shutil.rmtree(stage)  # or the next archive of this name would be mixed with it
            part.unlink(missing_ok=True)
            raise
        part.unlink(missing_ok=True)
        _merge(stage, target)
    return written


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A block that writes to ``folder``: what the system refuses there becomes a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # no error of the system's
            raise
        where = ' -> '.join(str(f) for f in (error.filename, error.filename2) if f) or folder
        todo = 'make room there' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'correct that'
        raise DataError(
            f'{folder} cannot be completed ({error.strerror}: {where}); {todo} and call again, '
            'which goes on from here, or give another --root'
        ) from error


def _fill(
    archive: Path,
    stage: Path,
    target: Path,
    moves: tuple[tuple[str, str], ...],
    nested: bool,
    part: Path,
    most: int | None,
) -> int:
    written = taken = total = 0
    try:
        # disable=None: shown on a terminal only
        bar = tqdm(desc=archive.name, unit=' files', disable=None)
        with bar, _opened(archive) as opened:
            for member in _members(opened, archive.name, nested):
                relative = _placed(member.name, moves, archive)
                if relative is None:
                    continue
                if not member.plain:
                    raise DataError(
                        f'{archive}: {member.name!r} is a link or a device, no plain file; it is '
                        'not the published archive, get it from there'
                    )
                taken += 1
                total += member.size
                if most is not None and total > most:  # a few bytes can stand for any number
                    raise DataError(
                        f'{archive} would unpack to more than {most / 1e9:.1f} GB; it is not the '
                        'published archive, get it from there'
                    )
                bar.update()
                there = (stage / relative, target / relative)
                if any(path.is_file() and path.stat().st_size == member.size for path in there):
                    continue
                _write(member, stage / relative, part)
                written += 1
    except _CLASHES as error:
        raise DataError(
            f'{archive} has a file and a folder of one name ({error.filename2 or error.filename}); '
            'it is not the published archive, get it from there'
        ) from error
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; one of a decompressor has no number
        why = str(error).partition('\n')[0].rstrip(':') or type(error).__name__
        raise DataError(f'{archive} is damaged ({why}); remove it and fetch it again') from error
    if not taken:
        wanted = ', '.join(beginning for beginning, _ in moves)
        raise DataError(
            f'{archive} has nothing below {wanted}; it is not the published archive, get it from '
            'there'
        )
    return written


class _Header(tarfile.TarInfo):
    """A header of a tar file; long names and the like, which are read at once, are short."""

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
                yield _Member(info.name, info.size, info.isreg(), partial(_of_tar, opened, info))
        while opened.fileobj.read(1 << 20):  # the checksum of a compressed one is at its end
            pass
        return
    # In the order of the file: seeking back in a zip that lies in a zip reads it from its start.
    for info in sorted(opened.infolist(), key=lambda info: info.header_offset):
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise zipfile.BadZipFile(f'{info.filename} is encrypted')
        if nested and info.filename.endswith('.zip') and not _is_litter(info.filename):
            folder = str(PurePosixPath(info.filename).parent)
            with opened.open(info) as stream, zipfile.ZipFile(stream) as inner:
                for member in _members(inner, info.filename, False):
                    yield _Member(f'{folder}/{member.name}', member.size, member.plain, member.open)
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG)
        yield _Member(info.filename, info.file_size, plain, partial(opened.open, info))


def _of_tar(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    return opened.extractfile(info)


def _is_litter(name: str) -> bool:
    """Whether a member is one of those that a Mac adds to every archive."""
    parts = PurePosixPath(name).parts
    return '__MACOSX' in parts or any(part[:2] == '._' or part == '.DS_Store' for part in parts)


def _placed(name: str, moves: tuple[tuple[str, str], ...], archive: Path) -> str | None:
    """Where a member comes to lie; None where it stays in the archive."""
    if name.startswith('/') or '..' in PurePosixPath(name).parts or set('\\:\0') & set(name):
        raise DataError(
            f'{archive}: {name!r} would be unpacked outside of the target; it is not the published '
            'archive, get it from there'
        )
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
    """Move all of a folder: in one step where nothing of its name is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return
    for entry in list(source.iterdir()):
        if entry.is_dir():
            _merge(entry, target / entry.name)
        elif (target / entry.name).is_dir():  # where shutil.move would put it into
            message = os.strerror(errno.EISDIR)
            raise IsADirectoryError(errno.EISDIR, message, str(target / entry.name))
        else:
            # not os.replace: a folder of a set may be a link to another disk
            shutil.move(entry, target / entry.name)
    source.rmdir()
