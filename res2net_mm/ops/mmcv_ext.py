"""What stands in for ``mmcv._ext`` where mmcv came without compiled operators.

mmcv's own Python code (``mmcv.ops``) runs unchanged over it. The one file that knows mmcv.
"""

import ast
import importlib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torchvision
from torch import Tensor

from . import boxes, kernels, plain

EXTENSION = 'mmcv._ext'
VARIABLE = 'RES2NET_MM_OPS'
CHOICES = ('mmcv', 'torchvision')
logger = logging.getLogger('res2net_mm')


class _StandIn(ModuleType):
    """The module in the extension's place; ``reason`` says why it is there."""

    reason: str

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # Python and tools look for names with an underscore in any module, and must not find them.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's operator {name!r} has no stand-in: to use it, install mmcv built with "
                f'its compiled operators ({describe_ops()})'
            )

        return missing


def ensure_mmcv_ops(force: str | None = None) -> str:
    """Make ``mmcv.ops`` work, with mmcv's compiled operators or without.

    Compiled operators that load are used as they are. Where they are missing, or do not load
    (a warning says why), a module backed by torchvision takes their place, and modules of mmcv,
    mmdet and mmseg that were imported before and did without are repaired. To be called before
    anything imports ``mmcv.ops``; another call changes nothing.

    Args:
        force: ``'mmcv'`` or ``'torchvision'`` for that one alone; by default what the environment
            variable ``RES2NET_MM_OPS`` says, and without it what is there.

    Returns:
        What is in use, ``'mmcv'`` or ``'torchvision'``.

    Raises:
        ValueError: for any other choice.
        ImportError: if mmcv is not installed, or if its compiled operators are asked for and
            missing or broken.
    """
    source = VARIABLE if force is None else 'force'
    choice = (os.environ.get(VARIABLE) or None) if force is None else force
    if choice not in (None, *CHOICES):
        raise ValueError(
            f"{source} must be 'mmcv' or 'torchvision', or be left out to use what is there; "
            f'got {choice!r}'
        )
    importlib.import_module('mmcv')  # its absence is an error of its own
    if choice != 'mmcv' and _stand_in() is not None:
        return 'torchvision'
    if choice == 'torchvision':
        _install(f'{source} asks for it')
    else:
        try:
            _bind(_load_compiled())
        except (ImportError, OSError) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == EXTENSION
            state = 'are not installed' if missing else f'do not load: {error}'
            reason = f"mmcv's compiled operators {state}"
            if choice == 'mmcv':
                raise ImportError(f"{source} asks for 'mmcv', but {reason}") from error
            if not missing:
                logger.warning('%s; torchvision stands in for them', reason)
            _install(reason)
    _say_once(describe_ops())
    return 'mmcv' if _stand_in() is None else 'torchvision'


def describe_ops() -> str:
    """One line: which operators are in use, and why."""
    stand_in = _stand_in()
    if stand_in is not None:
        return f'operators: torchvision {torchvision.__version__} ({stand_in.reason})'
    if EXTENSION not in sys.modules:
        return 'operators: not decided yet, ensure_mmcv_ops() has not been called'
    origin = getattr(sys.modules[EXTENSION], '__file__', None)
    return f"operators: mmcv's compiled ones ({origin or 'no file'})"


def compiled_modulated_deform_conv2d() -> Callable[..., Tensor]:
    """mmcv's function of that name, over its compiled operators.

    Raises:
        ImportError: mmcv came without compiled operators, or something stands in for them.
    """
    if _stand_in() is not None:
        raise ImportError(f'deformable convolution by mmcv is asked for, but {describe_ops()}')
    return importlib.import_module('mmcv.ops').modulated_deform_conv2d


@cache
def _say_once(message: str) -> None:
    logger.info(message)


def _stand_in() -> _StandIn | None:
    present = sys.modules.get(EXTENSION)
    return present if isinstance(present, _StandIn) else None


