"""Predictions of detectors, segmentors and classifiers on a user's own images."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import mmcv.transforms
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, VISUALIZERS, init_default_scope
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
from .classification import best_classes, draw_classes
from .config import drop_timm_weights
from .errors import ToolError, building_config, one_line
from .exported import exported_model, is_exported
from .loading import check_finite, exact_fit, warn_of_differences
from .safety import use_safe_loading
from .saliency import overlay, probability
from .terminal import warn

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv')
_DISK = {errno.EDQUOT, errno.ENOSPC, errno.EROFS}  # they stop every other picture as well
_JSON = 'predictions.json'
_JSON_START = b'{\n "classes": ['  # how this file begins


def find_images(source: str | Path, out: str | Path | None = None) -> list[Path]:
    """The image file, or all image files below a folder in order.

    Args:
        source: The file or folder.
        out: Where pictures will be written. Skipped, as is every folder below ``source`` with the
            ``predictions.json`` of an earlier run.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ToolError: The folder holds no image or is ``out`` itself, or the file is a video.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'image or folder {source} does not exist')
    if source.suffix.lower() in _VIDEOS and not source.is_dir():
        raise ToolError(
            f'{source} is a video, not an image; cut it into images first, for example: '
            f'ffmpeg -i {source} frames/%06d.jpg'
        )
    if not source.is_dir():
        return [source]
    own = None if out is None else os.path.realpath(out)
    if own == os.path.realpath(source):
        raise ToolError(f'--out {out} is the folder of the images; give another folder')
    images: list[Path] = []
    videos = 0

    # a folder that cannot be read becomes an image that cannot be predicted, and is named there
    walk = os.walk(source, onerror=lambda error: images.append(Path(error.filename)))
    for name, folders, files in walk:
        folder = Path(name)
        if os.path.realpath(folder) == own or (folder != source and _is_output(folder)):
            found = sum(f.suffix.lower() in IMAGES for f in folder.rglob('*'))
            if found:
                warn(f'{found} pictures in {folder} are skipped: predictions go, or went, there')
            folders.clear()
            continue
        videos += sum(Path(file).suffix.lower() in _VIDEOS for file in files)
        images += [folder / n for n in files + folders if Path(n).suffix.lower() in IMAGES]
    if not images:
        what = f', but {videos} video{"s" * (videos > 1)}: cut it into images' if videos else ''
        raise ToolError(f'folder {source} holds no image ({", ".join(IMAGES)}){what}')
    return sorted(images)


def _is_output(folder: Path) -> bool:
    with contextlib.suppress(OSError), open(folder / _JSON, 'rb') as file:
        return file.read(len(_JSON_START)) == _JSON_START
    return False


