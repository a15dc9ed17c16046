"""The datasets that a config names: finding them, and their options, files and class names."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from ...checks import listed
from ..errors import DataError

_KINDS = {'CocoDataset': 'coco', 'XMLDataset': 'voc', 'BaseSegDataset': 'semantic'}
# the readers of this folder reproduce how these modules read
_KNOWN_READERS = {
    'mmdet.datasets.coco',
    'mmdet.datasets.xml_style',
    'mmdet.datasets.base_semseg_dataset',
    'mmengine.dataset.base_dataset',
    'mmpretrain.datasets.custom',
    'mmseg.datasets.basesegdataset',
    'res2net_mm.data.voc_dataset',
}


@dataclass(frozen=True)
class Node:
    """The config of one dataset, wrappers removed."""

    key: str  # its place, such as train_dataloader.dataset.datasets.0
    config: Mapping
    cls: type | None  # the class that its type names; None if no registry knows it

    @property
    def name(self) -> str:
        return self.cls.__name__ if self.cls else str(self.config.get('type'))

    @property
    def own_classes(self) -> Any:
        """The classes of the dataset's type: None, or names."""
        return getattr(self.cls, 'METAINFO', {}).get('classes')

    @property
    def given_classes(self) -> Any:
        """The classes that the config sets: None, names, or a file of names."""
        return (self.config.get('metainfo') or {}).get('classes')

    @property
    def classes_key(self) -> str:
        """Where the config sets its classes, or the folders that they are the names of."""
        folders = self.kind == 'folders' and self.given_classes is None
        return f'{self.key}.{"data_prefix" if folders else "metainfo.classes"}'

    @property
    def pipeline(self) -> Any:
        return self.config.get('pipeline') or ()

    @property
    def family(self) -> str | None:
        """``coco``, ``voc`` or ``semantic``, by what its class inherits from; ``folders`` for
        mmpretrain's ``CustomDataset`` itself, if its classes are known; else None."""
        if self.cls and self.name == 'CustomDataset' and self.option('with_label'):
            if not self.config.get('ann_file') or self.given_classes is not None:
                return 'folders'
        names = [cls.__name__ for cls in self.cls.__mro__] if self.cls else []
        return next((_KINDS[name] for name in names if name in _KINDS), None)

    @property
    def is_remote(self) -> bool:
        """Whether its files are not on this machine's disks."""
        paths = [str(self.config.get(key)) for key in ('data_root', 'ann_file')]
        backend = (self.config.get('backend_args') or {}).get('backend', 'local')
        return backend != 'local' or '://' in ''.join(paths)

    @property
    def kind(self) -> str | None:
        """Its family, or None if it reads annotations in its own way, or not from local files."""
        readers = ('load_data_list', 'parse_data_info', '_parse_instance_info')
        methods = (getattr(self.cls, reader, None) for reader in readers)
        unknown = {method.__module__ for method in methods if method} - _KNOWN_READERS
        # V3DetDataset has classes None and reads them from a file that it names itself
        finds_classes = getattr(self.cls, 'METAINFO', {}).get('classes', ()) is None
        own_way = unknown or self.is_remote or (finds_classes and self.given_classes is None)
        return None if own_way else self.family

    def option(self, name: str) -> Any:
        """The value of one of the dataset's arguments: the config's, else its class's default."""
        if name in self.config:
            return self.config[name]
        for cls in self.cls.__mro__ if self.cls else ():
            parameters = inspect.signature(cls.__init__).parameters
            if name in parameters:
                return parameters[name].default
        return None

    def existing(self, key: str, value: Any, root: str | None = None, folder: bool = True) -> str:
        """The path of the folder, or else file, that the option ``key`` names by ``value``.

        Relative paths start at ``root``, else at ``data_root``. A DataError if it does not exist.
        """
        where, thing = f'{self.key}.{key}', 'folder' if folder else 'file'
        if not isinstance(value, str | os.PathLike) or not (value or folder):
            raise DataError(f'it must be a {thing}, but is {value!r}', where, 'name one')
        root = self.config.get('data_root') if root is None else root
        path = os.path.join(root or '', value)
        if (os.path.isdir if folder else os.path.isfile)(path or os.curdir):
            return path
        raise DataError(
            f'{value!r} does not exist: no {thing} {os.path.abspath(path)}',
            where,
            f'set --cfg-options {self.key}.data_root=FOLDER or {where}={thing.upper()}',
        )

    def prefix(self, key: str) -> str:
        """The existing folder that ``data_prefix`` gives for ``key``."""
        return self.existing(f'data_prefix.{key}', (self.option('data_prefix') or {}).get(key))

    def annotation_file(self) -> str:
        """The existing file that ``ann_file`` names."""
        return self.existing('ann_file', self.config.get('ann_file'), folder=False)

    def image_folder(self) -> str:
        """The existing folder of ``CustomDataset``."""
        folder = self.option('data_prefix') or ''
        folder = folder['img_path'] if isinstance(folder, Mapping) else folder
        return self.existing('data_prefix', folder)

    def class_folders(self) -> dict[str, str]:
        """Name -> path of the folders, hidden ones too, that ``CustomDataset`` numbers."""
        entries = os.scandir(self.image_folder())
        return dict(sorted((entry.name, entry.path) for entry in entries if entry.is_dir()))

    def classes(self) -> tuple[str, ...]:
        """The class names that it is used with; a DataError if they are none, or name one twice."""
        key, given = self.classes_key, self.given_classes
        names = self.own_classes if given is None else given
        if self.kind == 'folders' and given is None:
            names = [*self.class_folders()]
        if isinstance(names, str):
            if not os.path.isfile(names):
                what = f'{names!r} is a string, and no file of that name exists'
                raise DataError(what, key, f'write a tuple, for one class classes=({names!r},)')
            names = read_list(names)
        if not names:
            what = f'it is {"not set" if names is None else "empty"}, so there are no classes'
            raise DataError(what, key, 'write the class names, such as classes=("cat", "dog")')
        wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
        if wrong:
            raise DataError(f'it holds {wrong[0]!r}, which is no name', key, 'write only strings')
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice and given is not None:  # ImageNet itself has two cranes
            raise DataError(f'it names {listed(twice)} twice', key, 'write each class once')
        return tuple(names)


