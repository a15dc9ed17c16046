"""Training curves and sheets of pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import writing

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.figure import Figure


def draw_curves(scalars: str | Path, out: str | Path) -> Path:
    """Draws the losses, and the metrics if there are any, that a run logged.

    Args:
        scalars: ``scalars.json`` of mmengine's LocalVisBackend, one JSON object a line.
        out: The picture.

    Raises:
        ValueError: The file holds no loss.
    """
    from matplotlib.figure import Figure

    losses: dict[str, list[tuple[float, float]]] = defaultdict(list)
    metrics: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in Path(scalars).read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if 'loss' in name:
                losses[name].append((record.get('step', record.get('iter', 0)), value))
            elif 'mAP' in name.rpartition('/')[2] or 'mIoU' in name:
                metrics[name].append((record.get('step', record.get('iter', 0)), value))
    if not losses:
        raise ValueError(f'{scalars} holds no loss: nothing to draw')

    panels = [('loss', 'step', losses)] + [('metric', 'epoch or step', metrics)] * bool(metrics)
    figure = Figure(figsize=(6 * len(panels), 4), layout='constrained')
    for axes, (title, unit, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, points in sorted(lines.items()):
            marker = '.' if len(points) < 10 else None  # a line through one point is invisible
            width = 2 if name == 'loss' else 1
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width, marker=marker)
        axes.set(title=title, xlabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return save_figure(figure, Path(out))


def save_figure(figure: Figure, out: Path) -> Path:
    """Writes a figure as a picture, whole or not at all."""
    with writing(out, durable=False) as partial:
        figure.savefig(partial, dpi=120)
    return out


def draw_sheet(rows: Sequence[Sequence[tuple[str, Any]]], out: Path) -> Path:
    """Writes rows of titled pictures: (H, W, 3) in RGB, or (H, W) in false colours."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(4 * columns, 4 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for line, row in zip(grid, rows, strict=True):
        for axes, (title, pixels) in zip(line, row, strict=False):
            axes.imshow(pixels, cmap='inferno')
            axes.set_title(title, fontsize=9)
    return save_figure(figure, out)
