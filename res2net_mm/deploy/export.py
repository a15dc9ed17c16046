"""Whole models as files: ONNX for stock onnxruntime and others, OpenVINO IR for CPUs."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..files import check_writable, writing
from ..ops.internals import quiet_onnx_export
from ..ops.sampling import without_autocast
from .folding import fold_batch_norm
from .graphs import Classified, Detector, Graph, Levels, Segmentor, Size, traceable
from .int8 import quantize, require_nncf
from .metadata import describe, normalisation_of, resize_rule, save_openvino
from .running import KEY, open_onnx, open_openvino, openvino_core

# 16 brought GridSample and RoiAlign's half_pixel. 17 was run against PyTorch at odd sizes, where
# pools that round up and do not count their padding have differed between releases.
OPSET = 17
PACKAGES = {'.onnx': ('onnx', 'onnxruntime'), '.xml': ('openvino',)}
DETECTORS = ('ATSS', 'CascadeRCNN', 'FCOS', 'FasterRCNN', 'GFL', 'HybridTaskCascade', 'MaskRCNN')
DETECTORS += ('PanopticFPN', 'RetinaNet', 'VFNet')
CLASSIFIERS = ('Classifier', 'ImageClassifier')
# The largest differences from PyTorch: boxes in pixels, features relative to the largest, masks and
# maps as the share of their pixels. Rounding turns a few decisions at a threshold, such as that of
# non-maximum suppression: so many detections may be without a counterpart.
TOLERANCES = dict(boxes=1e-2, scores=1e-4, masks=1e-3, segmentation=1e-3)
OTHERS = 1e-4
STRAY = 0.005
Arrays = dict[str, np.ndarray]
Run = Callable[[np.ndarray], list[np.ndarray]]


class ExportError(ValueError):
    """A model that cannot be exported, or a file that gives other values than its model."""


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` wrote: the file, and what it says of itself (:mod:`.metadata`).

    ``errors`` are the largest differences from PyTorch on ``compared`` images: boxes in pixels,
    scores, features relative to the largest, masks and maps as the share of their pixels. ``stray``
    is how many detections had no counterpart, of how many.
    """

    path: Path
    metadata: dict[str, Any]
    compared: int
    errors: dict[str, float]
    stray: tuple[int, int]

    def __str__(self) -> str:
        errors = ', '.join(f'{name} {error:.1e}' for name, error in self.errors.items())
        lines = [f'compared with PyTorch on {self.compared} images, largest differences: {errors}']
        if self.stray[0]:
            lines.append('{} of {} detections are in one of both only'.format(*self.stray))
        return '\n'.join([*lines, f'written: {self.path}'])


