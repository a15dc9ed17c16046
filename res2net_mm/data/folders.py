"""Recognises folders of annotated images: the format, and by split the images and annotations."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from ..checks import listed
from .convert.formats import yaml_classes, yolo_classes
from .convert.writer import image_files
from .errors import DataError
from .sets.images import IMAGE_SUFFIXES
from .sets.voc import find_image

#: Task of a model -> the formats that it trains on, and what they are called.
FORMATS = {
    'boxes': {'coco': 'COCO json', 'voc': 'Pascal VOC', 'yolo': 'YOLO', 'labelme': 'labelme'},
    'maps': {'masks': 'images and masks'},
    'classes': {'folders': 'class folders'},
}
ALL = 'all'  # images that the folder does not split
_SPLITS = {
    'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
    'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
}  # fmt: skip
_IMAGES = {*'images image imgs img img_dir jpegimages photos pictures data'.split()}
_MASKS = {
    *'masks mask labels label annotations annotation ann_dir ann gt groundtruth semseg'.split(),
    *'segmentation segmentationclass segmentationclassraw seg labelmaps label_maps'.split(),
}
_MASK_ENDING = re.compile(r'[ _.-]+(mask|masks|gt|label|labels|labelids|seg|segmentation|l)$', re.I)
_LABEL_FILES = {'voc': '*.xml', 'labelme': '*.json', 'masks': '*.*'}
_HEAD = 1 << 16  # bytes at either end of a json that show what it is

Pair = tuple[Path, Path]  # an image and its annotation: a file, or for class folders its folder


@dataclass
class Folder:
    """What was recognised.

    Attributes:
        root: The folder.
        format: A key of :data:`FORMATS`.
        splits: ``train``, ``val``, ``test`` or ``all`` -> pairs; of COCO, folders with their json.
        classes: The names, if the folder lists them.
        notes: What is not used.
    """

    root: Path
    format: str
    splits: dict[str, list[Pair]]
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The format, for people."""
        return next(names[self.format] for names in FORMATS.values() if self.format in names)


def recognise(path: str | Path, task: str, form: str | None = None) -> Folder:
    """Finds out what a folder of annotated images is.

    Args:
        path: The folder, a YOLO export's yaml, or a yaml that names the parts: ``format`` (a key
            of :data:`FORMATS`), ``classes``, and for ``train``, ``val`` and ``test`` ``images``
            (a folder) with ``annotations`` (a folder, or COCO's json), relative to the yaml.
        task: A key of :data:`FORMATS`.
        form: The format, if the folder has more than one.

    Raises:
        DataError: It does not exist, holds nothing for this task, or could be two things.
    """
    path = Path(path).resolve()
    if form is not None and form not in FORMATS[task]:
        raise DataError(f'--data-format {form} is not what this model trains on', str(path))
    if path.is_file() and path.suffix in ('.yaml', '.yml'):
        content = _read_yaml(path)
        folder = _named(path, content) if 'format' in content else _yolo(path.parent, path)
        if folder.format not in FORMATS[task]:
            what = f'it names {folder.title}, which this model does not train on'
            raise DataError(what, str(path), 'choose a config for such data')
        return folder
    if not path.is_dir():
        raise DataError('there is no such folder, and no such yaml file', str(path))
    found = _candidates(path, [form] if form else FORMATS[task])
    inner = [entry for entry in path.iterdir() if entry.is_dir()]
    if not found and len(inner) == 1:  # as archives unpack
        return recognise(inner[0], task, form)
    if not found:
        others = {kind for kinds in FORMATS.values() for kind in kinds} - {*FORMATS[task]}
        other = next(iter(_candidates(path, sorted(others)).values()), None)
        has = f'it holds {other.title}, which this model does not train on' if other else (
            f'it holds no {" and no ".join(FORMATS[task].values())} annotations that are known'
        )  # fmt: skip
        remedy = 'choose a config for such data, or convert it (tools/convert_data.py)'
        named = 'write a yaml with format, classes and for train and val images and annotations'
        raise DataError(has, str(path), remedy if other else f'{named}, and give that as --data')
    if len(found) > 1:
        both = ' and '.join(folder.title for folder in found.values())
        flag = ' or '.join(f'--data-format {kind}' for kind in found)
        raise DataError(f'it holds {both}', str(path), f'say which: {flag}')
    return next(iter(found.values()))


