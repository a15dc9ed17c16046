"""A config's datasets: finding them below their wrappers, their classes and their files."""

from __future__ import annotations

import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from mmengine.utils import is_abs

from ...checks import listed
from ..errors import DataError

_KINDS = {'CocoDataset': 'coco', 'XMLDataset': 'voc', 'BaseSegDataset': 'semantic'}
# modules whose ways of reading the readers here reproduce
_KNOWN_READERS = {
    'mmdet.datasets.coco',
    'mmdet.datasets.xml_style',
    'mmdet.datasets.base_semseg_dataset',
    'mmengine.dataset.base_dataset',
    'mmseg.datasets.basesegdataset',
    'res2net_mm.data.voc_dataset',
}


class Watch:
    """What readers do at a fault: here, let it end the reading.

    Attributes:
        keeps_objects: whether images get their ``objects``, which takes memory.
    """

    keeps_objects = False

    def begin(self, split: str) -> None:
        """The faults from here on are those of ``split``; of the whole config, where empty."""

    def guard(self, kind: str, file: str = '') -> AbstractContextManager:
        """A block that a DataError leaves: of which kind that would be, in which file."""
        return _NO_GUARD

    def batches(self, items: Sequence) -> list[Sequence]:
        """``items`` that have the same fault, in the parts that are told one by one."""
        return [items] if items else []

    def warn(self, kind: str, file: str, what: str, remedy: str) -> None:
        """Something in ``file`` is passed over; here it is only counted."""


_NO_GUARD = nullcontext()
STRICT = Watch()


@dataclass(frozen=True)
class Object:
    """One annotated object of a known class.

    Attributes:
        name: its class.
        box: corners x1, y1, x2, y2 in px, counted from 0.
        where: which of its file's annotations it is, for people.
        reason: why it is not used; None where it is.
        segmentation: COCO's polygons or run lengths.
    """

    name: str
    box: tuple[float, float, float, float]
    where: str
    reason: str | None
    segmentation: Any = None


@dataclass
class Image:
    """One image of a dataset as its annotations describe it.

    Attributes:
        file: path of the image.
        width: in pixels; 0 where the format does not tell.
        height: likewise.
        boxes: the class of every usable box.
        unusable: the class of every other box.
        dropped: why these are not usable -> how many.
        other_classes: names that are not among the classes -> how many objects have them.
        has_objects: False where ``filter_empty_gt`` takes the image out.
        label_map: path of the label map, of semantic segmentation.
        objects: those of its classes, where the reader was told to keep them.
    """

    file: str
    width: int = 0
    height: int = 0
    boxes: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    other_classes: Counter[str] = field(default_factory=Counter)
    has_objects: bool = False
    label_map: str | None = None
    objects: list[Object] = field(default_factory=list)

    def add(self, name: str, reason: str | None) -> None:
        """Count a box of class ``name``, usable unless there is a reason why not."""
        if reason is None:
            self.boxes.append(name)
        else:
            self.unusable.append(name)
            self.dropped[reason] += 1


@dataclass
class Reading:
    """All of a dataset: its images, and how many boxes are of images it does not list."""

    images: list[Image]
    stray: int = 0


