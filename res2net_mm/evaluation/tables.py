"""Evaluation results as COCO metrics by class, a printed table and a results file."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {
    'AP': 'mAP',
    'AP50': 'mAP_50',
    'AP75': 'mAP_75',
    'APs': 'mAP_s',
    'APm': 'mAP_m',
    'APl': 'mAP_l',
}


def split_coco_metrics(evaluator: Any, out: str | Path | None = None) -> list[dict]:
    """Evaluator configs with one CocoMetric a result type, each reporting per-class AP.

    mmdet's CocoMetric writes the per-class AP of boxes and masks under one name, the last one
    winning; split, both are there.

    Args:
        evaluator: Evaluator config or a list of them; not changed.
        out: File that the COCO results go to, by way of :func:`collect_results`.

    Returns:
        The configs; those of other metrics as they were.
    """
    split = []
    for cfg in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        cfg = copy.deepcopy(dict(cfg))
        if str(cfg.get('type')).rpartition('.')[2] != 'CocoMetric':
            split.append(cfg)  # an evaluator of several data sets among them
            continue
        kinds = cfg.get('metric', 'bbox')
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            one = dict(cfg, metric=kind, classwise=True, prefix=f'coco_{kind}')
            if out is not None:
                one['outfile_prefix'] = _prefix(out)
            split.append(one)
    return split


def _prefix(out: str | Path) -> str:
    return str(Path(out).parent / f'.{Path(out).name}.partial')


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
    for rest in out.parent.glob(f'{Path(_prefix(out)).name}.*'):
        rest.unlink()  # the ground truth that mmdet converts for itself
    return written


def format_metrics(metrics: dict[str, float], classes: Sequence[str] = ()) -> str:
    """Metrics as a table: AP, AP50, AP75 and AP by size, then AP by class; others a line each."""
    lines: list[str] = []
    used: set[str] = set()
    for kind in ('bbox', 'segm'):
        keys = [f'coco_{kind}/{kind}_{name}' for name in COLUMNS.values()]
        if keys[0] not in metrics:
            continue
        names = [name for name in classes if f'coco_{kind}/{name}_precision' in metrics]
        width = max([len(name) for name in names] + [10]) + 2
        lines.append(f'{kind:{width}}' + ''.join(f'{column:>8}' for column in COLUMNS))
        lines.append(f'{"all":{width}}' + ''.join(_number(metrics[key]) for key in keys))
        for name in names:
            lines.append(f'{name:{width}}' + _number(metrics[f'coco_{kind}/{name}_precision']))
        used |= {key for key in metrics if key.startswith(f'coco_{kind}/')}
    rest = {key: value for key, value in metrics.items() if key not in used}
    return '\n'.join(lines + [f'{key}: {value:.4g}' for key, value in rest.items()])


def _number(value: float) -> str:
    # COCO's -1, and NaN by class: nothing of that kind in the ground truth
    return f'{"-":>8}' if value < 0 or value != value else f'{value:8.3f}'
