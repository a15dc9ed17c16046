"""Trains backbones under one head and schedule, and says which differences count."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import statistics
import traceback
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from scipy.stats import ttest_ind
from torch.utils.benchmark import Timer

from ..backbones import VARIANTS
from ..checks import did_you_mean, listed
from ..data.check.inspection import check_data
from ..data.sets.images import IMAGE_SUFFIXES
from ..data.sets.nodes import type_name
from ..deploy import export
from ..deploy.running import ExportedModel
from ..evaluation.complexity import describe_stages
from ..evaluation.models import describe_model
from ..files import write_text, writing
from ..registry import MODELS, ROOT_MODELS
from .config import drop_backbone_rates, our_backbones, walk_dicts
from .errors import ToolError, building_config, is_mistake, one_line
from .evaluate import run_test
from .infer import load_model
from .processes import hold_folder
from .quantising import ResizedImages
from .report import describe_run
from .run_page import read_scalars
from .runner import build_runner, prepare_config
from .terminal import warn
from .zoo_table import markdown

# name -> arguments that make the config's own backbone such a network
KINDS = dict(
    res2net=dict(scales=4, groups=1),
    resnet=dict(scales=1, groups=1),
    resnext=dict(scales=1, groups=8),
)
_MEASURES = re.compile(r'(bbox|segm)_mAP(_[sml])?|mIoU|mAP|PQ|maxF')  # of those that a test gives
_P = 0.05
_VISUALIZER = dict(type='mmengine.Visualizer', vis_backends=[dict(type='LocalVisBackend')])


class Compared(NamedTuple):
    """A backbone, its cost, and its scores: one of each measure for every seed."""

    name: str
    params: float  # in millions, of the whole model
    macs: float  # in 1e9, of the whole model and one image
    eager: float  # ms of one image through backbone and neck in PyTorch
    exported: float  # ms of one through the whole trained model in OpenVINO; NaN if it cannot
    scores: dict[str, list[float]]
    losses: Sequence[dict[int, float]] = ()  # of training, by iteration, for every seed


def compare(cfg: Config, backbones: Sequence[str], seeds: int, out: str | Path) -> Path:
    """Trains every backbone with every seed; writes ``compare.png`` and returns ``compare.md``.

    With the same seed, all backbones (see :func:`with_backbone`) see the images in the same order.
    What an earlier call with the same config and data did in the same folder is not done again.

    Raises:
        ToolError: A name is unknown, the test gives no measure to compare by, or a run failed: then
            the page is written without that backbone.
    """
    variants = {name: with_backbone(cfg, name) for name in dict.fromkeys(backbones)}
    out, data, found, failed = Path(out), _digest(cfg, Path(out)), [], {}
    for name, variant in variants.items():
        home = out / name.replace('/', '_')
        try:
            cost = _cost(variant)
            folders = [_run(variant, seed, home, data) for seed in range(seeds)]
        except Exception as error:  # must not cost the others
            if not is_mistake(error):
                traceback.print_exception(error)
            warn(f'{name} is left out: {one_line(error)}')
            failed[name] = one_line(error)
            continue
        runs = [json.loads((folder / 'scores.json').read_text()) for folder in folders]
        if not found:  # the first backbone's measures are those of the page
            names = {key: key.rpartition('/')[2] for key, value in runs[0].items() if value >= 0}
            names = {key: name for key, name in names.items() if _MEASURES.fullmatch(name)}
            if len({*names.values()}) < len(names):  # of several metrics
                names = {key: key for key in names}
        if not names:
            raise ToolError(f'there is no measure to compare by: the test gives {listed(runs[0])}')
        scores = {name: [run[key] for run in runs] for key, name in names.items()}
        logs = [sorted(folder.glob('*/vis_data/scalars.json')) for folder in folders]
        losses = [read_scalars(log)[0].get('loss', {}) for log in logs]
        found.append(Compared(name, *cost, _exported(variant, folders[0]), scores, losses))
    if found:
        with writing(out / 'compare.png', durable=False) as file:
            _chart(found).savefig(file, dpi=120)
        left_out = ''.join(f'\nLeft out: `{name}`, {why}\n' for name, why in failed.items())
        write_text(out / 'compare.md', page(found, seeds) + left_out)
    if failed:
        what = '; '.join(f'{name} failed: {why}' for name, why in failed.items())
        raise ToolError(what + (f' ({out}/compare.md has the others)' if found else ''))
    return out / 'compare.md'


def _digest(cfg: Config, out: Path) -> bytes:
    """Tells the data of a config from others: annotation files, and names and sizes of others.

    Nothing of ``out``, where the comparison is written, counts.
    """
    digest = hashlib.blake2b(repr(check_data(cfg)).encode(), digest_size=8)
    for part in walk_dicts([cfg.get(f'{split}_dataloader') for split in ('train', 'val', 'test')]):
        root, prefix = Path(part.get('data_root') or ''), part.get('data_prefix') or {}
        if part.get('ann_file') and (root / part.ann_file).is_file():
            digest.update((root / part.ann_file).read_bytes())
        for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
            if root / folder == Path():
                continue
            kinds = (*IMAGE_SUFFIXES, '.xml')
            files = [file for file in (root / folder).rglob('*') if file.suffix.lower() in kinds]
            files = [file for file in files if out.absolute() not in file.absolute().parents]
            sizes = sorted((str(file), file.stat().st_size) for file in files)
            digest.update(repr(sizes).encode())
    return digest.digest()


def with_backbone(cfg: Config, name: str) -> Config:
    """A copy of a config with another backbone, from random weights, and a neck that fits it.

    ``res2netN``, ``resnetN`` and ``resnextN`` are the config's backbone with depth N, one scale in
    the last two and groups in the last, and the width that comes nearest to the config's
    multiply-adds. Other names are those of ``list_backbones()``, or ``timm/`` and timm's.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.resume = None, False
    for key in ('pretrained', 'init_cfg'):  # of the whole model
        cfg.model.pop(key, None)
    drop_backbone_rates(cfg)
    named, ours = re.fullmatch(f'({"|".join(KINDS)})(\\d+)', name), our_backbones(cfg)
    if named and not ours:
        raise ToolError(f'--backbones: {name} needs a config with a backbone of this package')
    if name.startswith('timm/'):
        part = ConfigDict(type='res2net_mm.TimmBackbone', model_name=name.removeprefix('timm/'))
    elif name in VARIANTS:
        part = ConfigDict({'type': 'Res2Net', **VARIANTS[name]})
        part.type = f'res2net_mm.{part.type}'
    elif named:
        part = ConfigDict(ours[0], depth=int(named[2]), init_cfg=None, **KINDS[named[1]])
        wanted = _macs(ours[0])
        above = bisect_left(range(512), wanted, 2, key=lambda width: _macs(part, width))
        part.base_width = min(above - 1, above, key=lambda width: abs(_macs(part, width) - wanted))
    else:
        known = [*(f'{kind}50' for kind in KINDS), *VARIANTS]
        raise ToolError(f'--backbones: {name!r} is unknown{did_you_mean(name, known)}')
    part.update(frozen_stages=-1, norm_eval=False)
    neck = cfg.model.get('neck')
    if not neck or not isinstance(neck.get('in_channels'), list):
        raise ToolError('--config needs a neck, such as FPN, whose in_channels can be set')
    levels, wanted, own = slice(-len(neck.in_channels), None), (4, 8, 16, 32), cfg.model.backbone
    with torch.device('meta'), building_config('backbone'):
        net = MODELS.build(part)
        with suppress(Exception):  # others' may not be built here, or not say their strides
            wanted = ROOT_MODELS.build(ConfigDict(own, init_cfg=None)).out_strides
    wanted = wanted[levels]
    if net.out_strides[levels] != wanted:  # anchors and pooling are made for them
        raise ToolError(
            f'--backbones: {name} has features of strides {listed(net.out_strides)}, but the head '
            f'of the config needs {listed(wanted)}'
        )
    neck.in_channels = [*net.out_channels[levels]]
    cfg.model.backbone = part
    return cfg


