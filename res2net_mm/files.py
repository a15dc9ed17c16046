"""Writes files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def writing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a file next to ``path`` to write to, and renames it to ``path`` after the block.

    Its name is unique, so several processes may write the same ``path``. If the block ends with an
    error or is interrupted, ``path`` is unchanged and nothing is left next to it.

    Args:
        path: File to write. If it is a link, the file that it points to is written.
        durable: Flush the file to disk before renaming it, so that after a power failure there is
            either the old file or the new one.

    Yields:
        The file to write, with the same suffix as ``path``.

    Raises:
        OSError: It cannot be written; the message names ``path``.
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
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: str | Path, suffix: str) -> None:
    """Removes the files that killed processes left behind in :func:`writing`.

    Nobody else may be writing files of this suffix in this folder.
    """
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
    """Checks before a long job that its result can be written; leaves nothing behind.

    Args:
        path: File to write, or folder for files. Its parent folders may be missing.
        option: The option that named it, for the error.
        folder: Whether it is a folder.

    Raises:
        OSError: Something else is there, or the folder cannot be written to or is full.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(0, 'it is no folder' if folder else 'it is a folder: name a file')
        if path.exists() and not folder and not path.is_file():
            raise OSError(0, 'it is no regular file')
        there = path if folder else path.parent
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise OSError(0, f'{there} is no folder')
        with TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(f'{option} {path} cannot be written: {error.strerror or error}') from error
