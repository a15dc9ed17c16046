"""Predictions of detectors, segmentors and classifiers on a user's own pictures."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv.transforms
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_state_dict
from torch import nn

from ..data.errors import DataError
from ..data.sets.images import value_notes
from ..data.transforms import harden_pipeline, loader_of
from ..deploy import optimize_for_inference
from ..files import write_text, writing
from ..weights import constants, read_source
from ..weights.classifier import name_as_classifier
from .classes import prediction_meta
from .config import drop_timm_weights, require, test_pipeline
from .drawing import best_classes, draw_sample, name_of, probability, write_picture
from .errors import ToolError, building_config, one_line
from .exported import exported_model, is_exported
from .loading import check_finite, exact_fit, warn_of_differences
from .safety import use_safe_loading
from .sources import (
    RESULTS,
    Source,
    for_each,
    frames_of,
    is_video,
    places,
    progress,
    video_writer,
)
from .terminal import warn


class ConfiguredModel:
    """A model with its test pipeline and its way of drawing.

    Args:
        cfg: mmdet, mmseg or mmpretrain config.
        checkpoint: Weights of the whole model, or an exported file.
        device: None takes the first GPU, else the CPU.
        trust: Read the checkpoint with pickle.
        fast: Arguments of :func:`optimize_for_inference`; None predicts with the model itself.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        trust: bool = False,
        fast: Mapping[str, Any] | None = None,
    ) -> None:
        require(cfg, 'predicting', 'test_dataloader')
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        if is_exported(checkpoint):
            model: nn.Module = MODELS.build(exported_model(cfg, checkpoint, fast))
            loaded = dict(meta=model.meta)
        else:
            model, loaded = load_model(cfg, checkpoint, trust)
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        try:
            self.model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ToolError(f'--device {device} cannot be used: {one_line(error)}') from error
        if fast is not None:
            self.model = optimize_for_inference(self.model, **fast)
        self.meta = prediction_meta(cfg, loaded.get('meta'))
        self.classes = list(self.meta['classes'])
        steps = [s for s in test_pipeline(cfg) if 'Annotations' not in str(s['type'])]
        with building_config():
            self.pipeline = Compose(harden_pipeline(steps))
        self.loader = loader_of(steps)

    def predict(self, image: Path | np.ndarray) -> Any:
        """The data sample of a file or of pixels (H, W, 3) of uint8, RGB."""
        return self.run(self.prepare(image))

    @torch.no_grad()
    def run(self, batch: dict[str, Any]) -> Any:
        """The data sample of an image from :meth:`prepare`."""
        return self.model.test_step(batch)[0]

    def prepare(self, image: Path | np.ndarray) -> dict[str, Any]:
        """The batch of one image, as the test pipeline makes it; see :meth:`predict`."""
        given, steps = image, self.pipeline.transforms
        if isinstance(image, np.ndarray):
            loader = mmcv.transforms.LoadImageFromFile
            steps = [step for step in steps if not isinstance(step, loader)]
            grey = self.loader.color_type.startswith('gray')
            pixels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR)
            data = dict(img=pixels, img_path='', img_id=0)
            data['img_shape'] = data['ori_shape'] = image.shape[:2]
            image = 'in memory'
        elif image.is_file():
            data = dict(img_path=str(image), img_id=0)
        else:  # reading a pipe could wait forever
            raise DataError(f'image {image} is no regular file')
        try:
            run = Compose(steps)
            return pseudo_collate([run({**data, **more}) for more in self.inputs(given)])
        except cv2.error as error:
            thin = ': it would be less than a pixel wide or high' if error.func == 'resize' else ''
            raise DataError(
                f'image {image} cannot be prepared ({error.func}: {error.err}){thin}'
            ) from error

    def inputs(self, image: Path | np.ndarray) -> Sequence[dict[str, Any]]:
        """What the pipeline gets besides the image: one dict for each input of the model."""
        return [{}]

    def notes(self, image: Path) -> list[str]:
        """What reading the image did to its values, if the pipeline reads as mmcv does."""
        how = self.loader.color_type, self.loader.imdecode_backend
        return value_notes(image) if how == ('color', 'cv2') else []

    def pixels(self, image: Path) -> np.ndarray:
        """(H, W, 3) of uint8, RGB: what the pipeline sees, for people."""
        return np.ascontiguousarray(self.loader.picture(str(image))[..., ::-1])

    def draw(self, pixels: np.ndarray, sample: Any, threshold: float) -> np.ndarray:
        """Pixels (H, W, 3), RGB, with predictions drawn over them."""
        return draw_sample(pixels, sample, self.meta, threshold)

    def write_pictures(self, image: Path, sample: Any, out: Path, threshold: float) -> None:
        """Writes the image with its predictions, and the maps of a segmentor as grey levels."""
        if 'pred_sem_seg' in sample:  # grey level = label, in 16 bits above 256 classes
            levels = np.uint8 if len(self.classes) <= 256 else np.uint16
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(levels)
            write_picture(out.with_suffix('.labels.png'), labels)
        if (found := probability(sample)) is not None:  # of a head with one channel, 0 to 255
            grey = (found * 255).round().astype(np.uint8)
            write_picture(out.with_suffix('.probability.png'), grey)
        write_picture(out, self.draw(self.pixels(image), sample, threshold))

    def describe(self, name: str, sample: Any, threshold: float) -> dict[str, Any]:
        """The predictions of one image for the json file."""
        height, width = sample.ori_shape[:2]
        record: dict[str, Any] = dict(file=name, width=width, height=height)
        if 'pred_instances' in sample:
            record['instances'] = list(self._instances(sample.pred_instances, threshold))
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data.long().cpu().numpy()
            shares = enumerate((np.bincount(labels.ravel()) / labels.size).tolist())
            named = {name_of(i, self.classes): round(share, 6) for i, share in shares if share}
            record['shares'] = named
        if 'pred_score' in sample:
            record['classes'] = best_classes(sample, self.classes)
        return record

    def _instances(self, predicted: Any, threshold: float) -> Iterator[dict[str, Any]]:
        from pycocotools import mask as coco_mask

        predicted = predicted[predicted.scores >= threshold].cpu()
        masks = predicted.get('masks')
        for i, label in enumerate(predicted.labels.tolist()):
            instance = dict(
                label=label,
                name=name_of(label, self.classes),
                score=round(predicted.scores[i].item(), 6),
                bbox=[round(v, 3) for v in predicted.bboxes[i].tolist()],  # x1, y1, x2, y2
            )
            if masks is not None:
                mask = np.asfortranarray(masks[i], np.uint8)
                encoded = coco_mask.encode(mask)
                instance['segmentation'] = dict(encoded, counts=encoded['counts'].decode())
            yield instance


