"""Finds weights by name, address or file, and reads them together with their convention."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models, get_mmcls_models, get_torchvision_models
from torch import nn

from ..backbones import Backbone
from ..backbones.base import CONVENTION
from ..checks import did_you_mean
from .architecture import architecture_of
from .download import DownloadError, fetch, file_problem, is_cached
from .layouts import CLASSIFIER, Converted, convert, read_convention, unwrap, write_convention
from .reading import CheckpointError, read_checkpoint
from .zoo import SCHEME, ZOO, Published

# mmengine's schemes -> the function that returns their names and addresses
OPEN_MMLAB = {
    'open-mmlab://': lambda: get_external_models(),
    'openmmlab://': lambda: get_external_models(),
    'torchvision://': lambda: get_torchvision_models(),
    'modelzoo://': lambda: get_torchvision_models(),
    'mmcls://': lambda: get_mmcls_models(),
}
HTTP = ('http://', 'https://')


def locate(source: str | Path) -> tuple[Path, Published | None]:
    """The local file of a source, downloaded if necessary, and its entry in :data:`ZOO`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The name is unknown, the download fails, or a published file was changed.
    """
    text = os.fspath(source)
    scheme = next((scheme for scheme in (SCHEME, *OPEN_MMLAB) if text.startswith(scheme)), '')
    name = text.removeprefix(scheme)
    if scheme:
        known = ZOO if scheme == SCHEME else OPEN_MMLAB[scheme]()
        if name not in known:
            likely = did_you_mean(name, known)
            raise ValueError(f'{text}: no published weights of this name{likely}')
        text = text if scheme == SCHEME else known[name]
    if scheme == SCHEME or (name in ZOO and not (scheme or Path(text).exists())):
        return _fetch_published(name), ZOO[name]
    files = {entry.filename: entry for entry in ZOO.values()}
    if text.startswith(HTTP):
        entry = files.get(text.split('?')[0].rpartition('/')[2])
        return fetch(text, entry and entry.sha256), entry
    if '://' in text:
        known = f'a file, an http address, {SCHEME}name or {next(iter(OPEN_MMLAB))}name'
        raise ValueError(f'{text}: weights come from {known}')
    path = Path(text).expanduser()
    entry = files.get(path.name) if path.is_file() else None
    if entry is not None and (problem := file_problem(path, entry.sha256)):
        raise CheckpointError(
            f'checkpoint {path} has the name of published weights, but {problem}: damaged, or '
            'another file; download it again, or rename it'
        )
    return path, entry


def read_backbone(
    source: str | Path | Mapping[str, Any],
    prefix: str | None = None,
    map_location: Any = 'cpu',
    *,
    trust: bool = False,
) -> tuple[Converted, Published | None]:
    """The backbone in a source, with this package's names, and its entry in :data:`ZOO`.

    The arguments and errors are those of :func:`load_weights`.
    """
    if isinstance(source, Mapping):
        converted, entry = convert(source, prefix), None
    else:
        path, entry = locate(source)
        checkpoint = read_checkpoint(path, map_location, trust=trust)
        converted = _convert(checkpoint, prefix, source)
    convention = converted.convention
    if not convention and entry is not None:  # mmdet's names do not show it
        convention = _convention(entry)
    if not convention and architecture_of(converted.state).get('first_block') == 'grouped':
        # its first blocks have more convs
        convention = dict(first_block='grouped', style='pytorch')
    if convention != converted.convention:
        converted = replace(converted, convention=convention)
        write_convention(converted.state, convention)
    return converted, entry


def read_source(filename: str | Path, map_location: Any = None, *, trust: bool = False) -> dict:
    """Reads a checkpoint from any source, with the convention by which networks may refuse it.

    Published backbones, and those of ``mmcls://``, get this package's names, their classification
    layer a place of its own (``CLASSIFIER``); a whole model keeps its own. The arguments and errors
    are those of :func:`locate` and :func:`read_checkpoint`.
    """
    path, entry = locate(filename)
    checkpoint = read_checkpoint(path, map_location or 'cpu', trust=trust)
    if not trust and isinstance(checkpoint.get('meta'), dict):
        # mmengine's resume would run it; nothing runs cfg, which mmengine writes itself
        checkpoint['meta'].pop('config', None)
    if os.fspath(filename).startswith('mmcls://'):  # as mmengine does
        state = checkpoint.get('state_dict', checkpoint)
        inner = [key for key in state if key.startswith('backbone.')]
        return dict(state_dict={key.removeprefix('backbone.'): state[key] for key in inner})
    if entry is None and not isinstance(checkpoint.get('state_dict'), Mapping):
        return _marked(checkpoint, {})
    if entry is None:
        meta = checkpoint.get('meta')
        paths = meta.get(CONVENTION) if isinstance(meta, Mapping) else None
        paths = map(str, paths) if isinstance(paths, Mapping) else ()
        conventions = {path: read_convention(checkpoint, path) for path in paths}
        checkpoint['state_dict'] = _marked(checkpoint['state_dict'], conventions)
        return checkpoint
    state, path, classifier = unwrap(checkpoint), 'backbone', {}
    if entry.layout != 'mmdet' or not any(key.startswith('backbone.') for key in state):
        converted = _convert(checkpoint, None, filename)
        state, path, classifier = converted.state, '', converted.classifier
    state = _marked(state, {path: _convention(entry)})
    return {'meta': checkpoint.get('meta') or {}, 'state_dict': state, CLASSIFIER: classifier}


def say_unknown_rules(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Warns if the checkpoint of a whole model does not say which rule its backbones need."""
    for path, module in _backbones(model).items():
        if 'first_block' in module.convention and not read_convention(checkpoint, path):
            MMLogger.get_current_instance().warning(f'checkpoint: {unknown_rule(module)}')


