"""What stands in for ``mmcv._ext`` where mmcv came without compiled operators.

mmcv's own Python code (``mmcv.ops``) runs unchanged over it; :mod:`.finder` puts it in place. The
operators are called as those of the extension: results go into buffers that the caller made
(``output``, ``grad_*``), while scratch buffers and hints such as ``columns``, ``ones`` and
``im2col_step`` are not used. Half precision is computed in float32.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torchvision

from . import boxes, deform, finder, plain, roi

OPERATORS: dict[str, Callable[..., Any]] = {
    'get_compiler_version': lambda: f'none (torchvision {torchvision.__version__})',
    'get_compiling_cuda_version': lambda: 'not available',  # the extension's words
    **boxes.OPERATORS,
    **deform.OPERATORS,
    **plain.OPERATORS,
    **roi.OPERATORS,
}


def ensure_mmcv_ops() -> None:
    """Makes ``mmcv.ops`` work, with mmcv's compiled operators or without.

    Compiled operators that load are used as they are. If they are missing, or do not load (a
    warning says why), the stand-in takes their place. ``RES2NET_MM_OPS`` changes that:
    ``torchvision`` always takes the stand-in, ``mmcv`` never does, and ``off`` leaves mmcv alone.
    ``import res2net_mm`` calls this.

    Raises:
        ValueError: ``RES2NET_MM_OPS`` has another value.
        ImportError: It is ``mmcv``, and compiled operators are missing or broken.
    """
    chosen = finder.choice()
    if chosen == 'mmcv':
        try:
            _extension()
        except (ImportError, OSError) as error:
            raise ImportError(
                f"{finder.VARIABLE} asks for 'mmcv', but mmcv's compiled operators do not load: "
                f'{error}'
            ) from error
    early = {'mmcv.ops', 'mmdet.models', 'mmseg.models'} & sys.modules.keys()
    if early and chosen != 'off' and finder.EXTENSION not in sys.modules:
        logging.getLogger('res2net_mm').warning(
            '%s was imported before res2net_mm and has no operators: import res2net_mm first, '
            'or install its wheel, which has Python find them from the start',
            ' and '.join(sorted(early)),
        )


def operator_named(name: str) -> Callable[..., Any]:
    """An operator of the stand-in; ``NotImplementedError`` if it has no such operator."""
    if name not in OPERATORS:
        raise NotImplementedError(
            f"mmcv's operator {name!r} has no stand-in: to use it, install mmcv built with its "
            f'compiled operators ({describe_ops()})'
        )
    return OPERATORS[name]


def describe_ops() -> str:
    """One line: which operators are in use, and why."""
    try:
        extension = _extension()
    except (ImportError, OSError) as error:
        return f'operators: none ({error})'
    # by name: the finder that Python started with is a copy of ours
    if type(extension).__name__ == finder.StandIn.__name__:
        return f'operators: torchvision {torchvision.__version__} ({extension.reason})'
    return f"operators: mmcv's compiled ones ({getattr(extension, '__file__', None) or 'no file'})"


def _extension() -> ModuleType:
    return importlib.import_module(finder.EXTENSION)
