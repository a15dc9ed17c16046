"""What can be exported, as a module of one input and named outputs."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.jit import TracerWarning
from torch.nn.modules.utils import _pair

from ..backbones import Backbone, Res2Net, Res2NetDCN, Res2NetDLA
from ..registry import SCOPE

INPUT = 'image'
_OURS = ', '.join(f'{SCOPE}.{cls.__name__}' for cls in (Res2Net, Res2NetDCN, Res2NetDLA))
_CAN = f"what can be exported is a backbone ({_OURS}), or mmseg's EncoderDecoder with one of them"


# Warnings that say nothing of the file; all others pass.
_HARMLESS = [
    # of the exporter that is used on purpose, and of its own calls
    ('You are using the legacy TorchScript-based ONNX export', DeprecationWarning, ''),
    ('The feature will be removed', DeprecationWarning, r'torch\.onnx'),
    # mmseg compares sizes, for nothing but the advice to train at others
    ('Converting a tensor to a Python', TracerWarning, r'mmseg\.models\.utils\.wrappers'),
    ('When align_corners=', UserWarning, r'mmseg\.models\.utils\.wrappers'),
]


@contextmanager
def without_harmless_output() -> Iterator[None]:
    """Hides what mmseg and the exporter say while a network is traced or run."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *texts: None  # prints the graph where an export fails
    try:
        with warnings.catch_warnings():
            for message, category, module in _HARMLESS:
                warnings.filterwarnings('ignore', message, category, module)
            yield
    finally:
        torch._C._jit_onnx_log = log


class Exportable(nn.Module):
    """A copy of a model on the CPU, in float32 and evaluation mode.

    Args:
        model: A backbone of this package, or a segmentation model of mmseg that has one; it is
            not changed.

    Attributes:
        backbone: The backbone in the copy.
        outputs: Names of the outputs -> what they are.
        shapes: Names of the outputs -> their shapes where they are dynamic.
        notes: What a user of the file should know.

    Raises:
        ValueError: It is something else, or has no weights.
    """

    backbone: Backbone
    outputs: dict[str, str]
    shapes: dict[str, tuple[str, int, str, str]]
    notes: list[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if any(p.is_meta for p in model.parameters()):
            raise ValueError('model must have weights, but some of its parameters are on meta')
        # batch norm of several processes is the same here, and asks for what a trace cannot tell
        self.model = revert_sync_batchnorm(copy.deepcopy(model).cpu().float())
        self.notes = []
        offsets = [p for name, p in self.model.named_parameters() if '.conv_offset.' in name]
        if offsets and not any(p.any() for p in offsets):
            self.notes.append('offsets of deformable convolutions are zero, they were not trained')
        self.eval()  # itself too, or the exporter would set all to training afterwards


class Levels(Exportable):
    """One output a level of a backbone, c2 to c5."""

    def __init__(self, model: Backbone) -> None:
        super().__init__(model)
        self.backbone = self.model
        self.outputs, self.shapes = {}, {}
        levels = zip(model.out_indices, model.out_channels, model.out_strides, strict=True)
        for i, channels, stride in levels:
            name = f'c{i + 2}'
            self.outputs[name] = (
                f'features of stride {stride}, (N, {channels}, H / {stride}, W / {stride}), sizes '
                'rounded up'
            )
            self.shapes[name] = 'batch', channels, f'{name}_height', f'{name}_width'

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of (N, C, H, W)."""
        return tuple(self.model(image))


class Logits(Exportable):
    """What a segmentation model computes for whole images before it takes the maximum."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.backbone = self.model.backbone
        head = self.model.decode_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head  # of a cascade
        planes = getattr(head, 'out_channels', head.num_classes)
        label = 'the label of a pixel is the plane of the largest'
        if planes == 1:
            label = f'a pixel is foreground where the sigmoid is above {head.threshold}'
        self.outputs = {'logits': f'(N, {planes}, H, W), at the size of the input; {label}'}
        self.shapes = {'logits': ('batch', planes, 'height', 'width')}
        test_cfg = self.model.test_cfg or {}
        if test_cfg.get('mode') == 'slide':
            self.notes.append(
                'the file takes whole images; the model itself was set to be tested in windows of '
                f'{test_cfg.get("crop_size")} at steps of {test_cfg.get("stride")}, averaging '
                'their logits: run the file on each window for the same'
            )
        padding = getattr(getattr(model, 'data_preprocessor', None), 'test_cfg', None)
        if padding:
            self.notes.append(f'in testing, mmseg pads images before the network: {dict(padding)}')

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Logits of (N, C, H, W), resized to its height and width."""
        size = image.shape[2:]
        meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
        return (self.model.encode_decode(image, [meta]),)


def make_exportable(model: nn.Module) -> Exportable:
    """The copy of a model that is exported.

    Raises:
        ValueError: It cannot be exported; the message says what can be.
    """
    kind = type(model).__name__
    if isinstance(model, Backbone):
        return Levels(model)
    if not isinstance(getattr(model, 'backbone', None), Backbone):
        what = 'a network'
        for wrapper in ('module', '_orig_mod'):
            if hasattr(model, wrapper):
                raise ValueError(f'model is {kind}, which wraps another: export model.{wrapper}')
        if hasattr(model, 'backbone'):
            what = f'a model with the backbone {type(model.backbone).__name__}'
        raise ValueError(f'model is {kind}, {what} that is not of this package: {_CAN}')
    if not callable(getattr(model, 'encode_decode', None)):
        raise ValueError(
            f'model is {kind}, whose results are selected and merged outside the network: export '
            f'its backbone alone (model.backbone, or --backbone of the tool); {_CAN}'
        )
    return Logits(model)


@contextmanager
def in_standard_operators(net: nn.Module) -> Iterator[None]:
    """Has modules computed by what ONNX has, and for sizes other than the traced one."""
    replaced = [
        (module, name, child, standard)
        for module in net.modules()
        for name, child in module.named_children()
        if (standard := _in_standard_operators(child)) is not None
    ]
    for module, name, _, standard in replaced:
        setattr(module, name, standard)
    try:
        yield
    finally:
        for module, name, child, _ in replaced:
            setattr(module, name, child)


def _in_standard_operators(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.AdaptiveAvgPool2d):  # ONNX has the pool to one pixel only
        size = _pair(module.output_size)
        return None if None in size or size == (1, 1) else AdaptivePool(size)
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    if isinstance(module, getattr(wrappers, 'Upsample', ())) and not module.size:
        return TracedUpsample(module.scale_factor, module.mode, module.align_corners)
    return None


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a matrix product along each axis."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size: tuple[int, int] = _pair(size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, *size)."""
        rows, columns = (_shares(n, x.shape[2 + i], x) for i, n in enumerate(self.size))
        return rows @ x @ columns.t()


def _shares(cells: int, length: int, like: Tensor) -> Tensor:
    """Share of each pixel in the mean of each cell, (cells, length)."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(length, device=like.device)
    first, after = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return ((pixel >= first) & (pixel < after)).to(like.dtype) / (after - first)


class TracedUpsample(nn.Module):
    """mmseg's ``Upsample``, whose ``int(size * scale)`` would be a constant in a trace."""

    def __init__(self, scale_factor: float, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.given = dict(mode=mode, align_corners=align_corners)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H * scale_factor, W * scale_factor), sizes rounded down."""
        size = [(n.double() * self.scale_factor).long() for n in x.shape[2:]]  # tensors in a trace
        return nn.functional.interpolate(x, size, **self.given)
