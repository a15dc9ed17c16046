"""Reads COCO annotation and result files; the first fault is one clear line."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import listed
from ..data.errors import DataError
from ..data.sets.coco import check_format, read_json
from ..data.sets.masks import read_mask

# the lists of an annotation file, and what each of their entries needs
_BOXES = {
    'images': ('id',),
    'categories': ('id', 'name'),
    'annotations': ('image_id', 'category_id', 'bbox'),
}
_PARTS = {'bbox': _BOXES, 'segm': {**_BOXES, 'images': ('id', 'height', 'width')}}


def read_files(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict], list[str], int]:
    """Annotations to score against, results, notes on what is odd, and the file's number of images.

    A results file does not list images without detections, so these look like images that were not
    run. Raises what :func:`read_annotations` and :func:`read_results` do.
    """
    annotations = read_annotations(args.annotations, args.metric)
    results = read_results(args.results, annotations, args.metric)
    found, notes = {result['image_id'] for result in results}, []
    images = {image['id'] for image in annotations['images']}
    without = f'{len(images - found):,} of {len(images):,} images have no detection'
    if found and found < images and args.images_with_results:
        notes.append(f'{without} and are left out')
        annotations = annotations | {
            'images': [image for image in annotations['images'] if image['id'] in found],
            'annotations': [a for a in annotations['annotations'] if a['image_id'] in found],
        }
    elif found < images and not args.images_with_results:
        notes.append(f'{without}. If they were not run, pass --images-with-results')
    same = ('image_id', 'category_id', 'score', 'bbox' if args.metric == 'bbox' else 'segmentation')
    if again := len(results) - len({json.dumps([r[key] for key in same]) for r in results}):
        notes.append(f'{again:,} of {len(results):,} detections are repeated, and count as false')
    if stray := sum(a['image_id'] not in images for a in annotations['annotations']):
        notes.append(f'{stray:,} annotations do not count: the file does not list their images')
    if any(a.get('area') is None for a in annotations['annotations']):
        shape = 'box' if args.metric == 'bbox' else 'mask'
        notes.append(f'annotations without area: figures by size take that of the {shape}')
    known = {category['id'] for category in annotations['categories']}
    if stray := sum(a['category_id'] not in known for a in annotations['annotations']):
        notes.append(f'{stray:,} annotations do not count: the file has no such category')
    scores = [result['score'] for result in results]
    if scores and not 0 <= min(scores) <= max(scores) <= 1:
        notes.append(f'scores are from {min(scores):g} to {max(scores):g}, not from 0 to 1')
    sizes = {i['id']: (i.get('width'), i.get('height')) for i in annotations['images']}
    known = {key for key, size in sizes.items() if all(type(side) is int for side in size)}
    for file, entries in (('annotations', annotations['annotations']), ('results', results)):
        boxed = [e for e in entries if _is_box(e.get('bbox')) and e['image_id'] in known]
        boxes = np.array([(*e['bbox'], *sizes[e['image_id']]) for e in boxed], float)
        boxes = boxes.reshape(-1, 6)
        notes += [f'{file}: {finding.what}' for finding in check_format(boxes, '')]
        if len(boxes) > 4 and boxes[:, :4].max() <= 1:
            notes.append(f'{file}: all boxes are within 0 to 1, but COCO has pixels')
        if flat := (boxes[:, 2:4] < 0).any(1).sum():
            notes.append(f'{file}: {flat:,} boxes have a negative width or height')
    if any('neg_category_ids' in image for image in annotations['images']):
        notes.append("these are annotations of LVIS, scored by COCO's rules: test.py has LVIS's")
    return annotations, results, notes, len(images)


def read_annotations(path: str | Path, kind: str = 'bbox') -> dict[str, Any]:
    """Reads an annotation file; DataError if detections cannot be scored against it.

    With kind ``'segm'`` every object needs a mask.
    """
    file = f'annotations {path}'
    content = read_json(path, file)
    for part, keys in _PARTS[kind].items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f'no list {part!r}, so it is no COCO annotation file', file)
        optional = ('area', 'iscrowd') if part == 'annotations' else ()
        _check_entries(entries, keys, f'{file}: {part}', optional)
        ids = [] if part == 'annotations' else [entry['id'] for entry in entries]
        if len({*map(type, ids)}) > 1:
            raise DataError(f'id of {part} are numbers and texts', file, 'use one of them')
        if len({*ids}) < len(ids):
            again = Counter(ids).most_common(1)[0][0]
            raise DataError(f'{part} have the id {again!r} more than once', file, 'renumber them')
        if part == 'categories' and any(type(entry['id']) is str for entry in entries):
            raise DataError('id of categories are texts', file, 'number them')
    if not content['images']:
        raise DataError('it has no image', file)
    content['categories'] = _distinct(content, file)
    _check_masks(content['annotations'], content, kind, f'{file}: annotations')
    return content


def _distinct(content: dict[str, Any], file: str) -> list[dict]:
    """The categories but for unused ones of a name that another has, as Roboflow's parent."""
    used = {annotation['category_id'] for annotation in content['annotations']}
    kept: dict[str, dict] = {}
    for category in content['categories']:
        other = kept.setdefault(category['name'], category)
        if {other['id'], category['id']} <= used and other is not category:
            what = f'categories have the name {category["name"]!r} more than once'
            raise DataError(what, file, 'make them different')
        if category['id'] in used:
            kept[category['name']] = category
    return list(kept.values())


