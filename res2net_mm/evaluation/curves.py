"""Sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import writing


def draw_sheet(rows: Sequence[Sequence[tuple[str, Any]]], out: Path) -> None:
    """Writes rows of titled pictures: (H, W, 3) in RGB, or (H, W) in false colours."""
    from matplotlib.figure import Figure  # takes long to import

    columns = max(map(len, rows))
    figure = Figure(figsize=(4 * columns, 4 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for line, row in zip(grid, rows, strict=True):
        for axes, (title, pixels) in zip(line, row, strict=False):
            axes.imshow(pixels, cmap='inferno')
            axes.set_title(title, fontsize=9)
    with writing(out, durable=False) as partial:
        figure.savefig(partial, dpi=120)