def _macs(part: ConfigDict, width: int | None = None) -> int:
    part = ConfigDict(part, init_cfg=None)
    if width is not None:
        part.base_width = width
    with torch.device('meta'), building_config('backbone'):
        return sum(stage.macs for stage in describe_stages(MODELS.build(part), 224, 224))


def _cost(cfg: Config) -> tuple[float, float, float]:
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    steps = walk_dicts(cfg.test_dataloader.dataset.pipeline)
    scales = [s.scale for s in steps if type_name(s).endswith('Resize') and s.get('scale')]
    if scales:
        width, height = (scales[0], scales[0]) if isinstance(scales[0], int) else scales[0]
    else:
        height, width = ResizedImages(cfg, 1, 'test')[0].shape[:2]
    with torch.device('meta'):
        cost = describe_model(ROOT_MODELS.build(cfg.model).eval(), height, width)
    device, threads = get_device(), torch.get_num_threads()
    model = ROOT_MODELS.build(cfg.model).to(device).eval()
    inputs = dict(model=model, image=torch.zeros(1, 3, height, width, device=device))
    timer = Timer('model.extract_feat(image)', globals=inputs, num_threads=threads)
    with torch.inference_mode():
        timed = timer.blocked_autorange(min_run_time=0.5)
    return cost.params / 1e6, cost.gflops, timed.median * 1e3


def _exported(cfg: Config, run: Path) -> float:
    """Milliseconds of one test image through the trained model in OpenVINO; NaN if it fails."""
    try:
        # the folder may have been moved since
        noted = Path((run / 'last_checkpoint').read_text().strip())
        model, _ = load_model(cfg, str(run / noted.name))
        images = [*ResizedImages(cfg, 20, 'test')]
        image = images[0]
        fitting = [i for i in images if i.shape == image.shape]
        with TemporaryDirectory() as folder:
            file = export(model, Path(folder, 'model.xml'), image.shape[:2], images=fitting).path
            inputs = dict(model=ExportedModel(file, torch.get_num_threads()), image=image)
            timer = Timer('model.run(image)', globals=inputs)
            return timer.blocked_autorange(min_run_time=0.5).median * 1e3
    except Exception as error:  # a lost time must not cost the scores
        warn(f'no time of the exported model: {one_line(error)}')
        return math.nan


