"""Draws an analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.errors import DataError
from ..data.sets.images import check_pixels
from .analysis import Analysis
from .coco import shape_of
from .curves import save_figure
from .judging import FALSE, MISSED

if TYPE_CHECKING:  # matplotlib takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WORST_CLASSES = 5
_TYPE, _FOUND, _LOST, _FALSE = 7, '#2ca02c', '#ff9f1c', '#d62728'


def draw_analysis(analysis: Analysis, out: Path) -> list[Path]:
    """Draws precision over recall, AP by size, confusions and errors into a folder.

    Returns:
        The pictures.
    """
    from matplotlib.figure import Figure

    drawers = {
        'precision_recall': _draw_curves,
        'precision_recall_classes': _draw_classes,
        'ap_by_size': _draw_sizes,
        'confusion': _draw_confusion,
        'errors': _draw_errors,
    }
    pictures = []
    for name, draw in drawers.items():
        figure = Figure(figsize=(6, 4.5), layout='constrained')
        draw(analysis, figure)
        pictures.append(save_figure(figure, out / f'{name}.png'))
    return pictures


def draw_worst(
    analysis: Analysis,
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    images: Path,
    out: Path,
    most: int = 12,
) -> Path | None:
    """Draws the images with the most missed objects and false detections, worst first.

    Found objects are green, missed ones orange; false detections are red, with class and kind.

    Args:
        analysis: Of these annotations and results.
        annotations: Content of the annotation file.
        results: The detections.
        images: Folder that the ``file_name`` of images is relative to.
        out: The picture.
        most: How many images.

    Returns:
        The picture; None if no image has a mistake.

    Raises:
        FileNotFoundError: An image is missing.
        DataError: A file is not an image.
    """
    from matplotlib.figure import Figure

    worst, judged, names = analysis.worst(most), analysis.confident, analysis.names
    if not worst:
        return None
    entries = {image['id']: image for image in annotations['images']}
    columns = min(4, len(worst))
    rows = -(-len(worst) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis('off')
    lost, false = judged.by_image()
    for axes, number in zip(panels, worst, strict=False):
        image = entries[judged.images[number]]
        pixels = _read_image(images / image['file_name'], image)
        axes.imshow(pixels)
        title = f'{Path(image["file_name"]).name}: {lost[number]} missed, {false[number]} false'
        axes.set_title(title, fontsize=_TYPE)
        for o in judged.objects:
            if o.image == number and not o.crowd:
                shape = annotations['annotations'][o.source]
                style = (_FOUND, '') if o.found else (_LOST, names[o.label])
                _outline(axes, shape, analysis.scores.kind, image, *style)
        for d in judged.detections:
            if d.image == number and d.false:
                text = f'{names[d.label]} {d.score:.2f}: {d.verdict}'
                _outline(axes, results[d.source], analysis.scores.kind, image, _FALSE, text)
        axes.set(xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0))
    return save_figure(figure, out)


def _read_image(file: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """RGB; not turned by EXIF if the annotations are for the image as it is stored."""
    import cv2

    if not file.is_file():
        raise FileNotFoundError(f'image {file} does not exist')
    check_pixels(file, f'image {file}')
    pixels = cv2.imread(str(file))
    if pixels is None:
        raise DataError('it does not decode', f'image {file}')
    if pixels.shape[:2] == (entry.get('width'), entry.get('height')):
        stored = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = stored if stored.shape != pixels.shape else pixels
    return pixels[..., ::-1]


def _outline(axes: Axes, entry: Mapping, kind: str, image: Mapping, colour: str, text: str) -> None:
    from faster_coco_eval import mask as coco_mask
    from matplotlib.patches import Rectangle

    shape = shape_of(entry, kind, image)
    if kind == 'segm':
        axes.contour(np.asarray(coco_mask.decode(shape)).squeeze(), [0.5], colors=colour)
        shape = np.asarray(coco_mask.toBbox(shape)).reshape(-1)[:4]
    x, y, width, height = shape
    if kind == 'bbox':
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour))
    if text:
        box = dict(facecolor=colour, edgecolor='none', pad=0.5)
        axes.text(x, y, text, fontsize=5, color='white', bbox=box, clip_on=True)


def _draw_curves(analysis: Analysis, figure: Figure) -> None:
    curves = {
        f'IoU {iou:.2f}: {analysis.scores.ap(iou):.3f}': curve
        for iou, curve in analysis.curves().items()
    }
    _draw_lines(figure, curves, 'mean of all classes, by IoU threshold: AP')


def _draw_classes(analysis: Analysis, figure: Figure) -> None:
    scores = analysis.scores
    threshold = np.argmin(np.abs(scores.iou_thrs - 0.5))
    aps = {key: scores.ap(0.5, key) for key in scores.categories}
    ranked = sorted((key for key in aps if aps[key] >= 0), key=aps.get)
    chosen = dict.fromkeys(ranked[:_WORST_CLASSES] + ranked[-_WORST_CLASSES:])
    places = list(scores.categories)
    curves = {
        f'{scores.categories[key]}: {aps[key]:.3f}': scores.precision[
            threshold, :, places.index(key), 0, -1
        ]
        for key in reversed(chosen)
    }
    _draw_lines(figure, curves, 'best and worst classes at IoU 0.5: AP')


def _draw_lines(figure: Figure, curves: Mapping[str, np.ndarray], title: str) -> None:
    axes = figure.subplots()
    for label, precision in curves.items():
        axes.plot(np.linspace(0, 1, 101), precision, label=label)
    axes.set(title=title, xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=_TYPE)


def _draw_sizes(analysis: Analysis, figure: Figure) -> None:
    axes = figure.subplots()
    aps = [max(analysis.scores.ap(size=size), 0) for size in analysis.sizes]
    bars = axes.bar([f'{size}\n{n} objects' for size, n in analysis.sizes.items()], aps)
    axes.bar_label(bars, fmt='%.3f', fontsize=_TYPE)
    axes.tick_params('x', labelsize=_TYPE)
    axes.set(title='AP by size', xlabel='square root of the area, pixels', ylim=(0, 1.05))


def _draw_confusion(analysis: Analysis, figure: Figure) -> None:
    table = analysis.confident.confusion()
    there = table.any(0) | table.any(1)  # a class that is in no image says nothing
    table = table[np.ix_(there, there)]
    names = np.array([*analysis.names, 'background'])[there]
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.35 * len(names) + 2), 30)
    figure.set_size_inches(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=_TYPE)
    axes.set_yticks(range(len(names)), names, fontsize=_TYPE)
    for i, j in np.argwhere(table):
        colour = 'white' if shares[i, j] > 0.5 else 'black'
        axes.text(j, i, table[i, j], ha='center', va='center', fontsize=_TYPE, color=colour)
    title = f'detections from score {analysis.least:g} at IoU 0.5'
    axes.set(title=title, xlabel='predicted', ylabel='ground truth')


def _draw_errors(analysis: Analysis, figure: Figure) -> None:
    kinds = (*FALSE, MISSED)
    gains, places = analysis.gains(), np.arange(len(kinds))
    figure.set_size_inches(11, 4)
    left, right = figure.subplots(1, 2)
    for judged, label, shift in (
        (analysis.every, 'all', -0.2),
        (analysis.confident, f'from score {analysis.least:g}', 0.2),
    ):
        counts = judged.counts()
        left.barh(places + shift, [counts[kind] for kind in kinds], 0.4, label=label)
    left.set_yticks(places, kinds)
    left.set(title='errors', xlabel='how many')
    left.legend(fontsize=_TYPE)
    bars = right.barh(places, [gains[kind] for kind in kinds])
    right.bar_label(bars, fmt='%.3f', fontsize=_TYPE)
    right.set_yticks(places, [''] * len(kinds))
    title = f'gain of AP at IoU 0.5 ({analysis.every.ap():.3f}) without them'
    right.set(title=title, xlabel='AP')
    right.margins(x=0.15)
    for axes in (left, right):
        axes.invert_yaxis()
