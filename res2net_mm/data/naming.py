"""Errors of transforms that name the image they failed on."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import Compose

from .errors import DataError


class NamingCompose(Compose):
    """mmengine's ``Compose``, except that an error of a transform is a DataError that names the
    image, its size and the transform."""

    def __call__(self, data: dict) -> dict | None:
        for transform in self.transforms:
            given = data
            try:
                data = transform(given)
            except (DataError, MemoryError):
                raise
            except Exception as error:
                raise _named(error, type(transform).__name__, given) from error
            if data is None:
                return None
        return data


def name_failures(dataset: Any) -> None:
    """Give ``dataset``, or the datasets that it wraps, a :class:`NamingCompose` as pipeline."""
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            name_failures(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if type(pipeline) is Compose:
        dataset.pipeline = NamingCompose(pipeline.transforms)


def _named(error: Exception, transform: str, data: dict) -> DataError:
    where = f'image {data.get("img_path", "without a path")}'
    if 'Annotations' in transform and data.get('seg_map_path'):
        where = f'label map {data["seg_map_path"]} of {where}'
    if shape := getattr(data.get('img'), 'shape', None):
        where += f' ({shape[1]} x {shape[0]} px)'
    reason = ' '.join(str(error).split()) or 'no reason given'
    return DataError(
        f'{transform} fails with {type(error).__name__}: {reason}',
        where,
        'correct the file or remove it from the annotations (check_data.py looks at every file); '
        'if all files fail, correct the pipeline',
    )
