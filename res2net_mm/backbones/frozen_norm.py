"""Finds batch norm that can only stay at the values it was built with."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def frozen_norm_warning(net: nn.Module, prefix: str = '') -> str | None:
    """What to tell whoever trains a network, or None where nothing is wrong.

    Batch norm in evaluation mode normalises by the statistics it has. Until weights are loaded,
    these are mean 0 and variance 1: the network trains as if it had no batch norm.

    Args:
        net: A network in training mode with ``norm_eval`` or ``frozen_stages``, ours or not.
        prefix: What stands before its arguments in a config, such as ``'model.backbone.'``.
    """
    fixed = {}
    if getattr(net, 'norm_eval', False):
        fixed['norm_eval'] = True, False
    stages = getattr(net, 'frozen_stages', None)
    weights = (p for p in net.parameters() if p.dim() > 1)
    if isinstance(stages, int) and stages >= 0 and not all(p.requires_grad for p in weights):
        fixed['frozen_stages'] = stages, -1
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)] if fixed else []
    new = sum(not m.training and _is_new(m) for m in norms)
    if not new:
        return None
    causes, remedies = (
        ' and '.join(f'{prefix}{name}={pair[i]}' for name, pair in fixed.items()) for i in (0, 1)
    )
    return (
        f'{new} of {len(norms)} batch norms of {type(net).__name__} stay at mean 0 and variance 1 '
        f'while it trains, as {causes} and no weights were loaded: load weights, or set {remedies}'
    )


def _is_new(norm: _BatchNorm) -> bool:
    """Whether nothing was counted or loaded; statistics folded into the layer leave a bias."""
    if norm.running_mean is None or norm.running_mean.any():
        return False
    return not (norm.bias is not None and norm.bias.any()) and bool((norm.running_var == 1).all())
