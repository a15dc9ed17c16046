"""Writes files whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

_NO_ROOM = re.compile('No space left|unexpected pos|failed writing')  # torch, on a full disk


@contextmanager
def writing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a file of the same suffix to write to, and renames it to ``path`` after the block.

    Its name is unique, so several processes may write the same ``path``. If the block ends with an
    error or is interrupted, ``path`` is unchanged and nothing is left next to it. If ``path`` is a
    link, the file that it points to is written. An OSError names ``path``.

    Args:
        path: File to write.
        durable: Flush the file to disk before renaming it, so that after a power failure there is
            either the old file or the new one.
    """
    target = Path(path).resolve()
    stem = os.fsencode(target.stem)[:200].decode(errors='ignore')  # names may have 255 bytes
    partial = target.with_name(f'.{stem}.{secrets.token_hex(4)}.partial{target.suffix}')
    try:
        yield partial
        if durable:
            _sync(partial)
        os.replace(partial, target)
        if durable:
            with suppress(OSError):  # not every system can sync a folder
                _sync(target.parent)
    except OSError as error:
        # errors of writing and closing, such as a full disk, have no file name
        ours = error.errno if error.filename is None else str(error.filename) == str(partial)
        if not ours:
            raise
        raise OSError(f'{path} could not be written: {error.strerror or error}') from error
    except RuntimeError as error:
        if not _NO_ROOM.search(str(error)):
            raise
        raise OSError(f'{path} could not be written: {error}') from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: str | Path, suffix: str) -> None:
    """Removes what killed processes left in :func:`writing`; nobody may be writing such files."""
    for partial in Path(folder).glob(f'.*.????????.partial{suffix}'):
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all. Line ends stay as they are."""
    with writing(path) as partial:
        partial.write_text(text, encoding='utf-8', newline='')


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path, option: str, folder: bool = False) -> None:
    """Raises an OSError before a long job if its result could not be written; leaves nothing.

    Args:
        path: File to write, or folder for files. Its parent folders may be missing.
        option: The option that named it, for the error.
        folder: Whether it is a folder.
    """
    path = Path(path)
    there = path if folder else path.parent
    while not there.exists():
        there = there.parent
    try:
        if not folder and path.exists() and not path.is_file():
            raise OSError(0, 'it is no regular file')
        with TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(f'{option} {path} cannot be written: {error.strerror or error}') from error
