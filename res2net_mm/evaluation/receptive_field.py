"""Effective receptive fields: the pixels that a unit of a backbone really looks at.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks"
(arXiv 1701.04128): few of the pixels in the theoretical field have influence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from ..backbones import Backbone, TimmBackbone, create_backbone
from ..columns import aligned

SHARE = 0.95  # of the influence
FADED = 1 - 0.9545  # of the largest influence; a Gaussian falls to it at two standard deviations


def effective_fields(net: nn.Module, images: Iterable[Tensor]) -> list[Tensor]:
    """The effective receptive field (H, W), with sum 1, of the middle unit of each level.

    It is the gradient of that unit, summed over the level's channels, with respect to the image:
    absolute values, summed over the image's channels and averaged over the images.

    Args:
        net: In evaluation mode: an image to levels (1, channels, h, w).
        images: Each (1, C, H, W), all of one size that gives every level odd sides (ValueError).
    """
    sums: list[Tensor] = []
    for image in images:
        image = image.detach().clone().requires_grad_()
        fields = []
        for level in net(image):
            height, width = level.shape[2:]
            if not (height % 2 and width % 2):
                raise ValueError(
                    f'images must give every level odd sides, as 513 x 513 px do, but '
                    f'{image.shape[2]} x {image.shape[3]} px give one of {height} x {width}'
                )
            unit = level[0, :, height // 2, width // 2].sum()
            (gradient,) = torch.autograd.grad(unit, image, retain_graph=True)
            fields.append(gradient[0].abs().sum(0))
        sums = [a + b for a, b in zip(sums, fields, strict=True)] if sums else fields
    if not all(0 < field.sum() < torch.inf for field in sums):
        raise ValueError('images must have an influence on every level, and a finite one')
    return [field / field.sum() for field in sums]


def square_side(field: Tensor, share: float = SHARE) -> int:
    """Side in pixels of the smallest centred square that holds a share of a field (H, W)."""
    rows, columns = ((torch.arange(n) - n // 2).abs() for n in field.shape)
    distance = torch.maximum(rows[:, None], columns[None]).flatten()
    held = torch.bincount(distance, field.cpu().double().flatten()).cumsum(0)
    return 2 * int((held < share * held[-1]).sum()) + 1


def luo_side(field: Tensor) -> float:
    """Luo et al.'s size in pixels: the root of the number of pixels above ``FADED``."""
    return float((field > FADED * field.max()).sum()) ** 0.5


def random_network(name: str) -> Backbone:
    """``resnet50``, 101 or 152, or a named variant, with random weights.

    A ResNet is built as Res2Net v1 is, so it differs in nothing but the scales. By default, blocks
    start as the identity, and shortcuts would be all that is seen: here every block counts.
    """
    options = dict(zero_init_residual=False)
    if name in ('resnet50', 'resnet101', 'resnet152'):
        options.update(depth=int(name.removeprefix('resnet')), scales=1, base_width=64)
        name = 'res2net50_26w_4s'
    return create_backbone(name, **options)


def random_fields(name: str, count: int, side: int) -> dict[str, Tensor]:
    """The fields of a :func:`random_network` by level, C2 to C5; the same ones in every call.

    They are of ``count`` images (1, 3, side, side) of normally distributed values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        images = [torch.randn(1, 3, side, side) for _ in range(count)]
        net = random_network(name).requires_grad_(False)
    update_bn(images, net)  # statistics as in training: random weights come with mean 0, variance 1
    return fields_by_level(net, tqdm(images, desc=name, unit='image'))


def fields_by_level(net: nn.Module, images: Iterable[Tensor]) -> dict[str, Tensor]:
    """:func:`effective_fields` of a backbone, by the names of its levels."""
    net.eval()  # not chained: mmdet's backbones return None
    fields, first = effective_fields(net, images), 2
    if isinstance(net, TimmBackbone):  # timm counts the stem, where there is one
        first = net.out_strides[0].bit_length() - 1 - net.out_indices[0]
    elif not isinstance(net, Backbone) and not hasattr(net, 'res_layers'):  # as ResNets have
        return {f'level {i}': field for i, field in enumerate(fields)}
    names = ['C1'] * bool(getattr(net, 'with_stem', False))
    names += [f'C{i + first}' for i in net.out_indices]
    return dict(zip(names, fields, strict=True))


def format_fields(fields: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Both sizes of each field, by network and level, as a table."""
    rows = [('network', 'level', f'square with {SHARE:.0%} (px)', "Luo et al.'s side (px)")]
    for network, levels in fields.items():
        for level, field in levels.items():
            rows.append((network, level, str(square_side(field)), f'{luo_side(field):.0f}'))
    return '\n'.join(aligned(rows))
