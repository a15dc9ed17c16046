"""Recognises folders of annotated images: the format, and by split the images and annotations."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

from ..checks import listed
from .convert.formats import read_yaml, yaml_classes, yolo_classes
from .convert.writer import image_files
from .errors import DataError
from .sets.images import IMAGE_SUFFIXES

#: Task of a model -> the formats that it trains on, and what they are called.
FORMATS = {
    'boxes': {'coco': 'COCO json', 'voc': 'Pascal VOC', 'yolo': 'YOLO', 'labelme': 'labelme'},
    'maps': {'masks': 'images and masks'},
    'classes': {'folders': 'class folders'},
}
ALL = 'all'  # images that the folder does not split
TITLES = {kind: title for kinds in FORMATS.values() for kind, title in kinds.items()}
_SPLITS = {
    'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
    'val': 'val', 'valid': 'val', 'validation': 'val', 'dev': 'val',
}  # fmt: skip
_IMAGES = {*'images image imgs img img_dir jpegimages'.split()}
_MASKS = {
    *'masks mask labels label annotations annotation ann_dir ann gt groundtruth semseg'.split(),
    *'segmentation segmentationclass segmentationclassraw seg labelmaps label_maps'.split(),
}
_ROLES = _IMAGES | _MASKS | {*'xml xmls json jsons bbox bboxes photos pictures data'.split()}
_MASK_ENDING = re.compile(r'[ _.-]+(mask|masks|gt|label|labels|labelids|seg|segmentation|l)$', re.I)
_YOLO_IMAGES = re.compile(r'/images/(?!.*/images/)')  # the last of them
_HEAD = 1 << 16  # bytes at either end of a json that show what it is

Pair = tuple[Path, Path]  # an image and its annotation: a file, or for class folders its folder


@dataclass
class Folder:
    """What was recognised."""

    root: Path
    format: str  # a key of FORMATS
    # train, val, test or all -> pairs; of COCO, one pair: the folder of the images and the json
    splits: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    classes: tuple[str, ...] = ()  # if the folder lists them
    notes: list[str] = field(default_factory=list)  # what is not used


def recognise(path: str | Path, task: str, form: str | None = None) -> Folder:
    """Finds out what a folder of annotated images is.

    Args:
        path: The folder, a YOLO export's yaml, or a yaml that names the parts: ``format`` (coco,
            voc, labelme, masks), ``classes``, and for ``train``, ``val`` and ``test`` ``images``
            (a folder) with ``annotations`` (a folder, or COCO's json), relative to the yaml.
        task: A key of :data:`FORMATS`.
        form: The format, if the folder has more than one.

    Raises:
        DataError: It does not exist, holds nothing for this task, or could be two things.
    """
    path, known = Path(path).resolve(), FORMATS[task]
    if path.is_dir():
        found = _nearest(path, [form] if form else known)
        inner = [entry for entry in path.iterdir() if entry.is_dir()]
        if not found and len(inner) == 1:  # as archives unpack
            return recognise(inner[0], task, form)
        found = found or _nearest(path, [kind for kind in TITLES if kind not in known])
    elif path.is_file() and path.suffix in ('.yaml', '.yml'):
        found = [_read_parts(path)]
    else:
        raise DataError('there is no such folder, and no such yaml file', str(path))
    if not found:
        raise DataError(
            f'it holds no {" and no ".join(known.values())} annotations that are known',
            str(path),
            'write a yaml with format, classes and for train and val images and annotations, '
            'and give that as --data',
        )
    if found[0].format not in known:
        what = f'it holds {TITLES[found[0].format]}, which this model does not train on'
        remedy = 'choose a config for such data, or convert it (tools/convert_data.py)'
        raise DataError(what, str(path), remedy)
    if len(found) > 1:
        flags = ' or '.join(f'--data-format {folder.format}' for folder in found)
        both = ' and '.join(TITLES[folder.format] for folder in found)
        raise DataError(f'it holds {both}', str(path), f'say which: {flags}')
    return found[0]


def _nearest(root: Path, kinds: Iterable[str]) -> list[Folder]:
    """What is there of these formats, as far as no other has annotations nearer to ``root``."""
    finders = dict(coco=_coco, voc=_voc, yolo=_yolo, labelme=_labelme, masks=_masks,
                   folders=_class_folders)  # fmt: skip
    found = [finders[kind](root) for kind in kinds]
    files = [[file for pairs in f.splits.values() for _, file in pairs] for f in found]
    depths = [min((len(file.parts) for file in some), default=1000) for some in files]
    least = min(depths)
    return [f for f, depth in zip(found, depths, strict=True) if depth == least < 1000]


def split_of(path: Path, root: Path) -> str:
    """The split in a path: ``'instances_val2017.json'``, ``'valid/labels'``; ``ALL`` if none."""
    for part in reversed(path.relative_to(root).parts):
        for word in re.split('[^a-z]+', part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ALL


def _coco(root: Path) -> Folder:
    files, folder = defaultdict(list), Folder(root, 'coco')
    for file in sorted([*root.glob('*.json'), *root.glob('*/*.json')]):
        if _json_kind(file) == 'coco':
            files[split_of(file, root)].append(file)
    for split, some in files.items():
        some = [file for file in some if 'instances' in file.name] or some
        if len(some) > 1:
            what = f'it has {len(some)} COCO files for {split}: {listed(f.name for f in some)}'
            remedy = 'name one for each split in a yaml, and give that as --data'
            raise DataError(what, str(root), remedy)
        folder.splits[split].append((_coco_images(root, some[0], split), some[0]))
    return folder


def _coco_images(root: Path, file: Path, split: str) -> Path:
    """The folder below ``root`` that has most images of a COCO file, of several its split's."""
    texts = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read_bytes())
    names = [json.loads(text[1]) for text in islice(texts, 50)]
    folders = [file.parent, root, *sorted(root.glob('*/')), *sorted(root.glob('*/*/'))]
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in folders}
    best = max(folders, key=lambda folder: (hits[folder], split_of(folder, root) == split))
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
    folder = _pair(Folder(root, 'voc'), root, root)
    lists = [d for d in root.rglob('ImageSets/Main') if d.is_dir()]
    if len(lists) != 1:
        return folder
    files = {file.stem: file for file in lists[0].glob('*.txt')}
    pairs = {pair[1].stem: pair for part in folder.splits.values() for pair in part}
    names = {'train': 'train', 'val': 'val', 'test': 'test'}
    if not {'train', 'val'} <= files.keys():
        names = {ALL: 'trainval' if 'trainval' in files else 'train', 'test': 'test'}
    splits = {}
    for split, file in ((s, files[name]) for s, name in names.items() if name in files):
        stems = dict.fromkeys(filter(None, _lines(file)))
        splits[split] = [pairs[stem] for stem in stems if stem in pairs]
        if missing := [stem for stem in stems if stem not in pairs]:
            note = f'{len(missing):,} names of {file.name} have no image with an xml file'
            folder.notes.append(f'{note}: {listed(missing, 3)}')
    folder.splits = {s: found for s, found in splits.items() if found} or folder.splits
    return folder


