"""Export to ONNX, for stock onnxruntime and whatever else reads standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import check_writable, writing
from ..ops.sampling import without_autocast
from .exportable import (
    INPUT,
    Exportable,
    in_standard_operators,
    make_exportable,
    without_harmless_output,
)
from .metadata import IMAGENET, check_normalisation, describe, in_channels, normalisation_of
from .runtime import (
    ExportError,
    Shape,
    normal_image,
    other_shape,
    require_onnx,
    worst_error,
)

# 16 brought GridSample, which deformable convolutions need. 17 was run against PyTorch at odd
# sizes, where pools that round up and do not count their padding have differed between releases.
OPSET = 17
_HINT = '; a file for one size may be possible: dynamic=False, or --static --shape of the tool'


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export_onnx` wrote.

    Attributes:
        path: The file.
        opset: Version of the operators.
        inputs, outputs: Names -> sizes, text where they are dynamic.
        compared: Shapes of the images that the file was compared with PyTorch at.
        error: The largest difference there, relative to the largest value of its output.
        metadata: What the file says of itself.
    """

    path: Path
    opset: int
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    compared: tuple[Shape, ...]
    error: float
    metadata: dict[str, str]

    def __str__(self) -> str:
        lines = [f'{name}: {text}' for name, text in self.metadata.items()]
        for kind, of in dict(inputs=self.inputs, outputs=self.outputs).items():
            shapes = (f'{name} ({", ".join(map(str, shape))})' for name, shape in of.items())
            lines.append(f'{kind}: {", ".join(shapes)}')
        shapes = ' and '.join(' x '.join(map(str, shape)) for shape in self.compared)
        lines.append(f'compared with PyTorch at {shapes}: relative error {self.error:.1e}')
        return '\n'.join([*lines, f'written, opset {self.opset}: {self.path}'])


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_shape: Sequence[int],
    dynamic: bool = True,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channel_order: str | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[str], Any] | None = None,
) -> ExportReport:
    """Writes a network as an ONNX file that stock onnxruntime runs.

    The file has the input ``image``, (N, C, H, W), already normalised, and standard operators
    alone: deformable convolutions are grid samples. A backbone has the outputs ``c2`` to ``c5``
    for the levels of its ``out_indices``; a segmentation model has ``logits``, (N, classes, H, W),
    those of mmseg's whole-image inference before the maximum is taken. It is compared with PyTorch
    in onnxruntime, and only a file that agrees to a relative error of 1e-4 takes its place.

    Args:
        model: A backbone of this package, or a model of mmseg that has one (``EncoderDecoder``).
            It is not changed: a copy is exported, in evaluation mode, float32, on the CPU.
        path: The file, ``.onnx``; an older one is replaced.
        input_shape: (N, C, H, W), in pixels, to export and compare at.
        dynamic: Leave batch size, height and width open, and compare at others too; otherwise the
            file takes ``input_shape`` alone.
        mean: What was subtracted from pixels of 0 to 255, one value a channel, for the file to
            say. None is the model's own; for a bare backbone of three channels ImageNet's, RGB,
            which all published weights were trained with.
        std: What they were divided by; goes together with ``mean``.
        channel_order: ``'RGB'`` or ``'BGR'``; None as for ``mean``.
        classes: Names of the classes, for the file to say. None is the model's own, if it has
            them (``model.dataset_meta``).
        progress: Called with a line before each step that takes long.

    Returns:
        What was written.

    Raises:
        ImportError: onnx or onnxruntime is not installed (extra ``export``).
        ValueError: ``model`` is a detector or has no backbone of this package, or an argument has
            a value that it cannot have.
        ExportError: A ``ValueError`` too: the model has an operator that cannot be exported, or
            the file does not agree with it. Nothing was written.
        OSError: The file could not be written.

    Example:
        >>> net = create_backbone('res2net50_v1b_26w_4s')
        >>> export_onnx(net, 'res2net50.onnx', (1, 3, 480, 640)).outputs['c5']
        ('batch', 2048, 'c5_height', 'c5_width')
    """
    require_onnx()
    path = check_path(path)
    net = make_exportable(model)
    shape = _checked_shape(input_shape, in_channels(net.backbone))
    given = dict(mean=mean, std=std, channel_order=channel_order)
    check_normalisation(shape[1], **given)
    given = {name: value for name, value in given.items() if value is not None}
    own = normalisation_of(model) or ({} if given else IMAGENET)
    if len(own.get('mean', ())) != shape[1]:
        own = {}
    normalisation = {name: given.get(name, own.get(name)) for name in IMAGENET}
    if isinstance(classes, str):
        raise ValueError(f'classes must be a list of names, but got {classes!r}')
    if classes is None:
        classes = (getattr(model, 'dataset_meta', None) or {}).get('classes')
    metadata = describe(net, normalisation, classes)

    say = progress or (lambda line: None)
    say(f'exporting {metadata["variant"]}')
    with without_autocast('cpu'):
        content = _trace(net, shape, dynamic)
    shapes = (shape, other_shape(shape)) if dynamic else (shape,)
    with writing(path) as partial:
        inputs, outputs = _write(content, partial, metadata, net.shapes if dynamic else {})
        say('comparing it with PyTorch in onnxruntime')
        with without_autocast('cpu'):
            error = worst_error(partial, net, shapes[:1])
            try:
                error = max(error, worst_error(partial, net, shapes[1:]))
            except ExportError as other:
                raise ExportError(f'{other}{_HINT}') from other
    return ExportReport(path, OPSET, inputs, outputs, shapes, error, metadata)


