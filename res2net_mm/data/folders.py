"""Recognises folders of annotated images: the format, and by split the images and annotations."""

from __future__ import annotations

import json
import os
import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, product
from pathlib import Path

from ..checks import listed
from .convert.formats import (
    class_lines,
    keypoint_numbers,
    read_yaml,
    text_lines,
    yaml_classes,
    yolo_classes,
)
from .convert.writer import image_files
from .errors import DataError
from .sets.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES

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
_ROLES = _IMAGES | _MASKS | {*'xml xmls json jsons bbox bboxes photos pictures data set'.split()}
_MASK_ENDING = re.compile(r'[ _.-]+(mask|masks|gt|label|labels|labelids|seg|segmentation|l)$', re.I)
_HEAD = 1 << 16  # bytes at either end of a json that show what it is

Pair = tuple[Path, Path]  # an image and its annotation: a file, or for class folders its folder


@dataclass
class Folder:
    """What was recognised."""

    root: Path
    format: str  # a key of TITLES
    # train, val, test or all -> pairs; of COCO, one pair: the folder of the images and the json
    splits: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    classes: tuple[str, ...] = ()  # if the folder lists them
    keypoints: int = 0  # numbers after each box of YOLO
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
    path, known, notes = Path(path).resolve(), FORMATS[task], []
    if path.is_dir():
        found = _nearest(path, [form] if form else known)
        inner = [entry for entry in path.iterdir() if entry.is_dir()]
        asked = 'yolo' in known and form in (None, 'yolo')
        notes = _yolo(path).notes if asked and not found else []
        if not found and len(inner) == 1 and not notes:  # as archives unpack
            return recognise(inner[0], task, form)
        with suppress(DataError):  # what is wrong there is not asked for
            found = found or _nearest(path, [kind for kind in TITLES if kind not in known])
    elif path.is_file() and path.suffix in ('.yaml', '.yml'):
        found = [_read_parts(path)]
    else:
        raise DataError('there is no such folder, and no such yaml file', str(path))
    if not found and notes:
        raise DataError(' '.join(notes), str(path), 'put the labels there')
    if not found:
        raise DataError(
            f'it holds no annotations in the format of {" or ".join(known.values())}',
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
    if unread := _below(found[0].root, (*UNREAD_SUFFIXES, '.gif')):
        what = f'not used: {listed([file.name for file in unread], 3)}; save them as .jpg'
        found[0].notes.append(what)
    return found[0]


def _nearest(root: Path, kinds: Iterable[str]) -> list[Folder]:
    """What is there of these formats, as far as no other has annotations nearer to ``root``."""
    finders = {
        'coco': _coco,
        'voc': lambda root: _by_lists(_pair(Folder(root, 'voc'), root, root), 'ImageSets/Main'),
        'yolo': _yolo,
        'labelme': lambda root: _pair(Folder(root, 'labelme'), root, root),
        'masks': _masks,
        'folders': _class_folders,
    }
    found = [finders[kind](root) for kind in kinds]
    files = [[file for pairs in f.splits.values() for _, file in pairs] for f in found]
    depths = [min((len(file.parts) for file in some), default=1000) for some in files]
    least = min(depths)
    return [f for f, depth in zip(found, depths, strict=True) if depth == least < 1000]


def split_of(path: Path, root: Path) -> str:
    """The split in a path: ``'instances_val2017.json'``, ``'valid/labels'``; ``ALL`` if none.

    Of several words the first counts: ``train_val`` is for training. ``dev-kit`` is no split.
    """
    for part in reversed(path.relative_to(root).parts):
        words = re.findall('[a-z]+', part.lower())
        for i, word in enumerate(words):
            alone = part.endswith('.json') or _ROLES.issuperset(words[i + 1 :])
            if word in _SPLITS and (word != 'dev' or alone):
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
    """The folder below ``root`` that has most images of a COCO file, of several its split's.

    Raises:
        DataError: None has any, or two folders may be meant.
    """
    texts = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', file.read_bytes())
    names = [json.loads(text[1]) for text in islice(texts, 50)]
    folders = [file.parent, root, *sorted(root.glob('*/')), *sorted(root.glob('*/*/'))]
    hits = {folder: sum((folder / name).is_file() for name in names) for folder in folders}
    usual = _IMAGES | _SPLITS.keys()  # rather than annotated/ and old_train/

    def rank(folder: Path) -> tuple[int, bool, bool, bool]:
        plain = re.sub(r'\d+$', '', folder.name.lower()) in usual
        return hits[folder], split_of(folder, root) == split, folder == file.parent, plain

    def sizes(folder: Path) -> list[int]:
        return [(folder / name).stat().st_size for name in names if (folder / name).is_file()]

    best = max(folders, key=rank)
    if not hits[best]:
        raise DataError(
            f'none of its images is found (the first is {listed(names, 1) or "not named"})',
            str(file),
            'name the folder of the images in a yaml, and give that as --data',
        )
    equal = [folder for folder in folders if rank(folder) == rank(best)]
    if any(sizes(folder) != sizes(best) for folder in equal):
        what = f'its images are in {" and in ".join(sorted(map(str, equal)))}'
        raise DataError(what, str(file), 'name one in a yaml, and give that as --data')
    return best


def _json_kind(file: Path) -> str | None:
    with file.open('rb') as stream:
        ends = stream.read(_HEAD)
        stream.seek(max(0, file.stat().st_size - _HEAD))
        ends += stream.read()
    return _kind_of(ends) or _kind_of(file.read_bytes())  # its keys may be in the middle


def _kind_of(text: bytes) -> str | None:
    if not text.removeprefix(BOM_UTF8).lstrip().startswith(b'{'):
        return None
    if b'"shapes"' in text and b'"imagePath"' in text:
        return 'labelme'
    kinds = b'"annotations"', b'"categories"', b'"images"'
    captions = re.search(rb'"caption"\s*:', text)
    return 'coco' if sum(key in text for key in kinds) > 1 and not captions else None


def _by_lists(folder: Folder, name: str) -> Folder:
    """Splits a VOC set as its lists of images say, if it has some."""
    places = [place for place in folder.root.rglob(name) if place.is_dir()]
    if len(places) > 1:
        folder.notes.append(f'{len(places)} folders {name} are there: their lists are not used')
    if len(places) != 1:
        return folder
    lists = {_SPLITS.get(f.stem.lower(), f.stem.lower()): f for f in places[0].glob('*.txt')}
    if not {'train', 'val'} <= lists.keys():
        train = lists.pop('train', None)
        lists[ALL] = lists.get('trainval', train)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for pair in (pair for part in folder.splits.values() for pair in part):
        pairs[pair[0].stem].append(pair)
    splits: dict[str, list[Pair]] = {}
    others: set[str] = set()  # the names in the lists before
    for split in ('train', 'val', 'test', ALL):
        if (file := lists.get(split)) is None:
            if split == ALL and splits and 'train' not in splits:  # what no list has
                left = (some for stem, some in pairs.items() if stem not in others)
                splits[ALL] = [*chain.from_iterable(left)]
            continue
        stems = dict.fromkeys(text_lines(file))
        if twice := [stem for stem in stems if len(pairs.get(stem, ())) > 1]:
            found = ' and '.join(str(image) for image, _ in pairs[twice[0]])
            what = f'its lists name {twice[0]}, which is {found}'
            raise DataError(what, str(places[0]), 'rename one')
        new = [stem for stem in stems if stem in pairs and not (split == ALL and stem in others)]
        splits[split] = [pairs[stem][0] for stem in new]
        others |= stems.keys()
        if missing := [stem for stem in stems if stem not in pairs]:
            note = f'{len(missing):,} names of {file.name} have no image with an annotation file'
            folder.notes.append(f'{note}: {listed(missing, 3)}')
    folder.splits = {s: found for s, found in splits.items() if found} or folder.splits
    return folder


def _masks(root: Path) -> Folder:
    folder = _pair(Folder(root, 'masks'), root, root)
    for name in ('class_names.txt', 'labels.txt', 'classes.txt'):
        if (root / name).is_file():
            folder.classes = tuple(class_lines(root / name))
    return _by_lists(folder, 'ImageSets/Segmentation')


def _yolo(root: Path) -> Folder:
    yamls = [file for file in sorted(root.glob('*.y*ml')) if _is_yolo(file)]
    if len(yamls) > 1:
        what = f'it has {len(yamls)} data yaml files'
        raise DataError(what, str(root), 'give the yaml itself as --data')
    if yamls:
        return _yolo_yaml(yamls[0], read_yaml(yamls[0]))
    folder = Folder(root, 'yolo')
    pairs = _yolo_pairs(_below(root, IMAGE_SUFFIXES))
    folders = {file.parent for _, file in pairs if file.is_file()}
    folders = {d for d in folders if 'labels' in map(str.lower, d.relative_to(root).parts)}
    for image, file in pairs:  # images without objects may be in folders of their own
        if folders.intersection(file.parents):
            folder.splits[split_of(file.parent, root)].append((image, file))
    with suppress(DataError):  # they can be given
        folder.classes = tuple(yolo_classes(root, min(folders, default=root)))
    return _note_labels(folder)


def _is_yolo(file: Path) -> bool:
    try:
        content = read_yaml(file)
    except DataError:  # another program's, with tags of its own
        if file.stem == 'data':
            raise
        return False
    return 'names' in content and bool({'train', 'val'} & content.keys())


def _yolo_yaml(file: Path, content: dict) -> Folder:
    folder, base = Folder(file.parent, 'yolo', classes=tuple(yaml_classes(file))), file.parent
    folder.keypoints = keypoint_numbers(file)
    for key in [key for key in content if str(key).lower() in _SPLITS]:
        split, values = _SPLITS[key.lower()], content[key] or []
        values = [values] if isinstance(values, str) else values
        named = isinstance(values, list) and all(isinstance(value, str) for value in values)
        if not named and key not in ('train', 'val', 'test'):
            continue  # a setting of another program
        if not named:
            raise DataError(f'{key}: {values!r} is no path', str(file), 'correct it')
        for value in values:
            # below its path or beside it; Roboflow writes ../ before what is beside it
            names = value, value.removeprefix('../')
            above = base / str(content.get('path') or ''), base
            # a link keeps its name: its own labels may be beside it
            places = [Path(os.path.normpath(d / name)) for d in above for name in names]
            place = next((place for place in places if place.exists()), None)
            if place is not None:
                pairs = _yolo_pairs(_yolo_images(place))
                if not any(labels.is_file() for _, labels in pairs):  # they may be behind the link
                    pairs = _yolo_pairs(_yolo_images(place.resolve()))
                folder.splits[split] += pairs
            elif split == 'test':
                folder.notes.append(f'test: {value} does not exist')
            else:
                raise DataError(f'{key}: {value} does not exist', str(file), 'correct it')
    return _note_labels(folder)


def _yolo_images(place: Path) -> list[Path]:
    if place.is_dir():
        return image_files(place)
    return [Path(os.path.normpath(place.parent / line)) for line in text_lines(place)]


def _yolo_pairs(images: Iterable[Path]) -> list[Pair]:
    """Images with their label files."""
    return [(image, _label_file(image)) for image in images]


def _label_file(image: Path) -> Path:
    """The label file of an image: the last folder ``images`` becomes ``labels``, else beside it."""
    parts, places = image.parts, []
    for i in reversed(range(len(parts) - 1)):
        if parts[i].lower() == 'images':
            names = 'labels' if parts[i].islower() else 'Labels', 'labels', 'Labels', 'LABELS'
            places = [Path(*parts[:i], name, *parts[i + 1 :]) for name in dict.fromkeys(names)]
            break
    files = [place.with_suffix('.txt') for place in (*places, image)]
    return next((file for file in files if file.is_file()), files[0])


def _note_labels(folder: Folder) -> Folder:
    """Notes images and label files of YOLO without the other."""
    files = {file for pairs in folder.splits.values() for _, file in pairs}
    there = {file for place in {f.parent for f in files} for file in place.glob('*.txt')}
    if files and not files & there:
        what = f'none of its {len(files):,} images has a label file, such as {min(files)}'
        return Folder(folder.root, 'yolo', notes=[what])
    if alone := sorted(files - there):
        note = 'images without label file count as images without objects'
        folder.notes.append(f'{len(alone):,} {note}: {listed((f.stem for f in alone), 3)}')
    if lonely := sorted(file.name for file in there - files if file.name != 'classes.txt'):
        note = 'label files without image in a split'
        folder.notes.append(f'{len(lonely):,} {note}: {listed(lonely, 3)}')
    return folder


def _class_folders(root: Path) -> Folder:
    folder = Folder(root, 'folders')
    tops = {d.parent: split_of(d.parent, root) for d in root.glob('*/*/') if d.is_dir()}
    tops = {_innermost(top): split for top, split in tops.items() if split != ALL}
    tops = tops or {root: ALL}
    for top, split in sorted(tops.items()):
        places = [(image, image.relative_to(top).parts) for image in _below(top, IMAGE_SUFFIXES)]
        named = {parts[0] for _, parts in places if len(parts) == 2 or split != ALL}
        words = {name.lower() for name in named}
        pairs = words & _IMAGES and words & _MASKS  # 'mask' beside 'no_mask' is a class
        roles = _SPLITS.keys() | _IMAGES | (_MASKS if pairs else set())
        others = {name for name in named if split == ALL and name.lower() in roles}
        named -= others
        others = sorted(others - _SPLITS.keys() if named else ())
        folder.notes += [f'not used as classes: {listed(others)}'] if others else []
        folder.splits[split] += [(i, top / p[0]) for i, p in places if len(p) > 1 and p[0] in named]
    names = {split: {p.name for _, p in pairs} for split, pairs in folder.splits.items()}
    known = names.get('train') or names.get(ALL) or set()
    if strange := sorted(names.get('val', set()) - known):
        what = f'its class folders for validation are not all for training: {listed(strange)}'
        raise DataError(what, str(root), 'name the folders of a class alike')
    if strange := sorted(names.get('test', set()) - known):
        folder.notes.append(f'test: {listed(strange)} is no class of train: not used')
        folder.splits['test'] = [p for p in folder.splits['test'] if p[1].name in known]
    folder.classes = tuple(sorted(known))
    return folder if len(known) > 1 else Folder(root, 'folders')


def _innermost(top: Path) -> Path:
    """The folder of the classes: ``seg_train/seg_train`` as well as ``train``."""
    inner = [place for place in top.iterdir() if place.is_dir()]
    again = len(inner) == 1 and split_of(inner[0], top) == split_of(top, top.parent)
    return _innermost(inner[0]) if again else top


def _read_parts(file: Path) -> Folder:
    """What a yaml says: YOLO's, or one that names the parts."""
    content, base = read_yaml(file), file.parent
    if 'format' not in content:
        if not _is_yolo(file):
            raise DataError('it names no data', str(file), 'write train, val and names')
        folder = _yolo_yaml(file, content)
        if not folder.splits:
            raise DataError(' '.join(folder.notes), str(file), 'put the labels there')
        return folder
    kind, classes = content['format'], content.get('classes') or ()
    if kind not in ('coco', 'voc', 'labelme', 'masks'):
        remedy = 'write coco, voc, labelme or masks'
        raise DataError(f'format: {kind!r} is unknown', str(file), remedy)
    if not isinstance(classes, list | tuple):
        raise DataError(f'classes: {classes!r} is no list', str(file), 'write classes: [cat, dog]')
    folder = Folder(base, kind, classes=tuple(map(str, classes)))
    for key in [key for key in content if str(key).lower() in _SPLITS]:
        try:
            images, labels = (
                Path(os.path.normpath(base / content[key][part]))
                for part in ('images', 'annotations')
            )
        except (TypeError, KeyError) as error:
            raise DataError(f'{key} needs images and annotations', str(file)) from error
        if missing := [place for place in (images, labels) if not place.exists()]:
            raise DataError(f'{key}: there is no {missing[0]}', str(file), 'correct it')
        split = _SPLITS[key.lower()]
        if kind != 'coco':
            _pair(folder, images, labels, split)
        elif labels.is_file():
            folder.splits[split] = [(images, labels)]
        else:
            raise DataError(f'{key}: {labels} is no file', str(file), 'name the json of COCO')
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
    return [f for f in files if plain[f] in names and plain[f] != f.with_suffix('')]


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
