"""Predictions on a user's own images, for detectors and segmentors alike."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import load_state_dict
from torch import nn

from ..data.errors import DataError
from ..data.transforms import harden_pipeline, loader_of
from ..deploy import optimize_for_inference
from ..weights import CheckpointError, read_source, say_unknown_rules
from .errors import ToolError, one_line

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(source: str | Path) -> list[Path]:
    """The image file, or all image files below a folder in order.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ToolError: The folder holds no image.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'image or folder {source} does not exist')
    if source.is_file():
        return [source]
    images = sorted(f for f in source.rglob('*') if f.suffix.lower() in IMAGES)
    if not images:
        raise ToolError(f'folder {source} holds no image ({", ".join(IMAGES)})')
    return images


class Predictor:
    """A model with its test pipeline and its way of drawing.

    Args:
        cfg: mmdet or mmseg config.
        checkpoint: File with the weights of the whole model.
        device: Device; None is the first GPU, else the CPU.
        trust: Read the checkpoint with pickle.
        fast: Predict with what :func:`optimize_for_inference` makes of the model with these
            arguments; None is the model itself.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        CheckpointError: It is damaged, or does not fit the config's model.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        trust: bool = False,
        fast: Mapping[str, Any] | None = None,
    ) -> None:
        for key in ('test_dataloader', 'visualizer'):
            if not cfg.get(key):
                raise ToolError(f'the config has no {key}, which predicting needs')
        model, loaded = load_model(cfg, checkpoint, trust)
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        try:
            self.model: nn.Module = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ToolError(f'--device {device} cannot be used: {one_line(error)}') from error
        if fast is not None:
            self.model = optimize_for_inference(self.model, **fast)
        dataset = _test_dataset(cfg)
        meta = _dataset_meta(loaded.get('meta') or {}, dataset)
        self.classes = list(meta['classes'])
        steps = [s for s in dataset.pipeline if 'Annotations' not in str(s['type'])]
        self.pipeline = Compose(harden_pipeline(steps))
        self.loader = loader_of(steps)
        self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=[]))
        self.visualizer.dataset_meta = meta

    @torch.no_grad()
    def predict(self, image: Path) -> Any:
        """The data sample of one image."""
        data = self.pipeline(dict(img_path=str(image), img_id=0))
        return self.model.test_step(pseudo_collate([data]))[0]

    def draw(self, image: Path, sample: Any, out: Path, threshold: float) -> None:
        """Writes the image with its predictions drawn over it."""
        pixels = mmcv.bgr2rgb(self.loader.picture(str(image)))
        options = dict(pred_score_thr=threshold) if 'pred_instances' in sample else {}
        partial = out.with_name(f'.{out.name}')  # the suffix says which format to write
        self.visualizer.add_datasample(
            image.name, pixels, sample.cpu(), draw_gt=False, out_file=str(partial), **options
        )
        os.replace(partial, out)

    def write_labels(self, sample: Any, out: Path) -> None:
        """Writes the label map of a segmentor, one grey level a class."""
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        partial = out.with_name(f'.{out.name}')
        mmcv.imwrite(labels, str(partial))
        os.replace(partial, out)

    def describe(self, image: Path, sample: Any, threshold: float) -> dict[str, Any]:
        """The predictions of one image for the json file."""
        height, width = sample.ori_shape[:2]
        record: dict[str, Any] = dict(file=str(image), width=width, height=height)
        if 'pred_instances' in sample:
            record['instances'] = list(self._instances(sample.pred_instances, threshold))
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data.cpu().numpy()
            counts = np.bincount(labels.ravel(), minlength=len(self.classes))
            shares = zip(self.classes, counts / labels.size, strict=False)
            record['shares'] = {name: round(float(share), 6) for name, share in shares if share}
        return record

    def _instances(self, predicted: Any, threshold: float) -> Iterator[dict[str, Any]]:
        predicted = predicted[predicted.scores >= threshold].cpu()
        masks = predicted.get('masks')
        for i, label in enumerate(predicted.labels.tolist()):
            instance = dict(
                label=label,
                name=self.classes[label] if label < len(self.classes) else str(label),
                score=round(predicted.scores[i].item(), 6),
                bbox=[round(v, 3) for v in predicted.bboxes[i].tolist()],  # x1, y1, x2, y2
            )
            if masks is not None:
                instance['segmentation'] = _encode(np.asarray(masks[i]))
            yield instance


def predict_images(
    predictor: Predictor, images: Sequence[Path], source: Path, out: Path, threshold: float
) -> list[str]:
    """Predicts, draws and describes images; one that cannot be read does not stop the others.

    Args:
        predictor: The model.
        images: Files.
        source: What the user gave: pictures keep their places below it.
        out: Folder for the pictures and ``predictions.json``.
        threshold: Least score of an instance.

    Returns:
        One line for each image that could not be read.

    Raises:
        ToolError: A picture would replace one of the images.
    """
    from tqdm import tqdm

    targets = _targets(images, source, out)
    failures, records = [], []
    out.mkdir(parents=True, exist_ok=True)
    # off a terminal a line now and then
    progress = tqdm(images, unit='image', mininterval=0.1 if sys.stderr.isatty() else 10)
    for image in progress:
        try:
            sample = predictor.predict(image)
        except DataError as error:
            failures.append(str(error))
            continue
        target = targets[image]
        target.parent.mkdir(parents=True, exist_ok=True)
        predictor.draw(image, sample, target, threshold)
        if 'pred_sem_seg' in sample:
            predictor.write_labels(sample, target.with_suffix('.labels.png'))
        records.append(predictor.describe(image, sample, threshold))
    partial = out / '.predictions.json.partial'
    try:
        partial.write_text(json.dumps(dict(classes=predictor.classes, images=records), indent=1))
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, out / 'predictions.json')
    return failures


def _targets(images: Sequence[Path], source: Path, out: Path) -> dict[Path, Path]:
    """Where the picture of each image goes: no two to one place, and none onto an image."""
    targets: dict[Path, Path] = {}
    taken = {image.resolve() for image in images}
    for image in images:
        target = out / (image.relative_to(source) if source.is_dir() else image.name)
        plain = target.with_suffix('.jpg')
        target = plain if plain not in targets.values() else target.with_name(f'{image.name}.jpg')
        if target.resolve() in taken:
            raise ToolError(f'--out {out} would replace the image {image}; give another folder')
        targets[image] = target
    return targets


def load_model(cfg: Config, checkpoint: str, trust: bool = False) -> tuple[nn.Module, dict]:
    """Builds the model of a config, in evaluation mode, with the weights of a checkpoint.

    Args:
        cfg: Of mmdet or mmseg.
        checkpoint: As :func:`res2net_mm.weights.load_weights` takes it, of the whole model.
        trust: Read the file with pickle, which runs code that is in it.

    Returns:
        The model, and all that the checkpoint holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or does not fit the model exactly.
    """
    loaded = read_source(checkpoint, trust=trust)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = cfg.model.copy()
    if cfg.get('data_preprocessor'):  # as mmengine's Runner does
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    for key in ('pretrained', 'init_cfg'):
        model_cfg.pop(key, None)
    model = revert_sync_batchnorm(MODELS.build(model_cfg))
    try:
        load_state_dict(model, loaded.get('state_dict', loaded), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f'checkpoint {checkpoint} does not fit the model of the config: '
            f'{" ".join(str(error).split())[:600]}'
        ) from error
    say_unknown_rules(model, loaded)
    return model.eval(), loaded


def classes_of(cfg: Config, loaded: dict[str, Any]) -> list[str]:
    """Class names of a checkpoint, or else of the config, if it has test data."""
    dataset = _test_dataset(cfg) if cfg.get('test_dataloader') else {}
    return list(_dataset_meta(loaded.get('meta') or {}, dataset)['classes'])


def _test_dataset(cfg: Config) -> dict[str, Any]:
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:  # a wrapper of one data set, or of several
        dataset = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if dataset is None:
            raise ToolError('the test_dataloader.dataset of the config has no pipeline')
    return dataset


def _dataset_meta(meta: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """Class names and colours: those of the training run, else the config's, else the data set's.

    Old checkpoints have them in capitals in ``meta`` itself.
    """
    default = getattr(DATASETS.get(dataset['type']), 'METAINFO', {}) if dataset else {}
    found: dict[str, Any] = {}
    for source in (meta.get('dataset_meta') or {}, meta, dataset.get('metainfo') or {}, default):
        if source.get('classes') or source.get('CLASSES'):
            found = {key.lower(): value for key, value in source.items()}
            break
    classes = tuple(found.get('classes') or ())
    palette = found.get('palette')
    if palette is None or len(palette) != len(classes):
        colours = np.random.default_rng(0).integers(0, 256, (len(classes), 3))
        palette = [tuple(colour) for colour in colours.tolist()]
    return dict(classes=classes, palette=palette)


def _encode(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())
