"""Keys of a config that nothing reads: mmengine ignores a misspelt one silently."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..backbones import TimmBackbone
from ..checks import did_you_mean, nearest
from .errors import ToolError

# read by mmengine's Runner, the tools of mmdet and mmseg, and this package
TOP = set(
    'model data_preprocessor train_dataloader val_dataloader test_dataloader train_cfg val_cfg '
    'test_cfg val_evaluator test_evaluator optim_wrapper param_scheduler auto_scale_lr '
    'default_hooks custom_hooks default_scope custom_imports load_from resume launcher work_dir '
    'env_cfg log_processor log_level visualizer randomness experiment_name model_wrapper_cfg '
    'sync_bn find_unused_parameters compile activation_checkpointing efficient_conv_bn_eval '
    'strategy runner_type tta_model tta_pipeline checkpoint_classes'.split()
)
# taken out before a class is called
_ALWAYS = set(
    'type _scope_ _delete_ requires_grad priority convert_to_iter_based optimizer paramwise_cfg '
    'constructor'.split()
)
# settings that the model's classes read in their own way
_FREE = re.compile(r'model\.(train|test)_cfg(\.\w+)?')
# places of types that mmengine or mmcv would not name in an error
_UNNAMED = {
    r'.*(norm|conv)_cfg': registries.MODELS,
    r'optim_wrapper\.optimizer': registries.OPTIMIZERS,
    r'visualizer\.vis_backends\.\d+': registries.VISBACKENDS,
}
_NUMBER = re.compile(r'(Optional\[)?(int|float|bool)\]?( \| None)?')
_CUTOFF = 0.85  # how similar an unknown key at the top has to be to one of TOP to be a typo
_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', __package__.partition('.')[0])


def check_keys(cfg: Config) -> None:
    """Raises a ToolError at a key of a config that nothing reads.

    A file may define variables for itself, so an unknown key at the top is a mistake only if it
    resembles one that is read.
    """
    for key in cfg.keys() - TOP:
        if callable(cfg[key]) or isinstance(cfg[key], ModuleType):
            continue  # what a config of Python's syntax imports
        near = nearest(key, TOP, _CUTOFF)
        # files name variables after keys: test_pipeline, val_evaluator_dice, train_dataloader2
        variable = rf'.*_pipeline|{near}(\d+|_(?!cfg)\w*[^\W_])'
        if near and not re.fullmatch(variable, key):
            raise _unread(key, [near])
    loaders = _parameters(DataLoader) | {'num_batch_per_epoch'}
    loop = cfg.get('train_cfg') or {}
    known = {
        'randomness': _parameters(Runner.set_randomness),
        'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
        'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
        'auto_scale_lr': {'enable', 'base_batch_size'},
        'train_dataloader': loaders,
        'val_dataloader': loaders,
        'test_dataloader': loaders,
    }
    if loop.get('type') in (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop'):
        by_iter = loop.get('type') == 'IterBasedTrainLoop' or not loop.get('by_epoch', True)
        known['train_cfg'] = _parameters(IterBasedTrainLoop if by_iter else EpochBasedTrainLoop)
        known['train_cfg'] |= {'by_epoch'}
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper' and 'constructor' not in wrapper:
        known['optim_wrapper'] = _parameters(OptimWrapper) | {'paramwise_cfg'}
        known['optim_wrapper.paramwise_cfg'] = set(
            'custom_keys bias_lr_mult bias_decay_mult norm_decay_mult flat_decay_mult '
            'dwconv_decay_mult dcn_offset_lr_mult bypass_duplicate'.split()
        )
    for path, names in known.items():
        node = functools.reduce(lambda d, k: d.get(k) or {}, path.split('.'), cfg)
        if isinstance(node, dict):
            _check(path, node, names)


def check_arguments(cfg: Config) -> None:
    """Raises a ToolError at an argument that neither its class nor any code around it reads, and at
    a text where a number belongs.

    Classes that cannot be found are left to the code that builds them.
    """
    scope = cfg.get('default_scope')
    for path, node in walk({key: cfg[key] for key in cfg if key in TOP}):
        kind = node.get('type') if isinstance(node, dict) else None
        classes = classes_named(kind, scope)
        for place, registry in _UNNAMED.items() if isinstance(kind, str) and not classes else ():
            if re.fullmatch(place, path) and kind not in registry.module_dict:  # functions are
                hint = did_you_mean(kind, registry.module_dict)
                raise ToolError(f'{path}.type of the config: there is no {kind!r}{hint}')
        if not classes and not (isinstance(node, dict) and _FREE.fullmatch(path)):
            continue
        names = arguments_of(*classes)
        # the code that builds the class may read more, such as requires_grad of a norm_cfg
        roots = _roots(cfg) + _sources(classes)
        roots += _folders('timm') if TimmBackbone in classes else ()  # passed on to timm
        names |= {key for key in node.keys() - names if _mentioned(str(key), roots)}
        _check(path, node, names)
        for key, value in node.items():
            if isinstance(value, str) and classes and all(_wants_number(c, key) for c in classes):
                raise ToolError(f'{path}.{key} of the config must be a number, but is {value!r}')


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raises a ToolError at one of ``--cfg-options`` (dotted keys) that would change nothing,
    or whose value is of another sort than the config's.

    ``cfg`` is the config without them.
    """
    for option, value in options.items():
        first, *rest = option.split('.')
        shadowed = first == 'data_preprocessor' and 'data_preprocessor' in (cfg.get('model') or {})
        if first not in TOP or shadowed:
            _check_variable(cfg, first, rest)
            continue
        node: Any = cfg.get(first)
        for i, key in enumerate(rest, 1):
            if isinstance(node, (list, tuple)) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                path = '.'.join([first, *rest[: i - 1]])
                new = f'{path}.{key}.type' in options or 'type' in (
                    value if isinstance(value, dict) else ()
                )
                named_freely = path.endswith(('custom_keys', 'metainfo'))
                if isinstance(node, dict) and not (new or named_freely or key in _ALWAYS):
                    _check_new_key(cfg, path, node, key)
                break
        else:
            _check_value(option, node, value)


