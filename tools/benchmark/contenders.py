"""Contenders: networks from several projects with the same weights, each described by its name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

from res2net_mm.backbones import VARIANTS
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.internals import torchvisions_gradient
from res2net_mm.ops.memory import can_keep_memory
from res2net_mm.ops.mmcv_ext import roi
from res2net_mm.registry import MODELS
from res2net_mm.weights import convert_state_dict

from .measure import type_name

State = Mapping[str, Tensor]
VARIANT = 'res2net50_v1b_26w_4s'
DCN = f'{VARIANT}_dcn'
# the variants that others have too: depth, and timm's name
CHOICES = {VARIANT: (50, 'res2net50d'), 'res2net101_v1b_26w_4s': (101, 'res2net101d')}
INFERENCE, TRAINING = 'inference', 'training step'
KEPT = ' kept memory'
LEVELS = ('C2', 'C3', 'C4', 'C5')
_WORDS = ('fast', 'channels_last', 'bfloat16', 'float16', 'with_cp', *LEVELS, 'compile', 'kept')


class Work(NamedTuple):
    """What is done with which network; batch norm uses fixed statistics, or the batch's."""

    kind: str  # INFERENCE or TRAINING
    variant: str
    norm_eval: bool = True


class Contender:
    """One way to run a network, described by its name, such as ``'ours bfloat16 channels_last'``.

    First comes the source: ``ours``, ``mmdet``, ``timm``, ``torchvision`` (our network on
    torchvision's deformable convolution) or ``resnet50`` (another network, for scale). Then words:

    - ``fast``: ``optimize_for_inference``, as our tools run it;
    - ``channels_last``: memory format of weights and images;
    - ``bfloat16``, ``float16``: type of the computation, by autocast; of the weights for ``fast``;
    - ``with_cp``, ``with_cp C2``, ``compile``: arguments of our backbone, with channels_last;
    - ``kept memory``: its process keeps freed memory, as it does for ``fast`` and our training.

    Attributes:
        rule: First-block rule of ours that computes the same; None for another network.

    Raises:
        ToolError: The name has another source or word.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.source, *words = name.removesuffix(KEPT).split() or ['']
        if self.source not in BUILDERS or not {*words} <= {*_WORDS}:
            raise ToolError(
                f'--peers must be one of {", ".join(BUILDERS)} and words of {", ".join(_WORDS)}'
                f' memory, but got {name!r}'
            )
        self.fast, self.compiles = 'fast' in words, 'compile' in words
        trains = any(word in words for word in ('channels_last', 'with_cp', 'compile'))
        self.channels_last = trains or self.source == 'resnet50'
        as_trained = self.source == 'ours' and trains
        self.keeps_memory = self.fast or as_trained or name.endswith(KEPT)
        types = [getattr(torch, word) for word in words if word.endswith('float16')]
        self.dtype = types[0] if types else torch.float32
        self.arguments: dict[str, Any] = dict(compile=True) if self.compiles else {}
        if 'with_cp' in words:
            stages = tuple(level in words for level in LEVELS)
            self.arguments['with_cp'] = stages if any(stages) else True
        self.rule = {'mmdet': 'mmdet', 'resnet50': None}.get(self.source, 'official')

    def check(self, work: Work, device: str) -> None:
        """Raises ToolError unless it can do the work on the device."""
        of_source = {'resnet50': [VARIANT], 'torchvision': [DCN], 'ours': VARIANTS}
        kind = torch.device(device).type
        half_on_cpu = self.dtype == torch.float16 and kind == 'cpu'
        lacks = {
            work.variant: work.variant not in of_source.get(self.source, CHOICES),
            TRAINING: self.fast and work.kind == TRAINING,
            f'device {kind}': half_on_cpu or not without_kept([self.name], device),
        }
        if any(lacks.values()):
            listed = ' and '.join(what for what, lacking in lacks.items() if lacking)
            raise ToolError(f'peer {self.name} is not for {listed}')


def choose(
    table: Sequence[str],
    work: Work,
    device: str,
    names: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
) -> dict[str, Contender]:
    """The contenders with these names, or those of the table and types that can do the work.

    Raises:
        ToolError: A name is wrong or cannot do the work, or there is none.
    """
    if names is not None and len({*names}) < len(names):
        raise ToolError(f'--peers must differ, but are {", ".join(names)}')
    chosen = {}
    for name in names or table:
        contender = Contender(name)
        try:
            contender.check(work, device)
        except ToolError:
            if names is not None:
                raise
            continue
        typed = dtypes is None or type_name(contender.dtype) in dtypes
        if names is not None or (typed and not contender.compiles):  # compilation takes minutes
            chosen[name] = contender
    if not chosen:
        kind = torch.device(device).type
        raise ToolError(f'no peer of type {", ".join(dtypes or ())} is for device {kind}')
    return chosen


def without_kept(names: Iterable[str], device: str) -> list[str]:
    """Names of contenders, but for those that keep freed memory if that is impossible."""
    keeps = torch.device(device).type == 'cpu' and can_keep_memory()
    return [name for name in names if keeps or not name.endswith(KEPT)]


def require(module: str) -> Any:
    """A module of an optional package; a ToolError names the package if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition('.')[0]
        raise ToolError(
            f'this comparison needs {package}: pip install {package}, or leave it out ({error})'
        ) from error