def _labelme(root: Path) -> Folder:
    return _pair(Folder(root, 'labelme'), root, root)


def _masks(root: Path) -> Folder:
    folder = _pair(Folder(root, 'masks'), root, root)
    for name in ('class_names.txt', 'labels.txt', 'classes.txt'):
        if (root / name).is_file():
            folder.classes = tuple(filter(None, _lines(root / name)))
    return folder


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text('utf-8-sig').splitlines()]


def _yolo(root: Path) -> Folder:
    yamls = [f for f in sorted(root.glob('*.y*ml')) if _is_yolo(read_yaml(f))]
    if len(yamls) > 1:
        what = f'it has {len(yamls)} data yaml files'
        raise DataError(what, str(root), 'give the yaml itself as --data')
    if yamls:
        return _yolo_yaml(yamls[0], read_yaml(yamls[0]))
    folder = Folder(root, 'yolo')
    pairs = _yolo_pairs(_below(root, IMAGE_SUFFIXES))
    folders = {file.parent for _, file in pairs if file.is_file()}
    folders = {labels for labels in folders if 'labels' in labels.relative_to(root).parts}
    for image, file in pairs:  # images without objects may be in folders of their own
        if folders.intersection(file.parents):
            folder.splits[split_of(file.parent, root)].append((image, file))
    with suppress(DataError):  # they can be given
        folder.classes = tuple(yolo_classes(root, min(folders, default=root)))
    return folder


