"""Pickles of numpy arrays, Paddle's above all, read without importing or calling what they name.

``paddle.save`` writes a state dict as a pickle (protocol 2 to 4) of name -> numpy array, with an
entry ``StructuredToParameterName@@`` for the names in its program; where tensors lie deeper in what
is saved, each is the tuple (name, array). Arrays of more than a gigabyte are cut up in protocols 2
and 3.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

PROGRAM_NAMES = 'StructuredToParameterName@@'
_IN_PIECES = 'UnpackBigParamInfor@@'
_NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'}


class Refused(ValueError):
    """What is wrong with a file: the rest of a sentence that begins with its path."""


def refuse(name: str) -> Refused:
    """The error for a pickle that asks for something by name."""
    return Refused(
        f'asks for {name[:100]} when it is read, which could run code, and was refused; '
        '--trust-checkpoint reads it all the same, if you trust its author'
    )


class DType:
    """Stands for ``numpy.dtype``, whose own ``__setstate__`` would believe any flags and sizes."""

    __slots__ = ('code', 'state')

    def __init__(self, code: Any, *align_and_copy: Any) -> None:
        self.code = code
        self.state: Any = (3, '=', None, None, None, -1, -1, 0)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def real(self) -> np.dtype:
        order, *rest = self.state[1:]
        if self.code not in _NUMBERS:
            raise Refused(f'holds numpy data of type {self.code[:20]!r}; only numbers are read')
        if order not in tuple('<>|=') or rest != [None, None, None, -1, -1, 0]:
            raise ValueError(f'a numpy type {self.code!r} is not as numpy writes it')
        return np.dtype(order + self.code)


class Array:
    """Stands for ``numpy.ndarray`` and its ``_reconstruct``.

    The true ``__setstate__`` can be called again, and then frees memory that a tensor may share.
    """

    __slots__ = ('state',)

    def __init__(self, *args: Any) -> None:
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def view(self) -> np.ndarray:
        shape, dtype, fortran, data = self.state[-4:]
        return _view(data, dtype, shape, 'F' if fortran else 'C')


def _view(data: Any, dtype: Any, shape: Any, order: str = 'C') -> np.ndarray:
    """An array over data, never larger than that."""
    kind = dtype.real()
    if isinstance(data, str):  # Python 2
        data = data.encode('latin1')
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f'an array of shape {shape} and type {kind} has {len(data)} bytes of data')
    return np.ndarray(shape, kind, data, order=order)


def owned(array: np.ndarray) -> np.ndarray:
    """A copy with memory of its own, contiguous, and in this machine's byte order."""
    return np.array(array, array.dtype.newbyteorder('='), order='C')


def scalar(dtype: Any, data: Any) -> np.generic:
    """``numpy._core.multiarray.scalar``, for plain numbers."""
    return _view(data, dtype, ())[()]


def no_bytes() -> bytes:
    """``builtins.bytes``, as protocol 2 uses it: for none."""
    return b''


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):
        raise refuse('_codecs.encode to another encoding than latin1')
    return text.encode(encoding)


# numpy 1 calls its module core, numpy 2 _core.
NUMPY: dict[str, Callable] = {
    'numpy.dtype': DType,
    'numpy.ndarray': Array,
    **{f'numpy.{core}.multiarray._reconstruct': Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': scalar for core in ('core', '_core')},
    'builtins.bytes': no_bytes,
}
PLAIN: dict[str, Callable] = {
    **NUMPY,
    '_codecs.encode': _encode,
    'builtins.tuple': tuple,
    'collections.OrderedDict': OrderedDict,
}


class Unpickler(pickle._Unpickler):
    """Gives a pickle nothing to call but what stands for numpy above.

    The unpickler in C reserves whatever damaged bytes ask for, the one in Python does not.
    """

    allowed = PLAIN

    def find_class(self, module: str, name: str) -> Callable:
        full = f'{module.replace("__builtin__", "builtins")}.{name}'
        if full not in self.allowed:
            raise refuse(full)
        return self.allowed[full]


def read_paddle(file: Any, *, trust: bool = False) -> Any:
    """Reads a pickle of a dict of numpy arrays.

    Args:
        file: Open file at the beginning of the pickle; its ``read(n)`` must not reserve more than
            there is.
        trust: Read with pickle, which runs whatever the file says; values that are no arrays are
            then left as they are.

    Returns:
        The dict, with tensors for arrays. What is no dict comes as it is.

    Raises:
        Refused: The pickle asks for something else than arrays of numbers, or holds it.
        Exception: It is damaged; of any kind.
    """
    unpickler = pickle.Unpickler if trust else Unpickler
    saved = unpickler(file, encoding='latin1').load()
    if not trust and file.read(1):
        raise ValueError('its pickle ends before the file does')
    if not isinstance(saved, dict):
        return saved
    if _IN_PIECES in saved:
        raise Refused(
            f'keeps large arrays in pieces ({_IN_PIECES}), which are not put together here; load '
            'it in Paddle and save it with protocol=4'
        )
    return {key: _tensor(key, value, trust) for key, value in saved.items()}


def _tensor(key: Any, value: Any, trust: bool) -> Any:
    named = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    array = value[1] if named else value
    array = array.view() if isinstance(array, Array) else array
    if isinstance(array, np.ndarray) and array.dtype.str[1:] in _NUMBERS:
        return torch.from_numpy(owned(array))
    names = key == PROGRAM_NAMES and isinstance(value, Mapping)
    if trust or (names and all(isinstance(text, str) for pair in value.items() for text in pair)):
        return value
    raise Refused(
        f'holds a value of type {type(value).__name__} under {key!r}, where an array is needed: it '
        'is no state dict of a network'
    )