def conventions_of(model: nn.Module) -> dict[str, dict[str, str]]:
    """Path of each backbone in a model -> its convention, for a checkpoint's ``meta``."""
    return {path: module.convention for path, module in _backbones(model).items()}


def _backbones(model: nn.Module) -> dict[str, Backbone]:
    found = {path: m for path, m in model.named_modules() if isinstance(m, Backbone)}
    return {path.removeprefix('module.'): module for path, module in found.items()}


def unknown_rule(net: Backbone) -> str:
    """The warning for weights that do not say which first-block rule they need."""
    return (
        f'the file does not say its first-block rule; the network has first_block='
        f"{net.first_block!r}. If mmdet trained it with its own Res2Net, set first_block='mmdet'"
    )


CheckpointLoader.register_scheme(prefixes=SCHEME, loader=read_source, force=True)


def _fetch_published(name: str) -> Path:
    """The file of an entry of :data:`ZOO`, from the first of its sources that has it.

    What an earlier call downloaded comes first, from whichever source.
    """
    entry = ZOO[name]
    first = dict(url=entry.url, checksum=entry.sha256)
    if not entry.second_url:
        return fetch(**first)
    second = dict(url=entry.second_url, name=f'{name}.timm.safetensors')
    failure = ''
    if is_cached(**first) or not is_cached(**second):
        try:
            return fetch(**first)
        except DownloadError as error:
            failure = f'; {error}'
    try:
        path = fetch(**second, verified=True)
    except DownloadError as error:
        raise DownloadError(f'{error}{failure}') from error
    MMLogger.get_current_instance().warning(
        f"{SCHEME}{name}: timm's copy of these weights is used, {entry.second_url}{failure}"
    )
    return path


def _convert(checkpoint: Mapping[str, Any], prefix: str | None, source: str | Path) -> Converted:
    try:
        return convert(checkpoint, prefix)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error


def _convention(entry: Published) -> dict[str, str]:
    return dict(first_block=entry.rule, style='pytorch')


def _marked(state: Mapping[str, Any], conventions: Mapping[str, Mapping[str, str]]) -> OrderedDict:
    """A state dict with the conventions of its backbones, and without ``module.``.

    mmengine removes that from the names, but not from the metadata.
    """
    wrapped = all(key.startswith('module.') for key in map(str, state) if '.' in key)
    metadata = getattr(state, '_metadata', None)
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if wrapped:
        state = {key.removeprefix('module.'): value for key, value in state.items()}
        metadata = {re.sub(r'^module\.?', '', path): kept for path, kept in metadata.items()}
    marked = OrderedDict(state)
    marked._metadata = OrderedDict(metadata)
    for path, convention in conventions.items():
        write_convention(marked, convention, path)
    return marked