def find_nodes(config: Any, key: str, scope: str | None) -> Iterator[Node]:
    """The datasets in a dataloader's ``dataset``, inside wrappers (``ConcatDataset``, ...) too.

    ``scope`` is the registry scope of types that name none.
    """
    if not isinstance(config, Mapping):
        yield Node(key, {'type': type(config).__name__}, None)
    elif 'datasets' in config:
        for i, part in enumerate(config['datasets']):
            yield from find_nodes(part, f'{key}.datasets.{i}', scope)
    elif 'dataset' in config:
        yield from find_nodes(config['dataset'], f'{key}.dataset', scope)
    else:
        yield Node(key, config, _resolve(config.get('type'), scope))


def type_name(config: Any) -> str:
    """The type that a config names, without modules inside its package: ``mmdet.Resize``."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    if callable(kind):
        kind = kind.func if isinstance(kind, partial) else kind
        kind = f'{kind.__module__}.{kind.__name__}'
    package, dot, inner = (kind or '').partition('.')
    return package + dot + inner.rpartition('.')[2]


def read_list(file: str) -> list[str]:
    """The lines of a text file; a DataError if it is no UTF-8, or has a byte order mark."""
    try:
        lines = list_from_file(file)
    except UnicodeDecodeError as error:
        raise DataError(f'it is no list in UTF-8 ({error})', file, 'write it again') from error
    if lines and lines[0].startswith('\ufeff'):
        raise DataError('it begins with a byte order mark', file, 'write it in UTF-8 without one')
    return lines


def _resolve(kind: Any, scope: str | None) -> type | None:
    if not isinstance(kind, str):
        return kind if isinstance(kind, type) else None
    for name in (f'{scope}.{kind}', kind) if scope else (kind,):
        try:
            cls = DATASETS.get(name)
        except (ImportError, RuntimeError):  # mmengine raises RuntimeError if it is not registered
            continue
        if isinstance(cls, type):
            return cls
    return None
