"""Backbones of several projects with the same weights, as each is run for inference."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from ..backbones import VARIANTS
from ..deploy import optimize_for_inference
from ..engine.errors import ToolError
from ..ops import DeformConv2d
from ..ops.mmcv_ext import kernels
from ..ops.mmcv_ext.roi_align import torchvisions_gradient
from ..registry import MODELS
from ..weights import convert_state_dict
from .measure import exact_float32, type_name
from .processes import KEPT, without_kept

State = Mapping[str, Tensor]
VARIANT = 'res2net50_v1b_26w_4s'
# the variants that others have too, and what they call them
CHOICES = {VARIANT: (50, 'res2net50d'), 'res2net101_v1b_26w_4s': (101, 'res2net101d')}


class Levels(nn.Module):
    """A network in evaluation mode that gives a tuple of levels for an image in NCHW.

    Args:
        net: It gives levels as a list or tuple.
        channels_last: Memory format of the weights, and of the image, which is converted.
        autocast: Type of the computation; None is that of the weights.
    """

    def __init__(
        self, net: nn.Module, channels_last: bool = False, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net
        self.channels_last = channels_last
        self.autocast = autocast
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """C2 to C5."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        typed = self.autocast is not None
        with torch.autocast(image.device.type, self.autocast) if typed else nullcontext():
            return tuple(self.net(image))


@dataclass(frozen=True)
class Peer:
    """One way to run a backbone.

    Attributes:
        build: From a variant and its weights in our names.
        dtype: Of the computation.
        rule: First-block rule of ours that its levels must equal; None is another network.
        bound: Of the difference from ours in float32, relative to the largest value of a level.
        devices: Types of device that it is for; empty is every one.
        variants: That it has.
        keeps_memory: Its process keeps freed memory on a CPU, as ``optimize_for_inference`` has it.
    """

    build: Callable[[str, State], nn.Module]
    dtype: torch.dtype = torch.float32
    rule: str | None = 'official'
    bound: float = 1e-5
    devices: tuple[str, ...] = ()
    variants: tuple[str, ...] = tuple(CHOICES)
    keeps_memory: bool = False


def require(module: str, package: str | None = None) -> Any:
    """A module of an optional package.

    Raises:
        ToolError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition('.')[0]
        raise ToolError(
            f'this comparison needs {package}: pip install {package}, or leave it out ({error})'
        ) from error


def ours(variant: str, state: State | None = None, **overrides: Any) -> nn.Module:
    """Our network of a variant, in evaluation mode."""
    arguments = {**VARIANTS[variant], **overrides}
    net = MODELS.get(arguments.pop('type', 'Res2Net'))(**arguments)
    if state is not None:
        net.load_state_dict(dict(state))  # no mark: rules share their names, and any is wanted
    return net.eval()


def mmdets(variant: str, state: State, **overrides: Any) -> nn.Module:
    """mmdet's own network, in evaluation mode."""
    built_in = require('mmdet.models.backbones', 'mmdet').Res2Net
    net = built_in(depth=CHOICES[variant][0], **overrides)
    net.load_state_dict(dict(state))
    net.eval()  # which returns None
    return net


def timms(variant: str, state: State) -> nn.Module:
    """timm's network, in evaluation mode."""
    net = require('timm').create_model(
        CHOICES[variant][1], features_only=True, out_indices=(1, 2, 3, 4)
    )
    renamed, _ = convert_state_dict(net.state_dict())  # the same tensors in our names
    if renamed.keys() != state.keys():
        raise ToolError(f'weights of timm {CHOICES[variant][1]} are other ones than {variant} has')
    for name, value in renamed.items():
        value.copy_(state[name])
    return net.eval()


class PlainResNet(nn.Module):
    """torchvision's ResNet-50 with batch norm folded: about as many multiply-adds as Res2Net."""

    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.resnet50(weights=None)
        randomise(net)
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        self.stem = nn.Sequential(_folded(net.conv1, net.bn1), net.relu, net.maxpool)
        for block in (block for stage in stages for block in stage):
            for i in (1, 2, 3):
                conv, norm = getattr(block, f'conv{i}'), getattr(block, f'bn{i}')
                setattr(block, f'conv{i}', _folded(conv, norm))
                setattr(block, f'bn{i}', nn.Identity())
            if block.downsample is not None:
                block.downsample = _folded(*block.downsample)
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """C2 to C5."""
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return tuple(levels)


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return fuse_conv_bn_eval(conv.eval(), norm.eval())


def _fast(dtype: torch.dtype, **options: Any) -> Peer:
    def build(variant: str, state: State) -> nn.Module:
        return optimize_for_inference(ours(variant, state), dtype)

    bound = 1e-5 if dtype == torch.float32 else 3e-2
    return Peer(build, dtype, bound=bound, keeps_memory=True, **options)


_BF16, _FP16 = torch.bfloat16, torch.float16
PEERS = {
    'mmdet': Peer(lambda v, s: Levels(mmdets(v, s)), rule='mmdet'),
    'mmdet channels_last': Peer(lambda v, s: Levels(mmdets(v, s), True), rule='mmdet'),
    'timm': Peer(lambda v, s: Levels(timms(v, s))),
    'timm channels_last': Peer(lambda v, s: Levels(timms(v, s), True)),
    'resnet50': Peer(lambda v, s: Levels(PlainResNet(), True), rule=None, variants=(VARIANT,)),
    'ours': Peer(lambda v, s: Levels(ours(v, s))),
    'ours fast': _fast(torch.float32),
    'mmdet bfloat16': Peer(
        lambda v, s: Levels(mmdets(v, s), autocast=_BF16), _BF16, 'mmdet', bound=3e-2
    ),
    'ours fast bfloat16': _fast(_BF16),
    'ours fast float16': _fast(_FP16, devices=('cuda',)),
}
PEERS |= {  # the same with memory as ours fast has it
    name + KEPT: replace(PEERS[name], keeps_memory=True, devices=('cpu',))
    for name in ('mmdet', 'timm channels_last', 'resnet50', 'mmdet bfloat16')
}


