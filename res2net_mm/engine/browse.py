"""A page with batches of training as the network gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..checks import check_positive
from ..data import check_data
from ..evaluation import charts
from ..evaluation.charts import Shape
from .errors import ToolError, building_config
from .runner import prepare_config
from .safe_runner import seeded_loader
from .seeding import seed_step

_PADDING = (
    '<svg width="0" height="0"><pattern id="padding" width="12" height="12" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path d="M0 0V12" stroke="#e0218a" stroke-width="4"/></pattern></svg>'
)


def write_batches(cfg: Config, out: Path, limit: int) -> Path:
    """Writes ``browse.html`` with the first images that a training run of this config gets.

    Images are as after the model's data preprocessor, with its normalisation undone. Padding that
    it added is hatched. With ``randomness.seed`` in the config they are those of the run.

    Args:
        cfg: The config.
        out: Folder for the page.
        limit: How many images.

    Raises:
        ToolError: The limit or the config makes no sense.
        DataError: The data does not.
    """
    try:
        check_positive('--limit', limit)
    except ValueError as error:
        raise ToolError(str(error)) from error
    for key in ('model', 'train_dataloader'):
        if not cfg.get(key):
            raise ToolError(f'the config has no {key}, which training needs')
    cfg = prepare_config(cfg, work_dir=str(out))
    check_data(cfg, splits=('train',))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    seed = cfg.randomness['seed']
    with building_config('training data of the config'):
        given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
        preprocessor = MODELS.build(given or dict(type='BaseDataPreprocessor'))
        loader = seeded_loader({**cfg.train_dataloader, 'persistent_workers': False}, seed, seed)
    as_rgb = any((given or {}).get(key) for key in ('bgr_to_rgb', 'to_rgb'))
    names = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes') or ()
    figures = []
    for i, batch in enumerate(loader):
        seed_step(seed, 0, i)
        data = preprocessor(batch, True)
        size = ' x '.join(map(str, data['inputs'].shape))
        for pixels, sample in zip(data['inputs'], data['data_samples'], strict=True):
            title = f'batch {i + 1} ({size}): {Path(getattr(sample, "img_path", "?")).name}'
            image = _pixels(pixels, preprocessor, as_rgb)
            picture = charts.picture(image, *_marks(sample, names, image.shape[:2]))
            caption = f'<figcaption>{charts.escape(title)}</figcaption>'
            figures.append(f'<figure>{caption}{picture}</figure>')
            if len(figures) == limit:
                break
        if len(figures) == limit:
            break
    told = 'As the network gets them, normalisation undone. Hatched: padding of the batch.'
    parts = [charts.note(told), _PADDING, charts.grid(*figures)]
    out.mkdir(parents=True, exist_ok=True)
    return charts.write_page(out / 'browse.html', 'Batches of training', parts)


def _pixels(inputs: torch.Tensor, preprocessor: Any, as_rgb: bool) -> np.ndarray:
    """(H, W, 3) RGB of an image (C, H, W) as the network gets it."""
    image = inputs.float().cpu()
    if hasattr(preprocessor, 'mean'):
        image = image * preprocessor.std.cpu() + preprocessor.mean.cpu()
    image = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels if as_rgb else pixels[..., ::-1])  # mmcv loads BGR


def _marks(sample: Any, names: Sequence[str], size: tuple[int, int]) -> tuple[Any, str]:
    """What to draw on a picture of this size: boxes or a label map, and the padding."""
    height, width = size
    inner_height, inner_width = getattr(sample, 'img_shape', size)[:2]
    padding = ''.join(
        f'<rect class="padding" x="{x}" y="{y}" width="{w}" height="{h}"/>'
        for x, y, w, h in (
            (inner_width, 0, width - inner_width, height),
            (0, inner_height, inner_width, height - inner_height),
        )
        if w > 0 and h > 0
    )
    if 'gt_sem_seg' in sample and 'gt_instances' not in sample:
        labels = sample.gt_sem_seg.data.squeeze().cpu().numpy()
        return np.where(labels < len(names), labels, 255), padding
    return list(_shapes(sample, names)), padding


def _shapes(sample: Any, names: Sequence[str]) -> Iterator[Shape]:
    """The objects of a sample; those that training ignores are grey."""
    from ..evaluation.analysis_page import outlines_of

    for part in ('gt_instances', 'ignored_instances'):
        found = sample.get(part)
        if found is None or 'bboxes' not in found:
            continue
        masks = found.masks.to_ndarray() if 'masks' in found else [None] * len(found)
        for box, label, mask in zip(found.bboxes.tolist(), found.labels.tolist(), masks, strict=True):
            left, top, right, bottom = box
            ignored = part == 'ignored_instances'
            yield Shape(
                (left, top, right - left, bottom - top),
                '#888888' if ignored else charts.colour(label),
                'ignored' if ignored else str(names[label] if label < len(names) else label),
                () if mask is None else outlines_of(mask),
            )
