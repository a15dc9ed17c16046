"""The evaluators that the tools use, and their figures as a printed table and a results file."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..columns import aligned, side_by_side
from ..data.sets.nodes import type_name
from ..registry import SCOPE

COLUMNS = dict(AP='mAP', AP50='mAP_50', AP75='mAP_75', APs='mAP_s', APm='mAP_m', APl='mAP_l')
_ROOM = f'{SCOPE}.evaluation'

# metric -> the library it is from, our module with a metric of that name
_OTHERS = 'CocoPanopticMetric', 'LVISMetric', 'FasterCocoMetric', 'CocoOccludedSeparatedMetric'
_OURS = {
    'CocoMetric': ('mmdet', 'coco_metric'),
    'VOCMetric': ('mmdet', 'voc_metric'),
    'IoUMetric': ('mmseg', 'iou_metric'),
    'SaliencyMetric': ('res2net_mm', 'saliency'),
    **dict.fromkeys(_OTHERS, ('mmdet', 'mmdet_metrics')),
}
_SEGMENTATION = ('IoU', 'Acc', 'Dice', 'Fscore', 'Precision', 'Recall')
# measures that a model is judged by, and more is better
_MAIN = re.compile(r'((bbox|segm)_)?(mAP|AP)|mIoU|PQ|top1')


def main_metric(metrics: Iterable[str]) -> str | None:
    """The first of these names that a model is judged by, such as box AP or mIoU; None: unknown."""
    return next((name for name in metrics if _MAIN.fullmatch(name.rpartition('/')[2])), None)


def use_our_metrics(
    evaluator: Any, ignore_index: int | None = None, default_scope: str | None = None
) -> Any:
    """A copy of an evaluator's config with our metrics in place of mmdet's and mmseg's.

    Args:
        evaluator: Evaluator config or a list of them.
        ignore_index: The label that ``IoUMetric`` leaves out, unless its config has one.
        default_scope: The scope of types that name none.
    """
    if isinstance(evaluator, (list, tuple)):
        return [use_our_metrics(part, ignore_index, default_scope) for part in evaluator]
    if not isinstance(evaluator, Mapping):
        return evaluator
    new = copy.deepcopy(evaluator)
    if 'metrics' in evaluator:  # an evaluator of several data sets
        new['metrics'] = use_our_metrics(evaluator['metrics'], ignore_index, default_scope)
        return new
    scope, _, name = type_name(evaluator).rpartition('.')
    if name == 'FasterCocoMetric' and evaluator.get('ann_file'):
        name = 'CocoMetric'  # theirs names classes in the file's order
    library, module = _OURS.get(name, ('', ''))
    if name == 'CocoMetric' and (scope or default_scope) == 'mmpose':
        new['type'] = f'{_ROOM}.keypoints.KeypointMetric'
    elif module and scope in ('', library):
        new['type'] = f'{_ROOM}.{module}.{name}'
        if name == 'IoUMetric' and ignore_index is not None:
            new.setdefault('ignore_index', ignore_index)
    return new


def ignored_label(model: Mapping[str, Any] | None) -> int | None:
    """``ignore_index`` of a segmentor's config: that of its decode head, the last of several."""
    head = (model or {}).get('decode_head')
    if isinstance(head, (list, tuple)):
        head = head[-1] if head else None
    return head.get('ignore_index') if isinstance(head, Mapping) else None


def report_classes(evaluator: Any, out: str | Path | None = None) -> list[dict]:
    """Evaluator configs whose ``CocoMetric`` reports AP by class, and the first writes to ``out``.

    Our metrics do not log their tables, which :func:`format_metrics` prints.
    """
    configs, prefixes = [], set()
    for cfg in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        cfg = dict(cfg)
        configs.append(cfg)
        name = type_name(cfg)
        if not name.startswith(f'{SCOPE}.'):
            continue  # including an evaluator of several data sets
        cfg['table'] = False
        if name.endswith('.CocoMetric'):
            cfg['classwise'] = True
            prefix, kinds = cfg.get('prefix') or 'coco', cfg.get('metric', 'bbox')
            if prefix in prefixes:  # AP of a class has the same name in both
                cfg['prefix'] = '_'.join([prefix, *([kinds] if isinstance(kinds, str) else kinds)])
            elif out is not None and not prefixes:
                cfg['out'] = str(out)
            prefixes.add(prefix)
    return configs


def format_metrics(metrics: Mapping[str, float], classes: Sequence[str] = ()) -> str:
    """Metrics as tables; whatever belongs in none of them has a line of its own.

    COCO's: AP, AP50, AP75 and AP by size, then AP by class, then recall. VOC's and those of
    semantic segmentation: one row a class.
    """
    lines: list[str] = []
    used: set[str] = set()

    def add(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose ``rows`` are a name and keys of metrics."""
        cells = [[name, *(figure(metrics.get(key, -1)) for key in keys)] for name, *keys in rows]
        cells = [[*row, *[''] * (len(head) - len(row))] for row in cells]
        lines.extend(side_by_side(aligned([head, *cells])))
        used.update(key for _, *keys in rows for key in keys)

    for key in metrics:
        found = re.fullmatch(r'(.*/|)(bbox|segm)_mAP', key)
        if found is None:
            continue
        prefix, kind = found.groups()
        title = kind if prefix in ('', 'coco/') else f'{prefix}{kind}'
        every = ['all', *(f'{prefix}{kind}_{name}' for name in COLUMNS.values())]
        both = {f'{prefix}bbox_mAP', f'{prefix}segm_mAP'} <= metrics.keys()
        start = f'{prefix}{kind}_' if both else prefix
        rows = [(name, f'{start}{name}_precision') for name in classes]
        rows = [row for row in rows if row[1] in metrics]
        few = len(rows) < 20
        add([title, *COLUMNS], [every, *(rows if few else [])])
        if not few:
            add(['class', 'AP'], rows)
        recalls = [key for key in metrics if key.startswith(f'{prefix}{kind}_AR')]
        if recalls:
            heads = [key.removeprefix(f'{prefix}{kind}_') for key in recalls]
            add([f'{title} recall', *heads], [['all', *recalls]])
    # names by what follows the metric's prefix
    tails = {key.partition('/')[2]: key for key in metrics} | {key: key for key in metrics}
    voc = [part for part in tails if re.fullmatch(r'AP\d+', part)]
    for title, heads in (('VOC', voc), ('segmentation', _SEGMENTATION)):
        heads = [head for head in heads if any(f'{name}_{head}' in tails for name in classes)]
        rows = [[name, *(tails.get(f'{name}_{head}', '') for head in heads)] for name in classes]
        rows = [row for row in rows if any(row[1:])]
        if rows:
            add([title, *heads], rows)
    for key in (key for key in metrics if key not in used):
        value = metrics[key]  # of a confusion matrix a tensor, by class a list
        lines.append(f'{key}: {value}' if np.ndim(value) else f'{key}: {value:.4g}')
    return '\n'.join(lines)


def figure(value: float) -> str:
    """A figure with three decimals; '-' where COCO has -1, or for NaN."""
    return f'{value:.3f}' if value >= 0 else '-'
