"""Batch norm that keeps its statistics during training, as detectors are trained."""

from __future__ import annotations

from torch import nn

from .layers import BATCH_NORMS


def freeze_statistics(net: nn.Module) -> None:
    """Puts the batch norms of a network in evaluation mode."""
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


def frozen_norm_warning(net: nn.Module, prefix: str = '') -> str | None:
    """What to tell the user who trains a network, or None if all is well.

    Batch norm in evaluation mode normalises by the statistics it has. Until weights are loaded,
    these are mean 0 and variance 1, and the network trains as if it had no batch norm.

    Args:
        net: A network in training mode with ``norm_eval`` or ``frozen_stages``, ours or not.
        prefix: Where its arguments are in a config, such as ``'model.backbone.'``.
    """
    remedies = {}  # what is set -> what to set instead
    if getattr(net, 'norm_eval', False):
        remedies[f'{prefix}norm_eval=True'] = f'{prefix}norm_eval=False'
    stages = getattr(net, 'frozen_stages', None)
    weights = (p for p in net.parameters() if p.dim() > 1)
    if isinstance(stages, int) and stages >= 0 and not all(p.requires_grad for p in weights):
        remedies[f'{prefix}frozen_stages={stages}'] = f'{prefix}frozen_stages=-1'
    norms = [m for m in net.modules() if isinstance(m, BATCH_NORMS)] if remedies else []
    new = sum(not norm.training and _is_new(norm) for norm in norms)
    if not new:
        return None
    return (
        f'{new} of {len(norms)} batch norms of {type(net).__name__} stay at mean 0 and variance 1 '
        f'during training, because of {" and ".join(remedies)} and because no weights were loaded: '
        f'load weights, or set {" and ".join(remedies.values())}'
    )


def _is_new(norm: nn.Module) -> bool:
    """Whether the statistics are initial ones; a norm folded into its layer leaves a bias."""
    if norm.running_mean is None or norm.running_mean.any():
        return False
    return not (norm.bias is not None and norm.bias.any()) and bool((norm.running_var == 1).all())
