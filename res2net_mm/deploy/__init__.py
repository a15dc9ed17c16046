from .export import ExportReport, export_onnx
from .folding import optimize_for_inference
from .runtime import ExportError, Speed, measure_speed

__all__ = [
    'ExportError',
    'ExportReport',
    'Speed',
    'export_onnx',
    'measure_speed',
    'optimize_for_inference',
]
