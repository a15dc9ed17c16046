"""Whole models as files: ONNX for stock onnxruntime and others, OpenVINO IR for CPUs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..files import check_writable, writing
from ..ops.sampling import without_autocast
from .graphs import Detector, Graph, Levels, Segmentor, Size, traceable
from .metadata import KEY, describe, in_channels, normalisation_of

# 16 brought GridSample and RoiAlign's half_pixel. 17 was run against PyTorch at odd sizes, where
# pools that round up and do not count their padding have differed between releases.
OPSET = 17
SUFFIXES = ('.onnx', '.xml')
DETECTORS = (
    'FasterRCNN',
    'MaskRCNN',
    'CascadeRCNN',
    'HybridTaskCascade',
    'PanopticFPN',
    'RetinaNet',
    'FCOS',
    'ATSS',
    'GFL',
    'VFNet',
)
Run = Callable[[np.ndarray], list[np.ndarray]]


class ExportError(ValueError):
    """A model that cannot be exported, or a file that gives other values than its model."""


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` wrote.

    Attributes:
        path: The file; an ``.xml`` has its weights beside it, in ``.bin``.
        metadata: What the file says of itself.
        compared: How many images it was compared with PyTorch on.
        errors: The largest difference of each output there: boxes in pixels, scores, masks and
            labels as they are, features relative to the largest.
    """

    path: Path
    metadata: dict[str, Any]
    compared: int
    errors: dict[str, float]

    def __str__(self) -> str:
        errors = ', '.join(f'{name} {error:.1e}' for name, error in self.errors.items())
        return f'compared with PyTorch on {self.compared} images: {errors}\nwritten: {self.path}'


def export(
    model: nn.Module,
    path: str | Path,
    shape: Size | None = None,
    dynamic: bool = False,
    raw: bool = False,
    *,
    images: Sequence[np.ndarray] = (),
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str], Any] | None = None,
) -> ExportReport:
    """Writes a model as a file that needs neither PyTorch nor mmdet to run.

    The file takes an image, uint8 (1, h, w, 3) RGB: normalisation and padding are in it, and so is
    what selects and merges boxes. Its outputs, as the method has them: ``boxes`` (N, 4), x1, y1,
    x2, y2 in pixels of the input; ``scores`` (N,); ``labels`` (N,); ``masks`` (N, h, w) bool and
    ``mask_scores`` (N, m, m), the masks as the head gives them, spread over each box;
    ``segmentation`` (h, w), labels, of Panoptic FPN label + 1000 * number of the instance. A
    backbone gives ``c2`` to ``c5``.

    The file is compared with PyTorch and takes its name only if boxes agree to 0.01 pixels, scores
    to 1e-4 and labels are equal.

    Args:
        model: A backbone of this package, a detector of mmdet or a segmentor of mmseg. It is not
            changed: a copy is exported, in evaluation mode, float32, on the CPU.
        path: The file, ``.onnx`` or ``.xml`` (OpenVINO); an older one is replaced.
        shape: Height and width that images are padded to, right and below; smaller images are
            taken as well. None: both stay open, and images are padded as the model's own pipeline
            pads them.
        dynamic: Leave height and width open, although ``shape`` is given to compare at.
        raw: The input is normalised float32, (N, C, h, w), without any preparation in the file.
        images: uint8 (h, w, 3), RGB, no larger than ``shape``, to compare on; made ones are used
            beside them.
        about: ``config``, ``classes``, ``palette`` and ``resize`` for the metadata. None is what
            the model says (``model.dataset_meta``).
        progress: Called with a line before each step that takes long.

    Returns:
        What was written.

    Raises:
        ImportError: onnx and onnxruntime, or openvino, are not installed.
        ExportError: The model cannot be exported, an argument has a value that it cannot have, or
            the file does not agree with the model. Nothing was written.
        OSError: The file could not be written.

    Example:
        >>> net = create_backbone('res2net50_v1b_26w_4s')
        >>> export(net, 'res2net50.onnx', (480, 640)).metadata['outputs']
        ['c2', 'c3', 'c4', 'c5']
    """
    path = check_path(path)
    require(path.suffix)
    graph, metadata = make_graph(model, shape, dynamic, raw, about)
    say = progress or (lambda line: None)
    say(f'tracing {metadata["model"]}')
    example = made_images(graph, shape, 1)[0]
    with without_autocast('cpu'), _quietly(), writing(path) as partial:
        convert = _write_onnx if path.suffix == '.onnx' else _write_openvino
        convert(graph, as_input(graph, example), partial, metadata)
        weights = partial.with_suffix('.bin')
        try:
            say('comparing it with PyTorch')
            given = [*images, *made_images(graph, shape, 3)]
            errors = compare(open_file(partial), model, graph, given)
            if weights.exists():
                weights.replace(path.with_suffix('.bin'))
        finally:
            weights.unlink(missing_ok=True)
    return ExportReport(path, metadata, len(given), errors)


