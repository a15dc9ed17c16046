from .curves import draw_curves
from .tables import (
    collect_results,
    discard_results,
    format_metrics,
    ignored_label,
    split_coco_metrics,
    use_our_metrics,
)

__all__ = [
    'collect_results',
    'discard_results',
    'draw_curves',
    'format_metrics',
    'ignored_label',
    'split_coco_metrics',
    'use_our_metrics',
]
