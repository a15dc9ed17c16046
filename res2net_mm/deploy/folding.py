"""A network as inference runs it: batch norm in the convolutions, widths that vector units like."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..backbones import Bottle2neck, Res2Net
from ..backbones.layers import ConvNormSequential
from ..backbones.res2net_dla import DLABottle2neck
from ..checks import check_choice
from ..ops import DeformConv2d, ModulatedDeformConv2d
from ..ops.fixed_conv import FixedConv2d, onednn_computes
from ..ops.memory import keep_freed_memory
from ..ops.rectified_pool import RectifiedMaxPool2d
from ..ops.trained_conv import TrainedConv2d
from ..weights import not_finite, say_not_finite
from .blocks import InferenceBlock, are_hooked

WIDTH = 8  # channels: 26 becomes 32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# exactly these: a subclass may do something else with its weight, as ConvWS2d does
_DEFORMABLE = (DeformConv2d, ModulatedDeformConv2d)
_PLAIN = (nn.Conv2d, TrainedConv2d)
_CONVOLUTIONS = (*_PLAIN, *_DEFORMABLE)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_SIZES = 64  # of images, for each of which there is a compiled form
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune')
Model = TypeVar('Model', bound=nn.Module)


def optimize_for_inference(
    model: Model,
    dtype: torch.dtype = torch.float32,
    compile: str | None = None,
    keep_memory: bool = True,
) -> Model:
    """A copy of a backbone, detector or segmentor that gives the same outputs with less to do.

    Batch norm is folded into the convolution before it (deformable ones too); convolutions take in
    the ReLU and the sum after them, and compute by Winograd's transform where that is faster
    (:class:`~res2net_mm.ops.fixed_conv.FixedConv2d`); on a CPU max pools compare integers
    (:class:`~res2net_mm.ops.rectified_pool.RectifiedMaxPool2d`) and average pools of groups are
    convolutions; the groups of Res2Net blocks are padded with channels that stay zero to a multiple
    of 8 on a GPU (a CPU gains nothing by it); weights are channels_last, so that features are. What
    has no batch norm to fold stays as it is.

    Args:
        model: In any mode and of any type; not changed.
        dtype: Of the computation: float32 (equal to rounding), bfloat16 or float16. In a detector
            or segmentor backbone and neck compute in it and the heads in float32, as boxes need;
            a backbone alone takes images of any type and gives features of this one.
        compile: Mode of ``torch.compile`` for backbone and neck, or None. It compiles anew for
            each size of images, so let them be few. ``'reduce-overhead'`` and ``'max-autotune'``
            take CUDA graphs. It is for GPUs: on a CPU oneDNN's packed weights are not used within.
        keep_memory: For a model on a CPU, this process keeps the memory of tensors that are freed
            from now on (:func:`~res2net_mm.ops.memory.keep_freed_memory`, which does nothing on a
            machine with a GPU), rather than take new pages from the system at every layer; False
            leaves the process as it is.

    Returns:
        The copy, in evaluation mode. It cannot be trained, nor loaded with weights of the original.
        A Res2Net block reuses the memory of the block before it: to keep what a block inside of a
        stage gives, clone it. Blocks with hooks stay as they are.

    Raises:
        ValueError: ``dtype`` or ``compile`` is another, or ``dtype`` cannot hold the weights.

    Example:
        >>> fast = optimize_for_inference(create_backbone('res2net50_v1b_26w_4s'))
        >>> [tuple(level.shape) for level in fast(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(map(str, DTYPES))}, but got {dtype}')
    if compile is not None:
        check_choice('compile', compile, COMPILE_MODES)
    on_cpu = next((p.is_cpu for p in model.parameters()), False)
    if dtype != torch.float32 and on_cpu and not onednn_computes(dtype):
        print_log(
            f'{dtype} is slow here: this processor has no instructions for it',
            logger='current',
            level=logging.WARNING,
        )
    fast = copy.deepcopy(model)
    fast.eval()
    fast.requires_grad_(False)
    for owner, conv, norm in list(_pairs(fast)):
        _fold(owner, conv, norm)
    for module in fast.modules():
        if isinstance(module, Bottle2neck) and _is_plain(module) and _gains_by_padding(module):
            _pad(module)
    _replace(fast)
    for module in fast.modules():
        if type(module) in (*_CONVOLUTIONS, FixedConv2d, nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)
    whole = hasattr(fast, 'backbone')
    inner = [name for name, m in fast.named_modules() if hasattr(m, 'backbone')]
    if dtype != torch.float32 and not whole and inner:
        raise ValueError(
            f'dtype {dtype} needs a backbone, or a model with one, but {type(model).__name__} has '
            f'it in .{inner[0]}: give that part, or take float32'
        )
    parts = [getattr(fast, name, None) for name in ('backbone', 'neck')] if whole else [fast]
    parts = [part for part in parts if part is not None]
    known = not_finite(fast.state_dict())
    for part in parts:
        part.to(dtype)
    if overflown := not_finite(fast.state_dict(), known):
        raise ValueError(f'in dtype {dtype} {say_not_finite(overflown)}: take bfloat16')
    parts[0].register_forward_pre_hook(partial(_cast_images, dtype))
    if whole:
        parts[-1].register_forward_hook(_cast_features)
    if compile is not None:
        _compile(parts, compile, on_cpu)
    if keep_memory and on_cpu:
        keep_freed_memory()
    return fast


def _compile(parts: Sequence[nn.Module], mode: str, on_cpu: bool) -> None:
    if on_cpu:
        print_log('compile is for GPUs: a CPU is faster without', 'current', logging.WARNING)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _SIZES)
    for part in parts:
        if mode != 'default':
            part.register_forward_hook(_clone_features)
        part.compile(mode=mode, dynamic=False)


