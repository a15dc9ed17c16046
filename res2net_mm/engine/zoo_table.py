"""The zoo as Markdown tables: published weights, and configs with published accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
import yaml
from mmengine.registry import DefaultScope

from ..evaluation.complexity import describe_stages, with_classifier
from ..evaluation.models import describe_model
from ..registry import MODELS, ROOT_MODELS
from ..weights import SCHEME, ZOO
from .config import config_folders, load_config, our_backbones, pretrained

_IMAGE, _DETECTION, _SEGMENTATION = (224, 224), (800, 1280), (512, 512)  # height, width in px
_COUNTED = """\
GFLOPs of a config also count biases, ReLU and pooling, as the authors' table of detectors does,
so they are slightly higher than those of the same network above."""


def format_zoo() -> str:
    """Both tables, as docs/configs.md has them between its markers."""
    return f'{weights_table()}\n\n{_COUNTED}\n\n{configs_table()}'


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


def weights_table() -> str:
    """One row per file of :data:`ZOO`.

    Parameters and multiply-adds are counted as :func:`describe_stages` does, for an image of
    224 x 224 px and with a classifier of 1000 classes.
    """
    rows = []
    for name, entry in ZOO.items():
        whole = any(measure.startswith('COCO') for measure in entry.accuracy)  # a detector
        params, macs = ('', '') if whole else _classifier_cost(entry.variant)
        accuracy = ', '.join(f'{measure} {value}' for measure, value in entry.accuracy.items())
        rows.append((f'`{SCHEME}{name}`', accuracy, params, macs, entry.licence, entry.source))
    sizes = ('params (M)', f'GFLOPs ({_IMAGE[0]} x {_IMAGE[1]})')
    return markdown(('weights', 'published accuracy (%)', *sizes, 'licence', 'source'), rows)


@cache
def _classifier_cost(variant: str) -> tuple[str, str]:
    arguments = next(dict(entry.arch) for entry in ZOO.values() if entry.variant == variant)
    with torch.device('meta'):
        net = MODELS.build(arguments)
    params, macs = with_classifier(describe_stages(net, *_IMAGE))
    return f'{params / 1e6:.2f}', f'{macs / 1e9:.3f}'


def configs_table() -> str:
    """One row per config with a published accuracy in metafile.yml.

    Parameters and GFLOPs of the whole model are counted as :func:`describe_model` does. The
    licence is that of the weights that training starts from, if they are in :data:`ZOO`.
    """
    file = next(file for folder in config_folders() for file in folder.glob('metafile.yml'))
    rows = []
    for entry in yaml.safe_load(file.read_text(encoding='utf-8'))['Models']:
        if not entry.get('Results'):
            continue
        cfg = load_config(entry['Config'].removeprefix('configs/'))
        size = _SEGMENTATION if cfg.model.get('decode_head') else _DETECTION
        size = _IMAGE if cfg.model.get('head') else size
        scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))
        with scope, torch.device('meta'):
            model = ROOT_MODELS.build(cfg.model)
        cost = describe_model(model.eval(), *size)
        sources = [init.checkpoint for part in our_backbones(cfg) for init in pretrained(part)]
        known = (ZOO.get(source.removeprefix(SCHEME)) for source in sources)
        licences = ', '.join(weights.licence for weights in known if weights) or '-'
        published: dict[str, list[str]] = {}  # publisher -> measures
        for result in entry['Results']:
            measures = [f'{measure} {value}' for measure, value in result['Metrics'].items()]
            published.setdefault(result['Published By'], []).extend(measures)
        accuracies = '; '.join(map(', '.join, published.values()))
        flops = f'{cost.gflops:.1f} ({size[0]} x {size[1]})'
        row = (f'`{entry["Name"]}`', accuracies, f'{cost.params / 1e6:.2f}', flops, licences)
        rows.append((*row, '; '.join(published)))
    licence = 'licence of the weights it starts from'
    head = ('config', 'published accuracy (%)', 'params (M)', 'GFLOPs', licence, 'published by')
    return markdown(head, rows)
