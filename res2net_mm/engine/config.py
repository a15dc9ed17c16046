"""Reading a config, with one clear line if it does not exist, parse or fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_world_size

from ..backbones import Backbone, Res2NetStage, TimmBackbone
from ..backbones.base import pretrained_cfgs
from ..checks import nearest
from ..data.sets.nodes import Node, find_nodes
from ..registry import MODELS, SCOPE, config_folders, find_config
from .config_keys import TOP, check_keys, check_options, walk
from .errors import ToolError, one_line

_EXTRAS = {'mmpretrain': 'classification'}  # scope -> the extra of setup.py with its package


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Reads a config and applies ``--cfg-options``.

    Args:
        path: The file, or the bare name of one of this package's configs, with or without ``.py``.
        options: Dotted keys and the values that replace the file's; ``data_root`` replaces that of
            the file wherever a path begins with it.

    Raises:
        ToolError: The file does not exist or parse, or an option does not fit.
    """
    path = _find(path)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python: it can raise anything
        while isinstance(error, ImportError) and isinstance(error.__context__, ImportError):
            error = error.__context__  # mmengine raises two others without its message
        line = f' line {error.lineno}' if isinstance(error, SyntaxError) else ''
        raise ToolError(
            f'config {path} does not parse:{line} {type(error).__name__}: {one_line(error)}'
        ) from error
    _import_scope(cfg, path)
    options = _move_data(cfg, options or {})
    check_options(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, KeyError, TypeError, IndexError, AssertionError) as error:
        raise ToolError(
            f'--cfg-options {options} do not fit config {path}: {one_line(error)}'
        ) from error
    check_keys(cfg)
    return cfg


def _import_scope(cfg: Config, path: Path) -> None:
    """Imports the package that a config's types are from, so that they are found by name."""
    scope = cfg.get('default_scope')
    try:
        if scope in _EXTRAS:
            import_module(f'{scope}.registry')
    except ImportError as error:
        raise ToolError(
            f"config {path} needs {scope}: pip install 'res2net_mm[onedl,{_EXTRAS[scope]}]' "
            f'({error})'
        ) from error


def _move_data(cfg: Config, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with ``data_root`` as the new value of every path that the file's begins."""
    old, new = cfg.get('data_root'), options.get('data_root')
    if not (isinstance(old, str) and isinstance(new, str) and old):
        return options
    moved = {}
    for key, value in walk({key: cfg[key] for key in cfg if key in TOP}):
        if isinstance(value, str) and f'{value}/'.startswith(f'{old.rstrip("/")}/'):
            rest = value[len(old) :].lstrip('/')
            moved[key] = f'{new.rstrip("/")}/{rest}' if rest else new
    if not moved:
        return options
    cfg.data_root = new  # a config that is written from this one can be moved again
    return {**moved, **{key: value for key, value in options.items() if key != 'data_root'}}


def _find(name: str | Path) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if path.parent in (Path('.'), Path('configs')) and (packaged := find_config(path.name)):
        return packaged
    files = [f for folder in (path.parent, *config_folders()) for f in folder.glob('*.py')]
    names = {f.stem: f for f in files}
    near = nearest(path.stem, names, 0.5)  # stems: a common suffix makes short names similar
    hint = f'; did you mean {names[near]}?' if near else ''
    raise ToolError(f'config {path} does not exist{hint}')


def walk_dicts(node: Any) -> Iterator[dict]:
    """All dicts in a config, outer ones first."""
    yield from (part for _, part in walk(node) if isinstance(part, dict))


def drop_timm_weights(cfg: Mapping[str, Any]) -> None:
    """Takes timm's weights out of a config whose model gets those of a checkpoint."""
    for part in timm_backbones(cfg):
        part.pretrained = False


def drop_backbone_rates(cfg: Config) -> list[str]:
    """Takes the learning rates of a pretrained backbone out of a config; returns their keys."""
    keys = []
    for part in walk_dicts(cfg.get('optim_wrapper')):
        rates = (part.get('paramwise_cfg') or {}).get('custom_keys') or {}
        for name, values in rates.items():
            if name.startswith('backbone') and values.pop('lr_mult', None) is not None:
                keys.append(f'custom_keys.{name}')
    return keys


def _parts(kinds: type | tuple[type, ...], cfg: Mapping[str, Any]) -> list[ConfigDict]:
    """The parts of a config's model whose class is one of ``kinds`` or inherits from it."""
    found = []
    for part in walk_dicts(cfg.get('model')):
        cls = part.get('type')
        if isinstance(cls, str) and cls.startswith(f'{SCOPE}.'):
            cls = MODELS.module_dict.get(cls.removeprefix(f'{SCOPE}.'))
        if isinstance(cls, type) and issubclass(cls, kinds):
            found.append(part)
    return found


our_backbones = partial(_parts, Backbone)  # of this package
our_networks = partial(_parts, (Backbone, Res2NetStage))  # all that take our pretrained weights
timm_backbones = partial(_parts, TimmBackbone)


def pretrained(part: ConfigDict) -> list[ConfigDict]:
    """The initialisations of a part of a model that load weights."""
    return pretrained_cfgs(part.get('init_cfg'))


def require(cfg: Config, purpose: str, *keys: str) -> None:
    """Raises a ToolError if a config lacks what a purpose needs."""
    for key in keys:
        if cfg.get(key) is None:
            raise ToolError(f'the config has no {key}, which {purpose} needs')


def dataloaders(cfg: Config) -> dict[str, ConfigDict]:
    """The data loaders of a config by split."""
    found = {split: cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')}
    return {split: loader for split, loader in found.items() if loader is not None}


def first_dataset(cfg: Config, split: str = 'test') -> Node:
    """The data set of a split, below wrappers; of several the first."""
    loader = cfg.get(f'{split}_dataloader') or {}
    key = f'{split}_dataloader.dataset'
    return next(find_nodes(loader.get('dataset'), key, cfg.get('default_scope')))


def of_test_data(cfg: Config, key: str) -> Any:
    """What the config of the test data has as ``key``, in its outermost part; None if nothing."""
    parts = walk_dicts((cfg.get('test_dataloader') or {}).get('dataset'))
    return next((part[key] for part in parts if part.get(key)), None)


def test_pipeline(cfg: Config) -> list[dict]:
    """The steps that prepare an image of the test data; a ToolError if there are none."""
    if steps := of_test_data(cfg, 'pipeline'):
        return steps
    raise ToolError('the test_dataloader.dataset of the config has no pipeline')


def images_per_step(cfg: Config) -> int:
    """Images in one step of the optimizer, over all processes and accumulated batches."""
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    return cfg.train_dataloader.batch_size * get_world_size() * accumulated
