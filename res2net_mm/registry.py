"""Registries of this package: scope ``res2net_mm``, children of mmengine's root registries.

A type written ``res2net_mm.Name`` resolves from the registries of mmengine, mmdet, mmseg and
mmpretrain alike, and no name of theirs is replaced.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as ROOT_INITIALIZERS
from mmengine.registry import Registry

SCOPE = 'res2net_mm'

MODELS = Registry('model', parent=ROOT_MODELS, scope=SCOPE, locations=['res2net_mm.backbones'])
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope=SCOPE,
    locations=['res2net_mm.engine.hooks', 'res2net_mm.engine.watching'],
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=ROOT_OPTIM_WRAPPERS,
    scope=SCOPE,
    locations=['res2net_mm.engine.precision'],
)
TRANSFORMS = Registry(
    'transform', parent=ROOT_TRANSFORMS, scope=SCOPE, locations=['res2net_mm.data.transforms']
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=ROOT_INITIALIZERS,
    scope=SCOPE,
    locations=['res2net_mm.weights.loading'],
)


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
