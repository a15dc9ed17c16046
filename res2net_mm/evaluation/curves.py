"""Training curves as a picture."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from ..files import writing


def draw_curves(scalars: str | Path, out: str | Path) -> Path:
    """Draws the losses, and the metrics if there are any, that a run logged.

    Args:
        scalars: ``scalars.json`` of mmengine's LocalVisBackend, one json object a line.
        out: The picture.

    Raises:
        ValueError: The file holds no loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in Path(scalars).read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if 'loss' in name or 'mAP' in name.rpartition('/')[2] or 'mIoU' in name:
                series[name].append((record.get('step', record.get('iter', 0)), value))
    losses = {name: points for name, points in series.items() if 'loss' in name}
    if not losses:
        raise ValueError(f'{scalars} holds no loss: nothing to draw')
    metrics = {name: points for name, points in series.items() if name not in losses}

    panels = [('loss', 'step', losses)]
    if metrics:
        panels.append(('metric', 'epoch or step', metrics))
    figure = Figure(figsize=(6 * len(panels), 4), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, (title, unit, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, points in sorted(lines.items()):
            few = '.' if len(points) < 10 else None  # a line through one point is no line
            width = 2 if name == 'loss' else 1
            axes.plot(*zip(*points, strict=True), label=name, linewidth=width, marker=few)
        axes.set(title=title, xlabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with writing(out, durable=False) as partial:
        figure.savefig(partial, dpi=120)
    return Path(out)
