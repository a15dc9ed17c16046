"""What mmengine may take from files that nobody vouches for: weights and values, never code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from mmengine import fileio
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader, Runner

from ..data.sets.nodes import type_name
from ..weights import read_source
from ..weights.reading import read_pickle
from ..weights.sources import HTTP, OPEN_MMLAB
from ..weights.zoo import SCHEME
from .config import walk_dicts
from .errors import ToolError

_PICKLES, _YAML = ['pkl', 'pickle'], ['yaml', 'yml']


class _PlainPickles(fileio.PickleHandler):
    def load_from_fileobj(self, file: IO[bytes], **options: Any) -> Any:
        return read_pickle(file, **options)


class _PlainYaml(fileio.YamlHandler):
    def load_from_fileobj(self, file: IO[str], **options: Any) -> Any:
        return super().load_from_fileobj(file, **{'Loader': yaml.SafeLoader, **options})


def use_safe_loading(trust: bool = False) -> None:
    """Makes mmengine read checkpoints with :func:`read_source` in this process.

    Its own loader runs code in a file that the safe way refuses (onedl), or refuses checkpoints
    that it wrote itself (mmengine 0.10.7). Pickles and yaml files that a config names, such as
    proposals, run no code either.

    Args:
        trust: Read all of them as mmengine does, with pickle, which runs whatever a file says.
    """

    def load(filename: str, map_location: Any = None) -> dict:
        return read_source(filename, map_location, trust=trust)

    def load_remote(filename: str, map_location: Any = None, **_: Any) -> dict:
        with fileio.get_local_path(filename) as path:
            return load(path, map_location)

    sources = ('', *HTTP, *OPEN_MMLAB, SCHEME)
    CheckpointLoader.register_scheme(prefixes=sources, loader=load, force=True)
    remote = [rf'(\S+\:)?{scheme}://' for scheme in ('s3', 'petrel')]  # as mmengine spells them
    CheckpointLoader.register_scheme(prefixes=remote, loader=load_remote, force=True)
    fileio.register_handler(_PICKLES)(fileio.PickleHandler if trust else _PlainPickles)
    fileio.register_handler(_YAML)(fileio.YamlHandler if trust else _PlainYaml)


def check_arrays(cfg: Config) -> None:
    """Raises where mmdet or mmseg would run what is in an array that a config names.

    Raises:
        ToolError: The array of OpenImages' challenge set holds objects, not numbers; or images are
            to be read with pickle.
    """
    for part in walk_dicts(list(cfg.values())):
        if part.get('decode_backend') == 'pickle':  # mmseg's loaders of biomedical data
            raise ToolError(
                f"{type_name(part)} with decode_backend='pickle' runs code that is in the data; "
                '--trust-checkpoint reads it all the same, if you trust its author'
            )
        if type_name(part).endswith('OpenImagesChallengeDataset'):
            path = Path(part.get('data_root') or '', part.get('hierarchy_file') or '')
            try:
                np.load(path, allow_pickle=False)
            except ValueError as error:
                raise ToolError(
                    f'hierarchy_file {path} is no array of numbers, and to read it could run code; '
                    '--trust-checkpoint reads it all the same, if you trust its author'
                ) from error
            except OSError:  # the data set says that it is missing
                continue


def keep_files_of_others(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Takes out of a checkpoint what would have mmengine remove files that are not of this run.

    A checkpoint names the best checkpoint so far, which is removed once there is a better one,
    wherever that path leads: into the folder of another run, or to any file at all.

    Args:
        runner: What is going to resume.
        checkpoint: What it read; ``message_hub`` is changed.
    """
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    if not isinstance(info, dict):
        return
    folder = Path(runner.work_dir)
    outs = (hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook))
    own = {os.path.realpath(path) for path in (folder, *(Path(o, folder.name) for o in outs if o))}
    for key, value in list(info.items()):
        if not isinstance(key, str):
            continue
        if key.startswith('best_ckpt') and value is not None:
            kept = isinstance(value, str) and os.path.realpath(os.path.dirname(value)) in own
        elif key == 'keep_ckpt_ids':  # numbers in names of checkpoints to be removed
            kept = isinstance(value, list) and all(type(step) is int for step in value)
        else:
            kept = True
        if not kept:
            del info[key]
            if isinstance(hub.get('resumed_keys'), dict):
                hub['resumed_keys'].pop(key, None)