class ConfiguredModel:
    """A model with its test pipeline and its way of drawing.

    Args:
        cfg: mmdet, mmseg or mmpretrain config.
        checkpoint: File with the weights of the whole model.
        device: Device; None takes the first GPU, else the CPU.
        trust: Read the checkpoint with pickle.
        fast: Arguments of :func:`optimize_for_inference`; None predicts with the model itself.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        CheckpointError: It is damaged, or does not fit the config's model.
        ToolError: The config lacks a part or does not build, or the device cannot be used.
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
        if is_exported(checkpoint):
            init_default_scope(cfg.get('default_scope', 'mmdet'))
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
        dataset = test_dataset(cfg)
        meta = prediction_meta(cfg, loaded.get('meta'), dataset)
        self.classes = list(meta['classes'])
        steps = [s for s in dataset.pipeline if 'Annotations' not in str(s['type'])]
        with building_config():
            self.pipeline = Compose(harden_pipeline(steps))
            self.visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=[]))
        self.loader = loader_of(steps)
        self.visualizer.dataset_meta = meta

    def predict(self, image: Path | np.ndarray) -> Any:
        """The data sample of one image.

        Args:
            image: A file, or pixels (H, W, 3) of uint8, RGB.

        Raises:
            DataError: It is no image that the pipeline can prepare.
        """
        return self.run(self.prepare(image))

    @torch.no_grad()
    def run(self, batch: dict[str, Any]) -> Any:
        """The data sample of an image from :meth:`prepare`."""
        return self.model.test_step(batch)[0]

    def prepare(self, image: Path | np.ndarray) -> dict[str, Any]:
        """The batch of one image, as the test pipeline makes it; see :meth:`predict`."""
        given = image
        if isinstance(image, np.ndarray):
            pixels, image = image, 'in memory'
            loader = mmcv.transforms.LoadImageFromFile
            steps = [step for step in self.pipeline.transforms if not isinstance(step, loader)]
            data = dict(img=np.ascontiguousarray(pixels[..., ::-1]), img_path='', img_id=0)
            data['img_shape'] = data['ori_shape'] = pixels.shape[:2]
        elif image.is_file():
            steps = self.pipeline.transforms
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
        loaders = (step for step in self.pipeline.transforms if hasattr(step, 'color_type'))
        loader = next(loaders, None)
        default = ('color', 'cv2')
        how = getattr(loader, 'color_type', ''), getattr(loader, 'imdecode_backend', '') or 'cv2'
        return value_notes(image) if how == default else []

    def draw(self, image: Path, sample: Any, out: Path, threshold: float) -> None:
        """Writes the image with its predictions drawn over it."""
        pixels = mmcv.bgr2rgb(self.loader.picture(str(image)))
        if 'pred_score' in sample:
            with writing(out, durable=False) as partial:
                draw_classes(pixels, best_classes(sample, self.classes)).save(partial)
            return
        if (found := probability(sample)) is not None:
            drawn = overlay(pixels, found, self.visualizer.dataset_meta['palette'][-1])
            with writing(out, durable=False) as partial:
                mmcv.imwrite(mmcv.rgb2bgr(drawn), str(partial))
            return
        options = dict(pred_score_thr=threshold) if 'pred_instances' in sample else {}
        if options and 'keypoints' in sample.pred_instances:
            options = dict(draw_bbox=True, kpt_thr=threshold)
        with writing(out, durable=False) as partial:
            self.visualizer.add_datasample(
                image.name, pixels, sample.cpu(), draw_gt=False, out_file=str(partial), **options
            )

    def write_labels(self, sample: Any, out: Path) -> None:
        """Writes a segmentor's label map: grey level = label, in 16 bits above 256 classes."""
        levels = np.uint8 if len(self.classes) <= 256 else np.uint16
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(levels)
        with writing(out, durable=False) as partial:
            mmcv.imwrite(labels, str(partial))

    def write_probability(self, sample: Any, out: Path) -> None:
        """Writes the probability that a head with one channel gives, as grey from 0 to 255."""
        with writing(out, durable=False) as partial:
            mmcv.imwrite((probability(sample) * 255).round().astype(np.uint8), str(partial))

    def describe(self, image: Path, sample: Any, threshold: float) -> dict[str, Any]:
        """The predictions of one image for the json file."""
        height, width = sample.ori_shape[:2]
        record: dict[str, Any] = dict(file=str(image), width=width, height=height)
        if 'pred_instances' in sample:
            record['instances'] = list(self._instances(sample.pred_instances, threshold))
        if 'pred_sem_seg' in sample:
            labels = sample.pred_sem_seg.data.long().cpu().numpy()
            shares = enumerate((np.bincount(labels.ravel()) / labels.size).tolist())
            record['shares'] = {self._name(i): round(share, 6) for i, share in shares if share}
        if 'pred_score' in sample:
            record['classes'] = best_classes(sample, self.classes)
        return record

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def _instances(self, predicted: Any, threshold: float) -> Iterator[dict[str, Any]]:
        predicted = predicted[predicted.scores >= threshold].cpu()
        masks = predicted.get('masks')
        for i, label in enumerate(predicted.labels.tolist()):
            instance = dict(
                label=label,
                name=self._name(label),
                score=round(predicted.scores[i].item(), 6),
                bbox=[round(v, 3) for v in predicted.bboxes[i].tolist()],  # x1, y1, x2, y2
            )
            if masks is not None:
                instance['segmentation'] = _encode(np.asarray(masks[i]))
            yield instance


