"""The evaluators that tools use, and what they measure as a printed table and a results file."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..columns import side_by_side

COLUMNS = {
    'AP': 'mAP',
    'AP50': 'mAP_50',
    'AP75': 'mAP_75',
    'APs': 'mAP_s',
    'APm': 'mAP_m',
    'APl': 'mAP_l',
}
_ROOM = 'res2net_mm.evaluation'
_OURS = {
    f'{scope}{name}': f'{_ROOM}.{module}.{name}'
    for library, name, module in (
        ('mmdet.', 'CocoMetric', 'coco_metric'),
        ('mmdet.', 'VOCMetric', 'voc_metric'),
        ('mmseg.', 'IoUMetric', 'iou_metric'),
        ('mmdet.', 'CocoPanopticMetric', 'mmdet_metrics'),
        ('mmdet.', 'LVISMetric', 'mmdet_metrics'),
        ('mmdet.', 'FasterCocoMetric', 'mmdet_metrics'),
        ('mmdet.', 'CocoOccludedSeparatedMetric', 'mmdet_metrics'),
    )
    for scope in ('', library)
}
_SEGMENTATION = ('IoU', 'Acc', 'Dice', 'Fscore', 'Precision', 'Recall')


def use_our_metrics(evaluator: Any, ignore_index: int | None = None) -> Any:
    """An evaluator's config with our metrics in place of those of mmdet and mmseg they stand for.

    ``CocoMetric``, ``VOCMetric``, ``IoUMetric`` and those of ``mmdet_metrics``; others stay.

    Args:
        evaluator: Evaluator config or a list of them; not changed.
        ignore_index: What ``IoUMetric`` leaves out where its config does not say.
    """
    if isinstance(evaluator, (list, tuple)):
        return [use_our_metrics(part, ignore_index) for part in evaluator]
    if not isinstance(evaluator, Mapping):
        return evaluator
    new = copy.deepcopy(evaluator)
    if 'metrics' in evaluator:  # an evaluator of several data sets
        new['metrics'] = use_our_metrics(evaluator['metrics'], ignore_index)
        return new
    ours = _OURS.get(_type_name(evaluator), '')
    if ours.endswith('FasterCocoMetric') and evaluator.get('ann_file'):
        ours = f'{_ROOM}.coco_metric.CocoMetric'  # theirs names classes by the file's order
    if ours:
        new['type'] = ours
    if ours.endswith('IoUMetric') and ignore_index is not None:
        new.setdefault('ignore_index', ignore_index)
    return new


def ignored_label(model: Mapping[str, Any] | None) -> int | None:
    """``ignore_index`` of a segmentor's config: its decode head's, the last of several."""
    head = (model or {}).get('decode_head')
    if isinstance(head, (list, tuple)):
        head = head[-1] if head else None
    return head.get('ignore_index') if isinstance(head, Mapping) else None


def split_coco_metrics(evaluator: Any, out: str | Path | None = None) -> list[dict]:
    """Evaluator configs with one CocoMetric a result type, each reporting per-class AP.

    Boxes and masks have a per-class AP of the same name, the last one winning; split, both are
    there. Our metrics are told not to log their tables, which :func:`format_metrics` prints.

    Args:
        evaluator: Evaluator config or a list of them; not changed.
        out: File that the COCO results go to, by way of :func:`collect_results`; those of the first
            metric of a type.

    Returns:
        The configs; those of other metrics as they were.
    """
    split, kinds_written = [], set()
    for cfg in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        cfg = copy.deepcopy(dict(cfg))
        name = _type_name(cfg)
        if name.startswith(_ROOM) and 'mmdet_metrics' not in name:
            cfg['table'] = False
        if name.rpartition('.')[2] != 'CocoMetric':
            split.append(cfg)  # an evaluator of several data sets among them
            continue
        kinds = cfg.get('metric', 'bbox')
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            prefix = f'{cfg.get("prefix") or "coco"}_{kind}'
            one = dict(cfg, metric=kind, classwise=True, prefix=prefix)
            if out is not None and kind not in kinds_written:  # the first of several metrics
                one['outfile_prefix'] = _prefix(out)
                kinds_written.add(kind)
            split.append(one)
    return split


def _type_name(config: Mapping[str, Any]) -> str:
    kind = config.get('type')
    if isinstance(kind, type):
        scope = kind.__module__.partition('.')[0]
        ours = kind.__module__.startswith(_ROOM)
        return f'{kind.__module__ if ours else scope}.{kind.__name__}'
    return str(kind)


def _prefix(out: str | Path) -> str:
    return str(Path(out).parent / f'.{Path(out).name}.{os.getpid()}.partial')


def collect_results(out: str | Path) -> list[Path]:
    """Moves the results that the metrics wrote to their names, in one step each.

    Boxes go to ``out``; masks, if there are any, to ``out`` with ``.segm.json``, which holds
    their boxes' scores too.

    Returns:
        The files.
    """
    out = Path(out)
    written = []
    targets = {'bbox': out, 'segm': out.with_suffix('.segm.json')}
    for kind, target in targets.items():
        partial = Path(f'{_prefix(out)}.{kind}.json')
        if partial.exists():
            os.replace(partial, target)
            written.append(target)
    discard_results(out)  # the ground truth that mmdet converts for itself
    return written


def discard_results(out: str | Path) -> None:
    """Removes what the metrics wrote on the way to ``out``."""
    for rest in Path(out).parent.glob(f'{Path(_prefix(out)).name}.*'):
        rest.unlink()


def format_metrics(metrics: Mapping[str, float], classes: Sequence[str] = ()) -> str:
    """Metrics as tables; what belongs to none of them has a line of its own.

    COCO's: AP, AP50, AP75 and AP by size, then AP by class, then recall. VOC's and those of
    semantic segmentation: one row a class.
    """
    lines: list[str] = []
    used: set[str] = set()
    for prefix, kind in _coco_kinds(metrics):
        lines += _coco_table(metrics, classes, prefix, kind)
        parts = (f'{prefix}{kind}_mAP', f'{prefix}{kind}_AR')
        used |= {key for key in metrics if key.startswith(parts)}
        used |= {f'{prefix}{name}_precision' for name in classes}
    tails = {part: key for key in metrics for part in (key.partition('/')[2], key) if part}
    voc = [part for part in tails if re.fullmatch(r'AP\d+', part)]
    for title, columns in (('VOC', voc), ('segmentation', _SEGMENTATION)):
        table, keys = _class_table(metrics, tails, classes, title, columns)
        lines += table
        used |= keys
    rest = {key: value for key, value in metrics.items() if key not in used}
    return '\n'.join(lines + [f'{key}: {value:.4g}' for key, value in rest.items()])


def _coco_kinds(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Prefix and result type of each COCO metric among the names, those split by type or not."""
    ends = {kind: f'{kind}_mAP' for kind in ('bbox', 'segm')}
    return [
        (key.removesuffix(end), kind)
        for kind, end in ends.items()
        for key in metrics
        if key == end or key.endswith(f'/{end}')
    ]


