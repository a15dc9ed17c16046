"""Files that are whole under their names, or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def writing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes that name at the end of the block.

    Its name is its own, so processes that write the same ``path`` do not meet in it. A block that
    is left early, by an error or an interruption, leaves ``path`` as it was and nothing beside it.

    Args:
        path: File to write. A link stays one: the file behind it is written.
        durable: Have it on the disk before it takes the name, so that a machine that goes down
            leaves the old file or the new one.

    Yields:
        The file beside it, with the same suffix.

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
            with suppress(OSError):  # not every system can do that with a folder
                _sync(target.parent)
    except OSError as error:
        # without a name it is of writing or closing, such as a full disk
        ours = error.errno if error.filename is None else str(error.filename) == str(partial)
        if not ours:
            raise
        raise OSError(f'{path} could not be written: {error.strerror or error}') from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: str | Path, suffix: str) -> None:
    """Removes what killed processes left of :func:`writing` files of a suffix.

    Nobody else may be writing such files in this folder.
    """
    for partial in Path(folder).glob(f'.*.????????.partial{suffix}'):
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; ends of lines stay as they are."""
    with writing(path) as partial:
        partial.write_text(text, encoding='utf-8', newline='')


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path, option: str, folder: bool = False) -> None:
    """Finds out before the work whether its result can be written; leaves nothing behind.

    Args:
        path: File to write, or the folder for files. What it is in can be missing.
        option: What the user named it with.
        folder: Whether it is a folder.

    Raises:
        OSError: It cannot: it is of another kind, or a folder refuses files or is full.
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