def ours(variant: str, state: State | None = None, **overrides: Any) -> nn.Module:
    """Our network of a variant, in evaluation mode; when it trains, so does its batch norm."""
    arguments = {**VARIANTS[variant], 'norm_eval': False, **overrides}
    net = MODELS.get(arguments.pop('type', 'Res2Net'))(**arguments)
    if state is not None:
        net.load_state_dict(dict(state))  # plain: weights made for any first-block rule load
    return net.eval()


def _mmdets(variant: str, state: State) -> nn.Module:
    built_in = require('mmdet.models.backbones').Res2Net
    net = built_in(depth=CHOICES[variant][0], norm_eval=False)
    net.load_state_dict(dict(state))
    return net


def _timms(variant: str, state: State) -> nn.Module:
    name = CHOICES[variant][1]
    net = require('timm').create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    renamed, _ = convert_state_dict(net.state_dict())  # the same tensors under our names
    if renamed.keys() != state.keys():
        raise ToolError(f"timm's {name} does not have the weights of {variant}")
    for key, value in renamed.items():
        value.copy_(state[key])
    return net


def _resnet50(variant: str, state: State) -> nn.Module:
    """torchvision's ResNet-50, batch norm folded: about as many multiply-adds as Res2Net-50."""
    net = randomise(torchvision.models.resnet50(weights=None)).eval()
    levels = create_feature_extractor(net, [f'layer{i}' for i in (1, 2, 3, 4)])
    return fuse(levels, inplace=True)


def on_torchvision(net: nn.Module) -> nn.Module:
    """Makes a network's deformable convolutions call torchvision's operator directly."""
    for module in net.modules():
        if isinstance(module, DeformConv2d):
            module._convolve = MethodType(_by_torchvision, module)
    return net


def _by_torchvision(
    self: DeformConv2d, x: Tensor, offset: Tensor, mask: Tensor | None = None
) -> Tensor:
    places = self.stride, self.padding, self.dilation
    return torchvision.ops.deform_conv2d(x, offset, self.weight, self.bias, *places, mask)


def torchvision_kernels() -> Any:
    """Within it, our stand-in for mmcv's RoIAlign uses torchvision's kernels only."""
    align, gradient = torchvision.ops.roi_align, torchvisions_gradient
    return mock.patch.multiple(roi, roi_align=align, roi_align_gradient=gradient)


# source -> makes its network, in evaluation mode, from a variant and weights under our names
BUILDERS = dict(ours=ours, torchvision=ours, mmdet=_mmdets, timm=_timms, resnet50=_resnet50)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch norm statistics, the same for a seed, activations of order one.

    Deformable convolutions get offsets of about half a pixel.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    def uniform(tensor: Tensor) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, (nn.Conv2d, DeformConv2d)):
                gain = 0.25 if name.endswith('.conv_offset') else 2
                normal(module.weight, (gain / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                uniform(module.weight)
                # what a block adds to its shortcut is small, or features grow with every block
                module.weight.mul_(0.2 if name.endswith(('.bn3', '.norm3')) else 1)
                normal(module.bias, 0.1)
                normal(module.running_mean, 0.1)
                uniform(module.running_var)
    return net


def make_state(variant: str) -> dict[str, Tensor]:
    """Random weights of a variant under our names, for every source."""
    return dict(randomise(ours(variant)).state_dict())


def normal_image(size: Sequence[int], batch: int, device: str = 'cpu') -> Tensor:
    """Normal-distributed images, the same at every call, (batch, 3, *size)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, 3, *size), generator=generator).to(device)


def check_equal(
    name: str, theirs: Sequence[Tensor], other: str, reference: Sequence[Tensor], bound: float
) -> float:
    """The largest difference of tensors, each relative to the largest value of its reference.

    Raises:
        ToolError: It is larger than the bound, or not a number; or shapes differ.
    """
    difference = float('inf')
    if [t.shape for t in theirs] == [t.shape for t in reference]:
        pairs = [(a.double(), b.double()) for a, b in zip(theirs, reference, strict=True)]
        largest = [(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in pairs]
        difference = torch.stack(largest).max().item()  # NaN if any is, unlike Python's max
    if not difference <= bound:
        raise ToolError(
            f'{name} and {other} do not compute the same: they differ by {difference:.1e} of the '
            f'largest value, and the bound is {bound:.0e}'
        )
    return difference
