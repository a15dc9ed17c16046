from .check.inspection import check_data
from .check.survey import SplitSummary, format_summary
from .errors import DataError
from .synthetic.shapes import make_shapes
from .transforms import harden_dataset, harden_pipeline

__all__ = [
    'DataError',
    'SplitSummary',
    'check_data',
    'format_summary',
    'harden_dataset',
    'harden_pipeline',
    'make_shapes',
]
