"""Reads COCO annotation and result files; the first fault is one clear line."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checks import listed
from ..data.errors import DataError
from ..data.sets.masks import FARTHEST, read_rle

# the lists of an annotation file, and what each of their entries needs
_PARTS = {
    'images': ('id',),
    'categories': ('id', 'name'),
    'annotations': ('image_id', 'category_id', 'bbox'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`read_files` reads."""
    parser.add_argument('results', help='COCO results json, such as test.py --out writes')
    parser.add_argument('annotations', help='COCO annotation json')
    parser.add_argument('--metric', choices=('bbox', 'segm'), default='bbox')
    parser.add_argument(
        '--images-with-results',
        action='store_true',
        help='score only images that have a detection, for results from some of the images',
    )


class Scored(NamedTuple):
    """What a scoring tool scores.

    ``annotations`` are ``whole``, the annotation file, or ``part``, its images with a detection.
    The first of the ``notes`` for the user is about images without detections, or empty.
    """

    annotations: dict[str, Any]
    results: list[dict]
    whole: dict[str, Any]
    part: dict[str, Any]
    notes: list[str]


def read_files(args: argparse.Namespace) -> Scored:
    """Reads the files named by the arguments of :func:`add_arguments`.

    A results file does not list images without detections, so these look like images that were not
    run.

    Raises:
        FileNotFoundError, DataError: as in :func:`read_annotations` and :func:`read_results`.
    """
    annotations = read_annotations(args.annotations, args.metric)
    results = read_results(args.results, annotations, args.metric)
    found = {result['image_id'] for result in results}
    part = {
        **annotations,
        'images': [image for image in annotations['images'] if image['id'] in found],
        'annotations': [a for a in annotations['annotations'] if a['image_id'] in found],
    }
    notes = ['', *_oddities(annotations, results)]
    there, images = len(part['images']), len(annotations['images'])
    if there < images and args.images_with_results:
        notes[0] = f'only the {there:,} of {images:,} images with a detection are scored'
    elif there < images:
        notes[0] = (
            f'{images - there:,} of {images:,} images have no detection. If they were not run, '
            'pass --images-with-results'
        )
    scored = part if args.images_with_results and there else annotations
    return Scored(scored, results, annotations, part, notes)


def read_annotations(path: str | Path, kind: str = 'bbox') -> dict[str, Any]:
    """Reads an annotation file that detections can be scored against.

    Args:
        path: The file.
        kind: ``'bbox'``, or ``'segm'``, which needs a mask for every object too.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is not JSON, not an annotation file, or an entry makes no sense.
    """
    file = f'annotations {path}'
    content = _read_json(path, file)
    for part, keys in _PARTS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f'no list {part!r}, so it is no COCO annotation file', file)
        for i, entry in enumerate(entries):
            _check_entry(entry, keys, f'{file}: {part}[{i}]')
        if len({type(entry[keys[0]]) for entry in entries}) > 1:
            raise DataError(f'{keys[0]} of {part} are numbers and texts', file, 'use one of them')
    if not content['images']:
        raise DataError('it has no image', file)
    images = {image['id']: image for image in content['images']}
    for i, entry in enumerate(content['annotations']):
        where = f'{file}: annotations[{i}]'
        if entry.get('area') is not None and not _finite(entry['area']):
            raise DataError(f'area must be a finite number, but is {entry["area"]!r:.60}', where)
        if entry.get('iscrowd') not in (None, 0, 1):
            raise DataError(f'iscrowd must be 0 or 1, but is {entry["iscrowd"]!r:.60}', where)
        if kind == 'segm' and entry['image_id'] in images:
            _check_mask(entry.get('segmentation'), images[entry['image_id']], where)
    return content