def check_path(path: str | Path) -> Path:
    """The file to write, behind a link too.

    Raises:
        ExportError: It ends in neither .onnx nor .xml, or its folder does not exist.
        OSError: Nothing can be written there.
    """
    path = Path(path).expanduser().resolve()
    if path.suffix not in SUFFIXES or path.is_dir():
        raise ExportError(f'path must be a file that ends in .onnx or .xml, but got {path}')
    if not path.parent.is_dir():
        raise ExportError(f'path must be in a folder that exists, but {path.parent} does not')
    check_writable(path, 'OUT')
    return path


def require(suffix: str) -> None:
    """Raises ``ImportError`` saying what to install, unless a format's packages are there."""
    extra = 'export' if suffix == '.onnx' else 'openvino'
    try:
        for name in ('onnx', 'onnxruntime') if suffix == '.onnx' else ('openvino',):
            __import__(name)
    except ImportError as error:
        raise ImportError(
            f"{suffix} files need another package: pip install 'res2net_mm[{extra}]' ({error})"
        ) from error


def refusal(model: nn.Module) -> str | None:
    """Why a model cannot be exported; None if it can."""
    kind = type(model).__name__
    if isinstance(model, Backbone):
        return None
    for wrapper in ('module', '_orig_mod'):
        if hasattr(model, wrapper):
            return f'model is {kind}, which wraps another: export model.{wrapper}'
    if callable(getattr(model, 'encode_decode', None)):
        return None
    if kind not in DETECTORS:
        return (
            f"model is {kind}; what can be exported is a backbone of this package, mmseg's "
            f'EncoderDecoder, and of mmdet {", ".join(DETECTORS)}'
        )
    return None


