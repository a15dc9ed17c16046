"""What mmengine may take from files of unknown origin: weights and values, never code."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from mmengine import fileio
from mmengine.config import Config
from mmengine.fileio.handlers import file_handlers
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..data.sets.nodes import type_name
from ..weights import read_source
from ..weights.reading import read_pickle
from ..weights.sources import HTTP, OPEN_MMLAB
from ..weights.zoo import SCHEME
from .config import walk_dicts
from .errors import ToolError


class _PlainPickles(fileio.PickleHandler):
    def load_from_fileobj(self, file: IO[bytes], **options: Any) -> Any:
        return read_pickle(file, **options)


class _PlainYaml(fileio.YamlHandler):
    def load_from_fileobj(self, file: IO[str], **options: Any) -> Any:
        return super().load_from_fileobj(file, **{'Loader': yaml.SafeLoader, **options})


def use_safe_loading(trust: bool = False) -> None:
    """Makes mmengine read checkpoints with :func:`read_source`, for the whole process.

    Its own loader runs code in files that the safe way refuses (onedl), or refuses checkpoints that
    it wrote itself (mmengine 0.10.7). Pickle and yaml files that a config names, such as proposals,
    run no code either. One line in the log says so.

    Args:
        trust: Read all of them as mmengine does, with pickle, which runs any code in a file.
    """

    def load(filename: str, map_location: Any = None) -> dict:
        return read_source(filename, map_location, trust=trust)

    def load_remote(filename: str, map_location: Any = None, **_: Any) -> dict:
        with fileio.get_local_path(filename) as path:
            return load(path, map_location)

    handlers = (fileio.PickleHandler, fileio.YamlHandler) if trust else (_PlainPickles, _PlainYaml)
    if type(file_handlers['pkl']) is not handlers[0]:
        how = 'may run code in' if trust else 'takes only weights and values from'
        print_log(f'mmengine {how} checkpoints, pickle and yaml files from now on', 'current')
    sources = ('', *HTTP, *OPEN_MMLAB, SCHEME)
    CheckpointLoader.register_scheme(prefixes=sources, loader=load, force=True)
    remote = [rf'(\S+\:)?{scheme}://' for scheme in ('s3', 'petrel')]  # as mmengine spells them
    CheckpointLoader.register_scheme(prefixes=remote, loader=load_remote, force=True)
    fileio.register_handler(['pkl', 'pickle'])(handlers[0])
    fileio.register_handler(['yaml', 'yml'])(handlers[1])


def check_arrays(cfg: Config) -> None:
    """Raises a ToolError if mmdet or mmseg would run code from a data file that a config names."""
    trusting = '--trust-checkpoint reads it all the same, if you trust its author'
    for part in walk_dicts(list(cfg.values())):
        if part.get('decode_backend') == 'pickle':  # mmseg's loaders of biomedical data
            raise ToolError(
                f"{type_name(part)} with decode_backend='pickle' runs any code in the data; "
                f'{trusting}'
            )
        if type_name(part).endswith('OpenImagesChallengeDataset'):
            path = Path(part.get('data_root') or '', part.get('hierarchy_file') or '')
            try:
                with suppress(OSError):  # the data set reports a missing file
                    np.load(path, allow_pickle=False)
            except ValueError as error:
                raise ToolError(
                    f'hierarchy_file {path} is no array of numbers, and reading it could run code; '
                    f'{trusting}'
                ) from error
