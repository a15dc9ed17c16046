"""One call from pictures and videos to arrays, for checkpoints and exported files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageOps

from ..data.errors import DataError
from ..data.sets.images import value_notes
from ..data.transforms import LoadImageFromFile
from ..deploy.running import ExportedModel
from .config import load_config
from .drawing import probability
from .errors import ToolError
from .exported import is_exported
from .infer import ConfiguredModel
from .posing import configured_model
from .sources import Source, find_sources, frames_of, is_video, local_file

Prediction = dict[str, np.ndarray]
_INSTANCES = dict(boxes='bboxes', scores='scores', labels='labels', masks='masks')
_INSTANCES |= dict(keypoints='keypoints', keypoint_scores='keypoint_scores')


class Predictor:
    """Predicts images and videos with a trained model.

    Args:
        model: A config (its path, the name of one of this package, or a ``Config``), which takes a
            ``checkpoint``; or an exported file, which needs neither.
        checkpoint: File with the weights of the whole model.
        device: Device for a checkpoint's model; None is the first GPU, else the CPU. Exported files
            run on the CPU.
        trust: Read the checkpoint with pickle, which runs code that is in it.
        fast: Arguments of :func:`res2net_mm.deploy.optimize_for_inference`, to predict with what it
            makes of the model.

    Attributes:
        classes: Names of the labels.

    Raises:
        FileNotFoundError: A file does not exist.
        ToolError: The config does not fit.
        CheckpointError: The checkpoint is damaged, or does not fit the config's model.
        ModelFileError: The exported file cannot be run.

    Example:
        >>> model = Predictor('faster_rcnn_r2n50.py', 'epoch_12.pth')
        >>> found = model('photo.jpg')
        >>> found['boxes'].shape, found['scores'].shape, model.classes[found['labels'][0]]
        ((17, 4), (17,), 'person')
        >>> [len(frame['boxes']) for frame in model('clip.mp4')]
        [17, 16, 17]
    """

    def __init__(
        self,
        model: str | Path | Config,
        checkpoint: str | Path | None = None,
        *,
        device: str | None = None,
        trust: bool = False,
        fast: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, Config) and is_exported(model):
            if checkpoint is not None:
                raise ToolError(f'{model} holds its weights: give no checkpoint with it')
            if fast is not None:
                raise ToolError(f'fast is for checkpoints: {model} is a form for inference already')
            self._model: ExportedModel | ConfiguredModel = ExportedModel(model)
        elif checkpoint is None:
            raise ToolError(f'config {model} needs a checkpoint: Predictor(config, checkpoint)')
        else:
            cfg = model if isinstance(model, Config) else load_config(model)
            self._model = configured_model(cfg, str(checkpoint), device, trust, fast)
        self.classes = list(self._model.classes)

    def __call__(self, source: Any) -> Any:
        """Predicts an image, each image of a list, or everything in a folder or video.

        Args:
            source: An image (a file, an http(s) address, a PIL image, or an array (H, W, 3) of
                uint8, RGB) or a list of them; or a folder, a pattern such as ``'photos/*.jpg'``, a
                video, a GIF, or the number of a camera.

        Returns:
            Of an image, as far as the model has them and in its pixels: ``boxes`` (N, 4) as x1, y1,
            x2, y2, ``scores`` (N,), ``labels`` (N,), ``masks`` (N, H, W) of bool, ``segmentation``
            (H, W), the class of each pixel (for panoptic models mmdet's class + 1000 * instance),
            and ``probability`` (H, W) of class 1 if the head has one channel. Of a pose estimator
            ``boxes``, ``keypoints`` (N, K, 2) as x, y, and ``keypoint_scores`` (N, K). Of a
            classifier ``scores`` (classes,), which add up to 1 unless it is one of several labels.
            Of a list of images a list. Of anything else an iterator over the same with ``file``
            and, in videos, ``frame`` and ``time`` in seconds. What cannot be predicted there gives
            ``file`` and ``error``.

        Raises:
            DataError: An image is not there, or cannot be read whole or downloaded.
            ValueError: ``source`` is something else.
        """
        if isinstance(source, list | tuple):
            return [self(one) for one in source]
        if type(source) is int:
            source = str(source)
        if not isinstance(source, str | Path):
            return self._predict(_pixels(source))
        try:
            found = find_sources(source)
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
        if found not in ([source], [Path(source)]) or is_video(found[0]):
            return self._each(found)
        with local_file(found[0]) as file:
            return self._predict(file)

    def _each(self, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
        for source in sources:
            named: dict[str, Any] = dict(file=str(source))
            try:
                with local_file(source) as file:
                    if not is_video(source):
                        yield named | self._predict(file)
                        continue
                    for frame in frames_of(source, file):
                        place = dict(frame=frame.index, time=frame.time)
                        yield named | place | self._predict(frame.pixels)
            except DataError as error:
                yield named | dict(error=str(error))

    def _predict(self, image: Path | np.ndarray) -> Prediction:
        exported = isinstance(self._model, ExportedModel)
        if not exported:
            found = _arrays(self._model.predict(image))
        else:
            pixels = _pixels(image)
            try:
                found = self._model.predict(pixels)
            except ValueError as error:
                where = str(image) if isinstance(image, Path) else 'image in memory'
                raise DataError(str(error), where) from error
        if isinstance(image, Path):
            for note in value_notes(image) if exported else self._model.notes(image):
                warnings.warn(f'image: {note}', stacklevel=3)
        return found


def _pixels(image: Any) -> np.ndarray:
    """(H, W, 3), RGB."""
    if isinstance(image, Path):
        return np.ascontiguousarray(LoadImageFromFile().picture(str(image))[..., ::-1])
    if isinstance(image, Image.Image):
        if image.mode.startswith(('I', 'F')):  # Pillow would cut the values off at 255
            raise ValueError(f'image must have 8 bits, but its mode is {image.mode}: give its file')
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    plain = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size
    if not plain or image.shape[2:] != (3,):
        kind = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image)
        raise ValueError(
            f'image must be a path, a PIL image or a uint8 array (H, W, 3), but got {kind}'
        )
    return image


def _arrays(sample: Any) -> Prediction:
    """The predictions of a data sample."""
    instances = sample.get('pred_instances', {})
    found = {name: instances[key] for name, key in _INSTANCES.items() if key in instances}
    for key, part in (('pred_sem_seg', 'data'), ('pred_panoptic_seg', 'sem_seg')):
        if key in sample:
            found['segmentation'] = sample.get(key).get(part)[0].long()
    if (share := probability(sample)) is not None:
        found['probability'] = share
    if 'pred_score' in sample:
        found['scores'] = sample.pred_score
    return {name: torch.as_tensor(value).cpu().numpy() for name, value in found.items()}