@dataclass(frozen=True)
class Node:
    """A dataset's config that is no wrapper, and where it stands.

    Attributes:
        key: such as ``train_dataloader.dataset.datasets.0``.
        config: its part of the config.
        cls: the class its ``type`` names; None where no registry knows it.
    """

    key: str
    config: Mapping
    cls: type | None

    @property
    def name(self) -> str:
        """The dataset's type, for people."""
        return self.cls.__name__ if self.cls else str(self.config.get('type'))

    @property
    def family(self) -> str | None:
        """``coco``, ``voc`` or ``semantic``, by what its class inherits from; else None."""
        mro = self.cls.__mro__ if self.cls else ()
        return next((_KINDS[cls.__name__] for cls in mro if cls.__name__ in _KINDS), None)

    @property
    def kind(self) -> str | None:
        """Its family, or None where its class reads annotations in a way of its own."""
        mro = self.cls.__mro__ if self.cls else ()
        definers = {
            next((cls.__module__ for cls in mro if reader in vars(cls)), None)
            for reader in ('load_data_list', 'parse_data_info', '_parse_instance_info')
        }
        # V3DetDataset leaves its classes None, and reads them from a file that it names itself
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
        """The value of an argument of the dataset: the config's, else its class's default."""
        if name in self.config:
            return self.config[name]
        for cls in self.cls.__mro__ if self.cls else ():
            if '__init__' in vars(cls):
                parameter = inspect.signature(cls).parameters.get(name)
                if parameter is not None:
                    return parameter.default
        return None

    def path(self, value: str) -> str:
        """``value`` below ``data_root``, as mmengine joins them."""
        root = self.config.get('data_root')
        return os.path.join(root, value) if root and not is_abs(value) else value

    def existing(self, key: str, value: str, path: str, folder: bool = False) -> str:
        """``path``, where there is such a file or folder.

        Args:
            key: the option that names it.
            value: what that option says.
            path: where that is.
            folder: a folder is wanted.

        Raises:
            DataError: there is none.
        """
        if (os.path.isdir if folder else os.path.isfile)(path or os.curdir):
            return path
        wanted = os.path.abspath(path)
        first = wanted
        while not os.path.exists(os.path.dirname(first)):
            first = os.path.dirname(first)
        already = '' if first == wanted else f' (not even {first})'
        raise DataError(
            f'{self.key}.{key}={value!r}: there is no {"folder" if folder else "file"} '
            f'{wanted}{already}; {self.remedy(key, folder)}'
        )

    def remedy(self, key: str, folder: bool = False) -> str:
        """What to do about a wrong path."""
        thing = 'FOLDER' if folder else 'FILE'
        return (
            f'set it or the data root, for example --cfg-options {self.key}.data_root=FOLDER '
            f'or {self.key}.{key}={thing}'
        )

    def prefix(self, key: str) -> str:
        """The existing folder that ``data_prefix`` gives under ``key``."""
        value = (self.option('data_prefix') or {}).get(key)
        if value is None:
            raise DataError(
                f'{self.key}.data_prefix has no {key!r}, which {self.name} needs; set it, for '
                f'example --cfg-options {self.key}.data_prefix.{key}=FOLDER'
            )
        return self.existing(f'data_prefix.{key}', value, self.path(value), folder=True)

    def annotation_file(self) -> str:
        """The existing file that ``ann_file`` names."""
        value = self.config.get('ann_file') or ''
        if not value:
            raise DataError(
                f'{self.key}.ann_file is not set; name the annotation file, for example '
                f'--cfg-options {self.key}.ann_file=FILE'
            )
        return self.existing('ann_file', value, self.path(value))

    def classes(self) -> tuple[str, ...]:
        """The class names it is used with: ``metainfo.classes``, else its class's own.

        Raises:
            DataError: there are none, a bare string, a name twice, or something not a name.
        """
        metainfo = self.config.get('metainfo') or {}
        key = f'{self.key}.metainfo.classes'
        if 'CLASSES' in metainfo and 'classes' not in metainfo:
            raise DataError(f'{self.key}.metainfo.CLASSES is not read; write metainfo.classes')
        value = metainfo.get('classes')
        if isinstance(value, str):
            if not os.path.isfile(value):
                raise DataError(
                    f'{key}={value!r} is a string, and no file of that name exists; write a tuple '
                    f'of class names, for one class classes=({value!r},)'
                )
            value = read_list(value)
        if value is None:
            value = getattr(self.cls, 'METAINFO', {}).get('classes')
        if not value:
            raise DataError(
                f'{key} is {"empty" if value is not None else "not set"}, and {self.name} has no '
                f'classes of its own; write the class names, for example classes=("cat", "dog")'
            )
        wrong = [name for name in value if not isinstance(name, str) or not name.strip()]
        if wrong:
            raise DataError(f'{key} holds {wrong[0]!r}, which is no class name; write only strings')
        twice = [name for name, count in Counter(value).items() if count > 1]
        if twice:
            raise DataError(f'{key} names {listed(twice)} more than once; write each class once')
        return tuple(value)

    @property
    def own_classes(self) -> bool:
        """Whether the classes are the dataset type's own, the config setting none."""
        return (self.config.get('metainfo') or {}).get('classes') is None


def find_nodes(config: Any, key: str, scope: str | None) -> Iterator[Node]:
    """The datasets in ``config``, wrappers (``RepeatDataset``, ``ConcatDataset``, ...) opened.

    Args:
        config: a dataloader's ``dataset``.
        key: where it stands.
        scope: the registry that types without scope are of.
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
    """The type a config names, where it names a class as a string would: ``mmdet.Resize``."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    if isinstance(kind, type):
        return f'{kind.__module__.partition(".")[0]}.{kind.__name__}'
    return kind or ''


def read_list(file: str) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: it is no text in UTF-8, or begins with a byte order mark, which would become a
            part of its first line.
    """
    try:
        lines = list_from_file(file)
    except UnicodeDecodeError as error:
        raise DataError(f'{file} is no list in UTF-8 ({error}); write it again') from error
    if lines and lines[0].startswith('\ufeff'):
        raise DataError(f'{file} begins with a byte order mark; write it in UTF-8 without one')
    return lines


def missing_files(files: list[str]) -> list[str]:
    """Those of ``files`` that are no files, in order; every folder is read once."""
    by_folder = defaultdict(set)
    for file in files:
        by_folder[os.path.dirname(file)].add(os.path.basename(file))
    absent = set()
    for folder, names in by_folder.items():
        try:
            with os.scandir(folder or os.curdir) as entries:
                # links, pipes and folders have to show what they are below
                names -= {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except OSError:
            pass
        # a file system may not care for case, and a name may hold what a listing does not
        absent.update(
            file
            for file in (os.path.join(folder, name) for name in names)
            if not os.path.isfile(file)
        )
    return [file for file in files if file in absent]


def _resolve(kind: Any, scope: str | None) -> type | None:
    if not isinstance(kind, str):
        return kind if isinstance(kind, type) else None
    for name in (f'{scope}.{kind}', kind) if scope else (kind,):
        try:
            cls = DATASETS.get(name)
        except (ImportError, RuntimeError):  # RuntimeError: mmengine's word for not registered
            continue
        if isinstance(cls, type):
            return cls
    return None
