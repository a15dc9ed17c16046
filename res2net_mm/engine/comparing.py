"""Trains backbones under one head, schedule and order of images, and says which differences count."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from scipy import stats

from ..backbones import VARIANTS, Backbone
from ..checks import did_you_mean
from ..data import check_data
from ..evaluation.complexity import describe_stages
from ..evaluation.models import describe_model
from ..files import write_text, writing
from ..registry import MODELS, ROOT_MODELS
from .config import our_backbones
from .config_keys import walk
from .errors import ToolError, building_config
from .evaluate import run_test
from .processes import hold_folder
from .report import describe_run
from .runner import build_runner, prepare_config

# name -> arguments that make the config's own backbone such a network
_KINDS = {
    'res2net': dict(scales=4, groups=1),
    'resnet': dict(scales=1, groups=1),
    'resnext': dict(scales=1, groups=8),
}
_MEASURES = {
    'AP': 'coco_bbox/bbox_mAP', 'AP small': 'coco_bbox/bbox_mAP_s',
    'AP medium': 'coco_bbox/bbox_mAP_m', 'AP large': 'coco_bbox/bbox_mAP_l', 'mIoU': 'mIoU',
}  # fmt: skip
_SIGNIFICANCE = 0.05
_WIDTHS = 256  # largest base_width that is tried


@dataclass
class Compared:
    """A backbone's cost and its scores, one of each measure for every seed."""

    name: str
    params: float  # in millions, of the whole model
    macs: float  # in 1e9, of the backbone and the rest, for one image
    milliseconds: float  # backbone and neck, one image, PyTorch
    scores: dict[str, list[float]] = field(default_factory=dict)


def compare(cfg: Config, backbones: Sequence[str], seeds: int, out: str | Path) -> Path:
    """Trains every backbone with every seed, and writes ``compare.md`` and ``compare.png``.

    What an earlier call has done in the same folder is not done again.

    Args:
        cfg: The config: its head, schedule, data. All backbones see the images in the same order
            for a seed.
        backbones: ``res2netN``, ``resnetN`` and ``resnextN`` are the config's backbone with depth
            N, and as wide as it needs for the same multiply-adds; else a name of
            ``list_backbones()``, or ``timm/`` and a name of timm.
        seeds: How many, from 0.
        out: The folder.

    Returns:
        The page.

    Raises:
        ToolError: A name is unknown, or ``out`` holds another comparison.
    """
    variants = {name: with_backbone(cfg, name) for name in dict.fromkeys(backbones)}
    out, found = Path(out), []
    for name, variant in variants.items():
        one = Compared(name, *_cost(variant))
        for seed in range(seeds):
            metrics = _run(variant, seed, out / name.replace('/', '_') / f'seed_{seed}')
            for measure, key in _MEASURES.items():
                if metrics.get(key, -1) >= 0:  # -1: there are no such objects
                    one.scores.setdefault(measure, []).append(metrics[key])
        found.append(one)
    with writing(out / 'compare.png', durable=False) as partial:
        _chart(found).savefig(partial, dpi=120)
    write_text(out / 'compare.md', page(found, seeds))
    return out / 'compare.md'


def with_backbone(cfg: Config, name: str) -> Config:
    """A copy of a config with another backbone, from random weights, and a neck that fits it."""
    cfg = copy.deepcopy(cfg)
    ours = our_backbones(cfg)
    named = re.fullmatch(f'({"|".join(_KINDS)})(\\d+)', name)
    if name.startswith('timm/'):
        part = ConfigDict(type='res2net_mm.TimmBackbone', model_name=name.removeprefix('timm/'))
    elif name in VARIANTS:
        part = ConfigDict({'type': 'Res2Net', **VARIANTS[name]})
        part.type = f'res2net_mm.{part.type}'
    elif named and ours:
        part = ConfigDict(ours[0], depth=int(named[2]), init_cfg=None, **_KINDS[named[1]])
        part.base_width = _fitting_width(part, _macs(ours[0]))
    else:
        known = [*(f'{kind}50' for kind in _KINDS), *VARIANTS]
        raise ToolError(f'--backbones: {name!r} is unknown{did_you_mean(name, known)}')
    with torch.device('meta'), building_config('backbone'):
        channels = list(MODELS.build(part).out_channels)
    part.update(frozen_stages=-1, norm_eval=False)
    cfg.model.backbone = part
    neck = cfg.model.get('neck')
    if not neck or not isinstance(neck.get('in_channels'), list):
        raise ToolError('the config needs a neck, such as FPN, whose in_channels can be set')
    neck.in_channels = channels[-len(neck.in_channels) :]
    return cfg


def _macs(part: ConfigDict) -> int:
    with torch.device('meta'), building_config('backbone'):
        net = MODELS.build(ConfigDict(part, init_cfg=None))
    return sum(stage.macs for stage in describe_stages(net, 224, 224))


def _fitting_width(part: ConfigDict, macs: int) -> int:
    """The ``base_width`` whose multiply-adds are nearest to ``macs``."""
    low, high = 1, _WIDTHS
    while low < high:  # the first that is not below
        middle = (low + high) // 2
        low, high = (low, middle) if _macs(ConfigDict(part, base_width=middle)) >= macs else (middle + 1, high)  # fmt: skip  # noqa: E501
    return min((max(1, low - 1), low), key=lambda w: abs(_macs(ConfigDict(part, base_width=w)) - macs))  # fmt: skip  # noqa: E501


