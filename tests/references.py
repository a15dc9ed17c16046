"""Independent networks to compare with, and random weights that replace every initial value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad
from torchvision.ops import deform_conv2d

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


# How the other networks of the authors name their parts, and what their blocks do: names of the
# stages, the stem's convolutions and norms, shortcut, norms of the 1x1 convolutions; whether the
# first 1x1 convolution has the stride, whether first blocks pool the last group, and the epsilon of
# batch norm (frozen batch norm of maskrcnn-benchmark has none).
_DEEP = [('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1')]
PROJECTS = {
    'detectron2': dict(
        prefix='backbone.bottom_up.',
        stages=['res2', 'res3', 'res4', 'res5'],
        stem=[(f'stem.{conv}', f'stem.{norm}') for conv, norm in _DEEP],
        shortcut=('shortcut.1', 'shortcut.1.norm'),
        norms=('conv1.norm', 'conv3.norm'),
        stride_in_1x1=True,
        pools=False,
        epsilon=1e-5,
    ),
    'maskrcnn': dict(
        prefix='module.backbone.body.',
        stages=['layer1', 'layer2', 'layer3', 'layer4'],
        stem=[('stem.conv1', 'stem.bn1')],
        shortcut=('downsample.0', 'downsample.1'),
        norms=('bn1', 'bn3'),
        stride_in_1x1=True,
        pools=True,
        epsilon=0.0,
    ),
    'fork': dict(
        prefix='backbone.',
        stages=['layer1', 'layer2', 'layer3', 'layer4'],
        stem=_DEEP,
        shortcut=('downsample.1', 'downsample.2'),
        norms=('bn1', 'bn3'),
        stride_in_1x1=False,
        pools=True,
        epsilon=1e-5,
    ),
}


def project_levels(weights: Mapping[str, Tensor], image: Tensor, project: str) -> list[Tensor]:
    """C2 to C5 of a network of :data:`PROJECTS`, written with functions only."""
    about = PROJECTS[project]

    def get(name: str) -> Tensor | None:
        value = weights.get(about['prefix'] + name)
        return None if value is None else value.to(image)

    def norm(x: Tensor, name: str) -> Tensor:
        leaves = ('running_mean', 'running_var', 'weight', 'bias')
        mean, variance, scale, shift = (get(f'{name}.{leaf}')[:, None, None] for leaf in leaves)
        return (x - mean) / (variance + about['epsilon']).sqrt() * scale + shift

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = get(f'{name}.weight')
        groups = x.shape[1] // kernel.shape[1]
        return conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)

    def branch(x: Tensor, name: str, i: int, stride: int) -> Tensor:
        offsets = get(f'{name}.conv2_offsets.{i}.weight')
        if offsets is None:
            return conv(x, f'{name}.convs.{i}', stride)
        first, second, mask = conv2d(x, offsets, stride=stride, padding=1).chunk(3, 1)
        return deform_conv2d(
            x,
            torch.cat([first, second], 1),
            get(f'{name}.convs.{i}.weight'),
            stride=stride,
            padding=1,
            mask=mask.sigmoid(),
        )

    def block(x: Tensor, name: str, stride: int, first: bool) -> Tensor:
        strides = (stride, 1) if about['stride_in_1x1'] else (1, stride)
        y = norm(conv(x, f'{name}.conv1', strides[0]), f'{name}.{about["norms"][0]}').relu()
        width = len(get(f'{name}.bns.0.weight'))
        *groups, last = y.split(width, 1)
        outs: list[Tensor] = []
        for i, group in enumerate(groups):
            group = group if first or not outs else group + outs[-1]
            outs.append(norm(branch(group, name, i, strides[1]), f'{name}.bns.{i}').relu())
        if first and about['pools']:
            last = avg_pool2d(last, 3, strides[1], padding=1)
        y = norm(conv(torch.cat([*outs, last], 1), f'{name}.conv3'), f'{name}.{about["norms"][1]}')
        if first:
            down, down_norm = (f'{name}.{part}' for part in about['shortcut'])
            if len(about['stem']) == 3:  # v1b
                x = avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
                stride = 1
            x = norm(conv(x, down, stride), down_norm)
        return (x + y).relu()

    x = image
    for i, (name, norm_name) in enumerate(about['stem']):
        x = norm(conv(x, name, 2 if i == 0 else 1), norm_name).relu()
    x = max_pool2d(x, 3, stride=2, padding=1)
    levels = []
    for stage in about['stages']:
        number = 0
        while get(f'{stage}.{number}.conv1.weight') is not None:
            stride = 2 if levels and number == 0 else 1
            x = block(x, f'{stage}.{number}', stride, number == 0)
            number += 1
        levels.append(x)
    return levels
