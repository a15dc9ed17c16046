"""Transforms that fail name the image they failed at."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import Compose

from .errors import DataError


class NamingCompose(Compose):
    """mmengine's ``Compose``; what a transform raises becomes a DataError with the image's file.

    Raises:
        DataError: a transform fails; it names the file, the image's size, the transform, and why.
    """

    def __call__(self, data: dict) -> dict | None:
        """See mmengine's."""
        for transform in self.transforms:
            given = data
            try:
                data = transform(given)
            except (DataError, MemoryError):
                raise
            except Exception as error:
                raise _named(error, transform, given) from error
            if data is None:
                return None
        return data


def name_failures(dataset: Any) -> None:
    """Give the datasets below ``dataset``'s wrappers a :class:`NamingCompose` as pipeline."""
    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            name_failures(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if type(pipeline) is Compose:
        dataset.pipeline = NamingCompose(pipeline.transforms)


def _named(error: Exception, transform: Any, data: Any) -> DataError:
    data = data if isinstance(data, dict) else {}
    name = getattr(type(transform), '__name__', str(transform))
    file = f'image {data.get("img_path", "without a path")}'
    if 'Annotations' in name and data.get('seg_map_path'):
        file = f'label map {data["seg_map_path"]} of {file}'
    shape = getattr(data.get('img'), 'shape', None)
    size = f' ({shape[1]} x {shape[0]} px)' if shape else ''
    reason = ' '.join(str(error).split()) or 'no reason given'
    return DataError(
        f'{file}{size}: {name} fails with {type(error).__name__}: {reason}; correct the file or '
        'take it out of the annotations (check_data.py looks at all); where all fail, correct the '
        'pipeline'
    )