@contextmanager
def torchvision_kernels() -> Iterator[None]:
    """Within it, mmcv's operators are torchvision's kernels alone, where they have a stand-in."""
    own = kernels.roi_align, kernels.roi_align_gradient
    kernels.roi_align = torchvision.ops.roi_align
    kernels.roi_align_gradient = torchvisions_gradient
    try:
        yield
    finally:
        kernels.roi_align, kernels.roi_align_gradient = own


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch norm statistics, the same for a seed, activations of order one.

    Deformable convolutions get offsets of about half a pixel.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, (nn.Conv2d, DeformConv2d)):
                offsets = name.endswith('.conv_offset')
                fan_in = module.weight[0].numel()
                normal(module.weight, ((0.25 if offsets else 2) / fan_in) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0.1)
            elif isinstance(module, nn.BatchNorm2d):
                # what a block adds to its shortcut is small, or features grow with every block
                last = name.endswith(('.bn3', '.norm3'))
                uniform(module.weight, 0.5, 1.5)
                module.weight.mul_(0.2 if last else 1)
                normal(module.bias, 0.1)
                normal(module.running_mean, 0.1)
                uniform(module.running_var, 0.5, 1.5)
    return net


def make_state(variant: str) -> dict[str, Tensor]:
    """Random weights of a variant in our names, for every peer."""
    return dict(randomise(ours(variant)).state_dict())


def normal_image(size: Sequence[int], batch: int, device: str = 'cpu') -> Tensor:
    """Normal-distributed images, the same at every call, (batch, 3, *size)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, 3, *size), generator=generator).to(device)


def choose_peers(
    names: Sequence[str] | None, variant: str, device: str, dtypes: Sequence[str]
) -> dict[str, Peer]:
    """Peers by name; without names, all of these types that have the variant and the device.

    Raises:
        ToolError: A name is not known, occurs twice, or is of a peer without these; or there is
            no peer.
    """
    kind = torch.device(device).type
    if names is not None and len({*names}) < len(names):
        raise ToolError(f'--peers must differ, but are {", ".join(names)}')
    chosen = {}
    for name in without_kept(PEERS, device) if names is None else names:
        if name not in PEERS:
            raise ToolError(f'--peers must be of {", ".join(PEERS)}, but got {name!r}')
        peer = PEERS[name]
        lacks = [variant] * (variant not in peer.variants)
        lacks += [f'device {kind}'] * (bool(peer.devices) and kind not in peer.devices)
        if names is not None and lacks:
            raise ToolError(f'peer {name} is not for {" and ".join(lacks)}')
        if not lacks and (names is not None or type_name(peer.dtype) in dtypes):
            chosen[name] = peer
    if not chosen:
        raise ToolError(f'no peer of type {", ".join(dtypes)} is for device {kind}')
    return chosen


def worst_difference(theirs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest difference of tensors, each relative to the largest value of its reference."""
    if [t.shape for t in theirs] != [t.shape for t in reference]:
        return float('inf')
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        for a, b in zip(theirs, reference, strict=True)
    )


def check_equal(
    name: str, theirs: Sequence[Tensor], other: str, reference: Sequence[Tensor], bound: float
) -> float:
    """The difference of two peers' tensors.

    Raises:
        ToolError: It is larger than the bound, or no number.
    """
    difference = worst_difference(theirs, reference)
    if not difference <= bound:
        raise ToolError(
            f'{name} and {other} do not compute the same: they differ by {difference:.1e} of the '
            f'largest value, and the bound is {bound:.0e}'
        )
    return difference


def differences(
    nets: Mapping[str, nn.Module], variant: str, state: State, image: Tensor
) -> dict[str, float | None]:
    """How far each peer's levels are from ours in float32; None for another network.

    Raises:
        ToolError: One is further than its bound.
    """
    found: dict[str, float | None] = {}
    references: dict[str, tuple[Tensor, ...]] = {}
    with torch.inference_mode(), exact_float32():
        for name, net in nets.items():
            rule = PEERS[name].rule
            if rule is None:
                found[name] = None
                continue
            if rule not in references:
                reference = ours(variant, state, first_block=rule).to(image.device)
                references[rule] = reference(image)
            label = f"ours (first_block='{rule}', float32)"
            found[name] = check_equal(name, net(image), label, references[rule], PEERS[name].bound)
    return found


def multiply_adds(net: nn.Module, shape: Sequence[int], train: bool = False) -> float:
    """Multiply-adds of convolutions in 1e9, as counted without data.

    Args:
        net: Not changed.
        shape: Of the images, (N, C, H, W).
        train: Those of the backward pass too.
    """
    net = copy.deepcopy(net).to('meta').train(train)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        levels = net(torch.empty(tuple(shape), device='meta'))
        if train:
            sum(level.sum() for level in levels).backward()
    return counter.get_total_flops() / 2e9
