"""What a page shows of a detector's or a segmentor's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import listed
from ..data.errors import DataError
from ..data.sets.images import check_pixels
from . import charts
from .analysis import Analysis
from .charts import Shape
from .coco import shape_of
from .judging import FALSE, MISSED

_MOST_CLASSES = 10  # with curves: the best and the worst
_MOST_IMAGES = 12
_MOST_CONFUSED = 40


def detection_sections(
    analysis: Analysis,
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    images: Path | None = None,
) -> list[str]:
    """Sections of a page.

    Args:
        analysis: Of these annotations and results.
        annotations: Content of the annotation file.
        results: The detections.
        images: Folder of the images. None: the ``path`` that entries of ``images`` have; those
            without one are not shown.
    """
    scores, grid = analysis.scores, np.linspace(0, 1, 101)
    kind = 'masks' if scores.kind == 'segm' else 'boxes'
    figures = {key: scores.figures(key) for key in (None, *scores.categories)}
    counts = {row[0]: row[1] for row in analysis.thresholds()}
    by_class = {
        name: (figures[key]['AP'], f'{_figure(figures[key]["AP"])}, {counts[name]:,} objects')
        for key, name in scores.categories.items()
    }
    by_class = dict(sorted(by_class.items(), key=lambda row: -row[1][0]))
    by_size = {
        f'{size} px': (scores.ap(size=size), f'{_figure(scores.ap(size=size))}, {count:,} objects')
        for size, count in analysis.sizes.items()
    }
    curves = {f'IoU {iou:.2f}': list(zip(grid, curve)) for iou, curve in analysis.curves().items()}
    half = int(np.argmin(np.abs(scores.iou_thrs - 0.5)))
    classes = {
        name: list(zip(grid, scores.precision[half, :, list(scores.categories).index(key), 0, -1]))
        for key, name in scores.categories.items()
        if figures[key]['AP50'] >= 0
    }
    ranked = sorted(classes, key=lambda name: -np.mean([p for _, p in classes[name]]))
    if len(ranked) > _MOST_CLASSES:
        ranked = ranked[: _MOST_CLASSES // 2] + ranked[-_MOST_CLASSES // 2 :]
    calibration = analysis.calibration()
    points = {'precision': [row[:2] for row in calibration], 'exact': [(0, 0), (1, 1)]}
    every, sure, gains = analysis.every.counts(), analysis.confident.counts(), analysis.gains()
    errors = [(kind, every[kind], sure[kind], gains[kind]) for kind in (*FALSE, MISSED)]
    table = analysis.confident.confusion()
    names = [*analysis.names, 'background']
    least = f'{analysis.least:g}'
    overall = ', '.join(f'{k} {_figure(figures[None][k])}' for k in ('AP', 'AP50', 'AP75'))
    sections = [
        charts.section(
            'Average precision',
            charts.note(f"By COCO's rules, for {kind}: {overall}."),
            charts.grid(
                charts.bars('AP by class', by_class),
                charts.bars('AP by size: square root of the area', by_size),
                charts.lines('Precision over recall, mean of classes', curves, 'recall', (0, 1), 1),
                charts.lines(
                    f'Precision over recall at IoU 0.5{", best and worst" * (len(classes) > len(ranked))}',
                    {name: classes[name] for name in ranked},
                    'recall',
                    (0, 1),
                    1,
                ),
            ),
        ),
        charts.section(
            'Scores',
            charts.grid(
                charts.table(
                    'The score from which F1 is best, at IoU 0.5',
                    ('class', 'objects', 'score', 'precision', 'recall', 'F1'),
                    analysis.thresholds(),
                ),
                charts.lines(
                    'Calibration: precision of the detections of a score',
                    points if calibration else {},
                    'score',
                    (0, 1),
                    1,
                ),
            ),
        ),
        charts.section(
            'Errors',
            charts.table(
                'Kinds of errors at IoU 0.5',
                ('error', 'all', f'from score {least}', 'AP50 gained without'),
                errors,
            ),
            _confusions(
                f'Detections from score {least} at IoU 0.5. Rows are the objects, columns what they '
                'are taken for; background is no object, or none found',
                names,
                table,
            ),
        ),
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
    pairs, missing = [], []
    for number in analysis.worst(_MOST_IMAGES):
        image = entries[judged.images[number]]
        try:
            file = Path(image['path']) if folder is None else folder / image['file_name']
            pixels = read_image(file, image)
        except (KeyError, TypeError, OSError, DataError) as error:  # without path or file_name
            missing.append(str(error))
            continue
        truth, found = [], []
        for o in judged.objects:
            if o.image == number and not o.crowd:
                entry = annotations['annotations'][o.source]
                truth.append(_shape(entry, kind, image, 'found' if o.found else 'lost', names[o.label]))
        for d in judged.detections:
            if d.image == number:
                text = f'{names[d.label]} {d.score:.2f}{f" {d.verdict}" * d.false}'
                found.append(_shape(results[d.source], kind, image, 'false' * d.false or 'found', text))
        title = f'{image.get("file_name", image["id"])}: {lost[number]} missed, {false[number]} false'
        pairs.append(charts.pair(title, pixels, dict(truth=truth, predicted=found[::-1])))
    told = f'Detections from score {analysis.least:g}. Green is right, orange missed, red false.'
    gone = f'{len(missing)} images are not shown: {listed(missing, 1)}' if missing else ''
    parts = [charts.note(text) for text in (told if pairs else 'No image has a mistake.', gone) if text]
    return charts.section('Worst images', *parts, *pairs)


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
        iou, precision, recall = hits / (labelled + found - hits), hits / found, hits / labelled
        f1 = 2 * hits / (labelled + found)
    whole = confusion.sum(1)
    order = np.argsort(-np.nan_to_num(iou, nan=-1), kind='stable')
    rows = [
        (names[k], f'{labelled[k] / whole.sum():.1%}', *map(float, (iou[k], precision[k], recall[k], f1[k])))
        for k in order
    ]
    bars = {names[k]: (float(np.nan_to_num(iou[k])), _figure(float(iou[k]))) for k in order}
    pairs, missing = [], []
    for image in worst:
        try:
            pixels = read_image(Path(image['path']), {})
        except (OSError, DataError) as error:
            missing.append(str(error))
            continue
        views = {key: np.array(image[key]) for key in ('truth', 'predicted')}
        pairs.append(charts.pair(f'{image["path"]}: {image["accuracy"]:.1%} right', pixels, views))
    key = ''.join(
        f'<li><i style="background:{charts.colour(k)}"></i>{charts.escape(name)}</li>'
        for k, name in enumerate(names)
    )
    gone = charts.note(f'{len(missing)} images are not shown: {missing[0]}') if missing else ''
    return [
        charts.section(
            'Classes',
            charts.grid(
                charts.bars('IoU by class', bars),
                charts.table(
                    'By class',
                    ('class', 'pixels', 'IoU', 'precision', 'recall', 'F1'),
                    rows,
                ),
            ),
            _confusions(
                'Rows are the labels, columns the predictions; shares of the pixels',
                names,
                confusion[:, :-1],
                whole,
            ),
        ),
        charts.section('Worst images', f'<ul>{key}</ul>', gone, *pairs) if worst else '',
    ]


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
    labels = [names[k] for k in there]
    title = f'Confusions. {title}'
    return charts.matrix(title, labels, table[np.ix_(there, there)], totals[there])


def read_image(file: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """RGB; not turned by EXIF if the annotations are for the image as it is stored.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is not an image.
    """
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
    return np.ascontiguousarray(pixels[..., ::-1])


def _shape(entry: Mapping, kind: str, image: Mapping, mark: str, text: str) -> Shape:
    shape = shape_of(entry, kind, image)
    if kind == 'bbox':
        return Shape(shape, mark, text)
    from faster_coco_eval import mask as coco_mask

    mask = np.asarray(coco_mask.decode(shape)).squeeze()
    box = np.asarray(coco_mask.toBbox(shape)).reshape(-1)[:4]
    return Shape(box, mark, text, outlines_of(mask))


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The outer edges of a mask (H, W) as polygons, each (N, 2)."""
    import cv2

    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    return [points[:, 0] for points in found if len(points) > 2]


def _figure(value: float) -> str:
    return f'{value:.3f}' if value >= 0 else '-'
