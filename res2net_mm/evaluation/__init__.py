from .curves import draw_curves
from .tables import collect_results, format_metrics, split_coco_metrics

__all__ = ['collect_results', 'draw_curves', 'format_metrics', 'split_coco_metrics']
