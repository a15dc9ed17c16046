"""What a page shows of a detector's or a segmentor's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask

from ..data.errors import DataError
from ..data.transforms import LoadImageFromFile
from . import charts
from .analysis import Analysis
from .charts import Shape, note, section
from .coco import shape_of
from .judging import FALSE, MISSED
from .tables import figure

_MOST_CURVES, _MOST_IMAGES, _MOST_CONFUSED = 10, 12, 40


def detection_sections(
    analysis: Analysis, annotations: Mapping, results: Sequence[Mapping], images: Path | None = None
) -> list[str]:
    """Sections of a page on the analysis of these annotations and results.

    ``images`` is the folder of the images. None: the ``path`` of their entries; those without one
    are not shown.
    """
    scores, rows = analysis.scores, analysis.thresholds()
    aps = [scores.ap(category=key) for key in scores.categories]
    classes = {name: (ap, count) for (name, count, *_), ap in zip(rows, aps, strict=True)}
    classes = dict(sorted(classes.items(), key=lambda item: -item[1][0]))
    sizes = {f'{s} px': (scores.ap(size=s), count) for s, count in analysis.sizes.items()}
    known = [name for name, (ap, _) in classes.items() if ap >= 0]
    title = 'Precision over recall at IoU 0.5'
    if len(known) > _MOST_CURVES:
        known = known[: _MOST_CURVES // 2] + known[-_MOST_CURVES // 2 :]
        title += ': best and worst classes'
    half = int(np.argmin(np.abs(scores.iou_thrs - 0.5)))
    by_class = dict(zip(analysis.names, scores.precision[half, :, :, 0, -1].T, strict=True))
    curves = {f'IoU {iou:.2f}': curve for iou, curve in analysis.curves().items()}
    precision = charts.grid(
        _bars('AP by class', classes),
        _bars('AP by size: square root of the area', sizes),
        _recall_chart('Precision over recall, mean of classes', curves),
        _recall_chart(title, {name: by_class[name] for name in known}),
    )
    found = {'precision': [row[:2] for row in analysis.calibration()], 'exact': [(0, 0), (1, 1)]}
    head = 'class', 'objects', 'score', 'precision', 'recall', 'F1'
    thresholds = charts.grid(
        charts.table('The score from which F1 is best, at IoU 0.5', head, rows),
        charts.lines('Calibration', found, 'score', (0, 1), 1) if found['precision'] else '',
    )
    every, sure, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    least = f'from score {analysis.least:g}'
    errors = charts.table(
        'Kinds of errors at IoU 0.5',
        ('error', 'all', least, 'AP50 gain'),
        [(kind, every[kind], sure[kind], gains[kind]) for kind in (*FALSE, MISSED)],
    )
    confusions = _confusions(
        f'Detections {least} at IoU 0.5: rows are the objects, columns what they are taken for; '
        'background is no object, or none found',
        [*analysis.names, 'background'],
        analysis.confident.confusion(),
    )
    figures, kind = scores.figures(), 'masks' if scores.kind == 'segm' else 'boxes'
    overall = ', '.join(f'{name} {figure(figures[name])}' for name in ('AP', 'AP50', 'AP75'))
    sections = [
        section('Average precision', note(f"COCO's, of {kind}: {overall}."), precision),
        section('Scores', thresholds),
        section('Errors', errors, confusions),
    ]
    if images is not None or any('path' in image for image in annotations['images']):
        sections.append(_worst_detections(analysis, annotations, results, images))
    return sections


def _bars(title: str, rows: Mapping[str, tuple[float, int]]) -> str:
    """AP and number of objects by name."""
    texts = {name: (ap, f'{figure(ap)}, {count:,} objects') for name, (ap, count) in rows.items()}
    return charts.bars(title, texts)


def _recall_chart(title: str, curves: Mapping[str, np.ndarray]) -> str:
    """Precision (101,) at recalls 0 to 1 by name."""
    recalls = np.linspace(0, 1, 101).tolist()
    points = {name: [*zip(recalls, curve.tolist(), strict=True)] for name, curve in curves.items()}
    return charts.lines(title, points, 'recall', (0, 1), 1)


def _worst_detections(
    analysis: Analysis, annotations: Mapping, results: Sequence[Mapping], folder: Path | None
) -> str:
    judged, names, kind = analysis.confident, analysis.names, analysis.scores.kind
    entries = {image['id']: image for image in annotations['images']}
    lost, false = judged.by_image()
    parts = []
    for number in analysis.worst(_MOST_IMAGES):
        image = entries[judged.images[number]]
        truth, found = [], []
        for o in judged.objects:
            if o.image == number and not o.crowd:
                mark, entry = 'found' if o.found else 'lost', annotations['annotations'][o.source]
                truth.append(_shape(entry, kind, image, mark, names[o.label]))
        for d in judged.detections:
            if d.image == number:
                text = f'{names[d.label]} {d.score:.2f}'
                mark = 'false' if d.false else 'found'
                found.append(_shape(results[d.source], kind, image, mark, text, d.verdict))
        name = image.get('file_name') or Path(str(image.get('path') or image['id'])).name
        file = (image.get('path') or name) if folder is None else folder / str(name)
        title = f'{name}: {lost[number]} missed, {false[number]} false'
        parts.append(_pair(title, file, image, dict(truth=truth, predicted=found[::-1])))
    told = f'Detections from score {analysis.least:g}: green right, orange missed, red false'
    return section('Worst images', note(told), *parts)


def segmentation_sections(
    confusion: np.ndarray, names: Sequence[str], worst: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Sections of a page.

    Args:
        confusion: Pixels, (K, K + 1): rows are the labels, columns the predictions; the last is
            for predictions beyond the classes.
        names: Of the classes, (K,).
        worst: Images, worst first: ``path``, ``accuracy``, and the label maps ``truth`` and
            ``predicted``, (H, W), with 255 for what is ignored.
    """
    hits, labelled, found = confusion.diagonal(), confusion.sum(1), confusion[:, :-1].sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        share, iou = labelled / labelled.sum(), hits / (labelled + found - hits)
        columns = share, iou, hits / found, hits / labelled, 2 * hits / (labelled + found)
    order = np.argsort(-np.nan_to_num(iou, nan=-1), kind='stable')
    rows = [(names[k], *(float(column[k]) for column in columns)) for k in order]
    classes = charts.grid(
        charts.bars('IoU by class', {row[0]: (row[2], figure(row[2])) for row in rows}),
        charts.table('By class', ('class', 'pixels', 'IoU', 'precision', 'recall', 'F1'), rows),
    )
    title = 'Rows are the labels, columns the predictions; shares of the pixels'
    sections = [section('Classes', classes, _confusions(title, names, confusion[:, :-1], labelled))]
    pairs = []
    for image in worst:
        views = {key: np.array(image[key]) for key in ('truth', 'predicted')}
        title = f'{image["path"]}: {image["accuracy"]:.1%} right'
        pairs.append(_pair(title, image['path'], {}, views))
    return sections + [section('Worst images', charts.key(names), *pairs)] * bool(pairs)