def _is_yolo(content: dict) -> bool:
    return 'names' in content and bool({'train', 'val'} & content.keys())


def _yolo_yaml(file: Path, content: dict) -> Folder:
    folder, base = Folder(file.parent, 'yolo', classes=tuple(yaml_classes(file))), file.parent
    for key in ('train', 'val', 'valid', 'test'):
        values = content.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            # below its path or beside it; Roboflow writes ../ before what is beside it
            names = value, value.removeprefix('../')
            above = base / str(content.get('path') or ''), base
            places = [(d / name).resolve() for d in above for name in names]
            place = next((place for place in places if place.exists()), None)
            if place is not None:
                folder.splits[_SPLITS[key]] += _yolo_pairs(_yolo_images(place))
            elif key == 'test':
                folder.notes.append(f'test: {value} does not exist')
            else:
                raise DataError(f'{key}: {value} does not exist', str(file), 'correct it')
    return folder


def _yolo_images(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    return [Path(os.path.normpath(place.parent / line)) for line in _lines(place) if line]


def _yolo_pairs(images: Iterable[Path]) -> list[Pair]:
    """Images with their label files, for which the last folder ``images`` becomes ``labels``."""
    return [(image, Path(_YOLO_IMAGES.sub('/labels/', str(image))).with_suffix('.txt'))
            for image in images]  # fmt: skip


def _class_folders(root: Path) -> Folder:
    folder = Folder(root, 'folders')
    tops = {d.parent: split_of(d.parent, root) for d in root.glob('*/*/') if d.is_dir()}
    tops = {top: split for top, split in tops.items() if split != ALL}
    tops = tops or {root: ALL}
    for top, split in sorted(tops.items()):
        for image in _below(top, IMAGE_SUFFIXES):
            name, *rest = image.relative_to(top).parts
            if split != ALL and rest or len(rest) == 1 and name.lower() not in _SPLITS:
                folder.splits[split].append((image, top / name))
    names = {place.name for pairs in folder.splits.values() for _, place in pairs}
    folder.classes = tuple(sorted(names))
    return folder if len(names) > 1 else Folder(root, 'folders')


def _read_parts(file: Path) -> Folder:
    """What a yaml says: YOLO's, or one that names the parts."""
    content, base = read_yaml(file), file.parent
    if 'format' not in content:
        if not _is_yolo(content):
            raise DataError('it names no data', str(file), 'write train, val and names')
        return _yolo_yaml(file, content)
    kind, classes = content['format'], content.get('classes') or ()
    if kind not in ('coco', 'voc', 'labelme', 'masks'):
        remedy = 'write coco, voc, labelme or masks'
        raise DataError(f'format: {kind!r} is unknown', str(file), remedy)
    folder = Folder(base, kind, classes=tuple(map(str, classes)))
    for key in [key for key in ('train', 'val', 'test') if key in content]:
        try:
            images, labels = (base / content[key][part] for part in ('images', 'annotations'))
        except (TypeError, KeyError) as error:
            raise DataError(f'{key} needs images and annotations', str(file)) from error
        if missing := [place for place in (images, labels) if not place.exists()]:
            raise DataError(f'{key}: there is no {missing[0]}', str(file), 'correct it')
        if kind == 'coco':
            folder.splits[key] = [(images, labels)]
        else:
            _pair(folder, images, labels, key)
    if not folder.splits:
        raise DataError('it names no images', str(file), 'write train, and val if there is one')
    return folder


def _pair(folder: Folder, images: Path, labels: Path, split: str = '') -> Folder:
    """Adds the annotation files below ``labels`` with their images; what has no partner is noted.

    They have the same name and are in the same folders, apart from folders named in ``_ROLES`` and
    one more folder, of any name, for the annotations. Images in folders of masks come last.
    """
    kind = folder.format
    files = _below(labels, dict(voc='.xml', labelme='.json').get(kind, IMAGE_SUFFIXES))
    if kind == 'labelme':
        files = [file for file in files if _json_kind(file) == 'labelme']
    elif kind == 'masks' and images == labels:
        files = [file for file in files if _is_mask(file, labels)] or _with_endings(files)
    others = set(_below(images, IMAGE_SUFFIXES)).difference(files)
    there: dict[tuple, list[Path]] = defaultdict(list)
    for image in sorted(others, key=lambda file: (_is_mask(file, images), file)):
        there[_key(image, images)].append(image)
    used: dict[Path, Path] = {}
    lonely = []
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        folders, name = _key(file, labels)
        places, names = (folders, folders[:-1]), (name, _MASK_ENDING.sub('', name))
        found = next(filter(None, map(there.get, product(places, names))), None)
        if kind == 'labelme' and not found:
            found = _labelme_image(file)
        if not found or (found[0] in used and _key(used[found[0]], labels)[0] != folders):
            lonely.append(file.name)
            continue
        image, *more = found
        remedy = 'remove one, or name the folders in a yaml and give that as --data'
        if more and not _is_mask(more[0], images):
            raise DataError(f'{file} may belong to two images', f'{image}, {more[0]}', remedy)
        if image in used:
            raise DataError(f'{image} has two annotation files', f'{used[image]}, {file}', remedy)
        used[image] = file
        folder.splits[split or split_of(file.parent, labels)].append((image, file))
    places = {image.parent for image in used}
    alone = sorted(image.name for image in others - used.keys() if image.parent in places)
    for what, names in (('annotation files without image', lonely),
                        ('images without annotation file', alone)):  # fmt: skip
        if names:
            folder.notes.append(f'{len(names):,} {what} in {labels}: {listed(names, 3)}')
    return folder


def _with_endings(files: list[Path]) -> list[Path]:
    """The masks among files that are named after the images beside them: ``a_mask.png``."""
    names = {file.with_suffix('') for file in files}
    plain = {file: file.parent / _MASK_ENDING.sub('', file.stem) for file in files}
    return [file for file in files if plain[file] in names - {file.with_suffix('')}]


def _labelme_image(file: Path) -> list[Path]:
    """The image that a labelme file names: relative to it, or beside it."""
    with suppress(ValueError, KeyError, AttributeError, TypeError):
        name = json.loads(file.read_text('utf-8-sig'))['imagePath'].replace('\\', '/')
        places = [file.parent / name, file.parent / Path(name).name]
        return [Path(os.path.normpath(place)) for place in places if place.is_file()][:1]
    return []


def _key(file: Path, root: Path) -> tuple[tuple[str, ...], str]:
    folders = file.parent.relative_to(root).parts
    return tuple(name for name in folders if name.lower() not in _ROLES), file.stem


def _is_mask(file: Path, root: Path) -> bool:
    names = [name.lower() for name in file.parent.relative_to(root).parts]
    return next((n in _MASKS for n in reversed(names) if n in _MASKS | _IMAGES), False)


def _below(folder: Path, suffixes: str | tuple[str, ...]) -> list[Path]:
    """The files below a folder, and behind its links; hidden ones are left out."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(here) in seen:  # a link that goes round
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        shown = (name for name in names if not name.startswith('.'))
        found += [Path(here, name) for name in shown if name.lower().endswith(suffixes)]
    return sorted(found)
