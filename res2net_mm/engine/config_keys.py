"""Keys of a config that nothing reads, where mmengine would ignore them silently.

A part with a ``type`` needs no check: its class refuses an argument that it does not take.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checks import nearest
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
# settings that code reads by name, without a class that would refuse others
_SETTINGS = re.compile(
    r'model\.(train|test)_cfg(\.\w+)?|auto_scale_lr|optim_wrapper\.paramwise_cfg'
)
_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'res2net_mm')


def check_keys(cfg: Config) -> None:
    """Raises a ToolError at a key of a config that nothing reads.

    A file may define variables for itself, so an unknown key at the top is a mistake only if it
    resembles one that is read.
    """
    for key in cfg.keys() - TOP:
        near = nearest(key, TOP, 0.85)
        if near and not key.endswith('_pipeline'):  # files name these lists as they like
            raise _unread(key, [near])
    parts = {key: cfg[key] for key in ('model', 'auto_scale_lr', 'optim_wrapper') if key in cfg}
    for path, node in walk(parts):
        if isinstance(node, dict) and 'type' not in node and _SETTINGS.fullmatch(path):
            for key in node:
                if not _is_read(key, cfg):
                    raise _unread(f'{path}.{key}', [])


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raises a ToolError at one of ``--cfg-options`` (dotted keys) that would change nothing, or
    that replaces a number by something else.

    ``cfg`` is the config without them.
    """
    there = dict(walk({key: cfg[key] for key in cfg}))
    for option, value in options.items():
        first, _, rest = option.partition('.')
        shadowed = first == 'data_preprocessor' and 'model.data_preprocessor' in there
        if first not in TOP or shadowed:
            _check_variable(there, first, f'.{rest}' if rest else '', cfg.filename)
        elif option in there:
            number = isinstance(there[option], (int, float)) and isinstance(value, (str, dict))
            if number and not option.endswith('loss_scale'):  # it is also 'dynamic'
                raise ToolError(
                    f'--cfg-options {option} must be a number such as {there[option]}, but is '
                    f'{value!r}'
                )
        else:
            _check_new(there, option)


def _check_variable(there: Mapping[str, Any], name: str, rest: str, file: str) -> None:
    """Raises at a name at the top that nothing reads: a variable, or a key at the wrong level."""
    value, others = there.get(name), TOP - {name}
    telling = isinstance(value, (str, list, tuple, dict)) and len(value) > 1
    uses = [
        f'{path}{rest}'
        for path, part in there.items()
        if path.partition('.')[0] in others
        and (path.endswith(f'.{name}') or (telling and part == value))
    ]
    if name not in there:
        near = nearest(name, {*TOP, *(path for path in there if '.' not in path)}, 0.75)
        raise _unread(f'{name}{rest}', uses or ([f'{near}{rest}'] if near else []))
    if uses:
        raise ToolError(
            f'--cfg-options {name} changes nothing: it is a variable of {file}, and its value is '
            f'already in place. Set {" and ".join(uses[:4])}'
        )


def _check_new(there: Mapping[str, Any], option: str) -> None:
    """Raises at a key that the config lacks, if it has the same key deeper or a similar one."""
    path, key = option, ''
    while path and path not in there:
        path, _, key = path.rpartition('.')
    node = there.get(path)
    free = path.endswith(('custom_keys', 'metainfo'))  # names of the user's choice
    if free or not isinstance(node, dict) or 'type' in node:
        return
    meant = [at for at in there if at.startswith(f'{path}.') and at.endswith(f'.{key}')]
    near = nearest(key, node, 0.7)
    if meant or near:
        raise _unread(f'{path}.{key}', meant or [f'{path}.{near}'])


def _unread(key: str, near: list[str]) -> ToolError:
    hint = f'; did you mean {" or ".join(near[:3])}?' if near else ''
    return ToolError(f'nothing reads {key} of the config{hint}')


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """All values in a config with their dotted keys, outer ones first."""
    yield path, node
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, (list, tuple)) else items
    for key, value in items:
        yield from walk(value, f'{path}.{key}' if path else str(key))


def _is_read(key: str, cfg: Config) -> bool:
    """Whether a package whose code may read the settings of a model has this word in it."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [imports] if isinstance(imports, str) else imports
    own = [name.partition('.')[0] for name in names]
    packages = [cfg.get('default_scope') or 'mmdet', *_PACKAGES, *own]
    return any(key in _words(package) for package in dict.fromkeys(packages))


@functools.cache
def _words(package: str) -> frozenset[str]:
    """The words in the Python code of a package or module."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return frozenset()
    file = Path(spec.origin)
    files = file.parent.rglob('*.py') if file.name == '__init__.py' else [file]
    texts = (file.read_text(errors='ignore') for file in files if '.mim' not in file.parts)
    return frozenset(word for text in texts for word in re.findall(r'\w+', text))
