"""The evaluators that the tools use, and their figures as a printed table and a results file."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
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
# metric -> the library it is from, our module with a metric of that name
_OURS = {
    'CocoMetric': ('mmdet', 'coco_metric'),
    'VOCMetric': ('mmdet', 'voc_metric'),
    'IoUMetric': ('mmseg', 'iou_metric'),
    'CocoPanopticMetric': ('mmdet', 'mmdet_metrics'),
    'LVISMetric': ('mmdet', 'mmdet_metrics'),
    'FasterCocoMetric': ('mmdet', 'mmdet_metrics'),
    'CocoOccludedSeparatedMetric': ('mmdet', 'mmdet_metrics'),
    'SaliencyMetric': ('res2net_mm', 'saliency'),
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
    """An evaluator's config with our metrics in place of mmdet's and mmseg's of the same name.

    Args:
        evaluator: Evaluator config or a list of them; not changed.
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
    scope, _, name = _type_name(evaluator).rpartition('.')
    if name == 'CocoMetric' and (scope or default_scope) == 'mmpose':
        new['type'] = f'{_ROOM}.keypoints.KeypointMetric'
        return new
    if name == 'FasterCocoMetric' and evaluator.get('ann_file'):
        name = 'CocoMetric'  # theirs names classes in the file's order
    library, module = _OURS.get(name, ('', ''))
    if module and scope in ('', library):
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


def split_coco_metrics(evaluator: Any, out: str | Path | None = None) -> list[dict]:
    """Evaluator configs with one CocoMetric for each result type, each reporting per-class AP.

    Boxes and masks have a per-class AP of the same name, and in one metric the last one wins. Our
    metrics do not log their tables, which :func:`format_metrics` prints.

    Args:
        evaluator: Evaluator config or a list of them; not changed.
        out: File for the COCO results of the first metric of each type; see
            :func:`collect_results`.

    Returns:
        The configs; those of other metrics as they were.
    """
    split, kinds_written = [], set()
    for cfg in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        cfg = copy.deepcopy(dict(cfg))
        name = _type_name(cfg)
        if name.startswith(_ROOM):
            cfg['table'] = False
        if name.rpartition('.')[2] != 'CocoMetric':
            split.append(cfg)  # including an evaluator of several data sets
            continue
        kinds = cfg.get('metric', 'bbox')
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            prefix = f'{cfg.get("prefix") or "coco"}_{kind}'
            one = dict(cfg, metric=kind, classwise=True, prefix=prefix)
            if out is not None and kind not in kinds_written:
                one['outfile_prefix'] = _prefix(out)
                kinds_written.add(kind)
            split.append(one)
    return split


def _type_name(config: Mapping[str, Any]) -> str:
    kind = config.get('type')
    if not isinstance(kind, type):
        return str(kind)
    module = kind.__module__
    return f'{module if module.startswith(_ROOM) else module.partition(".")[0]}.{kind.__name__}'


def _prefix(out: str | Path) -> str:
    return str(Path(out).parent / f'.{Path(out).name}.{os.getpid()}.partial')


def collect_results(out: str | Path) -> list[Path]:
    """Renames the results that the metrics wrote, in one step each.

    Boxes go to ``out``; masks, if there are any, with the scores of their boxes, to ``out`` with
    ``.segm.json``.

    Returns:
        The files.
    """
    out = Path(out)
    written = []
    for kind, target in {'bbox': out, 'segm': out.with_suffix('.segm.json')}.items():
        partial = Path(f'{_prefix(out)}.{kind}.json')
        if partial.exists():
            os.replace(partial, target)
            written.append(target)
    discard_results(out)  # such as the ground truth that mmdet converts for itself
    return written


def discard_results(out: str | Path) -> None:
    """Removes what the metrics wrote for ``out`` and :func:`collect_results` did not rename."""
    for rest in Path(out).parent.glob(f'{Path(_prefix(out)).name}.*'):
        rest.unlink()


def format_metrics(metrics: Mapping[str, float], classes: Sequence[str] = ()) -> str:
    """Metrics as tables; whatever belongs in none of them has a line of its own.

    COCO's: AP, AP50, AP75 and AP by size, then AP by class, then recall. VOC's and those of
    semantic segmentation: one row a class.
    """
    lines: list[str] = []
    used: set[str] = set()
    coco = [
        (key.removesuffix(end), kind)
        for kind, end in (('bbox', 'bbox_mAP'), ('segm', 'segm_mAP'))
        for key in metrics
        if key == end or key.endswith(f'/{end}')
    ]
    for prefix, kind in coco:
        title = kind if prefix in ('', 'coco/', f'coco_{kind}/') else f'{prefix}{kind}'
        names = {name: [f'{prefix}{name}_precision'] for name in classes}
        names = {name: keys for name, keys in names.items() if keys[0] in metrics}
        width = max(10, *map(len, names), len(title) + 7 * (title != kind)) + 2
        every = {'all': [f'{prefix}{kind}_{name}' for name in COLUMNS.values()]}
        lines += _table(metrics, title, [*COLUMNS], every, width)
        rows = _table(metrics, 'class', ['AP'], names, width)
        columns = side_by_side(rows)
        lines += columns if columns != rows else rows[1:]
        start = f'{prefix}{kind}_'
        recalls = [key for key in metrics if key.startswith(f'{start}AR')]
        if recalls:
            heads = [key.removeprefix(start) for key in recalls]
            lines += _table(metrics, f'{title} recall', heads, {'all': recalls}, width)
        used |= {key for key in metrics if key.startswith((f'{start}mAP', f'{start}AR'))}
        used |= {f'{prefix}{name}_precision' for name in classes}
    # names by what follows the metric's prefix
    tails = {part: key for key in metrics for part in (key.partition('/')[2], key) if part}
    voc = [part for part in tails if re.fullmatch(r'AP\d+', part)]
    for title, heads in (('VOC', voc), ('segmentation', _SEGMENTATION)):
        heads = [head for head in heads if any(f'{name}_{head}' in tails for name in classes)]
        rows = {name: [tails.get(f'{name}_{head}', '') for head in heads] for name in classes}
        rows = {name: keys for name, keys in rows.items() if any(keys)}
        if rows:
            width = max(10, *map(len, rows)) + 2
            lines += side_by_side(_table(metrics, title, heads, rows, width, cell=10))
            used.update(*rows.values())
    lines += [f'{key}: {value:.4g}' for key, value in metrics.items() if key not in used]
    return '\n'.join(lines)


def _table(
    metrics: Mapping[str, float],
    title: str,
    heads: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    width: int,
    cell: int = 8,
) -> list[str]:
    """Lines of a table whose ``rows`` are names of metrics; '-' where COCO has -1, or for NaN."""
    widths = [max(cell, len(head) + 2) for head in heads]
    lines = [f'{title:{width}}' + ''.join(f'{h:>{w}}' for h, w in zip(heads, widths, strict=True))]
    for name, keys in rows.items():
        values = [metrics.get(key, -1.0) for key in keys]
        texts = [f'{value:.3f}' if value >= 0 else '-' for value in values]
        lines.append(
            f'{name:{width}}' + ''.join(f'{t:>{w}}' for t, w in zip(texts, widths, strict=True))
        )
    return lines