def _candidates(root: Path, kinds: Sequence[str]) -> dict[str, Folder]:
    """The formats whose annotations are nearest to ``root``."""
    finders = dict(coco=_coco, voc=_voc, yolo=_yolo, labelme=_labelme, masks=_masks,
                   folders=_class_folders)  # fmt: skip
    found = {kind: finders[kind](root) for kind in kinds}
    found = {kind: folder for kind, folder in found.items() if folder and folder.splits}
    depth = {
        kind: min(len(file.parts) for pairs in folder.splits.values() for _, file in pairs)
        for kind, folder in found.items()
    }
    return {kind: found[kind] for kind in found if depth[kind] == min(depth.values())}


def split_of(path: Path, root: Path) -> str:
    """The split in a path: ``'instances_val2017.json'``, ``'valid/labels'``; ``ALL`` if none."""
    for part in reversed(path.relative_to(root).parts):
        for word in re.split('[^a-z]+', part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ALL


def _coco(root: Path) -> Folder:
    found = defaultdict(list)
    for file in sorted([*root.glob('*.json'), *root.glob('*/*.json')]):
        if _json_kind(file) == 'coco':
            found[split_of(file, root)].append(file)
    splits = {}
    for split, files in found.items():
        named = [file for file in files if 'instances' in file.name]
        if len(named or files) > 1:
            raise DataError(
                f'it has {len(files)} COCO files for {split}: {listed(f.name for f in files)}',
                str(root),
                'name one for each split in a yaml, and give that as --data',
            )
        file = (named or files)[0]
        splits[split] = [(_coco_images(root, file, split), file)]
    return Folder(root, 'coco', splits)


def _coco_images(root: Path, file: Path, split: str) -> Path:
    """The folder in which the images of a COCO file are."""
    named = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read_bytes())
    names = [json.loads(found[1]) for found in islice(named, 50)]
    folders = [file.parent, root]
    for above in (root, file.parent, *(d for d in root.iterdir() if d.name.lower() in _IMAGES)):
        inner = sorted(d for d in above.iterdir() if d.is_dir()) if above.is_dir() else []
        folders += sorted(inner, key=lambda d: split_of(d, root) != split)
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in folders}
    best = max(hits, key=hits.__getitem__, default=root)
    if not hits[best]:
        raise DataError(
            f'none of its images is found (the first is {listed(names, 1) or "not named"})',
            str(file),
            'name the folder of the images in a yaml, and give that as --data',
        )
    return best


def _json_kind(file: Path) -> str | None:
    with file.open('rb') as stream:
        text = stream.read(_HEAD)
        stream.seek(max(0, file.stat().st_size - _HEAD))
        text += stream.read()
    if not text.lstrip().startswith(b'{'):
        return None
    if b'"shapes"' in text and b'"imagePath"' in text:
        return 'labelme'
    kinds = b'"annotations"', b'"categories"', b'"images"'
    return 'coco' if sum(key in text for key in kinds) > 1 and b'"caption"' not in text else None


def _voc(root: Path) -> Folder:
    folder = _beside(root, 'voc', {file.parent for file in root.rglob('*.xml')})
    lists = [d for d in root.rglob('ImageSets/Main') if d.is_dir()]
    if len(lists) == 1:
        files = {file.stem: file for file in lists[0].glob('*.txt')}
        pairs = {file.stem: (image, file) for images in folder.splits.values()
                 for image, file in images}  # fmt: skip
        names = {'train': 'train', 'val': 'val', 'test': 'test'}
        if not {'train', 'val'} <= {*files}:
            names = {ALL: 'trainval' if 'trainval' in files else 'train', 'test': 'test'}
        splits = {}
        for split, file in ((s, files[name]) for s, name in names.items() if name in files):
            stems = [line.strip() for line in file.read_text('utf-8-sig').splitlines()]
            missing = [stem for stem in stems if stem and stem not in pairs]
            if missing:
                note = f'{len(missing):,} names of {file.name} have no image with an xml file'
                folder.notes.append(f'{note}: {listed(missing, 3)}')
            splits[split] = [pairs[stem] for stem in dict.fromkeys(stems) if stem in pairs]
        folder.splits = {s: found for s, found in splits.items() if found} or folder.splits
    return folder


def _labelme(root: Path) -> Folder:
    folders = {file.parent for file in root.rglob('*.json') if _json_kind(file) == 'labelme'}
    return _beside(root, 'labelme', folders)