def _run(cfg: Config, seed: int, out: Path, data: bytes) -> Path:
    """Trains and tests, unless that was done, and returns the folder with ``scores.json``."""
    cfg = copy.deepcopy(cfg)
    cfg.randomness = dict(seed=seed)
    # the folder belongs to this very config and data
    key = hashlib.blake2b(repr(cfg.to_dict()).encode() + data, digest_size=4).hexdigest()
    folder = out / f'seed_{seed}_{key}'
    # mmengine has one visualizer of a name, which would write into the folder of the first run
    cfg.visualizer = dict(cfg.get('visualizer') or _VISUALIZER, name=str(folder))
    if not (folder / 'scores.json').is_file():
        prepared = prepare_config(cfg, work_dir=str(folder), resume='auto')
        print(describe_run(prepared, check_data(prepared)), flush=True)
        with hold_folder(folder):
            build_runner(prepared).train()
        checkpoint = (folder / 'last_checkpoint').read_text().strip()
        metrics, _ = run_test(prepare_config(cfg, work_dir=str(folder)), checkpoint)
        scores = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        write_text(folder / 'scores.json', json.dumps(scores))
    return folder


def page(found: Sequence[Compared], seeds: int) -> str:
    """The comparison as Markdown: a table, and which differences from the first row count."""
    measures = list(found[0].scores)
    rows = []
    for one in found:
        exported = '-' if math.isnan(one.exported) else f'{one.exported:.1f}'
        costs = f'{one.params:.2f}', f'{one.macs:.2f}', f'{one.eager:.1f}', exported
        rows.append([f'`{one.name}`', *(_shown(one.scores[m]) for m in measures), *costs])
    head = [
        'backbone',
        *measures,
        'params (M)',
        'multiply-adds (G)',
        'PyTorch (ms)',
        'OpenVINO (ms)',
    ]
    others = [(other, measure) for other in found[1:] for measure in measures]
    verdicts = '\n'.join(f'- {_verdict(found[0], *other)}' for other in others)
    return f"""# Comparison of backbones

Means over seeds 0 to {seeds - 1}, ± the standard deviation. Every backbone starts from random
weights, under one head and schedule; with the same seed it sees the images in the same order.
Parameters and multiply-adds are those of the whole model. PyTorch: median time of one image through
backbone and neck, where it was trained. OpenVINO: that of one test image through the whole trained
model, exported in float32, on the CPU.

{markdown(head, rows)}

![](compare.png)

## Compared with `{found[0].name}`

A difference counts if Welch's t-test over the seeds gives p < {_P}. Of many of them, one in twenty
does by chance. A single seed shows no difference.

{verdicts}
"""


def _shown(values: Sequence[float]) -> str:
    spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.3f}{spread}'


def _verdict(first: Compared, other: Compared, measure: str) -> str:
    a, b = first.scores[measure], other.scores[measure]
    difference = f'`{other.name}` {measure}: {statistics.fmean(b) - statistics.fmean(a):+.3f}'
    if len(a) < 2:
        return f'{difference}, of a single seed'
    if max(map(statistics.stdev, (a, b))) < 1e-6:
        return f'{difference}; no test, as neither has a spread'
    p = float(ttest_ind(a, b, equal_var=False).pvalue)
    return f'{difference}, {"counts" if p < _P else "within the spread"} (p = {p:.2g})'


def _chart(found: Sequence[Compared]) -> Figure:
    """The scores of all seeds, and the losses of training, their mean and range over the seeds."""
    figure = Figure(figsize=(14, 4), layout='constrained')
    axes, curves = figure.subplots(1, 2)
    for i, one in enumerate(found):
        places = np.arange(len(one.scores)) + (i - (len(found) - 1) / 2) * 0.15
        scores = [*one.scores.values()]
        axes.plot(places, scores, 'o', color=f'C{i}', alpha=0.5)
        axes.plot(places, np.mean(scores, 1), '_', color=f'C{i}', markersize=16, label=one.name)
        if steps := sorted(set.intersection(*map(set, one.losses)) if one.losses else ()):
            losses = np.array([[loss[step] for step in steps] for loss in one.losses])
            curves.plot(steps, losses.mean(0), color=f'C{i}')
            curves.fill_between(steps, losses.min(0), losses.max(0), color=f'C{i}', alpha=0.2)
    axes.set_xticks(range(len(found[0].scores)), list(found[0].scores))
    axes.set(ylabel='score, a dot for each seed', ylim=(0, None))
    curves.set(xlabel='iteration', ylabel='training loss, mean and range', ylim=(0, None))
    # runs of older comparisons logged in the folder of the first
    curves.set_visible(all(one.losses and all(one.losses) for one in found))
    axes.grid(axis='y', alpha=0.3)
    axes.legend(fontsize=8)
    return figure
