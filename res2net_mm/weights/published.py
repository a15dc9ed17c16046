"""The ``res2net://`` scheme of published weights."""

from __future__ import annotations

from typing import Any, NoReturn

from mmengine.runner import CheckpointLoader

SCHEME = 'res2net://'


def load_published(filename: str, map_location: Any = None) -> NoReturn:
    """Says that published weights cannot be loaded yet.

    Raises:
        ValueError: Always, with what to do instead.
    """
    raise ValueError(
        f'{filename}: this version cannot load published weights yet; train without them by '
        '--from-scratch, or set init_cfg=None'
    )


CheckpointLoader.register_scheme(prefixes=SCHEME, loader=load_published, force=True)
