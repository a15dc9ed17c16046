"""Reading COCO annotation and result files: one clear line where something is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.sets.masks import FARTHEST, mask_runs


def read_annotations(path: str | Path, kind: str = 'bbox') -> dict[str, Any]:
    """The content of an annotation file that detections can be scored against.

    Args:
        path: The file.
        kind: ``'bbox'``, or ``'segm'``, for which every object needs a mask too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not json, not an annotation file, or an entry makes no sense.
    """
    content = _read_json(path, 'annotations')
    missing = [
        key
        for key in ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(f'annotations {path} are no COCO annotations: no list {missing[0]!r}')
    if not content['images']:
        raise ValueError(f'annotations {path} have no image')
    wanted = {'images': ('id',), 'categories': ('id', 'name')}
    wanted['annotations'] = ('image_id', 'category_id', 'bbox')
    for part, keys in wanted.items():
        kinds = set()
        for i, entry in enumerate(content[part]):
            where = f'annotations {path}: {part}[{i}]'
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking:
                raise ValueError(f'{where} has no {lacking[0]!r}')
            for key in (key for key in keys if key.endswith('id')):
                if type(entry[key]) not in (int, str):
                    raise ValueError(f'{where}: {key} must be a number, but is {entry[key]!r:.60}')
            kinds.add(type(entry[keys[0]]))
        if len(kinds) > 1:
            raise ValueError(f'annotations {path}: {keys[0]} of {part} are numbers and texts')
    for i, category in enumerate(content['categories']):
        if not isinstance(category['name'], str):
            raise ValueError(
                f'annotations {path}: the name of categories[{i}] is {category["name"]!r:.60}'
            )
    images = {image['id']: image for image in content['images']}
    for i, entry in enumerate(content['annotations']):
        _check_object(f'annotations {path}: annotations[{i}]', entry, kind, images)
    return content


def read_results(path: str | Path, annotations: Mapping[str, Any], kind: str) -> list[dict]:
    """The detections of a COCO results file, each fit to be scored.

    Args:
        path: The file: a json list of ``image_id, category_id, score`` and ``bbox`` (x, y, width,
            height) or ``segmentation``.
        annotations: From :func:`read_annotations`.
        kind: ``'bbox'`` or ``'segm'``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not json, no list of detections, or one of them does not fit.
    """
    results = _read_json(path, 'results')
    if not isinstance(results, list):
        raise ValueError(
            f'results {path} must be a list of detections, but are {_json_type(results)}'
        )
    field = 'bbox' if kind == 'bbox' else 'segmentation'
    lacking: Counter[str] = Counter()
    for i, result in enumerate(results):
        if not isinstance(result, dict):
            raise ValueError(f'results {path}: entry {i} must be a dict, but is {result!r:.60}')
        lacking.update(
            key for key in ('image_id', 'category_id', 'score', field) if key not in result
        )
    if lacking:
        key, count = lacking.most_common(1)[0]
        hint = '; score them with --metric bbox' if key == 'segmentation' else ''
        raise ValueError(f'results {path}: {count} of {len(results)} have no {key!r}{hint}')
    for key, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in annotations[part]}
        _refuse_unknown(path, key, (result[key] for result in results), known)
    images = {image['id']: image for image in annotations['images']}
    for i, result in enumerate(results):
        if not _finite(result['score']):
            raise ValueError(
                f'results {path}: the score of entry {i} is {result["score"]}, not a finite number'
            )
        where = f'results {path}: entry {i}'
        if kind == 'bbox':
            _check_box(where, result['bbox'])
        else:
            _check_mask(where, result['segmentation'], images[result['image_id']])
    return results


def images_with_results(
    annotations: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The annotations of those images that have a detection; neither argument is changed.

    A results file does not list images without detections, so these cannot be told from images
    that were not run.
    """
    found = {result['image_id'] for result in results}
    return {
        **annotations,
        'images': [image for image in annotations['images'] if image['id'] in found],
        'annotations': [a for a in annotations['annotations'] if a['image_id'] in found],
    }


def describe_images(part: Mapping[str, Any], annotations: Mapping[str, Any], only: bool) -> str:
    """A line on the images with detections; empty if all have one.

    Args:
        part: From :func:`images_with_results`.
        annotations: Content of the annotation file.
        only: Whether these are the only images that count.
    """
    there, images = len(part['images']), len(annotations['images'])
    if there == images:
        return ''
    if only:
        return f'only the {there:,} of {images:,} images that have a detection count'
    return (
        f'{images - there:,} of {images:,} images have no detection. If they were not run, pass '
        f'--images-with-results'
    )


