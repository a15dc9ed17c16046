"""Operators that run without compiling anything."""

from .mmcv_ext import describe_ops, ensure_mmcv_ops

__all__ = ['describe_ops', 'ensure_mmcv_ops']
