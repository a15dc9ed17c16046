"""Figures and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import writing

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.figure import Figure


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
