from .tables import (
    collect_results,
    discard_results,
    format_metrics,
    ignored_label,
    main_metric,
    split_coco_metrics,
    use_our_metrics,
)

__all__ = [
    'collect_results',
    'discard_results',
    'format_metrics',
    'ignored_label',
    'main_metric',
    'split_coco_metrics',
    'use_our_metrics',
]
