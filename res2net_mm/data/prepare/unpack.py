"""Unpacks downloaded archives: into one folder only, and no more than is expected."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import DataError

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
    ValueError, OSError,
)  # fmt: skip


def unpack(archive: Path, folder: Path, wanted: Sequence[str], most: int) -> None:
    """Unpacks members of an archive into a new folder; zip files among them are unpacked as well.

    Args:
        archive: A zip or tar file, compressed or not.
        folder: Made anew; what an interrupted call left in it is removed.
        wanted: Beginnings of the names of the members to unpack.
        most: Largest number of bytes that they may have.

    Raises:
        DataError: The archive is damaged, has nothing of ``wanted``, unpacks to more than ``most``,
            or a tar file has a device, or a file or link outside of the folder. The folder is
            removed then. (A zip file's names are cut so that they stay inside.)
        OSError: The disk is full or cannot be written to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        left = most - _extract(archive, folder, tuple(wanted), most)
        for inner in sorted(folder.rglob('*.zip')):
            left += inner.stat().st_size  # it is removed
            left -= _extract(inner, inner.parent, ('',), left)
            inner.unlink()
    except _BROKEN as error:
        if getattr(error, 'errno', None) is not None:
            raise  # from the disk; a decompressor's has no number
        shutil.rmtree(folder)
        why = str(error).partition('\n')[0].rstrip(':') or type(error).__name__
        what = f'it is damaged, or not the published archive ({why})'
        raise DataError(what, str(archive), 'remove it and fetch it again') from error


def _extract(archive: Path, folder: Path, wanted: tuple[str, ...], most: int) -> int:
    """Unpacks what is wanted, and returns its bytes."""
    zipped = zipfile.is_zipfile(archive)
    options = {} if zipped else dict(filter='data')
    total = None
    # disable=None: shown on a terminal only
    bar = tqdm(desc=archive.name, unit=' files', disable=None)
    with bar, zipfile.ZipFile(archive) if zipped else tarfile.open(archive) as opened:
        for member in opened.infolist() if zipped else opened:
            name = (member.filename if zipped else member.name).removeprefix('./')
            if not name.startswith(wanted) or '__MACOSX' in name:  # which macOS adds to zip files
                continue
            total = (total or 0) + (member.file_size if zipped else member.size)
            if total > most:  # a few bytes can unpack to any number
                raise ValueError(f'it would unpack to more than {most / 1e9:.1f} GB')
            opened.extract(member, folder, **options)
            bar.update()
        while not zipped and opened.fileobj.read(1 << 20):  # a checksum may come at the end
            pass
    if total is None:
        raise ValueError(f'it has nothing below {", ".join(wanted)}')
    return total