def export(
    model: nn.Module,
    path: str | Path,
    shape: Size | None = None,
    raw: bool = False,
    *,
    images: Sequence[np.ndarray] = (),
    int8: bool | Sequence[np.ndarray] = False,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str], Any] | None = None,
) -> ExportReport:
    """Writes a model as a file that needs neither PyTorch nor mmdet to run.

    The file takes an image, uint8 (1, h, w, 3), RGB, and does all that the model does with it:
    normalisation, padding, selecting and merging boxes. ``docs/deploy.md`` describes its outputs.
    It is compared with PyTorch, and takes its name only if boxes agree to 0.01 pixels, scores to
    1e-4, and labels are equal.

    Args:
        model: A backbone or classifier of this package, a detector of mmdet, a segmentor of mmseg
            or a classifier of mmpretrain. It is not changed: a copy is exported, in evaluation
            mode, float32, on the CPU.
        path: The file, ``.onnx`` or ``.xml`` (OpenVINO); an older one is replaced.
        shape: Height and width that images are padded to, right and below, after normalisation; no
            image may be larger. None leaves both open, and images are padded as the model pads
            them. A classifier's are always open: padding would change its scores.
        raw: The input is normalised float32, (1, C, h, w), instead of an image. The batch of a
            backbone is open.
        images: uint8 (h, w, 3), RGB, no larger than ``shape``, to compare on, beside made ones.
        int8: Such images to calibrate with, or True for those in ``images``: an ``.xml`` file then
            computes in int8. It is compared before, in float32; what int8 costs is seen on a
            validation set (``tools/export.py --int8 --check``).
        about: For the metadata: ``config``, ``classes``, ``palette`` and ``resize``, and, of a
            backbone, ``mean``, ``std`` and ``channels`` ('RGB' or 'BGR') that it was trained with.
            Else classes and palette are those of ``model.dataset_meta``, and ``resize`` is that of
            the test data in ``model.cfg``, which mmdet's and mmseg's init functions set.
        progress: Called with a line before each step that takes long.

    Raises:
        ImportError: onnx and onnxruntime, openvino, or for int8 nncf are not installed.
        ExportError: The model cannot be exported, an argument has a value that it cannot have, or
            the file does not agree with the model. Nothing was written.
        OSError: The file could not be written.

    Example:
        >>> net = create_backbone('res2net50_v1b_26w_4s')
        >>> export(net, 'res2net50.onnx', (480, 640)).metadata['outputs']
        ['c2', 'c3', 'c4', 'c5']
    """
    path, calibrated = check_path(path), int8 is not None and int8 is not False
    calibration = _calibration(images if int8 is True else int8, path, raw) if calibrated else []
    graph, metadata = _make_graph(model, shape, raw, about or {})
    say = progress or (lambda line: None)
    say(f'tracing {metadata["model"]}')
    given = len(images)
    images = [*images, *_made_images(graph, shape or (256, 320), images)]
    quiet = warnings.catch_warnings(), quiet_onnx_export()
    with without_autocast('cpu'), quiet[0], quiet[1], writing(path) as partial:
        warnings.simplefilter('ignore')  # those of mmdet, mmseg and the exporters
        weights = partial.with_suffix('.bin')
        try:
            convert = _write_onnx if path.suffix == '.onnx' else _write_openvino
            convert(graph, as_input(graph, images[-3]), partial, metadata)
            say(f'comparing it with PyTorch on {len(images)} images')
            errors, stray = _compare(partial, graph, images, given)
            if calibrated:
                say(f'calibrating int8 on {len(calibration)} images')
                metadata = quantize(partial, partial, calibration)
            if weights.exists():
                weights.replace(path.with_suffix('.bin'))
        finally:
            weights.unlink(missing_ok=True)
    return ExportReport(path, metadata, len(images), errors, stray)


def _calibration(images: Any, path: Path, raw: bool) -> list[np.ndarray]:
    """The images for int8; an ExportError if it cannot be calibrated with them."""
    images = [*images] if isinstance(images, Sequence | np.ndarray) else []
    fit = [getattr(i, 'dtype', 0) == np.uint8 and i.ndim == 3 and i.shape[2] == 3 for i in images]
    if path.suffix != '.xml' or raw or not images or not all(fit):
        raise ExportError(
            'int8 needs images, uint8 (h, w, 3), a path that ends in .xml, and raw=False'
        )
    require_nncf()
    return images


def check_path(path: str | Path) -> Path:
    """The file to write, behind a link too; an error if it cannot be, as of :func:`export`."""
    path = Path(path).expanduser().resolve()
    if path.suffix not in PACKAGES or path.is_dir():
        raise ExportError(f'path must be a file that ends in .onnx or .xml, but got {path}')
    weights = path.with_suffix('.bin')
    if path.suffix == '.xml' and weights.exists() and not path.exists():
        raise ExportError(f'{weights} exists, and would be replaced: give another name')
    if not path.parent.is_dir():
        raise ExportError(f'path must be in a folder that exists, but {path.parent} does not')
    try:
        for package in PACKAGES[path.suffix]:
            __import__(package)
    except ImportError as error:
        extra = 'export' if path.suffix == '.onnx' else 'openvino'
        raise ImportError(
            f'{path.suffix} files need {" and ".join(PACKAGES[path.suffix])}: '
            f"pip install 'res2net_mm[{extra}]' ({error})"
        ) from error
    check_writable(path, 'OUT')
    return path