def predict_images(
    predictor: ConfiguredModel,
    sources: Sequence[Source],
    out: Path,
    threshold: float,
    given: Sequence[Source] = (),
) -> list[str]:
    """Predicts, draws and describes pictures and videos; one that fails does not stop the others.

    ``out`` gets the pictures and ``predictions.json``, and for each video a ``.mp4`` and a
    ``.jsonl`` with a line for each frame; an interrupted run keeps what is done. ``threshold`` is
    the least score of an instance. ``given`` are the folders that :func:`find_sources` got, below
    which pictures keep their places. Returns a line for each source that failed, also in part.
    """
    failures: list[str] = []
    records: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()

    def predict(source: Source, file: Path, target: Path) -> None:
        if is_video(source):
            _predict_video(predictor, source, file, target, threshold)
            return
        sample = predictor.predict(file)
        record = predictor.describe(str(source), sample, threshold)
        if changed := predictor.notes(file):
            record['note'] = '; '.join(changed)
        notes.update(changed)
        records.append(record)
        predictor.write_pictures(file, sample, target, threshold)

    def write_records() -> None:
        content = dict(classes=predictor.classes, images=records)
        write_text(out / RESULTS, json.dumps(content, indent=1))

    targets = places(sources, out, given)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for_each(targets, predict, failures)
    except BaseException:
        for failure in failures:
            print(f'error: {failure}', file=sys.stderr)
        if records or not (out / RESULTS).exists():  # else those of the run before are left
            write_records()
            images = sum(not is_video(source) for source in sources)
            print(f'{out / RESULTS} holds {len(records)} of {images} images', file=sys.stderr)
        raise
    write_records()
    for note, count in notes.items():
        warn(f'{count} image{"s" * (count > 1)}: {note}')
    return failures


def _predict_video(
    predictor: ConfiguredModel, source: Source, file: Path, target: Path, threshold: float
) -> None:
    """Writes what is predicted up to the first error, or up to Ctrl-C, and then raises that."""
    stopped: BaseException | None = None
    lines = target.with_suffix('.jsonl')
    with writing(target, durable=False) as video, writing(lines, durable=False) as text:
        with video_writer(video) as show, open(text, 'w', encoding='utf-8') as log:
            try:
                for frame in (bar := progress(frames_of(source, file), 'frame')):
                    bar.total = frame.total
                    sample = predictor.predict(frame.pixels)
                    record = predictor.describe(str(source), sample, threshold)
                    record = dict(frame=frame.index, time=round(frame.time, 6), **record)
                    show(frame, predictor.draw(frame.pixels, sample, threshold))
                    log.write(f'{json.dumps(record)}\n')
            except (Exception, KeyboardInterrupt) as error:
                stopped = error
        if not text.stat().st_size:  # nothing to keep
            raise stopped or DataError('the video is empty', str(file))
    if stopped is not None:
        raise stopped


def load_model(cfg: Config, checkpoint: str, trust: bool = False) -> tuple[nn.Module, dict]:
    """The model of a config, in evaluation mode, with the weights of a checkpoint, and that.

    The checkpoint is from any source of :func:`res2net_mm.weights.load_weights`; ``trust`` reads it
    with pickle. Raises a CheckpointError unless it fits exactly and is finite.
    """
    use_safe_loading(trust)
    loaded = read_source(checkpoint, trust=trust)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = copy.deepcopy(cfg.model)
    drop_timm_weights(dict(model=model_cfg))
    if cfg.get('data_preprocessor'):  # as mmengine's Runner does
        model_cfg.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    for key in ('pretrained', 'init_cfg'):
        model_cfg.pop(key, None)
    with building_config():
        model = revert_sync_batchnorm(MODELS.build(model_cfg))
    known = constants(model)
    name_as_classifier(model, loaded)
    with exact_fit(checkpoint):
        load_state_dict(model, loaded.get('state_dict', loaded), strict=True)
    check_finite(model.state_dict(), checkpoint, known)
    warn_of_differences(model, loaded, cfg, checkpoint)
    return model.eval(), loaded
