"""Res2Net backbones for mmdet and mmseg: exact, fast, nothing to compile.

Importing the package registers its modules under the scope ``res2net_mm`` and makes mmcv's
operators available where mmcv came without compiled ones.
"""

from typing import TYPE_CHECKING, Any

from .ops.mmcv_ext import ensure_mmcv_ops

ensure_mmcv_ops()  # before the next lines import mmcv

from . import weights  # noqa: E402, F401  (registers res2net://)
from .backbones import (  # noqa: E402
    Bottle2neck,
    Res2Net,
    Res2NetDCN,
    Res2NetDLA,
    create_backbone,
    list_backbones,
)
from .version import __version__  # noqa: E402
from .weights.classifier import Classifier, create_classifier  # noqa: E402

if TYPE_CHECKING:
    from .engine.predictor import Predictor

__all__ = [
    'Bottle2neck',
    'Classifier',
    'Predictor',
    'Res2Net',
    'Res2NetDCN',
    'Res2NetDLA',
    '__version__',
    'create_backbone',
    'create_classifier',
    'list_backbones',
]


def __getattr__(name: str) -> Any:
    """``Predictor``, which imports what training and the backbones do not need, is loaded late."""
    if name != 'Predictor':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .engine.predictor import Predictor

    return Predictor
