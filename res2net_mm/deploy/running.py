"""Runs exported models with onnxruntime or OpenVINO: numpy in, numpy out.

This file needs numpy and one of the two runtimes, and resizes images by OpenCV if it is there. It
imports nothing else of this package, so a program without PyTorch can keep a copy of it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

SUFFIXES = ('.onnx', '.xml')
KEY = 'res2net_mm'  # of the metadata in a file
FORMAT = 1  # of the metadata
TOO_SMALL = (
    'is for smaller images than the config makes: larger ones are made smaller, which changes the '
    'figures; export it with --dynamic'
)
Array = np.ndarray
Compute = Callable[[Array], list[Array]]


class ModelFileError(ValueError):
    """A file that is damaged, was not written by this package, or holds another kind of model."""


class ExportedModel:
    """A model from ``tools/export.py``, on the CPU.

    Args:
        path: An ``.onnx`` file, which onnxruntime runs, or an OpenVINO ``.xml`` file with its
            weights in a ``.bin`` file beside it.
        threads: Threads to compute with; None leaves the number to the runtime.
        precision: ``'f32'``, or ``'bf16'`` to let OpenVINO compute in bfloat16.

    Attributes:
        metadata: What the file says about its model: task, classes, input and so on.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The runtime is not installed.
        ModelFileError: The file cannot be run; the message says why.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, precision: str = 'f32'
    ) -> None:
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ModelFileError(f'{path} is no exported model: it must end in .onnx or .xml')
        if not path.is_file():
            raise FileNotFoundError(f'exported model {path} does not exist')
        file = path if path.with_suffix('.bin').is_file() else path.resolve()  # of a link
        onnx, weights = path.suffix == '.onnx', file.with_suffix('.bin')
        if not (onnx or weights.is_file()):
            raise ModelFileError(f'{path} has no weights: {weights.name} is missing')
        try:
            self._compute, text = (
                open_onnx(file, threads) if onnx else open_openvino(file, threads, precision)
            )
        except ImportError as error:
            package = 'onnxruntime' if onnx else 'openvino'
            raise ImportError(f'{path} needs {package}: pip install {package}') from error
        except Exception as error:  # exceptions of the runtimes have no base of their own
            reason = str(error).strip().splitlines()[-1]
            either = 'damaged or no exported model' + ', or its .bin is of another file' * (
                not onnx
            )
            raise ModelFileError(f'{path} is {either}: {reason}') from error
        self.path = path
        self.metadata = _parse(path, text)
        if not onnx and self.metadata.get('bin') not in (None, file_hash(weights)):
            raise ModelFileError(f'{weights} has the weights of another file than {path}')
        self._input = self.metadata['input']

    @property
    def classes(self) -> list[str]:
        """Names of the labels."""
        return list(self.metadata.get('classes') or ())

    def predict(self, image: Array) -> dict[str, Array]:
        """Predicts an image (H, W, 3), uint8, RGB, of any size.

        Returns:
            ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of ``image``, ``scores`` (N,), ``labels``
            (N,), ``masks`` (N, H, W), ``segmentation`` (H, W) and ``probability`` (H, W) of label
            1, as far as the model has them. Of a classifier ``scores`` (classes,).

        Raises:
            ValueError: ``image`` is no such array, or too small for the network.
        """
        shape, dtype = getattr(image, 'shape', ()), getattr(image, 'dtype', type(image).__name__)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f'image must be an array (H, W, 3) of uint8, but got {dtype} {shape}')
        resized = self.resize(image)
        if self._input['kind'] != 'raw' and self.fit(resized).shape != resized.shape:
            warnings.warn(f'{self.path} {TOO_SMALL}', stacklevel=2)
        return self.predict_resized(resized, image.shape[:2])

    def resize(self, image: Array) -> Array:
        """Resizes an image (H, W, 3) as the pipeline does that the model was trained for."""
        rule = self._input.get('resize') or {}
        size = _size_by_rule(rule, *image.shape[:2])
        image = _resize(image, *size, pillow=rule.get('backend') == 'pillow')
        if crop := rule.get('crop'):
            y, x = (max(round((n - c) / 2), 0) for n, c in zip(size, crop[::-1], strict=True))
            image = np.ascontiguousarray(image[y : y + crop[1], x : x + crop[0]])
        return image

    def predict_resized(self, image: Array, shape: tuple[int, int]) -> dict[str, Array]:
        """As :meth:`predict` for a resized image, in pixels of an image of ``shape``, H and W."""
        if self._input['kind'] == 'raw':
            raise ModelFileError(
                f'{self.path} takes normalised values: give them to run(), or export without --raw'
            )
        image = self.fit(image)
        return self._restore(self.run(image), image.shape[:2], tuple(shape))

    def fit(self, image: Array) -> Array:
        """Makes an image smaller if it is too large for the file's fixed size."""
        height, width = self._input['height'], self._input['width']
        if height is None or (image.shape[0] <= height and image.shape[1] <= width):
            return image
        factor = min(height / image.shape[0], width / image.shape[1])
        return _resize(image, *(max(int(side * factor), 1) for side in image.shape[:2]))

    def run(self, image: Array) -> dict[str, Array]:
        """The file's outputs by name, in pixels of ``image``.

        Args:
            image: (h, w, 3), uint8, RGB, not larger than the file's size. For a raw file: (1, 3, H,
                W), float32, normalised.

        Raises:
            ValueError: The file cannot run on an image of this size.
        """
        image = image if self._input['kind'] == 'raw' else image[None]
        height, width = image.shape[2:] if self._input['kind'] == 'raw' else image.shape[1:3]
        highest, widest = self._input['height'] or height, self._input['width'] or width
        size = f'{width} x {height} px'
        if height > highest or width > widest:  # onnxruntime would cut it
            raise ValueError(f'{self.path} takes at most {widest} x {highest} px, and got {size}')
        try:
            found = self._compute(image)
        except Exception as error:  # exceptions of the runtimes have no base of their own
            reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
            raise ValueError(f'{self.path} does not run on {size}: {reason}') from error
        return dict(zip(self.metadata['outputs'], found, strict=True))

    def _restore(
        self, found: dict[str, Array], shape: tuple[int, int], wanted: tuple[int, int]
    ) -> dict[str, Array]:
        """Outputs for an image of ``shape`` in pixels of the same image of size ``wanted``."""
        cells = found.pop('mask_scores', None)
        if shape == wanted:
            return found
        if 'boxes' in found:
            factors = [wanted[i] / shape[i] for i in (1, 0, 1, 0)]
            found['boxes'] = found['boxes'] * np.array(factors, np.float32)
        if 'masks' in found:
            threshold = self.metadata['mask_thr']
            found['masks'] = _paste(cells, found['boxes'], wanted, threshold)
        if 'segmentation' in found:
            rows, columns = (
                ((np.arange(w) + 0.5) * s / w).astype(int)
                for w, s in zip(wanted, shape, strict=True)
            )
            found['segmentation'] = found['segmentation'][rows[:, None], columns]
        if 'probability' in found:  # logits are interpolated, as mmseg does it
            share = found['probability'].astype(float).clip(1e-7, 1 - 1e-7)
            share = 1 / (1 + np.exp(-_interpolate(np.log(share / (1 - share)), wanted)))
            found['probability'] = share.astype(np.float32)
            found['segmentation'] = (share > self.metadata['mask_thr']).astype(int)
        return found


