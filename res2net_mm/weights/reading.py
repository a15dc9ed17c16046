"""Reading checkpoint files without running anything that is in them."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open

from ..backbones.base import CONVENTION
from . import plain_pickle
from .plain_pickle import Refused

_FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # excludes an unpickler of one's own
_MAGIC = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19'  # the number with which torch's old format begins


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, or is refused."""


def read_checkpoint(
    path: str | Path, map_location: Any = 'cpu', *, trust: bool = False
) -> dict[str, Any]:
    """Reads a checkpoint of torch, mmengine, Paddle or safetensors without running code in it.

    The format is recognised by the content, whatever the file is called. Nothing changes in the
    process: neither torch's list of safe globals nor any other setting.

    Args:
        path: The file; ``~`` is the home folder.
        map_location: Device of the tensors in torch's files, as in ``torch.load``.
        trust: Read with pickle, which runs whatever the file says. Only for files whose author
            you trust.

    Returns:
        The saved dict; a Paddle file's arrays become tensors. For safetensors
        ``dict(state_dict=..., meta=...)``, with ``meta`` as :mod:`res2net_mm` wrote it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is no checkpoint, or wants to run code.
    """
    path = Path(os.path.expanduser(path))  # which leaves an unknown user's folder as it is
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is a folder or device; give the .pth file')
    size = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            checkpoint = _read(path, size, map_location, trust)
        if not isinstance(checkpoint, dict):
            kind = type(checkpoint).__name__
            raise Refused(f'holds an object of type {kind}; a dict with weights is needed')
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f'checkpoint {path} ({size} bytes) {_reason(error)}') from error
    return checkpoint


def read_pickle(file: IO[bytes], encoding: str = 'ASCII') -> Any:
    """Reads a pickle of plain values, numpy arrays and mmengine's instances, such as proposals.

    Args:
        file: Open file at the beginning of the pickle.
        encoding: Encoding of text that Python 2 wrote, as in ``pickle.load``.

    Raises:
        CheckpointError: The pickle is damaged, or names something else, which could run code.
    """
    try:
        return plain_pickle.load(file, encoding=encoding)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f'a pickle that the config names {_reason(error)}') from error


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor with a copy of the numbers, which may be in another machine's byte order."""
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder('='), order='C'))


def _reason(error: Exception) -> str:
    text = str(error)
    if not isinstance(error, Refused):
        text = text.strip().partition('\n')[0]
        text = f'is damaged or no checkpoint: {type(error).__name__} {text}'
    # The file may have chosen the names in it.
    return ''.join(char if char.isprintable() else '?' for char in text[:500])


def _read(path: Path, size: int, map_location: Any, trust: bool) -> Any:
    if not size:
        raise Refused('is empty')
    # Unlike read(), a map does not reserve the memory that a damaged length asks for.
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = content[:64]
        if head[8:9] == b'{':
            return _read_safetensors(path)
        if head[:1] == b'\x80' and _MAGIC not in head:
            return _read_paddle(content, trust)
        if trust:
            return torch.load(file, map_location=map_location, weights_only=False)
        if tarfile.is_tarfile(path):  # torch would unpack it
            raise Refused('is a tar archive, the format of the first versions of torch')
        if os.environ.get(_FORCED, '') in ('1', 'y', 'yes', 'true'):
            raise Refused(f'cannot be read while {_FORCED} is set; unset it, no code is run anyway')
        if head.startswith(b'PK\3\4'):
            _check_zip(path, content)
        elif _MAGIC not in head:
            raise Refused(f'is damaged or no checkpoint: it begins with {head!r}')
        checkpoint = torch.load(
            file, map_location=map_location, weights_only=False, pickle_module=plain_pickle
        )
    storages = (tensor.untyped_storage() for tensor in _tensors(checkpoint, set()))
    if sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) > size:
        raise Refused('is damaged: its tensors have a larger size than the file')  # for torch 2.7
    return checkpoint


def _check_zip(path: Path, content: mmap.mmap) -> None:
    """Raises unless the content is stored as it is and fits its checksums, which torch ignores."""
    if not zipfile.is_zipfile(path):
        raise Refused('is damaged or no checkpoint: a zip archive without its end, maybe cut off')
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        has_checksums = len({file.CRC for file in files}) > 1  # set_crc32_options
        changed = next((file.filename for file in files if file.compress_type), None)
        changed = changed or (archive.testzip() if has_checksums else None)
    if changed:
        raise Refused(f'is damaged: {changed} in it is not what was written')
    # Every byte is searched, since torch may find another table of contents than zipfile does.
    if content.find(b'constants.pkl', 0) >= 0:
        raise Refused('is a TorchScript program, which runs when it is loaded')


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
        seen.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner, seen)


def _read_paddle(content: mmap.mmap, trust: bool) -> Any:
    """Reads a pickle of name -> array, or of name -> (name, array), as ``paddle.save`` writes it.

    Values that are no arrays, such as the names in Paddle's program, stay as they are.
    """
    load = pickle.load if trust else plain_pickle.load
    saved = load(content, encoding='latin1')
    if not isinstance(saved, dict):
        return saved
    for key, value in saved.items():
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
        saved[key] = as_tensor(array) if isinstance(array, np.ndarray) else value
    return saved


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, 'pt') as file:
        # copies: the tensors are mapped, and the file may change later
        state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        strings = file.metadata() or {}
    meta = {key: strings[key] for key in ('licence',) if key in strings}
    meta |= {CONVENTION: json.loads(strings[CONVENTION])} if CONVENTION in strings else {}
    return dict(state_dict=state, meta=meta)