def _masks(root: Path) -> Folder:
    folders = {
        file.parent for file in root.rglob('*.*')
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not _MASKS.isdisjoint(p.lower() for p in file.parent.relative_to(root).parts)
    }  # fmt: skip
    folder = _beside(root, 'masks', folders)
    for name in ('classes.txt', 'labels.txt', 'class_names.txt'):
        if (root / name).is_file():
            folder.classes = tuple((root / name).read_text('utf-8-sig').split('\n'))
            folder.classes = tuple(n.strip() for n in folder.classes if n.strip())
            break
    return folder


def _yolo(root: Path, file: Path | None = None) -> Folder:
    files = [file] if file else sorted([*root.glob('*.yaml'), *root.glob('*.yml')])
    contents = {f: _read_yaml(f) for f in files}
    contents = {f: c for f, c in contents.items() if 'names' in c and {'train', 'val'} & {*c}}
    if len(contents) > 1 or (file and not contents):
        what = f'it has {len(contents)} data yaml files' if contents else 'it names no data'
        remedy = 'give the yaml itself as --data' if contents else 'write train, val and names'
        raise DataError(what, str(file or root), remedy)
    if not contents:
        folders = {f.parent for f in root.rglob('*.txt') if 'labels' in f.relative_to(root).parts}
        folder = Folder(root, 'yolo', defaultdict(list))
        for labels in sorted(folders):
            images = _images_of(labels, root)
            if images:
                folder.splits[split_of(labels, root)] += _yolo_pairs(image_files(images))
        with suppress(DataError):  # they can be given
            folder.classes = tuple(yolo_classes(root, min(folders, default=root)))
        return folder
    file, content = next(iter(contents.items()))
    folder = Folder(file.parent, 'yolo', defaultdict(list), tuple(yaml_classes(file)))
    for key in ('train', 'val', 'valid', 'test'):
        values = content.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            place = _yolo_place(file.parent, str(content.get('path') or ''), value)
            if place is not None:
                folder.splits[_SPLITS[key]] += _yolo_pairs(_yolo_images(place))
            elif key == 'test':
                folder.notes.append(f'test: {value} does not exist')
            else:
                raise DataError(f'{key}: {value} does not exist', str(file), 'correct it')
    return folder


def _yolo_place(base: Path, path: str, value: str) -> Path | None:
    """A path of a data.yaml: below its ``path``, or beside it, also where it says ``../``."""
    shorter = value.removeprefix('../')  # as Roboflow writes a folder that is beside the yaml
    places = (above / name for name in (value, shorter) for above in (base / path, base))
    return next((place.resolve() for place in places if place.exists()), None)


