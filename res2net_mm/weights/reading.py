"""Reading checkpoint files without running anything that is in them."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..backbones.base import CONVENTION
from .plain_pickle import (
    CHECKPOINT_PICKLES,
    NUMBERS,
    Array,
    ProposalUnpickler,
    Refused,
    Unpickler,
    owned,
    real,
)

PROGRAM_NAMES = 'StructuredToParameterName@@'  # Paddle's entry for the names in its program
_IN_PIECES = 'UnpackBigParamInfor@@'
_FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # torch then takes no other unpickler
_ZIP = b'PK\x03\x04'
_LEGACY = re.compile(rb'\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19', re.S)


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
        map_location: Device of the tensors, as in ``torch.load``.
        trust: Read with pickle, which runs whatever the file says. Only for files whose author
            you trust.

    Returns:
        The saved dict; a Paddle file's arrays become tensors. For safetensors
        ``dict(state_dict=..., meta=...)``, with ``meta`` as :mod:`res2net_mm` wrote it.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is no checkpoint, or wants to run code.
    """
    path = Path(os.path.expanduser(path))
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    if not path.is_file():
        what = 'a folder; give the .pth file in it' if path.is_dir() else 'no regular file'
        raise CheckpointError(f'checkpoint {path} is {what}')
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
        return real(ProposalUnpickler(file, encoding=encoding).load())
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f'a pickle that the config names {_reason(error)}') from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if not isinstance(error, Refused):
        text = text.splitlines()[0] if text else ''
        if isinstance(error, EOFError):
            text = 'it ends too early'
        elif not text or isinstance(error, (AttributeError, LookupError, TypeError)):
            text = f'{type(error).__name__} {text}'
        text = f'is damaged or no checkpoint: {text}'
    # The file may have chosen the names in it.
    return ''.join(char if char.isprintable() else '?' for char in text[:500])


def _read(path: Path, size: int, map_location: Any, trust: bool) -> Any:
    if not size:
        raise Refused('is empty')
    # Unlike read(), a map does not reserve the memory that a damaged length asks for.
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = content[:64]
        if head[8:10] in (b'{"', b'{}'):
            return _moved(_read_safetensors(path, content), map_location)
        legacy = _LEGACY.match(head)
        if re.match(rb'\x80[\x02-\x04]', head) and not legacy:
            return _moved(_read_paddle(content, trust), map_location)
        if trust:
            return _load(path, map_location, weights_only=False)
        if head.startswith(_ZIP):
            if not zipfile.is_zipfile(path):
                raise ValueError('it is a zip archive without its end, probably cut off')
            _check_zip(path, content)
        elif legacy:
            if tarfile.is_tarfile(file):  # torch would unpack it first
                raise Refused('is a tar archive, the format of the first versions of torch')
        else:
            _refuse_other(head)
    if os.environ.get(_FORCED, '') in ('1', 'y', 'yes', 'true'):
        raise Refused(f'cannot be read while {_FORCED} is set; unset it, code is refused anyway')
    # with an unpickler of our own, as torch's list of safe globals belongs to the whole process
    loaded = _load(path, map_location, weights_only=False, pickle_module=CHECKPOINT_PICKLES)
    checkpoint = real(loaded)
    _check_laid_out(checkpoint, size, map_location)
    return checkpoint


def _load(path: Path, map_location: Any, **options: Any) -> Any:
    with path.open('rb') as file:  # by its name, torch 2.13 would take any .safetensors for one
        return torch.load(file, map_location=map_location, **options)


def _refuse_other(head: bytes) -> None:
    text = head.decode('utf-8', 'ignore')
    whole = len(text.encode()) > len(head) - 4  # the last character may be cut
    if len(text) > 4 and whole and re.sub(r'[\t\r\n]', '', text).isprintable():
        raise Refused(f'is no checkpoint, but a text file: {text[:40]!r}...')
    raise Refused('is damaged or no checkpoint: neither of torch, Paddle nor safetensors')


