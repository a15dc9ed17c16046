"""Pictures of predictions and annotations, with one colour for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import mmcv
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..colours import class_colours
from ..data.errors import DataError
from ..files import writing

FONT = str(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'))  # not Latin letters only
_BACKGROUND = {'background', '_background_', 'bg'}
_OBJECTS = 1000  # mmdet writes class + 1000 * object into a panoptic map
_MOST = 0.2  # share of an image that labels may cover
_OPACITY = 0.45
_SIDE = 512  # px of a label map in which places for labels are searched
_MOST_CLASSES = 5  # of a classifier
_MOST_JPEG = 65_500  # px a side


def draw_sample(
    pixels: np.ndarray, sample: Any, meta: Mapping[str, Any], threshold: float, truth: bool = False
) -> np.ndarray:
    """Draws what a detector, segmentor or classifier predicts over (H, W, 3) of uint8, RGB.

    ``meta`` has ``classes`` and maybe ``palette``; ``threshold`` is the least score of an object.
    With ``truth``, annotations are to the left of the prediction, and a classifier's below it. The
    picture is then larger than the image, as is any of a classifier.
    """
    names = meta.get('classes') or ()
    if 'pred_score' in sample:
        labels = sample.get('gt_label', ()) if truth else ()
        annotated = ', '.join(name_of(int(label), names) for label in labels)
        return draw_classes(pixels, best_classes(sample, names), annotated)
    colours = meta.get('palette')
    if not colours or len(colours) != len(names) or isinstance(colours, str):
        colours = class_colours(len(names) or 1)
    if (found := probability(sample)) is not None:
        drawn = overlay(pixels, found, colours[-1])
    else:
        drawn = _draw(pixels, _found(sample, 'pred', threshold), names, colours)
    if not truth or not any(key.startswith('gt_') for key in sample.keys()):
        return drawn
    return np.hstack([_draw(pixels, _found(sample, 'gt', 0), names, colours), drawn])


def write_picture(out: Path, pixels: np.ndarray) -> None:
    """Writes an image (H, W) or (H, W, 3), RGB, whole or not at all."""
    if out.suffix == '.jpg' and max(pixels.shape[:2]) > _MOST_JPEG:
        raise DataError(f'no picture: a .jpg holds at most {_MOST_JPEG:,} px a side', str(out))
    with writing(out, durable=False) as partial:
        mmcv.imwrite(pixels if pixels.ndim == 2 else mmcv.rgb2bgr(pixels), str(partial))


def best_classes(sample: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """``label``, ``name`` and ``score`` of the five most likely classes, best first."""
    scores, labels = sample.pred_score.topk(min(_MOST_CLASSES, len(sample.pred_score)))
    return [
        dict(label=label, name=name_of(label, names), score=round(score, 6))
        for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


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


def probability(sample: Any) -> np.ndarray | None:
    """(H, W) of a data sample, 0 to 1; None if the model has not one channel."""
    found = sample.get('seg_logits')  # mmseg has applied the sigmoid
    return None if found is None or len(found.data) != 1 else found.data[0].float().cpu().numpy()


def overlay(pixels: np.ndarray, found: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """An image (H, W, 3) of uint8, tinted by the probability (H, W), to 60 % where it is 1."""
    share = 0.6 * found[..., None]
    return (pixels * (1 - share) + np.asarray(colour) * share).round().astype(np.uint8)


def _found(sample: Any, kind: str, threshold: float) -> dict[str, np.ndarray]:
    """``labels`` (N,) with ``boxes`` (N, 4), ``scores`` (N,) and ``masks`` (N, H, W), if any.

    Of a label map also ``map`` (H, W) and ``ids`` (N,), its values.
    """
    for key in (f'{kind}_panoptic_seg', f'{kind}_sem_seg'):
        if key in sample:
            values = sample.get(key)
            found = _array(values.sem_seg if 'sem_seg' in values else values.data)[0]
            found = np.maximum(found.astype(int), -1)  # no class
            ids = np.flatnonzero(np.bincount(found.ravel() + 1)) - 1
            return dict(labels=ids % _OBJECTS if 'panoptic' in key else ids, map=found, ids=ids)
    instances = sample.get(f'{kind}_instances', {})
    if 'labels' not in instances:
        return dict(labels=np.zeros(0, int), boxes=np.zeros((0, 4)))
    found = dict(labels=instances.labels)
    found['boxes'] = getattr(instances.bboxes, 'tensor', instances.bboxes)
    found |= {key: instances[key] for key in ('scores', 'masks') if key in instances}
    if 'masks' in found and hasattr(found['masks'], 'to_ndarray'):  # mmdet's, of annotations
        found['masks'] = found['masks'].to_ndarray()
    found = {key: _array(values) for key, values in found.items()}
    kept = found.get('scores', np.ones(len(instances))) >= threshold
    return {key: values[kept] for key, values in found.items()}


def _draw(
    pixels: np.ndarray, found: Mapping[str, np.ndarray], names: Sequence[str], colours: Sequence
) -> np.ndarray:
    import supervision as sv

    labels, masks, boxes = found['labels'], found.get('masks'), found.get('boxes')
    drawn = pixels[..., ::-1].copy()  # supervision's colours are BGR
    if boxes is None:  # a label map: no boxes, labels within the largest part, background clear
        shown = [
            0 <= label < len(names) and names[label].lower() not in _BACKGROUND for label in labels
        ]
        labels, ids = labels[shown], found['ids'][shown]
        drawn = _painted(drawn, found['map'], ids, np.array(colours)[labels, ::-1])
        points = _places(found['map'], ids)
        labels, points = labels[points[:, 0] >= 0], points[points[:, 0] >= 0]
    elif masks is not None and not boxes.any():  # of a model that predicts masks only
        boxes = sv.mask_to_xyxy(masks)
    if not len(labels):
        return drawn[..., ::-1].copy()
    points = points if boxes is None else np.array(boxes, float)
    objects = sv.Detections(
        xyxy=points,
        class_id=labels.astype(int),
        mask=None if masks is None else masks.astype(bool),
    )
    palette = sv.ColorPalette([sv.Color(*map(int, colour)) for colour in colours])
    light = [np.dot(colour, (0.299, 0.587, 0.114)) > 140 for colour in colours]
    ink = sv.ColorPalette([sv.Color.BLACK if one else sv.Color.WHITE for one in light])
    height, width = pixels.shape[:2]
    line = max(round(min(height, width) / 250), 1)
    size = max(round(min(height, width) / 40), 10)
    if masks is not None:
        drawn = sv.MaskAnnotator(palette, opacity=_OPACITY).annotate(drawn, objects)
    if boxes is not None:
        drawn = sv.BoxAnnotator(palette, thickness=line).annotate(drawn, objects)
    texts = [name_of(label, names) for label in labels]
    scores = found.get('scores', np.ones(len(labels)))
    if 'scores' in found:
        texts = [f'{text} {score:.2f}' for text, score in zip(texts, scores, strict=True)]
    font = ImageFont.truetype(FONT, size)
    wide = np.array([font.getlength(text) for text in texts]) + 2 * line
    high = size + 2 * line
    if wide.sum() * high > _MOST * height * width:  # name each class once, on its surest object
        order = np.argsort(-scores, kind='stable')
        kept = order[np.unique(labels[order], return_index=True)[1]]
    else:  # of names that lie on each other, draw the surest
        x, y = points[:, :2].T
        places = np.stack([x, y - high, x + wide, y, scores], 1)
        kept = np.flatnonzero(sv.box_non_max_suppression(places, 0.1))
    objects, texts = objects[kept], [texts[i] for i in kept]
    where = sv.Position.CENTER if boxes is None else sv.Position.TOP_LEFT
    pen = sv.RichLabelAnnotator(
        palette, text_color=ink, font_size=size, text_padding=line, text_position=where,
        smart_position=True, font_path=FONT,
    )  # fmt: skip
    return np.ascontiguousarray(pen.annotate(drawn, objects, texts)[..., ::-1])


def _painted(
    pixels: np.ndarray, found: np.ndarray, ids: np.ndarray, colours: np.ndarray
) -> np.ndarray:
    """Pixels with a translucent colour where a map (H, W) has one of these values."""
    palette = np.zeros((found.max() + 2, 3), np.uint8)  # the last one is of -1
    shown = np.zeros(len(palette), bool)
    palette[ids], shown[ids] = colours, True
    mixed = cv2.addWeighted(pixels, 1 - _OPACITY, palette[found], _OPACITY, 0)
    return np.where(shown[found][..., None], mixed, pixels)


def _places(found: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """For each value of a map (H, W) the point farthest from its edges, as a box (N, 4).

    It is negative for those without a pixel in a smaller map, which are too small for a name.
    """
    step = -(-max(found.shape) // _SIDE)
    small = np.pad(found[::step, ::step], 1, constant_values=-1)
    places = []
    for value in ids:
        far = cv2.distanceTransform((small == value).astype(np.uint8), cv2.DIST_L2, 3)
        _, most, _, (x, y) = cv2.minMaxLoc(far)
        places.append([x - 1, y - 1] * 2 if most else [-1] * 4)
    return np.array(places, float).reshape(-1, 4) * step


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