def _yolo_images(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    lines = [line.strip() for line in place.read_text('utf-8-sig').splitlines()]
    return [Path(os.path.normpath(place.parent / line)) for line in lines if line]


def _yolo_pairs(images: Sequence[Path]) -> list[Pair]:
    """Images with their label files, for which the last folder ``images`` becomes ``labels``."""
    pairs = []
    for image in images:
        head, found, tail = str(image).rpartition('/images/')
        file = Path(f'{head}/labels/{tail}') if found else image
        pairs.append((image, file.with_suffix('.txt')))
    return pairs


def _class_folders(root: Path) -> Folder:
    folder = Folder(root, 'folders', defaultdict(list))
    for place in sorted(d for d in [*root.glob('*'), *root.glob('*/*')] if d.is_dir()):
        split = ALL if place.parent == root else split_of(place.parent, root)
        inside = place.iterdir() if place.parent == root else place.rglob('*')
        images = sorted(f for f in inside if f.suffix.lower() in IMAGE_SUFFIXES)
        if (split == ALL) == (place.parent == root) and place.name.lower() not in _SPLITS:
            folder.splits[split] += [(image, place) for image in images]
    folder.splits = {split: pairs for split, pairs in folder.splits.items() if pairs}
    if 'train' in folder.splits and (left := folder.splits.pop(ALL, [])):
        folder.notes.append(f'{len(left):,} images of no split are not used')
    names = {place.name for pairs in folder.splits.values() for _, place in pairs}
    folder.classes = tuple(sorted(names))
    return folder if len(names) > 1 else Folder(root, 'folders', {})


def _named(file: Path, content: dict) -> Folder:
    kind, base = content['format'], file.parent
    if kind not in {kind for kinds in FORMATS.values() for kind in kinds} - {'folders'}:
        remedy = 'write coco, voc, yolo, labelme or masks'
        raise DataError(f'format: {kind!r} is unknown', str(file), remedy)
    classes = content.get('classes') or ()
    folder = Folder(base, kind, {}, tuple(map(str, classes)))
    for key in ('train', 'val', 'test'):
        if key not in content:
            continue
        try:
            images, labels = (base / content[key][part] for part in ('images', 'annotations'))
        except (TypeError, KeyError) as error:
            raise DataError(f'{key} needs images and annotations', str(file)) from error
        for place in (images, labels):
            if not place.exists():
                raise DataError(f'{key}: there is no {place}', str(file), 'correct it')
        if kind == 'coco':
            folder.splits[key] = [(images, labels)]
        elif kind == 'yolo':
            folder.splits[key] = [
                (image, (labels / image.relative_to(images)).with_suffix('.txt'))
                for image in image_files(images)
            ]
        else:
            folder.splits[key] = _pair(kind, images, labels, folder.notes)
    if not folder.splits:
        raise DataError('it names no images', str(file), 'write train, and val if there is one')
    return folder


def _beside(root: Path, kind: str, folders: set[Path]) -> Folder:
    """Folders of annotation files, each with the folder of its images."""
    folder = Folder(root, kind, defaultdict(list))
    for labels in sorted(d for d in folders if folders.isdisjoint(d.parents)):
        images = _images_of(labels, root, inside=kind != 'masks')
        if images is None and kind == 'labelme':
            images = labels  # its files name their images
        if images and (pairs := _pair(kind, images, labels, folder.notes)):
            folder.splits[split_of(labels, root)] += pairs
    return folder


def _images_of(labels: Path, root: Path, inside: bool = True) -> Path | None:
    """The folder of the images of annotation files: theirs, or one that differs in one name."""
    parts = labels.relative_to(root).parts or ('',)
    places = [labels] if inside else []
    for i in reversed(range(len(parts))):
        above, below = root.joinpath(*parts[:i]), parts[i + 1 :]
        twins = sorted(d for d in above.iterdir() if d.is_dir() and d.name.lower() in _IMAGES)
        places += [twin.joinpath(*below) for twin in twins] + [above.joinpath(*below)] + twins
    for place in places:
        if place.is_dir() and (inside or place != labels):
            if any(file.suffix.lower() in IMAGE_SUFFIXES for file in place.iterdir()):
                return place
    return None


def _pair(kind: str, images: Path, labels: Path, notes: list[str]) -> list[Pair]:
    """The images of annotation files; what has no partner is noted."""
    files = sorted(labels.rglob(_LABEL_FILES[kind]))
    if kind == 'masks':
        files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    elif kind == 'labelme':
        files = [file for file in files if _json_kind(file) == 'labelme']
    there = {
        file.relative_to(images).with_suffix('').as_posix(): file
        for file in sorted(images.rglob('*.*'))
        if file.suffix.lower() in IMAGE_SUFFIXES
    }
    pairs, lonely = [], []
    for file in files:
        name = file.relative_to(labels).with_suffix('').as_posix()
        image = there.get(name) or there.get(_MASK_ENDING.sub('', name))
        if kind == 'labelme' and image is None:
            image = _labelme_image(file)
        if image is None:
            lonely.append(file.name)
        else:
            pairs.append((image, file))
    used = {image for image, _ in pairs}
    alone = sorted(file.name for file in {*there.values()} - used - {*files})
    for what, names in (('annotation files without image', lonely),
                        ('images without annotation file', alone)):  # fmt: skip
        if names:
            notes.append(f'{len(names):,} {what} in {labels}: {listed(names, 3)}')
    counts = Counter(image for image, _ in pairs)
    twice = [image.name for image, count in counts.items() if count > 1]
    if twice:
        raise DataError(f'images have two annotation files: {listed(twice)}', str(labels))
    return pairs


def _labelme_image(file: Path) -> Path | None:
    """The image that a labelme file names, in the folder it names or beside the file."""
    try:
        name = json.loads(file.read_text('utf-8-sig'))['imagePath'].replace('\\', '/')
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    for place in (file.parent / name, file.parent / Path(name).name):
        if place.is_file():
            return Path(os.path.normpath(place))
    found = find_image(str(file.with_suffix('')), os.path.isfile)
    return Path(found) if os.path.isfile(found) else None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text('utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        what = f'it is not valid YAML ({" ".join(str(error).split())})'
        raise DataError(what, str(file)) from error
    return content if isinstance(content, dict) else {}