def refusal(model: nn.Module, open_sizes: bool = False) -> str | None:
    """Why a model cannot be exported, of fixed or open sizes; None if it can."""
    kind, test_cfg = type(model).__name__, getattr(model, 'test_cfg', None) or {}
    heads = [cls.__name__ for cls in type(getattr(model, 'head', None)).__mro__]
    if kind in CLASSIFIERS and any(name.startswith('MultiLabel') for name in heads):
        return f'the model has {heads[0]}; only classifiers with one label can be exported'
    if isinstance(model, Backbone) or kind in CLASSIFIERS:
        return None
    preprocessor = getattr(model, 'data_preprocessor', None)
    value = getattr(preprocessor, 'pad_value', getattr(preprocessor, 'pad_val', 0))
    others = {*(getattr(preprocessor, 'test_cfg', None) or {})} - {'size_divisor'}
    if np.any(value) or others:
        what = f'test_cfg {", ".join(sorted(others))}' if others else f'{value}'
        return f'data_preprocessor pads images with {what}; only zeros, to a divisor, are known'
    if kind in DETECTORS:
        for cfg in (test_cfg, test_cfg.get('rpn') or {}, test_cfg.get('rcnn') or {}):
            nms = (cfg.get('nms') or {}).get('type', 'nms')
            if nms != 'nms':
                return f"the model's test_cfg has nms of type {nms!r}; only 'nms' can be exported"
        return None
    if not (hasattr(model, 'decode_head') and hasattr(model, 'encode_decode')):
        return (
            f"model is {kind}; what can be exported is a backbone of this package, mmseg's "
            f"EncoderDecoder, mmpretrain's ImageClassifier, and of mmdet {', '.join(DETECTORS)}"
        )
    if open_sizes and test_cfg.get('mode') == 'slide':
        return 'the model is tested in sliding windows, which need a fixed size: give a shape'
    return None