def _check_value(key: str, old: Any, new: Any) -> None:
    """Raises at a value of another sort than the one that it would replace."""
    number = isinstance(old, (int, float)) and isinstance(new, (str, dict))
    if number and not key.endswith('loss_scale'):  # it is also 'dynamic'
        raise ToolError(f'--cfg-options {key} must be a number such as {old}, but is {new!r}')
    if isinstance(old, dict) and not (new is None or isinstance(new, (dict, list))):
        example = next(iter(old), 'type')
        raise ToolError(f'--cfg-options {key} must be a dict, but is {new!r}; set {key}.{example}')


def _check_variable(cfg: Config, name: str, rest: list[str]) -> None:
    """Raises at a name at the top that nothing reads: a variable, or a key at the wrong level."""
    value = cfg.get(name)
    shadowed = 'data_preprocessor' if 'data_preprocessor' in (cfg.get('model') or {}) else None
    telling = value if isinstance(value, (str, list, tuple, dict)) and len(value) > 1 else None
    uses = [
        '.'.join([path, *rest])
        for path, part in walk({k: cfg[k] for k in cfg if k in TOP and k not in (name, shadowed)})
        if path.rpartition('.')[2] == name or (telling is not None and part == telling)
    ]
    if name in cfg:
        if uses:
            raise ToolError(
                f'--cfg-options {name} changes nothing: it is a variable of {cfg.filename}, and '
                f'its value is already in place. Set {" and ".join(uses[:4])}'
            )
    elif name in TOP or not _mentioned(name, _own_roots(cfg)):
        near = nearest(name, TOP | cfg.keys(), 0.75)
        raise _unread('.'.join([name, *rest]), uses or (near and ['.'.join([near, *rest])]))


def _check_new_key(cfg: Config, prefix: str, node: Mapping[str, Any], key: str) -> None:
    """Raises at a key that would be new in ``node``, if it belongs deeper or nothing reads it."""
    below = [path for path, _ in walk(node, prefix) if path.rpartition('.')[2] == key]
    if 'type' in node:
        classes = classes_named(node['type'], cfg.get('default_scope'))
        if classes and below and key not in arguments_of(*classes):
            raise _unread(f'{prefix}.{key}', below)
        return  # check_arguments looks at the rest
    if below and all(isinstance(value, dict) for value in node.values()):
        raise _unread(f'{prefix}.{key}', below)
    near = nearest(key, node, 0.7)
    mentioned = _mentioned(key, _roots(cfg))
    if mentioned and near and _FREE.fullmatch(prefix):
        parts = [part for _, part in walk(cfg.model) if isinstance(part, dict)]
        classes = [c for p in parts for c in classes_named(p.get('type'), cfg.get('default_scope'))]
        mentioned = _mentioned(key, _sources(classes))
    if not mentioned:
        raise _unread(f'{prefix}.{key}', near and [f'{prefix}.{near}'])


