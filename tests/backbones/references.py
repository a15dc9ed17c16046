"""Independent networks to compare with, and weights that leave nothing at its initial value."""

import torch
from torch import nn


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch norm statistics that keep activations of order one."""
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


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative L2 distance."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def from_timm(state: dict[str, torch.Tensor], deep_stem: bool) -> dict[str, torch.Tensor]:
    """timm's (the authors') names renamed to ours, the classifier dropped."""
    stem = {'conv1.0': 'stem.0', 'conv1.1': 'stem.1', 'conv1.3': 'stem.3', 'conv1.4': 'stem.4'}
    stem |= {'conv1.6': 'stem.6', 'bn1': 'stem.7'}
    renamed = {}
    for key, value in state.items():
        if key.startswith('fc.'):
            continue
        prefix, _, leaf = key.rpartition('.')
        renamed[f'{stem.get(prefix, prefix) if deep_stem else prefix}.{leaf}'] = value
    return renamed
