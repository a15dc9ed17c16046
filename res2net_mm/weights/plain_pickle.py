"""Unpicklers that call nothing but a fixed list of harmless functions.

A pickle names the classes and functions that rebuild its values. :class:`Unpickler` looks these
names up in a table. Stand-ins take the place of numpy's and mmengine's classes, because their own
``__setstate__`` trusts whatever the file says; :func:`real` replaces the stand-ins by true values
once the pickle is read.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.structures import InstanceData

NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'}


class Refused(ValueError):
    """What is wrong with a file: the rest of a sentence that begins with its path."""


def refuse(name: str) -> Refused:
    """The error for a pickle that asks for something by name."""
    return Refused(
        f'asks for {name[:100]} when it is read, which could run code, and was refused; '
        '--trust-checkpoint reads it all the same, if you trust its author'
    )


class _StandIn:
    """Keeps the state that a pickle sets, for ``real`` to check."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class DType(_StandIn):
    """Stands for ``numpy.dtype``, which would accept any flags and sizes."""

    def __init__(self, code: Any, *align_and_copy: Any) -> None:
        self.code = code
        self.state: Any = (3, '=', None, None, None, -1, -1, 0)

    def real(self) -> np.dtype:
        order, *rest = self.state[1:]
        if self.code not in NUMBERS:
            raise Refused(f'holds numpy data of type {self.code[:20]!r}; only numbers are read')
        if order not in tuple('<>|=') or rest != [None, None, None, -1, -1, 0]:
            raise ValueError(f'a numpy type {self.code!r} is not as numpy writes it')
        return np.dtype(order + self.code)


class Array(_StandIn):
    """Stands for ``numpy.ndarray``.

    The true ``__setstate__`` can be called again, and then frees memory that a tensor may share.
    """

    def real(self) -> np.ndarray:
        shape, dtype, fortran, data = self.state[-4:]
        return owned(_view(data, dtype, shape, 'F' if fortran else 'C'))


class History(_StandIn):
    """Stands for mmengine's HistoryBuffer, which would replace methods for the whole process."""

    def real(self) -> HistoryBuffer:
        history = HistoryBuffer(max_length=int(self.state['max_length']))
        history._log_history = self.state['_log_history'].real()
        history._count_history = self.state['_count_history'].real()
        return history


class Instances(_StandIn):
    """Stands for mmengine's InstanceData, whose class a file could change."""

    def real(self, done: dict[int, tuple[Any, Any]]) -> InstanceData:
        instances = InstanceData()
        vars(instances).update(real(dict(self.state), done))
        return instances


def _view(data: Any, dtype: DType, shape: Sequence[int], order: str = 'C') -> np.ndarray:
    """An array over data, never larger than the data."""
    kind = dtype.real()
    if isinstance(data, str):  # Python 2
        data = data.encode('latin1')
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f'an array of shape {shape} and type {kind} has {len(data)} bytes of data')
    return np.ndarray(shape, kind, data, order=order)


def owned(array: np.ndarray) -> np.ndarray:
    """A contiguous copy with its own memory, in this machine's byte order."""
    return np.array(array, array.dtype.newbyteorder('='), order='C')


def real(value: Any, done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """What was read, with true arrays, types and histories instead of their stand-ins."""
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    kind, found = type(value), value
    if kind in (dict, OrderedDict, list):
        done[id(value)] = value, value  # before its content, which may refer to it
        for key in range(len(value)) if kind is list else value:
            value[key] = real(value[key], done)
    elif kind is tuple:
        found = tuple(real(inner, done) for inner in value)
    elif kind is Instances:
        found = value.real(done)
    elif isinstance(value, _StandIn):
        found = value.real()
    if found is not value:
        done[id(value)] = value, found
    return found


def _scalar(dtype: DType, data: Any) -> np.generic:
    return _view(data, dtype, ())[()]


def _no_bytes() -> bytes:
    """Protocol 2 calls ``bytes`` only to make an empty one."""
    return b''


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ('latin1', 'latin-1'):
        raise refuse('_codecs.encode to another encoding than latin1')
    return text.encode(encoding)


def _method(owner: Any, name: str) -> str:
    """``getattr``, as far as HistoryBuffer needs it to pickle its methods."""
    if owner is not History or type(name) is not str:
        known = (wanted for wanted, stand_in in CHECKPOINT.items() if stand_in is owner)
        raise refuse(
            f'getattr of {next(known, type(owner).__name__)}.{name if type(name) is str else "?"}'
        )
    return name


# Names in pickles -> what to call for them. numpy 1 has the module core, numpy 2 _core.
PLAIN: dict[str, Callable] = {
    'numpy.dtype': DType,
    'numpy.ndarray': Array,
    **{f'numpy.{core}.multiarray._reconstruct': Array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
    'builtins.bytes': _no_bytes,
    '_codecs.encode': _encode,
    'builtins.tuple': tuple,
    'collections.OrderedDict': OrderedDict,
}
# Proposals and the like, besides.
PROPOSALS: dict[str, Callable] = {
    **PLAIN,
    'builtins.set': set,
    'mmengine.structures.instance_data.InstanceData': Instances,
}
# What mmengine and torch write into checkpoints. None means the function of that name: these are
# the ones that torch.load(weights_only=True) allows, without tensors of other layouts.
_REBUILD = ('tensor', 'tensor_v2', 'tensor_v3', 'parameter', 'parameter_with_state', 'qtensor')
_REBUILD += ('sparse_tensor', 'meta_tensor_no_storage')
CHECKPOINT: dict[str, Callable | None] = {
    **PLAIN,
    'mmengine.logging.history_buffer.HistoryBuffer': History,
    'builtins.getattr': _method,
    'builtins.slice': slice,
    **dict.fromkeys(f'torch._utils._rebuild_{kind}' for kind in _REBUILD),
    **dict.fromkeys(f'torch.{kind}' for kind in ('Size', 'Tensor', 'device')),
    'torch._tensor._rebuild_from_type_v2': None,
    'torch.nn.parameter.Parameter': None,
    'torch.serialization._get_layout': None,
    'torch.storage.UntypedStorage': None,
    **dict.fromkeys(f'builtins.{kind}' for kind in ('set', 'bytearray', 'complex')),
    'collections.Counter': None,
}


class Unpickler(pickle._Unpickler):
    """Gives a pickle nothing to call but the functions of a table.

    The unpickler in C reserves as much memory as damaged bytes ask for, the one in Python does
    not.
    """

    allowed: dict[str, Callable | None] = PLAIN
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module.replace("__builtin__", "builtins")}.{name}'
        if full not in self.allowed:
            raise refuse(full)
        return self.allowed[full] or super().find_class(module, name)

    def load_build(self) -> None:
        if callable(self.stack[-2]):
            raise refuse('a change of a class or function')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


class ProposalUnpickler(Unpickler):
    """For plain values, numpy's arrays and mmengine's instances."""

    allowed = PROPOSALS


class _CheckpointUnpickler(Unpickler):
    allowed = CHECKPOINT

    def find_class(self, module: str, name: str) -> Any:
        kind = vars(torch).get(name) if module == 'torch' else None
        if isinstance(kind, (torch.dtype, torch.qscheme)):
            return kind
        return super().find_class(module, name)


# What torch.load takes as pickle_module.
CHECKPOINT_PICKLES = SimpleNamespace(
    __name__=__name__,
    Unpickler=_CheckpointUnpickler,
    load=lambda file, **options: _CheckpointUnpickler(file, **options).load(),
)
