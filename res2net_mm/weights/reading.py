"""Reading checkpoint files without running anything that is in them."""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.structures import InstanceData

from ..backbones.base import CONVENTION
from .paddle_pickle import (
    NUMPY,
    PLAIN,
    Array,
    DType,
    Refused,
    Unpickler,
    owned,
    read_paddle,
    refuse,
)

_ZIP = b'PK\x03\x04'
# What a file may ask for beside its own size: bytes of tensors laid out, lengths of copies.
_VIEWS, _COPIES = 16, 8  # times the size
_ANY = 1 << 26, 1 << 20
_LEGACY = re.compile(rb'\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19', re.S)


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read, or that is refused."""


def read_checkpoint(
    path: str | Path, map_location: Any = 'cpu', *, trust: bool = False
) -> dict[str, Any]:
    """Reads a checkpoint of torch, mmengine, Paddle or safetensors; code in it is not run.

    The content tells the format, whatever the file is called.

    Args:
        path: The file; ``~`` is the home folder.
        map_location: Device of the tensors, as in ``torch.load``.
        trust: Read with pickle, which runs whatever the file says. Only for files whose author
            you trust.

    Returns:
        The dict that was saved, Paddle's with tensors for its arrays. For safetensors
        ``dict(state_dict=..., meta=...)``; ``meta`` has what :mod:`res2net_mm` left there.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, is no checkpoint, or wants to run code.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
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
    """Reads a pickle of plain values, numpy's arrays and mmengine's instances, as proposals are.

    Args:
        file: Open file at the beginning of the pickle.
        encoding: Of what Python 2 wrote, as in ``pickle.load``.

    Raises:
        CheckpointError: The pickle names something else, which could run code, or is damaged.
    """
    unpickler = Unpickler(file, encoding=encoding)
    unpickler.allowed = _PLAIN
    try:
        _rehearse(file, file.seek(0, os.SEEK_END) - file.seek(0))
        file.seek(0)
        return _real(unpickler.load(), {})
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
    # Names come from the file.
    return ''.join(char if char.isprintable() else '?' for char in text[:500])


def _read(path: Path, size: int, map_location: Any, trust: bool) -> Any:
    if not size:
        raise Refused('is empty')
    # A map does not reserve what a damaged length asks for, as read() of a file does.
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = content[:64]
        if size > _ANY[0] and not trust:
            _check_written(file.fileno(), size)
        if head[8:10] in (b'{"', b'{}'):
            return _moved(_read_safetensors(path, content), map_location)
        legacy = _LEGACY.match(head)
        if re.match(rb'\x80[\x02-\x04]', head) and not legacy:
            if not trust:
                _rehearse(content, size)
                content.seek(0)
            return _moved(read_paddle(content, trust=trust), map_location)
        if trust:
            return torch.load(path, map_location=map_location, weights_only=False)
        if head.startswith(_ZIP):
            if not zipfile.is_zipfile(path):
                raise ValueError('it is a zip archive without its end, probably cut off')
            _check_zip(path, content)
        elif legacy:
            _rehearse(content, size, 4)  # the first three say how it was written
        else:
            text = head.decode('utf-8', 'ignore')
            whole = len(text.encode()) > len(head) - 4  # but for a character that was cut
            if len(text) > 4 and whole and re.sub(r'[\t\r\n]', '', text).isprintable():
                raise Refused(f'is no checkpoint, but a text file: {text[:40]!r}...')
            raise Refused('is damaged or no checkpoint: neither of torch, Paddle nor safetensors')
    try:
        with _stand_ins():
            loaded = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r'GLOBAL (\S+)', str(error))
        if wanted:
            raise refuse(wanted[1]) from error
        reason = re.search(r'Unpickler error: (.+)', str(error))
        raise ValueError(reason[1] if reason else 'its pickle is not as torch writes it') from error
    real = _real(loaded, {})
    _check_laid_out(real, size, map_location)
    return real


def _check_written(number: int, size: int) -> None:
    """Raises where nearly all of a file is holes, which take memory, but no room on the disk."""
    written = end = 0
    try:
        while written * 100 < size:
            start = os.lseek(number, end, os.SEEK_DATA)
            end = os.lseek(number, start, os.SEEK_HOLE)
            written += end - start
    except (AttributeError, OSError) as error:  # there is no more data, or no way to tell
        if getattr(error, 'errno', None) == errno.ENXIO:
            raise Refused(
                f'was never written: all but {written} bytes of it are holes; download or copy it '
                'again'
            ) from error