def describe_oddities(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Lines on detections that are there twice, and on annotations that do not count."""
    lines = []
    keys = ((r['image_id'], r['category_id'], r['score'], repr(_shape(r))) for r in results)
    again = len(results) - len(set(keys))
    if again:
        lines.append(
            f'{again:,} of {len(results):,} detections are there a second time, and count as false'
        )
    images = {image['id'] for image in annotations['images']}
    stray = sum(a['image_id'] not in images for a in annotations['annotations'])
    if stray:
        lines.append(f'{stray:,} annotations do not count: the file does not list their images')
    return lines


def _shape(result: Mapping[str, Any]) -> Any:
    return result.get('segmentation') or result.get('bbox')


def _read_json(path: str | Path, what: str) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{what} {path} does not exist')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except RecursionError as error:
        raise ValueError(f'{what} {path} is not COCO json: it is nested too deep') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{what} {path} is not json: it is not text') from error
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated')
        why = 'it is empty' if not error.doc.strip() else 'it is cut off' if cut else error.msg
        raise ValueError(
            f'{what} {path} is not json: {why} (line {error.lineno} column {error.colno})'
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f'{what} {path} is not json: {error}') from error


def _json_type(value: Any) -> str:
    return f'a dict with keys {list(value)[:5]}' if isinstance(value, dict) else f'{value!r:.60}'


def _refuse_unknown(path: str | Path, key: str, values: Iterable[Any], known: set) -> None:
    unknown: Counter[Any] = Counter()
    for value in values:
        try:
            if value not in known:
                unknown[value] += 1
        except TypeError:  # a list or a dict
            unknown[repr(value)] += 1
    if unknown:
        shown = ', '.join(repr(value) for value in list(unknown)[:5])
        more = ', ...' if len(unknown) > 5 else ''
        raise ValueError(
            f'results {path}: {unknown.total()} have one of {len(unknown)} values of {key} that '
            f'the annotations do not have: {shown}{more}'
        )


def _finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _check_object(where: str, entry: Mapping, kind: str, images: Mapping) -> None:
    _check_box(where, entry['bbox'])
    if entry.get('area') is not None and not _finite(entry['area']):
        raise ValueError(f'{where}: area must be a finite number, but is {entry["area"]!r:.60}')
    if entry.get('iscrowd') not in (None, 0, 1):
        raise ValueError(f'{where}: iscrowd must be 0 or 1, but is {entry["iscrowd"]!r:.60}')
    if kind == 'segm' and entry['image_id'] in images:
        if entry.get('segmentation') is None:
            raise ValueError(f'{where} has no segmentation: score with --metric bbox')
        _check_mask(where, entry['segmentation'], images[entry['image_id']])


def _check_box(where: str, box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        raise ValueError(f'{where}: bbox must be 4 finite numbers, but is {box!r:.80}')


def _check_mask(where: str, segmentation: Any, image: Mapping[str, Any]) -> None:
    size = [image.get('height'), image.get('width')]
    if not all(_finite(side) and side > 0 for side in size):
        raise ValueError(f'{where}: image {image["id"]} has no height and width')
    if isinstance(segmentation, list):
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(map(_finite, polygon))
            if not numbers or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(f'{where}: a polygon must be 3 or more x, y: {polygon!r:.60}')
            if max(map(abs, polygon)) > FARTHEST * sum(size):  # to draw it takes the memory
                raise ValueError(f'{where}: a polygon is far outside the image: {polygon!r:.60}')
        if segmentation:
            return
    if not isinstance(segmentation, dict) or 'counts' not in segmentation:
        raise ValueError(
            f'{where}: segmentation must be polygons or a run-length encoding, but is '
            f'{segmentation!r:.60}'
        )
    if segmentation.get('size') != size:
        raise ValueError(
            f'{where}: the mask has size {segmentation.get("size")}, but image {image["id"]} has '
            f'{size}'
        )
    try:
        total = int(mask_runs(segmentation['counts']).sum())
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{where}: the mask does not decode: {error}') from error
    if total != size[0] * size[1]:
        raise ValueError(f'{where}: the mask is of {total} pixels, the image of {size}')