def _confusions(
    title: str, names: Sequence[str], table: np.ndarray, totals: np.ndarray | None = None
) -> str:
    """The matrix of the classes that occur; if these are many, of those that are confused most."""
    totals = table.sum(1) if totals is None else totals
    wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
    there = np.flatnonzero(table.any(0) | table.any(1))
    if len(there) > _MOST_CONFUSED:
        there = np.sort(there[np.argsort(-wrong[there], kind='stable')[:_MOST_CONFUSED]])
        title += f'. Only the {_MOST_CONFUSED} classes that are confused most'
    shown = table[np.ix_(there, there)]
    return charts.matrix(f'Confusions. {title}', [names[k] for k in there], shown, totals[there])


def _pair(title: str, file: str | Path, entry: Mapping, views: Mapping[str, Any]) -> str:
    try:
        return charts.pair(title, read_image(Path(file), entry), views)
    except DataError as error:
        return note(f'{title}; not shown: {error}')


def read_image(file: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """RGB; not turned by EXIF if the annotations are for the image as it is stored.

    Raises:
        DataError: It cannot be read, or is no whole image.
    """
    pixels = LoadImageFromFile().picture(str(file))
    size = entry.get('width'), entry.get('height')
    if pixels.shape[:2] == size != size[::-1]:
        pixels = LoadImageFromFile(color_type='color_ignore_orientation').picture(str(file))
    return np.ascontiguousarray(pixels[..., ::-1])


def _shape(
    entry: Mapping, kind: str, image: Mapping, mark: str, text: str, verdict: str = ''
) -> Shape:
    shape, told = shape_of(entry, kind, image), f'{text} {verdict}'.strip()
    if kind == 'bbox':
        return Shape(shape, mark, text, told)
    box = np.asarray(coco_mask.toBbox(shape)).reshape(-1)[:4]
    return Shape(box, mark, text, told, charts.outlines(np.squeeze(coco_mask.decode(shape))))
