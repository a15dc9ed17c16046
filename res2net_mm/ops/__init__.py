"""Operators that run without compiling anything."""

from .deform_conv import DeformConv2d, ModulatedDeformConv2d, deform_conv2d
from .mmcv_ext import describe_ops, ensure_mmcv_ops

__all__ = [
    'DeformConv2d',
    'ModulatedDeformConv2d',
    'deform_conv2d',
    'describe_ops',
    'ensure_mmcv_ops',
]
