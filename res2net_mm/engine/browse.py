"""A page with batches of training as the network gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope

from ..checks import check_positive
from ..data.check.inspection import check_data
from ..evaluation import charts
from .config import require
from .errors import building_config
from .runner import prepare_config
from .safe_runner import seeded_loader
from .seeding import seed_step

_PADDING = 224, 33, 138  # RGB


def write_batches(cfg: Config, out: Path, limit: int) -> Path:
    """Writes ``browse.html`` with the first images that a training run of this config gets.

    Images are as after the model's data preprocessor, with its normalisation undone. Padding that
    it added is hatched. With ``randomness.seed`` in the config they are those of the run.

    Raises:
        ToolError: The config makes no sense.
        ValueError: ``limit`` is not positive.
        DataError: The data cannot be used.
    """
    check_positive('--limit', limit)
    require(cfg, 'training', 'model', 'train_dataloader')
    cfg = prepare_config(cfg, work_dir=str(out))
    check_data(cfg, splits=('train',))
    figures = list(islice(_figures(cfg), limit))
    told = 'As the network gets them, normalisation undone. Hatched: padding of the batch.'
    out.mkdir(parents=True, exist_ok=True)
    parts = charts.note(told), charts.grid(*figures)
    return charts.write_page(out / 'browse.html', 'Batches of training', parts)


def _figures(cfg: Config) -> Iterator[str]:
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    seed = cfg.randomness['seed']
    with building_config('training data of the config'):
        given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        preprocessor = MODELS.build({'type': 'BaseDataPreprocessor', **given})
        loader = seeded_loader({**cfg.train_dataloader, 'persistent_workers': False}, seed, seed)
    as_rgb = given.get('bgr_to_rgb') or given.get('to_rgb')
    names = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes') or ()
    hub = MessageHub.get_current_instance()
    for i, batch in enumerate(loader, 1):
        seed_step(seed, 0, i - 1)
        hub.update_info('iter', i - 1)  # for mmdet's BatchSyncRandomResize
        data = preprocessor(batch, True)
        shape = ' x '.join(map(str, data['inputs'].shape))
        for inputs, sample in zip(data['inputs'], data['data_samples'], strict=True):
            image = inputs.float().cpu()  # (C, H, W)
            if hasattr(preprocessor, 'mean'):
                image = image * preprocessor.std.cpu() + preprocessor.mean.cpu()
            image = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
            pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
            pixels = np.ascontiguousarray(pixels if as_rgb else pixels[..., ::-1])  # mmcv loads BGR
            height, width = getattr(sample, 'img_shape', pixels.shape)[:2]
            hatched = np.indices(pixels.shape[:2]).sum(0) % 12 < 4
            hatched[:height, :width] = False
            pixels[hatched] = _PADDING
            picture = charts.picture(pixels, _marks(sample, names))
            name = Path(getattr(sample, 'img_path', '?')).name
            of = [str(names[k]) for k in sample.get('gt_label', ()) if k < len(names)]
            yield charts.frame(f'batch {i} ({shape}): {", ".join([name, *of])}', picture)


def _marks(sample: Any, names: Sequence[str]) -> list[charts.Shape] | np.ndarray:
    """The objects of a sample, grey if training ignores them; else its label map.

    None of a pose estimator, whose boxes are of the whole image and not of its crop.
    """
    if 'gt_instances' not in sample and 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data.squeeze().cpu().numpy()
        return np.where(labels < len(names), labels, 255)
    shapes = []
    for part in ('gt_instances', 'ignored_instances'):
        found = sample.get(part)
        if found is None or 'bboxes' not in found:
            continue
        masks = found.masks.to_ndarray() if 'masks' in found else [()] * len(found)
        labels = found.labels.tolist() if 'labels' in found else []
        rows = zip(found.bboxes.tolist(), labels, masks, strict=False)
        for (left, top, right, bottom), label, mask in rows:
            name = str(names[label] if label < len(names) else label)
            text, mark = name, charts.colour(label)
            if part == 'ignored_instances':
                text, mark = 'ignored', '#888888'
            edges = charts.outlines(mask) if len(mask) else ()
            box = left, top, right - left, bottom - top
            shapes.append(charts.Shape(box, mark, text, name, edges))
    return shapes
