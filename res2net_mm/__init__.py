"""Res2Net backbones for mmdet and mmseg: exact, fast, nothing to compile.

Importing the package registers its modules under the scope ``res2net_mm``, its configs as bases
``res2net_mm::name``, and makes mmcv's operators available where mmcv came without compiled ones.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .ops.mmcv_ext import ensure_mmcv_ops

ensure_mmcv_ops()  # before the next lines import mmcv

from . import weights  # noqa: E402, F401  (registers res2net://)
from .backbones import (  # noqa: E402
    Bottle2neck,
    Res2Net,
    Res2NetDCN,
    Res2NetDLA,
    TimmBackbone,
    create_backbone,
    list_backbones,
)
from .ops.internals import register_configs  # noqa: E402
from .registry import SCOPE, find_config  # noqa: E402
from .version import __version__  # noqa: E402
from .weights.classifier import Classifier, create_classifier  # noqa: E402

register_configs(SCOPE, find_config)  # as bases: 'res2net_mm::faster_rcnn_r2n50.py'

if TYPE_CHECKING:
    from .engine.predictor import Predictor

__all__ = [
    'Bottle2neck',
    'Classifier',
    'Predictor',
    'Res2Net',
    'Res2NetDCN',
    'Res2NetDLA',
    'TimmBackbone',
    '__version__',
    'create_backbone',
    'create_classifier',
    'list_backbones',
]


# their modules import what training and the backbones do not need, such as mmseg
_LATE = dict.fromkeys(('BinaryDiceLoss', 'BinaryFPNHead', 'UNetHead'), '.heads')
_LATE.update(Predictor='.engine.predictor', SaliencyMetric='.evaluation.saliency')


def __getattr__(name: str) -> Any:
    """What is imported when it is first used."""
    if name not in _LATE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LATE[name], __name__), name)