def predict_images(
    predictor: ConfiguredModel, images: Sequence[Path], source: Path, out: Path, threshold: float
) -> list[str]:
    """Predicts, draws and describes images; one that fails does not stop the others.

    Args:
        predictor: The model.
        images: Files.
        source: What the user gave; pictures keep their places below it.
        out: Folder for the pictures and ``predictions.json``. An interrupted run also writes that
            file, with the images done so far.
        threshold: Least score of an instance, 0 to 1.

    Returns:
        One line for each image that could not be predicted or drawn.

    Raises:
        ToolError: A picture would replace one of the images.
        OSError: A file could not be written.
    """
    from tqdm import tqdm

    targets = _targets(images, source, out)
    failures: list[str] = []
    records: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()
    stopped = defect = None
    out.mkdir(parents=True, exist_ok=True)
    # in a log, a line only now and then
    progress = tqdm(images, unit='image', mininterval=0.1 if sys.stderr.isatty() else 10)
    try:
        for image in progress:
            try:
                sample = predictor.predict(image)
                record = predictor.describe(image, sample, threshold)
                changed = predictor.notes(image)
            except DataError as error:  # it names the image
                failures.append(str(error))
                continue
            except Exception as error:
                failures.append(f'image {image} failed: {_named(error)}')
                defect = defect or error
                continue
            if changed:
                record['note'] = '; '.join(changed)
            failures += _write_pictures(predictor, image, sample, targets[image], threshold)
            records.append(record)
            notes.update(changed)
    except (KeyboardInterrupt, OSError) as error:
        stopped = error
    progress.close()
    content = dict(classes=predictor.classes, images=records)
    kept = f'{out / _JSON} holds {len(records)} of {len(images)} images'
    try:
        write_text(out / _JSON, json.dumps(content, indent=1))
    except OSError as error:
        if stopped is None:
            raise
        kept = f'error: {one_line(error)}'
    for note, count in notes.items():
        warn(f'{count} image{"s" * (count > 1)}: {note}')
    if stopped:
        print(*(f'error: {failure}' for failure in failures), kept, sep='\n', file=sys.stderr)
        raise stopped
    if defect and not records:
        raise defect  # every image failed, so it is no matter of one image
    return failures


def _write_pictures(
    predictor: ConfiguredModel, image: Path, sample: Any, target: Path, threshold: float
) -> list[str]:
    """Writes the drawn image and a segmentor's label map; returns why that failed."""
    failures = []

    def attempt(what: str, write: Callable[[], None]) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write()
        except Exception as error:
            if {getattr(e, 'errno', None) for e in (error, error.__cause__)} & _DISK:
                raise
            failures.append(f'image {image} is predicted, but cannot be {what}: {_named(error)}')

    attempt('drawn', lambda: predictor.draw(image, sample, target, threshold))
    if 'pred_sem_seg' in sample:
        labels = target.with_suffix('.labels.png')
        attempt('written as a label map', lambda: predictor.write_labels(sample, labels))
    if probability(sample) is not None:
        grey = target.with_suffix('.probability.png')
        attempt('written as a grey map', lambda: predictor.write_probability(sample, grey))
    return failures


def _named(error: BaseException) -> str:
    if os.environ.get('RES2NET_MM_DEBUG'):
        traceback.print_exception(error)
    return f'{type(error).__name__}: {one_line(error)[:300]}'


def _targets(images: Sequence[Path], source: Path, out: Path) -> dict[Path, Path]:
    """Where the picture of each image goes: all in different places, and none on an image."""
    targets: dict[Path, Path] = {}
    used: set[Path] = set()
    taken = {os.path.realpath(image) for image in images}
    for image in images:
        target = out / (image.relative_to(source) if source.is_dir() else image.name)
        plain = target.with_suffix('.jpg')
        target = plain if plain not in used else target.with_name(f'{image.name}.jpg')
        if os.path.realpath(target) in taken:
            raise ToolError(f'--out {out} would replace the image {image}; give another folder')
        used.add(target)
        targets[image] = target
    return targets


def load_model(cfg: Config, checkpoint: str, trust: bool = False) -> tuple[nn.Module, dict]:
    """Builds the model of a config, in evaluation mode, with the weights of a checkpoint.

    Args:
        cfg: mmdet or mmseg config.
        checkpoint: Weights of the whole model, from any source that
            :func:`res2net_mm.weights.load_weights` takes.
        trust: Read the file with pickle, which runs any code in it.

    Returns:
        The model, and everything that the checkpoint holds.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, does not fit the model exactly, or is not finite.
        ToolError: The model of the config cannot be built.
    """
    use_safe_loading(trust)
    loaded = read_source(checkpoint, trust=trust)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = copy.deepcopy(cfg.model)
    drop_timm_weights(dict(model=model_cfg))
    if cfg.get('data_preprocessor'):  # as mmengine's Runner does
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
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


def classes_of(cfg: Config, loaded: dict[str, Any]) -> list[str]:
    """Names for the labels of a checkpoint's model: see :func:`prediction_meta`."""
    dataset = test_dataset(cfg) if cfg.get('test_dataloader') else None
    return list(prediction_meta(cfg, loaded.get('meta'), dataset)['classes'])


def test_dataset(cfg: Config) -> dict[str, Any]:
    """The config of the test data, without wrappers."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:  # a wrapper of one data set, or of several
        dataset = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if dataset is None:
            raise ToolError('the test_dataloader.dataset of the config has no pipeline')
    return dataset


def _encode(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())