def open_onnx(file: Path | bytes, threads: int | None = None) -> tuple[Compute, str | None]:
    """What computes a file's outputs from its input in onnxruntime, and its metadata."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors, which come as exceptions
    # waiting threads would spin, which slows down whatever else computes
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda image: session.run(None, {name: image}), text


@cache
def openvino_core() -> Any:
    """The process's only OpenVINO core.

    A core gives the thread that uses it a stack for signals. When several cores end in another
    order than the reverse of their start, that stack is freed memory, and the next signal crashes.
    """
    import openvino

    core = openvino.Core()
    core.set_property({'ENABLE_MMAP': False})  # files that were read may be replaced
    return core


def open_openvino(
    file: Any, threads: int | None = None, precision: str = 'f32'
) -> tuple[Compute, str | None]:
    """The same for OpenVINO; ``file`` is a path or a model that was read."""
    core = openvino_core()
    model = core.read_model(file) if isinstance(file, Path) else file
    options = {'INFERENCE_PRECISION_HINT': precision, 'PERFORMANCE_HINT': 'LATENCY'}
    options['ENABLE_CPU_PINNING'] = False  # else two models with one thread each share a core
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None

    def prepare() -> Any:
        return core.compile_model(model, 'CPU', options).create_infer_request()

    requests, lock = [prepare()], Lock()  # a request computes one image at a time

    def compute(image: Array) -> list[Array]:
        with lock:
            try:
                return list(requests[0].infer([image], share_inputs=True).values())
            except BaseException:
                # what failed is left half changed, and would give wrong values for other images
                requests[0] = prepare()
                raise

    return compute, text


def file_hash(path: Path) -> str:
    """16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _parse(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ModelFileError(f'{path} was not written by tools/export.py: it has no metadata')
    try:
        metadata = json.loads(text)
        missing = {'format', 'version', 'task', 'input', 'outputs'} - metadata.keys()
    except (ValueError, AttributeError) as error:
        raise ModelFileError(f'{path} has damaged metadata: {error}') from error
    if missing:
        raise ModelFileError(f'{path} has damaged metadata: {", ".join(missing)} is missing')
    if metadata['format'] != FORMAT:
        raise ModelFileError(
            f'{path} was written by res2net_mm {metadata["version"]} in format '
            f'{metadata["format"]}, but this version reads format {FORMAT}: export it again'
        )
    return metadata


def _size_by_rule(rule: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width of a resized image, rounded as mmcv's ``Resize`` does."""
    if not rule or not rule.get('scale'):
        return height, width
    if edge := rule.get('edge'):  # rounded as torchvision and mmpretrain do
        scale, wide = rule['scale'], width > height
        if edge == 'width' or edge == 'short' and width < height or edge == 'long' and wide:
            return int(scale * height / width), scale
        return scale, int(scale * width / height)
    if not rule['keep_ratio']:
        return rule['scale'][1], rule['scale'][0]
    factor = min(
        max(rule['scale']) / max(height, width),
        min(rule['scale']) / min(height, width),
    )
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def _resize(image: Array, height: int, width: int, pillow: bool = False) -> Array:
    """Interpolates between the four nearest pixels, as OpenCV and so the training pipelines do.

    ``pillow`` averages all pixels instead, as Pillow's bilinear resizing and torchvision's do.
    """
    if image.shape[:2] == (height, width):
        return image
    if pillow:
        from PIL import Image

        pixels = Image.fromarray(image)
        return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))
    try:
        import cv2

        return cv2.resize(image, (width, height))
    except ImportError:  # slower, and some pixels differ by one
        planes = [_interpolate(image[..., i], (height, width)) for i in range(3)]
        return (np.stack(planes, axis=-1) + 0.5).astype(np.uint8)