def _coco_table(
    metrics: Mapping[str, float], classes: Sequence[str], prefix: str, kind: str
) -> list[str]:
    names = [name for name in classes if f'{prefix}{name}_precision' in metrics]
    title = kind if prefix in ('', 'coco/', f'coco_{kind}/') else f'{prefix}{kind}'
    width = max([len(name) for name in names] + [10, len(title) + 7 * (title != kind)]) + 2
    values = [metrics.get(f'{prefix}{kind}_{name}', -1.0) for name in COLUMNS.values()]
    lines = [
        f'{title:{width}}' + ''.join(f'{column:>8}' for column in COLUMNS),
        f'{"all":{width}}' + ''.join(map(_number, values)),
    ]
    rows = [f'{name:{width}}' + _number(metrics[f'{prefix}{name}_precision']) for name in names]
    columns = side_by_side([f'{"class":{width}}{"AP":>8}', *rows])
    lines += columns if len(columns) != 1 + len(rows) else rows
    recalls = [key for key in metrics if key.startswith(f'{prefix}{kind}_AR')]
    if recalls:
        titles = [key.removeprefix(f'{prefix}{kind}_') for key in recalls]
        widths = [max(8, len(title) + 2) for title in titles]
        row = f'{title + " recall":{width}}'
        lines.append(row + ''.join(f'{t:>{w}}' for t, w in zip(titles, widths, strict=True)))
        row = f'{"all":{width}}'
        lines.append(
            row + ''.join(_number(metrics[k], w) for k, w in zip(recalls, widths, strict=True))
        )
    return lines


def _class_table(
    metrics: Mapping[str, float],
    tails: Mapping[str, str],
    classes: Sequence[str],
    title: str,
    columns: Sequence[str],
) -> tuple[list[str], set[str]]:
    """The lines, and the keys that are in them.

    Args:
        metrics: By their names.
        tails: Their names by what follows the metric's prefix.
        classes: A row each.
        title: Over the rows.
        columns: What a class may have: ``IoU`` where there is ``cat_IoU``.
    """
    found = {
        (name, column): tails[f'{name}_{column}']
        for name in classes
        for column in columns
        if f'{name}_{column}' in tails
    }
    if not found:
        return [], set()
    columns = [column for column in columns if any(column == c for _, c in found)]
    names = [name for name in classes if any(name == n for n, _ in found)]
    width = max([len(name) for name in names] + [10]) + 2
    lines = [f'{title:{width}}' + ''.join(f'{column:>10}' for column in columns)]
    for name in names:
        values = [metrics.get(found.get((name, column), ''), float('nan')) for column in columns]
        lines.append(f'{name:{width}}' + ''.join(_number(value, 10) for value in values))
    return side_by_side(lines), set(found.values())


def _number(value: float, width: int = 8) -> str:
    # COCO's -1, and NaN by class: nothing of that kind in the ground truth
    return f'{"-":>{width}}' if value < 0 or value != value else f'{value:{width}.3f}'
