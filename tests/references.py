"""Independent networks to compare with, and random weights that replace every initial value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from res2net_mm.registry import MODELS


def empty(args: Mapping) -> nn.Module:
    """Our network with these arguments in evaluation mode, on the meta device."""
    args = dict(args)
    with torch.device('meta'):
        return MODELS.get(args.pop('type', 'Res2Net'))(**args).eval()


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Sets random weights and batch norm statistics that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            values = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            module.weight.data.copy_(values)
        elif isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            module.weight.data.copy_(torch.rand(shape, generator=generator) * 0.5 + 0.5)
            module.bias.data.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return net


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The relative L2 distance."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def paddle_levels(weights: Mapping[str, Tensor], image: Tensor) -> list[Tensor]:
    """C2 to C5 of PaddleClas's network, written from its description with functions only."""

    def conv_norm(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f'{name}._conv.weight'].to(x)
        x = conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, scale, shift = (
            weights[f'{name}._batch_norm.{leaf}'].to(x)[:, None, None]
            for leaf in ('_mean', '_variance', 'weight', 'bias')
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        branches = sorted(  # names end in 1, 2, 3 ..., always below ten
            key.removesuffix('._conv.weight')
            for key in weights
            if key.startswith(f'{name}.res') and key.endswith('._conv.weight')
        )
        *groups, last = conv_norm(x, f'{name}.conv0').relu().chunk(len(branches) + 1, 1)
        outs: list[Tensor] = []
        for group, branch in zip(groups, branches, strict=True):
            y = group + outs[-1] if outs and stride == 1 else group
            outs.append(conv_norm(y, branch, stride).relu())
        if stride == 2:  # the mean of the pixels inside the image
            ones = torch.ones_like(last[:, :1])
            total, count = (avg_pool2d(pad(y, (1, 1, 1, 1)), 3, 2) for y in (last, ones))
            last = total / count
        out = conv_norm(torch.cat([*outs, last], 1), f'{name}.conv2')
        if f'{name}.short._conv.weight' in weights:
            if stride == 2 and deep:
                x = avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
                stride = 1
            x = conv_norm(x, f'{name}.short', stride)
        return (out + x).relu()

    deep = 'conv1_1._conv.weight' in weights
    x = image
    for name, stride in (
        {'conv1_1': 2, 'conv1_2': 1, 'conv1_3': 1}.items() if deep else [('conv1', 2)]
    ):
        x = conv_norm(x, name, stride).relu()
    x = max_pool2d(x, 3, stride=2, padding=1)
    levels = []
    for stage in range(4):
        number = 0
        while f'bb_{stage}_{number}.conv0._conv.weight' in weights:
            x = block(x, f'bb_{stage}_{number}', 2 if stage > 0 and number == 0 else 1)
            number += 1
        levels.append(x)
    return levels