def _interpolate(values: Array, shape: tuple[int, int]) -> Array:
    """Values (h, w) at ``shape``, between the four nearest, as PyTorch interpolates."""
    for size in shape:  # the first axis, and then the other in its place
        pixels = np.arange(len(values))
        places = (np.arange(size) + 0.5) * len(values) / size - 0.5
        values = np.stack([np.interp(places, pixels, column) for column in values.T])
    return values


def _paste(masks: Array, boxes: Array, shape: tuple[int, int], threshold: float) -> Array:
    """Masks (N, *shape) of bool from their values in the cells of their boxes, (N, m, m)."""
    pasted = np.zeros((len(masks), *shape), bool)
    for mask, box, whole in zip(masks, boxes, pasted, strict=True):
        shares, places = [], []
        for start, end, length, cells in zip(
            box[1::-1], box[3:1:-1], shape, mask.shape, strict=True
        ):
            first, after = max(int(start) - 1, 0), min(int(np.ceil(end)) + 1, length)
            size = end - start
            place = (np.arange(first, after, dtype=np.float32) + 0.5 - start) / (size or 1)
            place = (place if size else np.full_like(place, 0.5)) * cells - 0.5
            shares.append((1 - abs(place[:, None] - np.arange(cells))).clip(0).astype(np.float32))
            places.append(slice(first, after))
        whole[tuple(places)] = shares[0] @ mask @ shares[1].T >= threshold
    return pasted