def _check_laid_out(loaded: Any, size: int, map_location: Any) -> None:
    """Raises if tensors have no values (meta), or larger storages than the file has bytes."""
    tensors = {id(tensor): tensor for tensor in _tensors(loaded, set())}.values()
    if any(tensor.layout is not torch.strided for tensor in tensors):
        raise Refused('has sparse tensors, which no network here takes')
    storages = (tensor.untyped_storage() for tensor in tensors if not tensor.is_meta)
    if sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) > size:
        raise ValueError('its tensors have a larger size than the file')  # torch 2.7 believes it
    if 'meta' not in str(map_location) and any(tensor.is_meta for tensor in tensors):
        raise Refused("has tensors without values (of device 'meta')")


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
        seen.add(id(value))
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner, seen)


def _check_zip(path: Path, content: mmap.mmap) -> None:
    """Raises unless the checksums fit, which torch ignores.

    torch never compresses, so what is compressed was changed.
    """
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        names = [file.filename for file in files if file.compress_type]
        unset = len(files) > 1 and len({file.CRC for file in files}) == 1  # set_crc32_options
        changed = names[0] if names else None if unset else archive.testzip()
    if changed:
        raise ValueError(f'{changed} in it is not what was written')
    # Every byte is searched, since torch may find another table of contents than zipfile does.
    if content.find(b'constants.pkl', 0) >= 0:
        raise ValueError('it is a TorchScript program, which runs when it is loaded')


def _read_paddle(content: mmap.mmap, trust: bool) -> Any:
    """Reads a pickle of numpy arrays, as ``paddle.save`` writes them.

    A state dict is a pickle (protocol 2 to 4) of name -> array, or of name -> (name, array), with
    an entry for the names in Paddle's program. Protocols 2 and 3 cut arrays of more than a
    gigabyte in pieces.

    Args:
        content: Where ``read(n)`` does not reserve more memory than there is content.
        trust: Read with pickle; values that are no arrays are then left as they are.

    Returns:
        The dict, with tensors instead of arrays. Anything else is returned as it is.
    """
    unpickler = pickle.Unpickler if trust else Unpickler
    saved = unpickler(content, encoding='latin1').load()
    if not trust and content.read(1):
        raise ValueError('its pickle ends before the file does')
    if not isinstance(saved, dict):
        return saved
    if _IN_PIECES in saved:
        raise Refused(
            f'keeps large arrays in pieces ({_IN_PIECES}), which are not put together here; load '
            'it in Paddle and save it with protocol=4'
        )
    return {key: _paddle_value(key, value, trust) for key, value in saved.items()}


def _paddle_value(key: Any, value: Any, trust: bool) -> Any:
    named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    array = value[1] if named else value
    if isinstance(array, Array):
        return torch.from_numpy(array.real())
    if isinstance(array, np.ndarray) and array.dtype.str[1:] in NUMBERS:
        return torch.from_numpy(owned(array))
    names = key == PROGRAM_NAMES and isinstance(value, Mapping)
    if trust or (names and all(isinstance(text, str) for pair in value.items() for text in pair)):
        return value
    raise Refused(
        f'holds a value of type {type(value).__name__} under {key!r}, where an array is needed: it '
        'is no state dict of a network'
    )


def _read_safetensors(path: Path, content: mmap.mmap) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise Refused(
            'is a safetensors file; `pip install safetensors` makes it readable'
        ) from error
    # load_file maps the file, which may change later.
    state = {key: value.clone() for key, value in load_file(path).items()}
    length = int.from_bytes(content[:8], 'little')
    strings = json.loads(content[8 : 8 + length]).get('__metadata__') or {}
    meta = {key: strings[key] for key in ('licence',) if key in strings}
    meta |= {CONVENTION: json.loads(strings[CONVENTION])} if CONVENTION in strings else {}
    return dict(state_dict=state, meta=meta)


def _moved(value: Any, map_location: Any) -> Any:
    """Tensors that were read on the CPU, moved to where ``map_location`` wants them."""
    if isinstance(value, dict):
        return {key: _moved(inner, map_location) for key, inner in value.items()}
    if not isinstance(value, torch.Tensor) or map_location is None:
        return value
    if isinstance(map_location, dict):
        return value.to(map_location.get('cpu', 'cpu'))
    if not isinstance(map_location, (str, torch.device)):
        storage = map_location(value.untyped_storage(), 'cpu')
        return value if storage is None else value.to(storage.device)
    return value.to(map_location)
