"""The classes that a classifier finds most likely, as records and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = str(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'))  # not Latin letters only
_MOST = 5


def best_classes(sample: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """``label``, ``name`` and ``score`` of the five most likely classes, best first."""
    scores, labels = sample.pred_score.topk(min(_MOST, len(sample.pred_score)))
    return [
        dict(label=label, name=name_of(label, names), score=round(score, 6))
        for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def true_class(sample: Any, names: Sequence[str]) -> str:
    """The annotated class of an image; ``''`` if it has none."""
    return ', '.join(name_of(int(label), names) for label in sample.get('gt_label', ()))


def draw_classes(pixels: np.ndarray, classes: Sequence[dict], truth: str = '') -> np.ndarray:
    """An image (H, W, 3), RGB, above :func:`best_classes`, and the annotated one if given."""
    image = Image.fromarray(pixels)
    size = min(max(image.width // 28, 12), 28)
    row, font = size * 3 // 2, ImageFont.truetype(FONT, size)
    rows = [(c['score'], f'{c["score"]:.3f}  {c["name"]}') for c in classes]
    rows += [(0, f'annotated: {truth}')] if truth else []
    width = max(image.width, *(int(font.getlength(text)) + size for _, text in rows))
    canvas = Image.new('RGB', (width, image.height + row * len(rows)), 'white')
    canvas.paste(image)
    pen = ImageDraw.Draw(canvas)
    for i, (score, text) in enumerate(rows):
        top = image.height + i * row
        pen.rectangle((0, top + 1, round(score * width), top + row - 2), fill='#b9d7f2')
        pen.text((size // 2, top + row // 2), text, 'black', font, anchor='lm')
    return np.asarray(canvas)


def name_of(label: int, names: Sequence[str]) -> str:
    """The name of a label, or its number."""
    return names[label] if label < len(names) else str(label)
