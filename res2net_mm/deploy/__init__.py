from .export import ExportError, ExportReport, export
from .folding import optimize_for_inference

__all__ = ['ExportError', 'ExportReport', 'export', 'optimize_for_inference']