def check_path(path: str | Path) -> Path:
    """The file to write, behind a link too.

    Raises:
        ValueError: It does not end in .onnx, or its folder does not exist.
        OSError: Nothing can be written there.
    """
    path = Path(path).expanduser().resolve()
    if path.suffix != '.onnx' or path.is_dir():
        raise ValueError(f'path must be a file that ends in .onnx, but got {path}')
    if not path.parent.is_dir():
        raise ValueError(f'path must lie in a folder that exists, but {path.parent} does not')
    check_writable(path, 'OUT')
    return path


def _checked_shape(shape: Sequence[int], channels: int) -> Shape:
    listed = isinstance(shape, Sequence) and len(shape) == 4
    if not listed or not all(
        isinstance(n, Integral) and type(n) is not bool and n > 0 for n in shape
    ):
        raise ValueError(f'input_shape must be four positive integers, but got {shape!r}')
    if shape[1] != channels:
        raise ValueError(
            f'input_shape must be (N, {channels}, H, W) for a network of {channels} channels, but '
            f'got {tuple(shape)}'
        )
    return tuple(map(int, shape))


def _trace(net: Exportable, shape: Shape, dynamic: bool) -> bytes:
    shapes = {INPUT: ('batch', shape[1], 'height', 'width'), **net.shapes}
    axes = {
        name: {axis: size for axis, size in enumerate(sizes) if isinstance(size, str)}
        for name, sizes in shapes.items()
    }
    buffer = BytesIO()
    try:
        with torch.no_grad(), in_standard_operators(net), without_harmless_output():
            torch.onnx.export(
                net,
                (normal_image(shape),),
                buffer,
                dynamo=False,  # the other exporter needs onnxscript
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(net.outputs),
                dynamic_axes=axes if dynamic else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0].partition('  [Caused by')[0]
        hint = _HINT if dynamic else ''
        raise ExportError(f'model cannot be exported: {reason}{hint}') from error
    return buffer.getvalue()


def _write(
    content: bytes, path: Path, metadata: dict[str, str], shapes: Mapping[str, tuple]
) -> tuple[dict[str, tuple[int | str, ...]], ...]:
    """Adds the metadata, checks and writes; sizes of inputs and outputs by name."""
    import onnx

    file = onnx.load_from_string(content)
    foreign = sorted({f'{n.domain}::{n.op_type}' for n in file.graph.node if n.domain})
    if foreign:
        raise ExportError(f'model needs operators that ONNX does not have: {", ".join(foreign)}')
    onnx.helper.set_model_props(file, metadata)
    for output in file.graph.output:
        if output.name in shapes:  # the exporter does not see how many planes a Resize has
            output.type.tensor_type.shape.dim[1].dim_value = shapes[output.name][1]
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f'the exported file is not valid ONNX: {error}') from error
    path.write_bytes(file.SerializeToString())
    return tuple(
        {
            value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in values
        }
        for values in (file.graph.input, file.graph.output)
    )
