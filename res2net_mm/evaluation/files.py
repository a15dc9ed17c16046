"""Reading COCO annotation and result files: one clear line where something is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_annotations(path: str | Path) -> dict[str, Any]:
    """The content of an annotation file that detections can be scored against.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not json, or not an annotation file.
    """
    content = _read_json(path, 'annotations')
    missing = [
        key
        for key in ('images', 'annotations', 'categories')
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(f'annotations {path} are no COCO annotations: no list {missing[0]!r}')
    wanted = {'images': ('id',), 'categories': ('id', 'name')}
    wanted['annotations'] = ('image_id', 'category_id', 'bbox')
    for part, keys in wanted.items():
        for i, entry in enumerate(content[part]):
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking:
                raise ValueError(f'annotations {path}: {part}[{i}] has no {lacking[0]!r}')
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
        if kind == 'bbox':
            _check_box(path, i, result['bbox'])
        else:
            _check_size(path, i, result['segmentation'], images[result['image_id']])
    return results


def _read_json(path: str | Path, what: str) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{what} {path} does not exist')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except UnicodeDecodeError as error:
        raise ValueError(f'{what} {path} is not json: it is not text') from error
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith('Unterminated')
        why = 'it is empty' if not error.doc.strip() else 'it is cut off' if cut else error.msg
        raise ValueError(
            f'{what} {path} is not json: {why} (line {error.lineno} column {error.colno})'
        ) from error


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
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check_box(path: str | Path, i: int, box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        raise ValueError(
            f'results {path}: the bbox of entry {i} must be 4 finite numbers, but is {box!r:.80}'
        )


def _check_size(path: str | Path, i: int, segmentation: Any, image: Mapping[str, Any]) -> None:
    if not isinstance(segmentation, dict):
        return  # polygons have no size
    size, wanted = segmentation.get('size'), [image.get('height'), image.get('width')]
    if size != wanted:
        raise ValueError(
            f'results {path}: the mask of entry {i} has size {size}, but image {image["id"]} has '
            f'{wanted}'
        )