class _Nothing:
    """Stands for all that a pickle makes, and adds up what that would copy."""

    room = 0  # of the class that is made for each pickle

    def __new__(cls, *args: Any) -> _Nothing:
        made = super().__new__(cls)
        made.length = cls.take(args)
        return made

    def __init__(self, *args: Any) -> None:
        pass

    def __len__(self) -> int:
        return self.length

    def __setstate__(self, state: Any) -> None:
        values = tuple(state.values()) if isinstance(state, dict) else state
        self.length += self.take(values if isinstance(values, tuple) else ())

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As of a list."""

    @classmethod
    def take(cls, values: tuple) -> int:
        """The lengths of values, within what there is room for."""
        length = sum(len(v) for v in values if hasattr(v, '__len__') and not isinstance(v, type))
        cls.room -= length
        if cls.room < 0:
            raise Refused('copies what it holds over and over, which would take all memory')
        return length


class _Rehearsal(Unpickler):
    """Goes through a pickle with nothing real in it, to see how much it would take."""

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding='bytes')
        self.nothing = type('_Nothing', (_Nothing,), dict(room=_COPIES * size + _ANY[1]))

    def find_class(self, module: str, name: str) -> Any:
        if name.startswith('_rebuild_device_tensor'):
            raise refuse(f'{module}.{name}')

        def call(*args: Any) -> Any:
            if name == 'bytearray' and args and isinstance(args[0], int):
                raise Refused(f'asks for a bytearray of {args[0]:,} bytes, which no weights need')
            return self.nothing(*args)

        return self.nothing if name != 'bytearray' else call

    def persistent_load(self, pid: Any) -> Any:
        return self.nothing()


def _rehearse(file: Any, size: int, pickles: int = 1) -> None:
    for _ in range(pickles):
        _Rehearsal(file, size).load()


def _check_laid_out(loaded: Any, size: int, map_location: Any) -> None:
    """Raises where tensors have many more values than the file (of stride 0), or none (meta)."""
    tensors = {id(tensor): tensor for tensor in _tensors(loaded, set())}.values()
    if any(tensor.layout is not torch.strided for tensor in tensors):
        raise Refused('has sparse tensors, which no network here takes')
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total > _VIEWS * size + _ANY[0]:
        raise Refused(f'has tensors of {total:,} bytes, of which it can hold but few')
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
    """Raises unless the checksums fit, which torch does not look at; it never compresses."""
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        names = [file.filename for file in files if file.compress_type]
        unset = len(files) > 1 and len({file.CRC for file in files}) == 1  # set_crc32_options
        changed = names[0] if names else None if unset else archive.testzip()
    for file in files if not changed else ():
        if file.filename.lower().endswith('data.pkl'):  # as torch finds it
            lengths = struct.unpack_from('<HH', content, file.header_offset + 26)
            start = file.header_offset + 30 + sum(lengths)
            _rehearse(BytesIO(content[start : start + file.file_size]), file.file_size)
    if changed:
        raise ValueError(f'{changed} in it is not what was written')


def _read_safetensors(path: Path, content: mmap.mmap) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise Refused(
            'is a safetensors file; `pip install safetensors` makes it readable'
        ) from error
    # It maps the file, which may change later.
    state = {key: value.clone() for key, value in load_file(path).items()}
    length = int.from_bytes(content[:8], 'little')
    strings = json.loads(content[8 : 8 + length]).get('__metadata__') or {}
    meta = {key: strings[key] for key in ('licence',) if key in strings}
    meta |= {CONVENTION: json.loads(strings[CONVENTION])} if CONVENTION in strings else {}
    return dict(state_dict=state, meta=meta)


def _moved(value: Any, map_location: Any) -> Any:
    """Tensors that were read on the CPU, where ``map_location`` wants them."""
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


class _History:
    """Stands for mmengine's HistoryBuffer, which would take over methods for the whole process."""

    __slots__ = ('state',)

    def __init__(self, *args: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def real(self) -> HistoryBuffer:
        history = HistoryBuffer(max_length=int(self.state['max_length']))
        history._log_history = owned(self.state['_log_history'].view())
        history._count_history = owned(self.state['_count_history'].view())
        return history


class _Instances:
    """Stands for mmengine's InstanceData, of which a file could change the class."""

    __slots__ = ('state',)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def real(self, done: dict[int, tuple[Any, Any]]) -> InstanceData:
        instances = InstanceData()
        vars(instances).update(_real(dict(self.state), done))
        return instances


def _method(owner: Any, name: str) -> str:
    """``getattr`` as far as HistoryBuffer, which pickles its methods, needs it."""
    if owner is not _History:
        known = (wanted for wanted, stand_in in _ALLOWED.items() if stand_in is owner)
        raise refuse(
            f'getattr of {next(known, type(owner).__name__)}.{name if type(name) is str else "?"}'
        )
    return name


# What mmengine writes besides tensors: histories of logged values, numpy's numbers and arrays.
_ALLOWED: dict[str, Any] = {
    **NUMPY,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'builtins.getattr': _method,
    'builtins.slice': slice,
}
_PLAIN = {
    **PLAIN,
    'builtins.set': set,
    'mmengine.structures.instance_data.InstanceData': _Instances,
}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Has torch take these, and not what the process allowed elsewhere, for what a file names."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(value, name) for name, value in _ALLOWED.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _real(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """What was read, with true arrays, types and histories for what stands for them."""
    if id(value) in done:
        return done[id(value)][1]
    kind = type(value)
    real = value
    if kind in (dict, OrderedDict, list):
        done[id(value)] = value, value  # before its content, which may hold it
        for key in range(len(value)) if kind is list else value:
            value[key] = _real(value[key], done)
    elif kind is tuple:
        real = tuple(_real(inner, done) for inner in value)
    elif kind is Array:
        real = owned(value.view())
    elif kind in (DType, _History):
        real = value.real()
    elif kind is _Instances:
        real = value.real(done)
    if real is not value:
        done[id(value)] = value, real
    return real