def _load_compiled() -> ModuleType:
    """mmcv's own extension, also where ours is in its place."""
    stand_in = _stand_in()
    if stand_in is not None:
        del sys.modules[EXTENSION]
    try:
        return importlib.import_module(EXTENSION)
    finally:
        if stand_in is not None:
            sys.modules.setdefault(EXTENSION, stand_in)


def _bind(extension: ModuleType) -> None:
    """Make it mmcv's extension, also for modules of mmcv.ops that were imported before."""
    sys.modules[EXTENSION] = extension
    sys.modules['mmcv']._ext = extension
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            module.ext_module = extension


def _install(reason: str) -> None:
    stand_in = _StandIn(EXTENSION, 'Stands in for the compiled operators of mmcv.')
    # mmengine and mmcv look for a spec with a loader to see whether there are operators.
    stand_in.__spec__ = ModuleSpec(EXTENSION, __spec__.loader, origin=__file__)
    stand_in.reason = reason
    for room in (boxes, kernels, plain):
        for name in room.__all__:
            setattr(stand_in, name, getattr(room, name))
    _bind(stand_in)
    _repair()


def _repair() -> None:
    """Give modules imported before us what they could not import then.

    They hold failing stubs or None in its place, which may be base classes or have been imported
    from there. Packages whose import broke off are imported again: Python has forgotten them, but
    keeps the modules they had got to, through which others would use them half done.
    """
    ours = ('mmcv', 'mmdet', 'mmseg')
    names = sorted(name for name in sys.modules if name.partition('.')[0] in ours)
    names = [name for name in names if sys.modules[name] is not None]  # None blocks an import
    stubs = {}
    for name in names:  # mmcv before mmdet before mmseg, as they depend on each other
        module = sys.modules[name]
        for target, real in _retried_imports(module):
            held = vars(module).get(target)
            setattr(module, target, real)
            own = [value for value in vars(module).values() if _comes_from(value, name)]
            for cls in own:
                if isinstance(cls, type) and held in cls.__bases__:
                    cls.__bases__ = tuple(real if base is held else base for base in cls.__bases__)
            if _comes_from(held, name):
                stubs[id(held)] = held, real
    for name in names:
        module = sys.modules[name]
        for target, value in vars(module).items():
            if id(value) in stubs:
                setattr(module, target, stubs[id(value)][1])
    for name in names:
        package, _, leaf = name.rpartition('.')
        if not package:
            continue
        try:
            parent = importlib.import_module(package)
        except Exception as error:  # of theirs, and whatever it is, no reason for us to stop
            logger.warning(
                '%s was imported before res2net_mm, and cannot be imported without operators '
                "(%s): start again with 'import res2net_mm' first",
                package,
                error,
            )
            continue
        if not hasattr(parent, leaf):  # Python sets it when it loads the module, which it did
            setattr(parent, leaf, sys.modules[name])


def _comes_from(value: Any, module: str) -> bool:
    return getattr(value, '__module__', None) == module


def _retried_imports(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names that a module has a fallback for, and what they mean now that operators are there.

    These are the imports of each ``try`` at its top level that wants something of mmcv (or, in
    mmseg, of mmdet, which itself cannot be imported without operators).
    """
    wanted = ('mmcv.', 'mmdet.') if module.__name__.startswith('mmseg.') else ('mmcv.',)
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # an empty file, or none
        return
    if not any(package in source for package in wanted):
        return  # which saves parsing most of them
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # theirs, on escapes in their docstrings
        tree = ast.parse(source)
    for block in tree.body:
        if not isinstance(block, ast.Try):
            continue
        nodes = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        if not any((node.module or '').startswith(wanted) for node in nodes):
            continue
        for node in nodes:
            try:
                path = '.' * node.level + (node.module or '')
                origin = importlib.import_module(path, module.__package__)
            except ImportError:  # mmseg without mmdet
                continue
            for alias in node.names:
                if hasattr(origin, alias.name):
                    yield alias.asname or alias.name, getattr(origin, alias.name)
