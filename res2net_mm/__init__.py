"""Res2Net backbones for mmdet and mmseg: exact, fast, nothing to compile.

Importing the package registers its modules under the scope ``res2net_mm`` and makes mmcv's
operators available where mmcv came without compiled ones.
"""

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

__all__ = [
    'Bottle2neck',
    'Res2Net',
    'Res2NetDCN',
    'Res2NetDLA',
    '__version__',
    'create_backbone',
    'list_backbones',
]