def read_results(path: str | Path, annotations: Mapping[str, Any], kind: str) -> list[dict]:
    """Reads the detections of a COCO results file.

    Args:
        path: The file: a JSON list of ``image_id, category_id, score`` and ``bbox`` (x, y, width,
            height) or ``segmentation``.
        annotations: From :func:`read_annotations`.
        kind: ``'bbox'`` or ``'segm'``.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is not JSON, not a list of detections, or one of them cannot be scored.
    """
    file = f'results {path}'
    results = _read_json(path, file)
    if not isinstance(results, list):
        keys = f' with keys {list(results)[:5]}' if isinstance(results, dict) else ''
        raise DataError(
            f'must be a list of detections, but is a {type(results).__name__}{keys}', file
        )
    from .coco import FIELDS  # late: it takes longer to import than --help may

    for i, result in enumerate(results):
        keys = ('image_id', 'category_id', 'score', FIELDS[kind])
        _check_entry(result, keys, f'{file}: entry {i}')
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in annotations[part]}
        unknown = Counter(result[key] for result in results if result[key] not in known)
        if unknown:
            raise DataError(
                f'{unknown.total()} detections have a {key} that the annotations do not have: '
                f'{listed(map(repr, unknown))}',
                file,
            )
    if kind == 'segm':
        images = {image['id']: image for image in annotations['images']}
        for i, result in enumerate(results):
            image = images[result['image_id']]
            _check_mask(result['segmentation'], image, f'{file}: entry {i}')
    return results


def _oddities(annotations: Mapping[str, Any], results: Sequence[Mapping]) -> Iterator[str]:
    keys = {
        (r['image_id'], r['category_id'], r['score'], repr(r.get('segmentation') or r.get('bbox')))
        for r in results
    }
    if again := len(results) - len(keys):
        yield f'{again:,} of {len(results):,} detections are repeated, and count as false'
    images = {image['id'] for image in annotations['images']}
    if stray := sum(a['image_id'] not in images for a in annotations['annotations']):
        yield f'{stray:,} annotations do not count: the file does not list their images'


def _read_json(path: str | Path, file: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f'{file} does not exist')
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise DataError(
            f'it is not valid JSON ({error})', file, 'write or copy it again'
        ) from error


def _check_entry(entry: Any, keys: Iterable[str], where: str) -> None:
    """Raises DataError unless an entry is a dict whose ``keys`` have values of the right kind."""
    if not isinstance(entry, dict):
        raise DataError(f'must be a dict, but is {entry!r:.60}', where)
    for key in keys:
        if key not in entry:
            remedy = 'score with --metric bbox' if key == 'segmentation' else ''
            raise DataError(f'it has no {key!r}', where, remedy)
        value, rule = entry[key], ''
        if key.endswith('id') and type(value) not in (int, str):
            rule = 'a number'
        elif key == 'name' and not isinstance(value, str):
            rule = 'a text'
        elif key == 'score' and not _finite(value):
            rule = 'a finite number'
        elif key == 'bbox' and not (
            isinstance(value, list) and len(value) == 4 and all(map(_finite, value))
        ):
            rule = '4 finite numbers'
        if rule:
            raise DataError(f'{key} must be {rule}, but is {value!r:.80}', where)


def _finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer with hundreds of digits
        return False


def _check_mask(segmentation: Any, image: Mapping[str, Any], where: str) -> None:
    size = [image.get('height'), image.get('width')]
    if not all(_finite(side) and side > 0 for side in size):
        raise DataError(f'image {image["id"]} has no height and width', where)
    if segmentation is None:
        raise DataError('it has no segmentation', where, 'score with --metric bbox')
    if segmentation and isinstance(segmentation, list):
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(map(_finite, polygon))
            if not numbers or len(polygon) < 6 or len(polygon) % 2:
                raise DataError(f'a polygon must be 3 or more x, y: {polygon!r:.60}', where)
            if max(map(abs, polygon)) > FARTHEST * sum(size):  # drawing it would take the memory
                raise DataError(f'a polygon is far outside the image: {polygon!r:.60}', where)
        return
    if not isinstance(segmentation, dict) or 'counts' not in segmentation:
        raise DataError(
            f'segmentation must be polygons or a run-length encoding, but is {segmentation!r:.60}',
            where,
        )
    try:
        read_rle(segmentation, size[1], size[0])
    except DataError as error:
        raise DataError(error.what, where) from error