def _make_graph(
    model: nn.Module, shape: Size | None, raw: bool, about: Mapping[str, Any]
) -> tuple[Graph, dict[str, Any]]:
    """What is traced, and its metadata."""
    if reason := refusal(model, shape is None):
        raise ExportError(reason)
    if any(p.is_meta for p in model.parameters()):
        raise ExportError('model must have weights, but some of its parameters are on meta')
    if shape is not None and not (len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise ExportError(f'shape must be two positive integers, but got {shape!r}')
    name, preprocessor = type(model).__name__, getattr(model, 'data_preprocessor', None)
    divisor, kind = getattr(preprocessor, 'pad_size_divisor', 1), Segmentor
    if isinstance(model, Backbone):
        kind = Levels
    elif name in CLASSIFIERS or name in DETECTORS:
        kind = Classified if name in CLASSIFIERS else Detector
    elif padding := getattr(preprocessor, 'test_cfg', None):
        divisor = padding.get('size_divisor', 1)
    size = None
    if shape is not None and kind is not Classified:
        size = tuple(-(-n // divisor) * divisor for n in shape)
    channels = next(model.parameters()).shape[1]  # of the image
    if channels != 3 and not raw:
        raise ExportError(f'the model takes {channels} channels, not an image of 3: raw only')
    about = {**(getattr(model, 'dataset_meta', None) or {}), **about}
    # init_detector and init_model keep the config
    part, steps = (getattr(model, 'cfg', None) or {}).get('test_dataloader'), None
    while isinstance(part, Mapping) and not steps:
        part = part.get('dataset')
        steps = part.get('pipeline') if isinstance(part, Mapping) else None
    if 'resize' not in about and not raw and steps:
        try:
            about['resize'] = resize_rule(steps)
        except ValueError as error:
            raise ExportError(f'{error}; or give about=dict(resize=None)') from error
    normalisation = normalisation_of(model, channels, about)
    graph = kind(model, normalisation, size, divisor, raw)
    return graph, describe(graph, normalisation, about)


def as_input(graph: Graph, image: np.ndarray) -> Tensor:
    """The input of a graph for an image, uint8 (h, w, 3), RGB."""
    batch = torch.from_numpy(np.ascontiguousarray(image))[None]
    return graph.normalise(batch) if graph.raw else batch


def _made_images(graph: Graph, shape: Size, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Three images, the same at every call; the first fills ``shape``.

    The others are smaller, and leave the upper levels of a pyramid without objects. They are
    ``given`` images in other sizes, or else random blocks and noise, on which a trained model can
    be so sure of so much that rounding decides.
    """
    random = np.random.default_rng(0)
    images = []
    for i in range(3):
        height, width = (max(n * (3 - i) // 3, 1) for n in shape)
        if given:
            image = given[i % len(given)]
            rows, columns = (
                np.arange(n) * image.shape[k] // n for k, n in enumerate((height, width))
            )
            images.append(image[rows[:, None], columns])
            continue
        cell = 8 << i
        blocks = random.integers(0, 256, (height // cell + 1, width // cell + 1, len(graph.mean)))
        pixels = blocks.repeat(cell, 0).repeat(cell, 1)[:height, :width]
        pixels = pixels + random.normal(0, 12, pixels.shape)
        images.append(pixels.clip(0, 255).astype(np.uint8))
    return images


def _trace(graph: Graph, example: Tensor, native_deform: bool) -> torch.jit.ScriptModule:
    graph = copy.deepcopy(graph)  # what the file is compared with stays as it is
    fold_batch_norm(graph.model)
    threshold = getattr(graph, 'score_thr', torch.zeros(()))
    before = threshold.item()
    with torch.no_grad(), traceable(graph, native_deform):
        threshold.fill_(-1)  # something is found, whatever the weights are
        traced = torch.jit.trace(graph, example, check_trace=False)
    threshold.fill_(before)  # the trace refers to it
    return traced


def _open_axes(graph: Graph) -> dict[int, str]:
    axes = {2: 'height', 3: 'width'} if graph.raw else {1: 'height', 2: 'width'}
    return {0: 'batch', **axes} if isinstance(graph, Levels) else axes


def _write_onnx(graph: Graph, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    buffer = BytesIO()
    try:
        torch.onnx.export(
            _trace(graph, example, native_deform=False),
            (example,),
            buffer,
            dynamo=False,  # the other exporter needs onnxscript, and takes no traces
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(graph.outputs),
            dynamic_axes={'image': _open_axes(graph)},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0].partition('  [Caused by')[0]
        raise ExportError(f'model cannot be exported: {reason}') from error
    file = onnx.load_from_string(buffer.getvalue())
    for output in file.graph.output:  # has the example's sizes
        for size in output.type.tensor_type.shape.dim:
            size.Clear()
    metadata['opset'] = OPSET
    onnx.helper.set_model_props(file, {KEY: json.dumps(metadata, ensure_ascii=False)})
    onnx.checker.check_model(file, full_check=True)
    path.write_bytes(file.SerializeToString())


def _write_openvino(graph: Graph, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    traced = _trace(graph, example, native_deform=True)
    # openvino.convert_model does this too, after seconds of other work and a report over the net
    frontend = FrontEndManager().load_by_framework('pytorch')
    decoder = TorchScriptPythonDecoder(traced, example_input=example)  # is used until the end
    loaded = frontend.load(decoder)
    shape: list[Any] = list(example.shape)
    for i, name in _open_axes(graph).items():
        limit = -1 if graph.size is None or name == 'batch' else graph.size[name == 'width']
        shape[i] = openvino.Dimension(1, limit)
    (place,) = loaded.get_inputs()
    loaded.set_partial_shape(place, openvino.PartialShape(shape))
    loaded.set_element_type(place, openvino.Type.f32 if graph.raw else openvino.Type.u8)
    try:
        file = frontend.convert(loaded)
    except Exception as error:  # of no base that is public
        unknown = sorted(set(re.findall(r'\b(?:aten|prim|torchvision)::\w+', str(error))))
        raise ExportError(
            f'model cannot be exported: OpenVINO does not convert {", ".join(unknown) or error}'
        ) from error
    for node in file.get_ops():  # names from the trace would be merged with these
        for port in node.outputs():
            port.get_tensor().set_names(set())
    for port, name in zip(file.inputs + file.outputs, ('image', *graph.outputs), strict=True):
        port.get_tensor().set_names({name})
    save_openvino(file, path, metadata)


def _open(path: Path, score_thr: float | None = None) -> Run:
    """A file in its runtime, in float32; ``score_thr`` replaces a detector's."""
    if path.suffix == '.onnx':
        import onnx

        file = onnx.load(path)
        for constant in file.graph.initializer if score_thr is not None else ():
            if constant.name == 'score_thr':
                constant.CopyFrom(onnx.numpy_helper.from_array(np.float32(score_thr), 'score_thr'))
        return open_onnx(file.SerializeToString())[0]
    import openvino

    file = openvino_core().read_model(path)
    for node in file.get_ops() if score_thr is not None else ():
        if node.get_friendly_name() == 'self.score_thr':
            node.output(0).replace(openvino.opset1.constant(np.float32(score_thr)).output(0))
    return open_openvino(file)[0]


def _compare(
    path: Path, graph: Graph, images: Sequence[np.ndarray], given: int
) -> tuple[dict[str, float], tuple[int, int]]:
    """Compares a file with PyTorch on images, and the last with other thresholds of the score.

    The first ``given`` images were not made for it.

    Returns the largest difference of each output, and how many detections had no counterpart, of
    how many. An ExportError says what differs, or that the file does not run.
    """
    worst: dict[str, float] = {}
    stray: list[str] = []
    found = 0
    for what, run, image in _cases(path, graph, images, given):
        what = f'{what} ({image.shape[0]} x {image.shape[1]})'
        expected = reference(graph, image)
        try:
            given = run(as_input(graph, image).numpy())
        except Exception as error:  # exceptions of the runtimes have no base of their own
            raise ExportError(f'the exported file does not run on {what}: {error}') from error
        given = dict(zip(graph.outputs, given, strict=True))
        errors, lone = _differences(expected, given)
        stray += [f'{what}: {text}' for text in lone]
        found += len(expected.get('boxes', ()))
        for name, error in errors.items():
            worst[name] = max(worst.get(name, 0.0), error)
            limit = TOLERANCES.get(name, OTHERS)
            if not error <= limit:  # NaN is not
                raise ExportError(
                    f'the exported file does not give what PyTorch gives: {name} of {what} differs '
                    f'by {error:.2g}, and at most {limit:g} is allowed'
                )
    if len(stray) > max(STRAY * found, 1):
        raise ExportError(
            f'the exported file does not give what PyTorch gives: of {found} detections, '
            f'{len(stray)} are in one of both only; the first, of {stray[0]}. If the model has '
            'hardly been trained, rounding decides between nearly equal scores: train it more'
        )
    return worst, (len(stray), found)


def _cases(
    path: Path, graph: Graph, images: Sequence[np.ndarray], given: int
) -> Iterator[tuple[str, Run, np.ndarray]]:
    run = _open(path)
    for i, image in enumerate(images):
        yield f'image {i + 1}' if i < given else f'made image {i + 1 - given}', run, image
    if not isinstance(graph, Detector):
        return
    test_cfg = (getattr(graph.model, 'roi_head', None) or graph.model.bbox_head).test_cfg
    before = test_cfg.score_thr
    try:
        test_cfg.score_thr = 1e-3
        scores = reference(graph, image)['scores']
        values = dict(nothing=1.0)
        if len(scores) > 1:
            values.update(one=float(scores[:2].mean()), many=float(scores[-2:].mean()))
        for what, value in values.items():
            test_cfg.score_thr = value
            yield f'the last image, thresholds for {what}', _open(path, value), image
    finally:
        test_cfg.score_thr = before


def _differences(expected: Arrays, given: Arrays) -> tuple[dict[str, float], list[str]]:
    """The largest difference of each output, and detections without a counterpart, in words."""
    detections = ('boxes', 'scores', 'labels', 'masks') if 'boxes' in expected else ()
    errors = {}
    for name in [name for name in expected if name not in detections]:
        theirs, ours = expected[name], given[name]
        if theirs.shape != ours.shape or not np.isfinite(theirs).all():
            errors[name] = np.nan
        elif name == 'segmentation':
            errors[name] = float((ours != theirs).mean())
        else:
            errors[name] = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1))
    if 'boxes' not in expected:
        return errors, []
    # pairs of detections; those of equal scores may come in another order
    apart = {n: np.abs(expected[n][:, None] - given[n][None]) for n in ('boxes', 'scores')}
    apart['boxes'] = apart['boxes'].max(2)
    close = expected['labels'][:, None] == given['labels'][None]
    for name, values in apart.items():
        close = close & (values <= TOLERANCES[name])
    rows, columns = [], []
    for i in range(len(close)):
        if close[i].any():
            rows.append(i)
            columns.append(int(close[i].argmax()))
            close[:, columns[-1]] = False
    for name, values in apart.items():
        errors[name] = float(values[rows, columns].max(initial=0))
    if 'masks' in expected:
        ours, theirs = given['masks'][columns], expected['masks'][rows]
        shares = (ours != theirs).sum((1, 2)) / np.maximum(theirs.sum((1, 2)), 3000)
        errors['masks'] = float(shares.max(initial=0))
    if len(rows) < len(close) or columns != sorted(columns):
        errors.pop('segmentation', None)  # the map numbers the objects
    lone = []
    for who, values, paired in (('PyTorch', expected, rows), ('the file', given, columns)):
        for i in sorted(set(range(len(values['scores']))) - set(paired)):
            label, score, box = (values[name][i] for name in ('labels', 'scores', 'boxes'))
            lone.append(f'{who} has label {label}, score {score:.4f}, box {box.round(2)}')
    return errors, lone


@torch.no_grad()
def reference(graph: Graph, image: np.ndarray) -> Arrays:
    """What PyTorch gives for an image, by the model's own code."""
    model, (height, width) = graph.model, image.shape[:2]
    x, _ = graph.prepare(as_input(graph, image))
    if isinstance(graph, Levels):
        values = dict(zip(graph.outputs, model(x), strict=True))
    elif isinstance(graph, Classified):
        own = hasattr(model, 'predict')
        values = dict(scores=model.predict(x)[0].pred_score if own else model(x).softmax(1)[0])
    elif isinstance(graph, Segmentor):
        sample = model.predict(x)[0]
        values = dict(segmentation=sample.pred_sem_seg.data[0, :height, :width])
        if 'probability' in graph.outputs:
            values['probability'] = sample.seg_logits.data[0, :height, :width]
    else:
        from mmdet.structures import DetDataSample

        size, shape = (height, width), tuple(x.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=dict(meta, pad_shape=shape, batch_input_shape=shape))
        results = model.predict(x, [sample], rescale=True)[0]
        if graph.task == 'panoptic':  # it keeps its objects to itself
            levels = model.extract_feat(x)
            proposals = model.rpn_head.predict(levels, [sample], rescale=False)
            found = model.roi_head.predict(levels, proposals, [sample], rescale=True)[0]
        else:
            found = results.pred_instances
        values = dict(boxes=found.bboxes, scores=found.scores, labels=found.labels)
        if 'masks' in graph.outputs:
            values['masks'] = found.masks
        if graph.task == 'panoptic':
            values['segmentation'] = results.pred_panoptic_seg.sem_seg[0]
    return {name: value.numpy() for name, value in values.items()}
