"""Predictions on a user's own images, for detectors and segmentors alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
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
from ..data.transforms import harden_pipeline
from ..weights import CheckpointError, read_checkpoint
from .errors import ToolError

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

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        CheckpointError: It is damaged, or does not fit the config's model.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, device: str | None = None, trust: bool = False
    ) -> None:
        loaded = read_checkpoint(checkpoint, trust=trust)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        model_cfg = cfg.model.copy()
        for key in ('pretrained', 'init_cfg'):
            model_cfg.pop(key, None)
        model = revert_sync_batchnorm(MODELS.build(model_cfg))
        weights = loaded.get('state_dict', loaded)
        try:
            load_state_dict(model, weights, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f'checkpoint {checkpoint} does not fit the model of the config: '
                f'{" ".join(str(error).split())[:600]}'
            ) from error
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        model.eval()
        self.model: nn.Module = model.to(device)
        dataset = cfg.test_dataloader.dataset
        self.classes = _classes(loaded.get('meta', {}), dataset)
        steps = [s for s in dataset.pipeline if 'Annotations' not in str(s['type'])]
        self.pipeline = Compose(harden_pipeline(steps))
        self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=[]))
        meta = dict(loaded.get('meta', {}).get('dataset_meta') or {})
        self.visualizer.dataset_meta = dict(meta, classes=self.classes)

    @torch.no_grad()
    def predict(self, image: Path) -> Any:
        """The data sample of one image."""
        data = self.pipeline(dict(img_path=str(image), img_id=0))
        return self.model.test_step(pseudo_collate([data]))[0]

    def draw(self, image: Path, sample: Any, out: Path, threshold: float) -> None:
        """Writes the image with its predictions drawn over it."""
        pixels = mmcv.imread(str(image), channel_order='rgb')
        options = dict(pred_score_thr=threshold) if 'pred_instances' in sample else {}
        partial = out.with_name(f'.{out.name}')  # the suffix says which format to write
        self.visualizer.add_datasample(
            image.name, pixels, sample.cpu(), draw_gt=False, out_file=str(partial), **options
        )
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
    """
    from tqdm import tqdm

    failures, records = [], []
    out.mkdir(parents=True, exist_ok=True)
    for image in tqdm(images, unit='image', disable=None):
        below = image.relative_to(source) if source.is_dir() else Path(image.name)
        try:
            sample = predictor.predict(image)
        except DataError as error:
            failures.append(str(error))
            continue
        target = out / below
        target.parent.mkdir(parents=True, exist_ok=True)
        predictor.draw(image, sample, target.with_suffix('.jpg'), threshold)
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            mmcv.imwrite(labels, str(target.with_suffix('.labels.png')))
        records.append(predictor.describe(image, sample, threshold))
    partial = out / '.predictions.json.partial'
    partial.write_text(json.dumps(dict(classes=predictor.classes, images=records), indent=1))
    os.replace(partial, out / 'predictions.json')
    return failures


def _classes(meta: dict[str, Any], dataset: dict) -> list[str]:
    """Class names: those of the training run, else of the config, else of its data set."""
    trained = meta.get('dataset_meta') or {}
    for source in (trained, dataset.get('metainfo') or {}):
        names = source.get('classes') or source.get('CLASSES')
        if names:
            return list(names)
    default = getattr(DATASETS.get(dataset['type']), 'METAINFO', {})
    return list(default.get('classes') or ())


def _encode(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())