def read_results(path: str | Path, annotations: Mapping[str, Any], kind: str) -> list[dict]:
    """Reads a COCO results file; DataError if a detection cannot be scored."""
    file = f'results {path}'
    results = read_json(path, file)
    if not isinstance(results, list):
        raise DataError(f'must be a list of detections, but is {results!r:.60}', file)
    keys = ('image_id', 'category_id', 'score', *(['bbox'] if kind == 'bbox' else []))
    _check_entries(results, keys, f'{file}: entries')
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in annotations[part]}
        unknown = Counter(result[key] for result in results if result[key] not in known)
        if unknown:
            raise DataError(
                f'{unknown.total()} detections have a {key} that the annotations do not have: '
                f'{listed(map(repr, unknown))}',
                file,
            )
    _check_masks(results, annotations, kind, f'{file}: entries')
    return results


def _check_entries(
    entries: Sequence[Any], keys: Sequence[str], where: str, optional: Sequence[str] = ()
) -> None:
    """Raises DataError unless entries are dicts that have ``keys``, with values as in _RULES."""
    for i, entry in enumerate(entries):
        place = f'{where}[{i}]'
        if not isinstance(entry, dict):
            raise DataError(f'must be a dict, but is {entry!r:.60}', place)
        if missing := [key for key in keys if key not in entry]:
            raise DataError(f'it has no {missing[0]!r}', place)
        for key in (*keys, *optional):
            rule, holds = _RULES[key]
            if not holds(entry.get(key)):
                raise DataError(f'{key} must be {rule}, but is {entry[key]!r:.80}', place)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))


_ID = ('a whole number, without .0, or a text', lambda value: type(value) in (int, str))
# key -> what its values must be
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(('id', 'image_id', 'category_id'), _ID),
    'name': ('a text', lambda value: isinstance(value, str)),
    **dict.fromkeys(
        ('height', 'width'), ('an integer above 0', lambda v: type(v) is int and v > 0)
    ),
    'bbox': ('4 finite numbers', _is_box),
    'score': ('a finite number', _is_finite),
    'area': ('a finite number', lambda value: value is None or _is_finite(value)),
    'iscrowd': ('0 or 1', lambda value: value in (None, 0, 1)),
}


def _check_masks(entries: Sequence[dict], annotations: Mapping, kind: str, where: str) -> None:
    images = {image['id']: image for image in annotations['images']}
    for i, entry in enumerate(entries if kind == 'segm' else ()):
        if entry['image_id'] not in images:
            continue
        image, mask = images[entry['image_id']], entry.get('segmentation')
        if mask is None:
            raise DataError('it has no segmentation', f'{where}[{i}]', 'score with --metric bbox')
        try:
            _, faults = read_mask(mask, image['width'], image['height'])
        except DataError as error:
            faults = error.what
        if faults:
            raise DataError(f'the mask cannot be used: {faults}', f'{where}[{i}]')
