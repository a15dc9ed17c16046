"""An unpickler that calls nothing but a fixed list of harmless functions.

``torch.load(weights_only=True)`` has one too, but its list belongs to the whole process, lacks what
mmengine saves, and Paddle's files are no files of torch. The module is what ``torch.load`` takes as
``pickle_module``.
"""

from __future__ import annotations

import math
import pickle
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_NUMBERS = set('b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16'.split())


class Refused(ValueError):
    """What is wrong with a file: the rest of a sentence that begins with its path."""


def refuse(name: str) -> Refused:
    """The error for a pickle that asks for something by name."""
    return Refused(
        f'asks for {name[:100]} when it is read, which could run code, and was refused; '
        '--trust-checkpoint reads it all the same, if you trust its author'
    )


def _dtype(code: str, *_: Any) -> np.dtype:
    if code not in _NUMBERS:
        raise Refused(f'holds numpy data of type {code[:20]!r}; only numbers are read')
    return np.dtype(code, copy=True)  # reading sets its byte order


def _array(*_: Any) -> np.ndarray:
    """Both numpy's class and its constructor; the pickle fills the array afterwards."""
    return np.zeros(0)


def _encode(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: it writes them as text in latin1."""
    if encoding != 'latin1':
        raise refuse('_codecs.encode to another encoding')
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """Protocol 2's way to write empty ones; with a number, they would fill the memory."""
    return b''


def _method(owner: Any, name: str) -> str:
    """``getattr``, by which a HistoryBuffer pickles its methods; :class:`Unpickler` drops them."""
    if owner is not HistoryBuffer:
        raise refuse('builtins.getattr')
    return name


_REBUILD = ('tensor', 'tensor_v2', 'tensor_v3', 'parameter', 'parameter_with_state')
_HARMLESS = {
    'argparse.Namespace',  # timm's training puts its arguments into its checkpoints
    *(f'builtins.{kind}' for kind in ('complex', 'set', 'slice', 'tuple')),
    *(f'collections.{kind}' for kind in ('Counter', 'OrderedDict')),
    'pathlib.PosixPath',  # Lightning's hyperparameters
    *(f'torch.{kind}' for kind in ('Size', 'Tensor', 'device')),
    *(f'torch._utils._rebuild_{kind}' for kind in _REBUILD),
    'torch._tensor._rebuild_from_type_v2',
    'torch.nn.parameter.Parameter',
    'torch.storage.UntypedStorage',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'mmengine.structures.instance_data.InstanceData',
}
# Called instead of functions that trust the file
_INSTEAD = {
    'builtins.bytes': _no_bytes,
    'builtins.getattr': _method,
    '_codecs.encode': _encode,
    'numpy.dtype': _dtype,
    'numpy.ndarray': _array,
    'numpy._core.multiarray._reconstruct': _array,
    'numpy._core.multiarray.scalar': np.float64(0).__reduce__()[0],
}


class Unpickler(pickle._Unpickler):
    """Reads plain values, tensors, numpy's numbers, and mmengine's histories and instances.

    The base is Python's own code: the C code reserves as much memory as damaged bytes ask for.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The function that a pickle may call by this name."""
        full = f'{module}.{name}'.replace('__builtin__.', 'builtins.')
        full = full.replace('numpy.core.', 'numpy._core.')  # in numpy 1
        if full in _INSTEAD:
            return _INSTEAD[full]
        is_dtype = module == 'torch' and isinstance(vars(torch).get(name), torch.dtype)
        if full in _HARMLESS or is_dtype:
            return super().find_class(module, name)
        raise refuse(full)

    def load_build(self) -> None:
        """Gives an object its state, which numpy and mmengine would believe whatever it is."""
        owner, state = self.stack[-2:]
        if isinstance(owner, np.dtype):
            if state[1] not in tuple('<>|=') or state[2:] != (None, None, None, -1, -1, 0):
                raise ValueError(f'a numpy type {owner} is not as numpy writes it')
        elif isinstance(owner, np.ndarray):
            shape, dtype, _, data = state[-4:]
            size = math.prod(shape) * dtype.itemsize
            if owner.size or min(shape, default=0) < 0 or size != len(data):
                raise ValueError(
                    f'an array of shape {shape} and type {dtype} has {len(data)} bytes of data'
                )
        elif isinstance(owner, HistoryBuffer):  # no methods: it would share them with all others
            names = ('max_length', '_log_history', '_count_history')
            self.stack[-1] = {name: state[name] for name in names}
        elif callable(owner):
            raise refuse('a change of a class or function')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def load(file: IO[bytes], **options: Any) -> Any:
    """As ``pickle.load``."""
    return Unpickler(file, **options).load()