@torch.compiler.disable
def _clone_features(_: nn.Module, inputs: Any, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The memory of a CUDA graph is used again by the next one, such as the neck's."""
    return tuple(level.clone() for level in features)


def _cast_images(dtype: torch.dtype, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple:
    return tuple(image.to(dtype) for image in inputs)


def _cast_features(_: nn.Module, inputs: Any, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(level.float() for level in features)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """Each convolution that a batch norm follows: owner of the norm, convolution, norm's name.

    One that stands in several places, as in heads with a norm for each level, is left out.
    """
    owned = [child for module in model.modules() for child in module._modules.values()]
    places = Counter(map(id, owned))
    for module in model.modules():
        found: list[tuple[nn.Module, nn.Module, str]] = []
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            found += [(module, module[i], names[i + 1]) for i in range(len(module) - 1)]
        elif isinstance(module, Bottle2neck):
            found += [
                (module, module.conv1, module.norm1_name),
                (module, module.conv3, module.norm3_name),
                *((module.bns, conv, str(i)) for i, conv in enumerate(module.convs)),
            ]
        elif isinstance(module, Res2Net) and not module.deep_stem:
            found.append((module, module.conv1, module.norm1_name))
        elif isinstance(module, ConvModule) and module.with_norm:
            order = [layer for layer in module.order if layer != 'act' or module.with_activation]
            if ('conv', 'norm') in zip(order, order[1:], strict=False):
                found.append((module, module.conv, module.norm_name))
        for owner, conv, name in found:
            norm = getattr(owner, name)
            plain = type(conv) in _CONVOLUTIONS and not nn.utils.parametrize.is_parametrized(conv)
            plain = plain and places[id(conv)] == 1
            if plain and type(norm) in _NORMS and norm.running_mean is not None:
                yield owner, conv, name


def _fold(owner: nn.Module, conv: Any, name: str) -> None:
    norm = getattr(owner, name)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        None if norm.weight is None else norm.weight.double(),
        None if norm.bias is None else norm.bias.double(),
    )
    dtype = conv.weight.dtype
    conv.weight, conv.bias = (_constant(value.to(dtype)) for value in (weight, bias))
    setattr(owner, name, nn.Identity())


def _is_plain(block: Bottle2neck) -> bool:
    """Whether a folded block is nothing but convolutions and ReLUs."""
    norms = [block.norm1, block.norm3, *block.bns]
    convs = [block.conv1, block.conv3, *block.convs]
    kinds = (Bottle2neck, DLABottle2neck)
    inside = [block, *norms, *convs, block.relu]
    return (
        type(block) in kinds
        and not are_hooked(*inside)
        and not any(block.plugin_names.values())
        and all(isinstance(norm, nn.Identity) for norm in norms)
        and all(type(conv) in _CONVOLUTIONS for conv in convs)
    )


def _gains_by_padding(block: Bottle2neck) -> bool:
    """Not on a CPU: oneDNN fills its vectors by itself, and has less to read."""
    return not block.conv1.weight.is_cpu


def _pad(block: Bottle2neck) -> None:
    """Widens the groups of a block; channels that are added have zero weights, and are zero."""
    width = -(-block.width // WIDTH) * WIDTH
    grouped = any(conv.groups * getattr(conv, 'deform_groups', 1) != 1 for conv in block.convs)
    if block.scales == 1 or width == block.width or grouped:
        return
    old, block.width = block.width, width
    _widen(block.conv1, 'weight', 0, old, width)
    _widen(block.conv1, 'bias', 0, old, width)
    _widen(block.conv3, 'weight', 1, old, width)
    for conv in block.convs:
        for axis in (0, 1):
            _widen(conv, 'weight', axis, old, width)
        _widen(conv, 'bias', 0, old, width)
        conv.in_channels = conv.out_channels = width
        if isinstance(conv, _DEFORMABLE):
            _widen(conv.conv_offset, 'weight', 1, old, width)
            conv.conv_offset.in_channels = width
    block.conv1.out_channels = block.conv3.in_channels = block.scales * width


def _widen(conv: nn.Module, name: str, axis: int, old: int, new: int) -> None:
    """Pads every group of ``old`` channels along an axis with zeros to ``new``."""
    value = getattr(conv, name)
    groups = value.unflatten(axis, (-1, old))
    shape = list(groups.shape)
    shape[axis + 1] = new
    padded = groups.new_zeros(shape)
    padded.narrow(axis + 1, 0, old).copy_(groups)
    setattr(conv, name, _constant(padded.flatten(axis, axis + 1)))


def _replace(model: nn.Module) -> None:
    """Puts in layers of inference for those that they stand for."""
    for parent in list(model.modules()):
        in_line = type(parent) in (nn.Sequential, ConvNormSequential)
        modules = [(k, m) for k, m in parent._modules.items() if not isinstance(m, nn.Identity)]
        followers = [*modules[1:], ('', None)]
        before = None
        for (name, module), (after, follower) in zip(modules, followers, strict=False):
            if isinstance(module, Bottle2neck) and _is_plain(module):
                # in a line, what a block gives goes into the next one only
                alone = in_line and isinstance(before, Bottle2neck) and _is_plain(before)
                parent._modules[name] = InferenceBlock(module, owns_input=alone)
            elif type(module) in _PLAIN and not nn.utils.parametrize.is_parametrized(module):
                relu = in_line and type(follower) is nn.ReLU
                parent._modules[name] = FixedConv2d(module, relu)
                if relu:
                    parent._modules[after] = nn.Identity()
            before = module
        if isinstance(parent, Res2Net) and _pools_rectified(parent):
            parent.maxpool.__class__ = RectifiedMaxPool2d


def _pools_rectified(net: Res2Net) -> bool:
    """Whether a network's max pool takes what its stem's ReLU gives, as it is."""
    stem = net.stem if net.deep_stem else net.relu
    in_line = type(stem) in (nn.Sequential, ConvNormSequential) and len(stem) > 0
    rectifier = stem[-1] if in_line else stem
    return (
        type(net).forward is Res2Net.forward
        and type(net)._levels is Res2Net._levels
        and type(rectifier) is nn.ReLU
        and RectifiedMaxPool2d.suits(net.maxpool)
        and not are_hooked(stem, rectifier, net.maxpool)
    )


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