def make_graph(
    model: nn.Module,
    shape: Size | None,
    dynamic: bool,
    raw: bool,
    about: Mapping[str, Any] | None = None,
) -> tuple[Graph, dict[str, Any]]:
    """What is traced, and its metadata; arguments as of :func:`export`."""
    if reason := refusal(model):
        raise ExportError(reason)
    if any(p.is_meta for p in model.parameters()):
        raise ExportError('model must have weights, but some of its parameters are on meta')
    if shape is not None:
        listed = isinstance(shape, Sequence) and len(shape) == 2
        if not listed or not all(type(n) is int and n > 0 for n in shape):
            raise ExportError(f'shape must be two positive integers, but got {shape!r}')
    if isinstance(model, Backbone):
        kind, divisor = Levels, 1
    elif callable(getattr(model, 'encode_decode', None)):
        kind, divisor = Segmentor, 1
    else:
        kind, divisor = Detector, model.data_preprocessor.pad_size_divisor
    size = None
    if shape is not None and not dynamic:
        size = tuple(-(-n // divisor) * divisor for n in shape)
    normalisation = normalisation_of(model)
    if not raw and in_channels(model) != 3:
        raise ExportError(f'an image has 3 channels, the model {in_channels(model)}: raw only')
    swap = normalisation['channels'] == 'BGR'
    reverse = slice(None, None, -1) if swap else slice(None)
    own = {name: normalisation[name][reverse] for name in ('mean', 'std')}
    graph = kind(model, dict(own, swap=swap), size, divisor, raw)
    about = {**(getattr(model, 'dataset_meta', None) or {}), **(about or {})}
    return graph, describe(graph, normalisation, about)


def as_input(graph: Graph, image: np.ndarray) -> Tensor:
    """The input of a graph for an image, uint8 (h, w, 3) RGB."""
    batch = torch.from_numpy(np.ascontiguousarray(image))[None]
    if not graph.raw:
        return batch
    x = (batch.permute(0, 3, 1, 2).float() - graph.mean) / graph.std
    return x[:, [2, 1, 0]] if graph.swap else x


def made_images(graph: Graph, shape: Size | None, count: int) -> list[np.ndarray]:
    """Blocks of random colours and noise, the same at every call; the first fills ``shape``."""
    random = np.random.default_rng(0)
    height, width = shape or (256, 320)
    images = []
    for i in range(count):
        h, w = max(height * (4 - i) // 4, 1), max(width * (4 - i // 2) // 4, 1)
        cell = 8 << i
        blocks = random.integers(0, 256, (h // cell + 1, w // cell + 1, 3))
        pixels = blocks.repeat(cell, 0).repeat(cell, 1)[:h, :w] + random.normal(0, 12, (h, w, 3))
        images.append(pixels.clip(0, 255).astype(np.uint8))
    return images


def _trace(graph: Graph, example: Tensor, native_deform: bool) -> torch.jit.ScriptModule:
    with torch.no_grad(), traceable(graph, native_deform):
        if not isinstance(graph, Detector):
            return torch.jit.trace(graph, example, check_trace=False)
        threshold = graph.score_thr.item()
        graph.score_thr.fill_(-1)  # something is found, whatever the weights are
        try:
            return torch.jit.trace(graph, example, check_trace=False)
        finally:
            graph.score_thr.fill_(threshold)


def _open_axes(graph: Graph) -> dict[int, str]:
    axes = {2: 'height', 3: 'width'} if graph.raw else {1: 'height', 2: 'width'}
    return {0: 'batch', **axes} if isinstance(graph, Levels) else axes


def _write_onnx(graph: Graph, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    buffer = BytesIO()
    outputs = {
        'boxes': {0: 'found'},
        'scores': {0: 'found'},
        'labels': {0: 'found'},
        'mask_scores': {0: 'found'},
        'masks': {0: 'found', 1: 'height', 2: 'width'},
        'segmentation': {0: 'height', 1: 'width'},
    }
    axes = {name: outputs[name] for name in graph.outputs if name in outputs}
    if isinstance(graph, Levels):
        axes = {n: {0: 'batch', 2: f'{n}_height', 3: f'{n}_width'} for n in graph.outputs}
    try:
        with torch.no_grad():
            torch.onnx.export(
                _trace(graph, example, native_deform=False),
                (example,),
                buffer,
                dynamo=False,  # the other exporter needs onnxscript, and takes no traces
                opset_version=OPSET,
                input_names=['image'],
                output_names=list(graph.outputs),
                dynamic_axes={'image': _open_axes(graph), **axes},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0].partition('  [Caused by')[0]
        raise ExportError(f'model cannot be exported: {reason}') from error
    file = onnx.load_from_string(buffer.getvalue())
    foreign = sorted({f'{n.domain}::{n.op_type}' for n in file.graph.node if n.domain})
    if foreign:
        raise ExportError(f'model needs operators that ONNX does not have: {", ".join(foreign)}')
    metadata['opset'] = OPSET
    onnx.helper.set_model_props(file, {KEY: json.dumps(metadata, ensure_ascii=False)})
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f'the exported file is not valid ONNX: {error}') from error
    path.write_bytes(file.SerializeToString())


def _write_openvino(graph: Graph, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import openvino

    traced = _trace(graph, example, native_deform=True)
    shape: list[Any] = list(example.shape)
    for i, name in _open_axes(graph).items():
        limit = -1 if graph.size is None or name == 'batch' else graph.size[name == 'width']
        shape[i] = openvino.Dimension(1, limit)
    file = openvino.convert_model(traced, example_input=example, input=[shape])
    file.inputs[0].get_tensor().set_names({'image'})
    for output, name in zip(file.outputs, graph.outputs, strict=True):
        output.get_tensor().set_names({name})
    file.set_rt_info(json.dumps(metadata, ensure_ascii=False), [KEY])
    openvino.save_model(file, path, compress_to_fp16=False)


def open_file(path: Path) -> Run:
    """A file in its runtime on the CPU, in float32: input -> outputs."""
    if path.suffix == '.onnx':
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors, which come as exceptions
        # its threads would wait by spinning, which slows PyTorch's
        options.add_session_config_entry('session.force_spinning_stop', '1')
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        return lambda image: session.run(None, {'image': image})
    import openvino

    compiled = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda image: [value.copy() for value in compiled(image).values()]


@torch.no_grad()
def reference(model: nn.Module, graph: Graph, image: np.ndarray) -> list[np.ndarray]:
    """What PyTorch gives for an image, by the model's own code."""
    x, _ = graph.prepare(as_input(graph, image))
    if isinstance(graph, Levels):
        return [level.numpy() for level in model(x)]
    height, width = image.shape[:2]
    shape = x.shape[2:]
    if isinstance(graph, Segmentor):
        return [graph(as_input(graph, image)).numpy()]
    from mmdet.structures import DetDataSample

    meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=tuple(shape))
    meta.update(scale_factor=(1.0, 1.0), batch_input_shape=tuple(shape))
    sample = model.predict(x, [DetDataSample(metainfo=meta)], rescale=True)[0]
    found = sample.get('pred_instances') or SimpleNamespace()
    values = dict(
        boxes=getattr(found, 'bboxes', None),
        scores=getattr(found, 'scores', None),
        labels=getattr(found, 'labels', None),
        masks=getattr(found, 'masks', None),
        mask_scores=None,
        segmentation=sample.pred_panoptic_seg.sem_seg[0] if 'pred_panoptic_seg' in sample else None,
    )
    return [None if values[n] is None else values[n].numpy() for n in graph.outputs]


def compare(
    run: Run, model: nn.Module, graph: Graph, images: Sequence[np.ndarray]
) -> dict[str, float]:
    """The largest difference of each output from PyTorch's.

    Raises:
        ExportError: A difference that is too large; the message says where.
    """
    errors = dict.fromkeys(graph.outputs, 0.0)
    model = graph.model
    for number, image in enumerate(images):
        expected = reference(model, graph, image)
        given = run(as_input(graph, image).numpy())
        for name, theirs, ours in zip(graph.outputs, expected, given, strict=True):
            if theirs is None:
                continue
            where = f'{name} of image {number} ({image.shape[0]} x {image.shape[1]})'
            if theirs.shape != ours.shape:
                raise ExportError(
                    f'the exported file does not give what PyTorch gives: {where} has shape '
                    f'{ours.shape}, not {theirs.shape}'
                )
            if theirs.size == 0:
                continue
            error = float(np.abs(ours.astype(np.float64) - theirs).max())
            limit = {'boxes': 1e-2, 'scores': 1e-4, 'labels': 0}.get(name, 1e-4)
            if isinstance(graph, Levels):
                error /= float(np.abs(theirs).max()) or 1.0
            if not error <= limit:
                raise ExportError(
                    f'the exported file does not give what PyTorch gives: {where} differs by '
                    f'{error:.2g}, and at most {limit:g} is allowed'
                )
            errors[name] = max(errors[name], error)
    return errors


def validation_images(cfg: Any, count: int) -> list[np.ndarray]:
    """The first images of a config's validation set as its test pipeline gives them, RGB.

    Raises:
        OSError: The data are not there.
    """
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = dict(cfg.val_dataloader.dataset, indices=count, lazy_init=False)
    dataset['pipeline'] = [s for s in dataset['pipeline'] if 'Annotations' not in str(s['type'])]
    built = DATASETS.build(dataset)
    pictures = (built[i]['inputs'] for i in range(min(count, len(built))))
    return [picture.permute(1, 2, 0).numpy()[:, :, ::-1] for picture in pictures]


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides what mmdet, mmseg and the exporters warn of while a model is traced or run."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