def _cost(cfg: Config) -> tuple[float, float, float]:
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    scales = [s.scale for _, s in walk(cfg.test_dataloader.dataset.pipeline)
              if isinstance(s, dict) and s.get('type') == 'Resize']  # fmt: skip
    width, height = scales[0] if scales else (512, 512)
    with torch.device('meta'):
        cost = describe_model(ROOT_MODELS.build(cfg.model).eval(), height, width)
    model, image = ROOT_MODELS.build(cfg.model), torch.zeros(1, 3, height, width)
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(8):
            start = time.perf_counter()
            model.extract_feat(image)
            times.append(time.perf_counter() - start)
    return cost.params / 1e6, cost.gflops, statistics.median(times[3:]) * 1e3


def _run(cfg: Config, seed: int, folder: Path) -> dict[str, float]:
    """Trains and tests, and returns the metrics; what was done before is read."""
    cfg = copy.deepcopy(cfg)
    cfg.randomness = dict(seed=seed)
    key = hashlib.blake2b(repr(cfg.to_dict()).encode(), digest_size=16).hexdigest()
    marker, scores = folder / 'compared.txt', folder / 'scores.json'
    folder.mkdir(parents=True, exist_ok=True)
    if marker.is_file() and marker.read_text() != key:
        raise ToolError(f'--out: {folder} is of a comparison with another config; give another')
    write_text(marker, key)
    if scores.is_file():
        return json.loads(scores.read_text())
    prepared = prepare_config(cfg, work_dir=str(folder), resume='auto')
    print(describe_run(prepared, check_data(prepared)), flush=True)
    with hold_folder(folder):
        build_runner(prepared).train()
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    metrics, _ = run_test(prepare_config(cfg, work_dir=str(folder)), checkpoint)
    metrics = {name: float(value) for name, value in metrics.items()}
    write_text(scores, json.dumps(metrics))
    return metrics


def page(found: Sequence[Compared], seeds: int) -> str:
    """The comparison as Markdown: a table, and which differences from the first row count."""
    measures = list(found[0].scores)
    rows = [['backbone', *measures, 'params (M)', 'multiply-adds (G)', 'ms']]
    rows.append(['---', *['---:'] * (len(rows[0]) - 1)])
    for one in found:
        scores = [_shown(one.scores.get(measure, [])) for measure in measures]
        costs = f'{one.params:.2f}', f'{one.macs:.2f}', f'{one.milliseconds:.1f}'
        rows.append([f'`{one.name}`', *scores, *costs])
    lines = [f'| {" | ".join(row)} |' for row in rows]
    about = (
        f'Means over {seeds} seeds, ± the standard deviation. Every backbone starts from random '
        'weights under the same head and schedule; with the same seed, it sees the images in the '
        'same order. Parameters and multiply-adds are of the whole model; ms is the median of one '
        'image through backbone and neck in PyTorch on the machine that trained.'
    )
    rule = (
        f"A difference counts if Welch's t-test gives p < {_SIGNIFICANCE}; of a single seed, none "
        'can. Many comparisons find one in twenty by chance.'
    )
    verdicts = [f'- {_verdict(found[0], other, m)}' for other in found[1:] for m in measures]
    return '\n'.join(['# Comparison of backbones', '', about, '', *lines, '', '![](compare.png)', '',
                      f'## Compared with `{found[0].name}`', '', rule, '', *verdicts, ''])  # fmt: skip


def _shown(values: Sequence[float]) -> str:
    if not values:
        return 'no objects'
    spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.3f}{spread}'


def _verdict(first: Compared, other: Compared, measure: str) -> str:
    a, b = (one.scores.get(measure, []) for one in (first, other))
    difference = f'`{other.name}` {measure}: {statistics.fmean(b) - statistics.fmean(a):+.3f}'
    if min(len(a), len(b)) < 2:
        return f'{difference}, from a single seed'
    same = len({*a, *b}) == 1  # for which the test is not defined
    p = 1.0 if same else float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return f'{difference}, {"counts" if p < _SIGNIFICANCE else "within the spread"} (p = {p:.2g})'


def _chart(found: Sequence[Compared]) -> Figure:
    figure = Figure(figsize=(8, 4), layout='constrained')
    axes = figure.subplots()
    for i, one in enumerate(found):
        for j, values in enumerate(one.scores.values()):
            place = j + (i - (len(found) - 1) / 2) * 0.15
            label = one.name if j == 0 else None
            axes.plot([place] * len(values), values, 'o', color=f'C{i}', alpha=0.5, label=label)
            axes.plot(place, statistics.fmean(values), '_', color=f'C{i}', markersize=16)
    axes.set_xticks(range(len(found[0].scores)), list(found[0].scores))
    axes.set(ylabel='score, one dot a seed', ylim=(0, None))
    axes.grid(axis='y', alpha=0.3)
    axes.legend(fontsize=8)
    return figure
