"""The datasets that a config names: finding them, and their options, files and class names."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from mmengine.utils import is_abs

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
        """The dataset's type, for people."""
        return self.cls.__name__ if self.cls else str(self.config.get('type'))

    @property
    def classes_key(self) -> str:
        """Where the config sets its classes."""
        return f'{self.key}.{"data_prefix" if self.named_by_folders else "metainfo.classes"}'

    @property
    def named_by_folders(self) -> bool:
        """Whether the classes are the names of the folders that hold their images."""
        return self.kind == 'folders' and self.own_classes

    @property
    def pipeline(self) -> Any:
        """The configs of its transforms."""
        return self.config.get('pipeline') or ()

    @property
    def family(self) -> str | None:
        """``coco``, ``voc`` or ``semantic``, by what its class inherits from; else None.

        ``folders`` is mmpretrain's ``CustomDataset`` itself, without a list of files.
        """
        if self.cls and self.name == 'CustomDataset' and not self.config.get('ann_file'):
            return 'folders'
        mro = self.cls.__mro__ if self.cls else ()
        return next((_KINDS[cls.__name__] for cls in mro if cls.__name__ in _KINDS), None)

    @property
    def kind(self) -> str | None:
        """Its family, or None if its class reads annotations in its own way."""
        mro = self.cls.__mro__ if self.cls else ()
        definers = {
            next((cls.__module__ for cls in mro if reader in vars(cls)), None)
            for reader in ('load_data_list', 'parse_data_info', '_parse_instance_info')
        }
        # V3DetDataset has classes None and reads them from a file that it names itself
        finds_classes = getattr(self.cls, 'METAINFO', {}).get('classes', ()) is None
        unknown = definers - {None} - _KNOWN_READERS
        return None if unknown or (finds_classes and self.own_classes) else self.family

    @property
    def remote(self) -> bool:
        """Whether its files are not on a local file system."""
        backend = (self.config.get('backend_args') or {}).get('backend', 'local')
        paths = (self.config.get(key) or '' for key in ('data_root', 'ann_file'))
        return backend != 'local' or any('://' in str(path) for path in paths)

    def option(self, name: str) -> Any:
        """The value of one of the dataset's arguments: the config's, else its class's default."""
        if name in self.config:
            return self.config[name]
        for cls in self.cls.__mro__ if self.cls else ():
            if '__init__' in vars(cls):
                parameter = inspect.signature(cls).parameters.get(name)
                if parameter is not None:
                    return parameter.default
        return None

    def existing(self, key: str, value: str, root: str | None = None, folder: bool = True) -> str:
        """The path of a folder or file that the config names.

        Args:
            key: The option that names it.
            value: What the option says.
            root: Where relative paths start; ``data_root`` by default, as in mmengine.
            folder: Whether a folder is wanted, not a file.

        Raises:
            DataError: It does not exist.
        """
        root = self.config.get('data_root') if root is None else root
        if not isinstance(value, str | os.PathLike):
            raise DataError(
                f'it must be one path, but is {value!r}', f'{self.key}.{key}', 'name one'
            )
        path = os.path.join(root, value) if root and not is_abs(value) else value
        if (os.path.isdir if folder else os.path.isfile)(path or os.curdir):
            return path
        wanted = os.path.abspath(path)
        first = wanted
        while not os.path.exists(os.path.dirname(first)):
            first = os.path.dirname(first)
        already = '' if first == wanted else f' (not even {first})'
        raise DataError(
            f'{value!r} does not exist: no {"folder" if folder else "file"} {wanted}{already}',
            f'{self.key}.{key}',
            f'set it or the data root, for example --cfg-options {self.key}.data_root=FOLDER or '
            f'{self.key}.{key}={"FOLDER" if folder else "FILE"}',
        )

    def prefix(self, key: str) -> str:
        """The existing folder that ``data_prefix`` gives for ``key``."""
        value = (self.option('data_prefix') or {}).get(key)
        if value is None:
            raise DataError(
                f'it has no {key!r}, which {self.name} needs',
                f'{self.key}.data_prefix',
                f'set it, for example --cfg-options {self.key}.data_prefix.{key}=FOLDER',
            )
        return self.existing(f'data_prefix.{key}', value)

    def class_folders(self) -> dict[str, str]:
        """Name -> path of the folders, hidden ones too, that ``CustomDataset`` numbers."""
        given = self.option('data_prefix') or ''
        folder = given['img_path'] if isinstance(given, Mapping) else given
        folders = filter(os.DirEntry.is_dir, os.scandir(self.existing('data_prefix', folder)))
        return {entry.name: entry.path for entry in sorted(folders, key=lambda e: e.name)}

    def annotation_file(self) -> str:
        """The existing file that ``ann_file`` names."""
        value = self.config.get('ann_file') or ''
        if not value:
            raise DataError(
                'it is not set',
                f'{self.key}.ann_file',
                f'name the annotation file, for example --cfg-options {self.key}.ann_file=FILE',
            )
        return self.existing('ann_file', value, folder=False)

    def classes(self) -> tuple[str, ...]:
        """The class names that it is used with: ``metainfo.classes``, else its class's own or
        the names of its folders.

        Raises:
            DataError: There are none, it is a bare string, a name occurs twice or is no name.
        """
        metainfo = self.config.get('metainfo') or {}
        key = self.classes_key
        if 'CLASSES' in metainfo and 'classes' not in metainfo:
            where = f'{self.key}.metainfo.CLASSES'
            raise DataError('it is not read', where, 'write metainfo.classes')
        value = metainfo.get('classes')
        if self.named_by_folders:
            value = [*self.class_folders()]
        if isinstance(value, str):
            if not os.path.isfile(value):
                raise DataError(
                    f'{value!r} is a string, and no file of that name exists',
                    key,
                    f'write a tuple of class names, for one class classes=({value!r},)',
                )
            value = read_list(value)
        if value is None:
            value = getattr(self.cls, 'METAINFO', {}).get('classes')
        if not value:
            raise DataError(
                f'it is {"empty" if value is not None else "not set"}, and {self.name} has no '
                'classes of its own',
                key,
                'write the class names, for example classes=("cat", "dog")',
            )
        wrong = [name for name in value if not isinstance(name, str) or not name.strip()]
        if wrong:
            raise DataError(
                f'it holds {wrong[0]!r}, which is not a class name', key, 'write only strings'
            )
        twice = [name for name, count in Counter(value).items() if count > 1]
        if twice and not self.own_classes:  # ImageNet has two cranes
            raise DataError(f'it names {listed(twice)} twice', key, 'write each class once')
        return tuple(value)

    @property
    def own_classes(self) -> bool:
        """Whether the classes are the dataset type's own because the config sets none."""
        return (self.config.get('metainfo') or {}).get('classes') is None


def find_nodes(config: Any, key: str, scope: str | None) -> Iterator[Node]:
    """The datasets in ``config``, inside wrappers (``RepeatDataset``, ``ConcatDataset``, ...) too.

    Args:
        config: A dataloader's ``dataset``.
        key: Its place in the config.
        scope: The registry scope of types that name none.
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
    """The type that a config names; for a class, what a string would say: ``mmdet.Resize``."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    if isinstance(kind, type):
        return f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    return kind or ''


def read_list(file: str) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: It is not UTF-8, or it starts with a byte order mark, which would become part
            of the first line.
    """
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
