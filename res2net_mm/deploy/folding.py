"""Batch norm folded into convolutions, in channels_last: the same outputs with less to compute."""

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
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..backbones import Bottle2neck, Res2Net
from ..checks import check_choice
from ..ops import DeformConv2d, ModulatedDeformConv2d
from ..ops.internals import allow_recompiles, onednn_computes
from ..weights import not_finite, say_not_finite

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune')
# exactly these: a subclass may do something else with its weight, as ConvWS2d does
_CONVOLUTIONS = (nn.Conv2d, DeformConv2d, ModulatedDeformConv2d)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_SIZES = 64  # image sizes, each of which is compiled by itself
Model = TypeVar('Model', bound=nn.Module)


def optimize_for_inference(
    model: Model,
    dtype: torch.dtype = torch.float32,
    compile: str | None = None,
) -> Model:
    """A copy of a backbone, detector or segmentor that gives the same outputs in less time.

    Batch norm is folded into the convolution before it (deformable ones too), and weights are
    channels_last, so that features are. For more speed on a CPU, export the model to OpenVINO.

    Args:
        model: In any mode and of any type; not changed.
        dtype: Of the computation: float32 (equal to rounding), bfloat16 or float16. In a detector
            or segmentor, backbone and neck compute in it and the heads in float32, as boxes need;
            a backbone takes images of any type and gives features of this one.
        compile: Mode of ``torch.compile`` for backbone and neck, or None. Each image size is
            compiled by itself, so let them be few; the process then keeps up to 64 graphs for one
            function. ``'reduce-overhead'`` and ``'max-autotune'`` use CUDA graphs.

    Returns:
        The copy, in evaluation mode. It cannot be trained, nor loaded with weights of the original.

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
        slow = f'{dtype} is slow here: this processor has no instructions for it'
        print_log(slow, 'current', logging.WARNING)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(fast)
    for module in fast.modules():
        if type(module) in (*_CONVOLUTIONS, nn.ConvTranspose2d):
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
        allow_recompiles(_SIZES)
        for part in parts:
            if compile != 'default':
                part.register_forward_hook(_clone_features)
            part.compile(mode=compile, dynamic=False)
    return fast


def fold_batch_norm(model: nn.Module) -> None:
    """Folds each batch norm of a model in evaluation mode into the convolution before it.

    It is computed in float64. A convolution shared by several norms, as in heads with a norm for
    each level, is left out.
    """
    owned = [child for module in model.modules() for child in module._modules.values()]
    places = Counter(map(id, owned))
    for owner, conv, name in list(_pairs(model)):
        norm = getattr(owner, name)
        plain = type(conv) in _CONVOLUTIONS and not nn.utils.parametrize.is_parametrized(conv)
        fixed = type(norm) in _NORMS and norm.running_mean is not None
        if plain and fixed and places[id(conv)] == 1:
            copies = (copy.deepcopy(module).double() for module in (conv, norm))
            fused = fuse_conv_bn_eval(*copies).to(conv.weight.dtype).requires_grad_(False)
            conv.weight, conv.bias = fused.weight, fused.bias
            setattr(owner, name, nn.Identity())


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module, str]]:
    """Each module that a next one follows: owner of the latter, the former, name of the latter."""
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            yield from ((module, module[i], names[i + 1]) for i in range(len(module) - 1))
        elif isinstance(module, Bottle2neck):
            yield module, module.conv1, module.norm1_name
            yield module, module.conv3, module.norm3_name
            yield from ((module.bns, conv, str(i)) for i, conv in enumerate(module.convs))
        elif isinstance(module, Res2Net) and not module.deep_stem:
            yield module, module.conv1, module.norm1_name
        elif isinstance(module, ConvModule) and module.with_norm:
            order = [layer for layer in module.order if layer != 'act' or module.with_activation]
            if ('conv', 'norm') in zip(order, order[1:], strict=False):
                yield module, module.conv, module.norm_name


@torch.compiler.disable
def _clone_features(_: nn.Module, inputs: Any, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The next CUDA graph, such as the neck's, reuses the memory of this one."""
    return tuple(level.clone() for level in features)


def _cast_images(dtype: torch.dtype, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple:
    return tuple(image.to(dtype) for image in inputs)


def _cast_features(_: nn.Module, inputs: Any, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(level.float() for level in features)