def _check(path: str, node: Mapping[str, Any], names: set[str]) -> None:
    for key in node.keys() - names - _ALWAYS:
        near = nearest(str(key), names, 0.5)
        raise _unread(f'{path}.{key}', near and [f'{path}.{near}'])


def _unread(key: str, near: Sequence[str] | None) -> ToolError:
    hint = f'; did you mean {" or ".join(near[:3])}?' if near else ''
    return ToolError(f'nothing reads {key} of the config{hint}')


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """All values in a config with their dotted keys, outer ones first."""
    yield path, node
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, (list, tuple)) else items
    for key, value in items:
        yield from walk(value, f'{path}.{key}' if path else str(key))


@functools.cache
def classes_named(kind: Any, scope: str | None) -> tuple[type, ...]:
    """The classes that a ``type`` may name; several registries can know the name."""
    if not isinstance(kind, str):
        return (kind,) if isinstance(kind, type) else ()
    found = []
    for registry in vars(registries).values():
        if isinstance(registry, Registry) and registry.parent is None:
            for name in (f'{scope}.{kind}', kind) if scope else (kind,):
                try:
                    cls = registry.get(name)
                except Exception:  # not there, or its package is not installed
                    continue
                if cls is not None:
                    found.append(cls)
                    break
    return tuple(dict.fromkeys(found)) if all(isinstance(c, type) for c in found) else ()


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {'self'}


def arguments_of(*classes: type) -> set[str]:
    """Names of the arguments of classes and of those they inherit from."""
    inits = [vars(base).get('__init__') for cls in classes for base in cls.__mro__]
    return set().union(*(_parameters(init) for init in inits if inspect.isfunction(init)))


def _wants_number(cls: type, name: str) -> bool:
    """Whether the annotation of an argument says that it is a number."""
    try:
        parameter = inspect.signature(cls).parameters.get(name)
    except (TypeError, ValueError):  # built in
        return False
    kind = parameter and parameter.annotation
    text = kind.__name__ if isinstance(kind, type) else str(kind).removeprefix('typing.')
    return bool(_NUMBER.fullmatch(text))


def _roots(cfg: Config) -> tuple[Path, ...]:
    """Folders with the sources that may read this config."""
    packages = dict.fromkeys([*_PACKAGES, cfg.get('default_scope') or 'mmdet'])
    return _folders(*packages) + _own_roots(cfg)


def _own_roots(cfg: Config) -> tuple[Path, ...]:
    """Folders of the packages that only this config imports."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [imports] if isinstance(imports, str) else imports
    return _folders(*sorted({name.partition('.')[0] for name in names} - set(_PACKAGES)))


def _sources(classes: Iterable[type]) -> tuple[Path, ...]:
    """Files of classes and of what they inherit from."""
    files = set()
    for base in {base for cls in classes for base in cls.__mro__[:-1]}:
        with contextlib.suppress(TypeError, OSError):  # built in, or typed into a shell
            files.add(Path(inspect.getfile(base)))
    return tuple(sorted(files))


@functools.cache
def _folders(*packages: str) -> tuple[Path, ...]:
    specs = [importlib.util.find_spec(name) for name in packages]
    files = [Path(spec.origin) for spec in specs if spec and spec.origin]
    return tuple(f.parent if f.name == '__init__.py' else f for f in files)


def _mentioned(word: str, roots: tuple[Path, ...]) -> bool:
    return any(word.encode() in _words(root) for root in roots)


@functools.cache
def _words(root: Path) -> set[bytes]:
    """All words in the sources of a folder, or in a file."""
    files = [root] if root.is_file() else root.rglob('*.py')
    texts = (file.read_bytes() for file in files if '.mim' not in file.parts)
    return set().union(*(re.findall(rb'\w+', text) for text in texts))
