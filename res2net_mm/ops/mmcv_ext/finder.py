"""Finds ``mmcv._ext`` where mmcv came without it.

A ``.pth`` file of the wheel has Python import this file when it starts, so programs that import
mmcv, mmdet or mmseg first work too. The finder loads nothing until somebody asks for ``mmcv._ext``,
and loads the operators only when one is called: by then the import of mmcv is complete.
"""

import os
import sys

EXTENSION = 'mmcv._ext'
VARIABLE = 'RES2NET_MM_OPS'
CHOICES = ('off', 'mmcv', 'torchvision')


class StandIn(type(sys)):
    """The module that takes the extension's place; ``reason`` says why."""

    def __getattr__(self, name: str) -> object:
        # Python and tools look for such names in every module, and must not find them here.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        known = getattr(sys.modules.get('res2net_mm.ops.mmcv_ext'), 'OPERATORS', {})
        if name in known:
            setattr(self, name, known[name])
            return known[name]

        def operator(*args: object, **kwargs: object) -> object:
            from res2net_mm.ops.mmcv_ext import operator_named

            return operator_named(name)(*args, **kwargs)

        return operator


class Finder:
    """Asks the other finders, and stands in for an extension that is missing or does not load.

    It comes first because importing a broken extension through Python's own finder raises.
    """

    finds = EXTENSION

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """The spec of ``mmcv._ext``; None for other modules, or if only mmcv's own will do."""
        if name != EXTENSION or choice() in ('off', 'mmcv'):
            return None
        from importlib.machinery import ModuleSpec

        found, reason = None, f'{VARIABLE} asks for it'
        if choice() is None:
            others = [f for f in sys.meta_path if f is not self and hasattr(f, 'find_spec')]
            specs = (finder.find_spec(name, path, target) for finder in others)
            found = next(filter(None, specs), None)
            reason = "mmcv's compiled operators are not installed"
        return ModuleSpec(name, self, loader_state=(found, reason))

    def create_module(self, spec: object) -> object:
        """The extension that was found, or what stands in for it."""
        found, reason = spec.loader_state
        if found is not None:
            from importlib.util import module_from_spec

            try:
                module = module_from_spec(found)
                found.loader.exec_module(module)
                return module
            except (ImportError, OSError) as error:
                import logging

                reason = f"mmcv's compiled operators do not load: {error}"
                warn = logging.getLogger('res2net_mm').warning
                warn('%s; torchvision stands in for them', reason)
        module = StandIn(EXTENSION, 'Stands in for the compiled operators of mmcv.')
        module.reason = reason
        return module

    def exec_module(self, module: object) -> None:
        """Does nothing: the module is complete."""


def choice() -> str | None:
    """The value of ``RES2NET_MM_OPS``, or None if it is not set.

    Raises:
        ValueError: It has another value than those of ``CHOICES``.
    """
    value = os.environ.get(VARIABLE) or None
    if value not in (None, *CHOICES):
        raise ValueError(
            f'{VARIABLE} must be one of {", ".join(CHOICES)}, or unset to use what is installed, '
            f'but got {value!r}'
        )
    return value


# another copy may have been registered when Python started
if not any(getattr(finder, 'finds', None) == EXTENSION for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
