"""What a page shows of a detector's or a segmentor's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faster_coco_eval import mask as coco_mask

from ..data.errors import DataError
from ..data.sets.images import check_pixels
from . import charts
from .analysis import Analysis
from .charts import Shape, note, section
from .coco import shape_of
from .judging import FALSE, MISSED

_MOST_CURVES, _MOST_IMAGES, _MOST_CONFUSED = 10, 12, 40


def detection_sections(
    analysis: Analysis, annotations: Mapping, results: Sequence[Mapping], images: Path | None = None
) -> list[str]:
    """Sections of a page.

    Args:
        analysis: Of these annotations and results.
        annotations: Content of the annotation file.
        results: The detections.
        images: Folder of the images. None: the ``path`` that entries of ``images`` have; those
            without one are not shown.
    """
    scores, recalls, unit = analysis.scores, np.linspace(0, 1, 101), ('recall', (0, 1), 1)
    rows = analysis.thresholds()
    aps = [scores.ap(category=key) for key in scores.categories]
    classes = {name: (ap, count) for (name, count, *_), ap in zip(rows, aps, strict=True)}
    classes = dict(sorted(classes.items(), key=lambda item: -item[1][0]))
    sizes = {f'{s} px': (scores.ap(size=s), count) for s, count in analysis.sizes.items()}
    bars = (
        {name: (ap, f'{_figure(ap)}, {count:,} objects') for name, (ap, count) in part.items()}
        for part in (classes, sizes)
    )
    curves = {f'IoU {iou:.2f}': _points(recalls, c) for iou, c in analysis.curves().items()}
    half = int(np.argmin(np.abs(scores.iou_thrs - 0.5)))
    by_class = dict(zip(analysis.names, scores.precision[half, :, :, 0, -1].T, strict=True))
    known = [name for name, (ap, _) in classes.items() if ap >= 0]
    cut, title = _MOST_CURVES // 2, 'Precision over recall at IoU 0.5'
    if len(known) > 2 * cut:
        known, title = known[:cut] + known[-cut:], f'{title}: best and worst classes'
    found = analysis.calibration()
    calibration = {'precision': [row[:2] for row in found], 'exact': [(0, 0), (1, 1)]}
    every, sure, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    least, figures = f'from score {analysis.least:g}', scores.figures()
    overall = ', '.join(f'{name} {_figure(figures[name])}' for name in ('AP', 'AP50', 'AP75'))
    kind = 'masks' if scores.kind == 'segm' else 'boxes'
    precision = charts.grid(
        charts.bars('AP by class', next(bars)),
        charts.bars('AP by size: square root of the area', next(bars)),
        charts.lines('Precision over recall, mean of classes', curves, *unit),
        charts.lines(title, {n: _points(recalls, by_class[n]) for n in known}, *unit),
    )
    thresholds = charts.grid(
        charts.table(
            'The score from which F1 is best, at IoU 0.5',
            ('class', 'objects', 'score', 'precision', 'recall', 'F1'),
            rows,
        ),
        charts.lines('Calibration', calibration if found else {}, 'score', (0, 1), 1),
    )
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
    sections = [
        section('Average precision', note(f"COCO's, of {kind}: {overall}."), precision),
        section('Scores', thresholds),
        section('Errors', errors, confusions),
    ]
    if images is not None or any('path' in image for image in annotations['images']):
        sections.append(_worst_detections(analysis, annotations, results, images))
    return sections


def _worst_detections(
    analysis: Analysis, annotations: Mapping, results: Sequence[Mapping], folder: Path | None
) -> str:
    judged, names, kind = analysis.confident, analysis.names, analysis.scores.kind
    entries = {image['id']: image for image in annotations['images']}
    lost, false = judged.by_image()
    told = f'Detections from score {analysis.least:g}: green right, orange missed, red false'
    parts = [note(told)]
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
    return section('Worst images', *parts)


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
        charts.bars('IoU by class', {row[0]: (row[2], _figure(row[2])) for row in rows}),
        charts.table('By class', ('class', 'pixels', 'IoU', 'precision', 'recall', 'F1'), rows),
    )
    title = 'Rows are the labels, columns the predictions; shares of the pixels'
    confusions = _confusions(title, names, confusion[:, :-1], labelled)
    pairs = [
        _pair(
            f'{image["path"]}: {image["accuracy"]:.1%} right',
            image['path'],
            {},
            {key: np.array(image[key]) for key in ('truth', 'predicted')},
        )
        for image in worst
    ]
    shown = [section('Worst images', charts.key(names), *pairs)] if worst else []
    return [section('Classes', classes, confusions), *shown]


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
    except (OSError, DataError) as error:
        return note(f'{title}; not shown: {error}')


def read_image(file: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """RGB; not turned by EXIF if the annotations are for the image as it is stored.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is not an image.
    """
    if not file.is_file():
        raise FileNotFoundError(f'image {file} does not exist')
    check_pixels(file, f'image {file}')
    pixels = cv2.imread(str(file))
    if pixels is None:
        raise DataError('it does not decode', f'image {file}')
    if pixels.shape[:2] == (entry.get('width'), entry.get('height')):
        stored = cv2.imread(str(file), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = stored if stored.shape != pixels.shape else pixels
    return np.ascontiguousarray(pixels[..., ::-1])


def _shape(
    entry: Mapping, kind: str, image: Mapping, mark: str, text: str, verdict: str = ''
) -> Shape:
    shape, told = shape_of(entry, kind, image), f'{text} {verdict}'.strip()
    if kind == 'bbox':
        return Shape(shape, mark, text, told)
    mask = np.asarray(coco_mask.decode(shape)).squeeze()
    box = np.asarray(coco_mask.toBbox(shape)).reshape(-1)[:4]
    return Shape(box, mark, text, told, charts.outlines(mask))


def _points(xs: np.ndarray, ys: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _figure(value: float) -> str:
    return f'{value:.3f}' if value >= 0 else '-'
