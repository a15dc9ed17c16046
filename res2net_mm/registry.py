"""Registries of this package: scope ``res2net_mm``, children of mmengine's root registries.

A type written ``res2net_mm.Name`` resolves from the registries of mmengine, mmdet, mmseg and
mmpretrain alike, and no name of theirs is replaced.
"""

from __future__ import annotations

from pathlib import Path

from mmengine import registry as roots
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

SCOPE = 'res2net_mm'


def _child(parent: Registry, *modules: str) -> Registry:
    """A registry of this package, whose modules are imported when a name is looked up."""
    locations = [f'{SCOPE}.{module}' for module in modules]
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=locations)


MODELS = _child(ROOT_MODELS, 'backbones')
HOOKS = _child(roots.HOOKS, 'engine.hooks', 'engine.watching')
OPTIM_WRAPPERS = _child(roots.OPTIM_WRAPPERS, 'engine.hooks')
TRANSFORMS = _child(roots.TRANSFORMS, 'data.transforms')
WEIGHT_INITIALIZERS = _child(roots.WEIGHT_INITIALIZERS, 'weights.loading')


def config_folders() -> list[Path]:
    """Folders with this package's configs: the checkout's, and the one in a wheel."""
    package = Path(__file__).resolve().parent
    return [f for f in (package.parent / 'configs', package / '.mim' / 'configs') if f.is_dir()]


def find_config(name: str) -> Path | None:
    """The file of one of this package's configs, with or without ``.py``; None if it has none."""
    file = Path(name.removeprefix(f'{SCOPE}::'))
    files = [
        folder / file.parent / f'{file.name.removesuffix(".py")}.py' for folder in config_folders()
    ]
    return next((path for path in files if path.is_file()), None)
