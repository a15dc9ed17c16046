"""An analysis as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sets.images import check_pixels
from ..files import writing
from .analysis import Analysis
from .coco import as_rle
from .judging import FALSE, MISSED

_WORST_CLASSES = 5
_TYPE, _FOUND, _LOST, _FALSE = 7, '#2ca02c', '#ff9f1c', '#d62728'


def draw_analysis(analysis: Analysis, out: Path) -> list[Path]:
    """Draws precision over recall, AP by size, confusions and errors into a folder.

    Returns:
        The pictures.
    """
    drawers = {
        'precision_recall.png': _draw_curves,
        'precision_recall_classes.png': _draw_classes,
        'ap_by_size.png': _draw_sizes,
        'confusion.png': _draw_confusion,
        'errors.png': _draw_errors,
    }
    for name, draw in drawers.items():
        draw(analysis, out / name)
    return [out / name for name in drawers]


def draw_worst(
    analysis: Analysis,
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    images: Path,
    out: Path,
    most: int = 12,
) -> Path | None:
    """Draws the images with most missed objects and false detections, worst first.

    Objects found are green, missed ones orange; false detections red, with their class and kind.

    Args:
        analysis: Of these annotations and results.
        annotations: Content of the annotation file.
        results: The detections.
        images: Folder that the ``file_name`` of images is below.
        out: The picture.
        most: How many.

    Returns:
        The picture; None where no image has a mistake.

    Raises:
        FileNotFoundError: An image is not there.
        ValueError: A file is no image.
    """
    import cv2

    worst = analysis.worst(most)
    if not worst:
        return None
    judged = analysis.confident
    entries = {image['id']: image for image in annotations['images']}
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    figure = _figure(4 * columns, 3.6 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis('off')
    lost, false = judged.by_image()
    for axes, number in zip(panels, worst, strict=False):
        entry = entries[judged.images[number]]
        file = images / entry['file_name']
        if not file.is_file():
            raise FileNotFoundError(f'image {file} does not exist')
        check_pixels(file, f'image {file}')
        pixels = cv2.imread(str(file))
        if pixels is None:
            raise ValueError(f'image {file} does not decode')
        if pixels.shape[:2] == (entry.get('width'), entry.get('height')):  # annotated unturned
            stored = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            pixels = stored if stored.shape != pixels.shape else pixels
        axes.imshow(pixels[..., ::-1])
        title = f'{Path(entry["file_name"]).name}: {lost[number]} missed, {false[number]} false'
        axes.set_title(title, fontsize=_TYPE)
        _draw_objects(axes, analysis, number, annotations['annotations'], entry)
        _draw_false(axes, analysis, number, results, entry)
        axes.set(xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0))
    return _save(figure, out)


def _draw_objects(
    axes: Any, analysis: Analysis, number: int, annotations: Sequence[Mapping], image: Mapping
) -> None:
    judged = analysis.confident
    for g in np.flatnonzero((judged.object_image == number) & judged.counted):
        colour = _FOUND if judged.found[g] else _LOST
        shape = annotations[judged.object_sources[g]]
        name = '' if judged.found[g] else analysis.names[judged.object_label[g]]
        _outline(axes, shape, analysis.scores.kind, image, colour, name)


def _draw_false(
    axes: Any, analysis: Analysis, number: int, results: Sequence[Mapping], image: Mapping
) -> None:
    judged = analysis.confident
    for d in np.flatnonzero((judged.image == number) & judged.false):
        kind = next(kind for kind in FALSE if judged.are(kind)[d])
        text = f'{analysis.names[judged.label[d]]} {judged.score[d]:.2f}: {kind}'
        _outline(axes, results[judged.sources[d]], analysis.scores.kind, image, _FALSE, text)


def _outline(axes: Any, shape: Mapping, kind: str, image: Mapping, colour: str, text: str) -> None:
    from faster_coco_eval import mask as coco_mask
    from matplotlib.patches import Rectangle

    if kind == 'segm':
        rle = as_rle(shape['segmentation'], image)
        x, y, width, height = np.asarray(coco_mask.toBbox(rle)).reshape(-1)[:4]
        axes.contour(np.asarray(coco_mask.decode(rle)).squeeze(), [0.5], colors=colour)
    else:
        x, y, width, height = shape['bbox']
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour))
    if text:
        box = dict(facecolor=colour, edgecolor='none', pad=0.5)
        axes.text(x, y, text, fontsize=5, color='white', bbox=box, clip_on=True)


def _draw_curves(analysis: Analysis, out: Path) -> None:
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    for iou, curve in analysis.curves().items():
        label = f'IoU {iou:.2f}: {analysis.scores.ap(iou):.3f}'
        axes.plot(np.linspace(0, 1, 101), curve, label=label)
    axes.set(title='mean of all classes, by IoU threshold: AP', **_PRECISION)
    _finish(axes)
    _save(figure, out)


def _draw_classes(analysis: Analysis, out: Path) -> None:
    aps = {
        name: (analysis.scores.ap(0.5, key), k)
        for k, (key, name) in enumerate(analysis.scores.categories.items())
    }
    ranked = sorted((name for name in aps if aps[name][0] >= 0), key=lambda name: aps[name][0])
    chosen = list(dict.fromkeys(ranked[:_WORST_CLASSES] + ranked[-_WORST_CLASSES:]))
    threshold = np.argmin(np.abs(analysis.scores.iou_thrs - 0.5))
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    for name in reversed(chosen):
        ap, k = aps[name]
        curve = analysis.scores.precision[threshold, :, k, 0, -1]
        axes.plot(np.linspace(0, 1, 101), curve, label=f'{name}: {ap:.3f}')
    axes.set(title='best and worst classes at IoU 0.5: AP', **_PRECISION)
    _finish(axes)
    _save(figure, out)


def _draw_sizes(analysis: Analysis, out: Path) -> None:
    figure = _figure(6, 4)
    axes = figure.subplots()
    aps = [max(analysis.scores.ap(size=size), 0) for size in analysis.sizes]
    bars = axes.bar([f'{size}\n{n} objects' for size, n in analysis.sizes.items()], aps)
    axes.bar_label(bars, fmt='%.3f', fontsize=_TYPE)
    axes.tick_params('x', labelsize=_TYPE)
    axes.set(title='AP by size', xlabel='square root of the area, pixels', ylim=(0, 1.05))
    _save(figure, out)


def _draw_confusion(analysis: Analysis, out: Path) -> None:
    table = analysis.confident.confusion()
    there = table.any(0) | table.any(1)  # a class that no image has says nothing
    table = table[np.ix_(there, there)]
    names = [
        n for n, is_there in zip([*analysis.names, 'background'], there, strict=True) if is_there
    ]
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.35 * len(names) + 2), 30)
    figure = _figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_TYPE)
    axes.set_yticks(range(len(names)), names, fontsize=_TYPE)
    for i, j in np.argwhere(table):
        colour = 'white' if shares[i, j] > 0.5 else 'black'
        axes.text(j, i, table[i, j], ha='center', va='center', fontsize=_TYPE, color=colour)
    title = f'detections from score {analysis.least:g} at IoU 0.5'
    axes.set(title=title, xlabel='predicted', ylabel='ground truth')
    _save(figure, out)


def _draw_errors(analysis: Analysis, out: Path) -> None:
    kinds = (*FALSE, MISSED)
    every, confident, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    figure = _figure(11, 4)
    left, right = figure.subplots(1, 2)
    places = np.arange(len(kinds))
    left.barh(places - 0.2, [every[kind] for kind in kinds], 0.4, label='all')
    label = f'from score {analysis.least:g}'
    left.barh(places + 0.2, [confident[kind] for kind in kinds], 0.4, label=label)
    left.set_yticks(places, kinds)
    left.set(title='errors', xlabel='how many')
    left.legend(fontsize=_TYPE)
    bars = right.barh(places, [gains[kind] for kind in kinds])
    right.bar_label(bars, fmt='%.3f', fontsize=_TYPE)
    right.set_yticks(places, [''] * len(kinds))
    title = f'what AP at IoU 0.5 ({analysis.every.ap():.3f}) gains without them'
    right.set(title=title, xlabel='AP')
    right.margins(x=0.15)
    for axes in (left, right):
        axes.invert_yaxis()
    _save(figure, out)


_PRECISION = dict(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=_TYPE)


def _save(figure: Any, out: Path) -> Path:
    with writing(out, durable=False) as partial:
        figure.savefig(partial, dpi=120)
    return out
