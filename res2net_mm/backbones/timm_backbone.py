"""Networks of timm as multi-level backbones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checks import check_choice, did_you_mean
from ..registry import MODELS
from .frozen_norm import freeze_statistics

_OWN_FILE = 'a file of your own needs pretrained=True, pretrained_cfg_overlay=dict(file=...)'


@MODELS.register_module(force=True)
class TimmBackbone(BaseModule):
    """Any network that timm builds with ``features_only``, with the interface of ``Res2Net``.

    State-dict names are timm's after ``timm_model.``, as in mmpretrain's ``TIMMBackbone``. Levels
    are those of timm's ``feature_info``: in most networks 0 is the stem and 1 to 4 are C2 to C5;
    where the stem has stride 4, 0 to 3 are C2 to C5.

    Args:
        model_name: ``'rexnet_100'``, or with the tag of its weights ``'resnet50.a1_in1k'``.
        pretrained: Load timm's weights exactly, classifier included: for a file of your own
            (``pretrained_cfg_overlay=dict(file=...)``) give its ``num_classes``, or 0.
        out_indices: Levels to return, ascending. None takes all from stride 4 on.
        frozen_stages: -1 freezes nothing, i everything up to level i.
        norm_eval: Keep batch norm in evaluation mode during training; for loaded weights only.
        in_channels: Channels of the image; timm adapts its weights.
        init_cfg: mmengine's initialisation config; None keeps what timm made. The names in a file
            of ``Pretrained`` must begin with ``timm_model.``.
        **kwargs: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm cannot build the network, or an argument has an invalid value.

    Example:
        >>> net = TimmBackbone('resnext50_32x4d', frozen_stages=1)
        >>> net.out_channels, net.out_strides
        ((256, 512, 1024, 2048), (4, 8, 16, 32))
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool | None = False,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
        in_channels: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained not in (True, False, None):
            raise ValueError(f'pretrained must be True or False, not {pretrained!r}; {_OWN_FILE}')
        if pretrained and init_cfg:
            raise ValueError('pretrained and init_cfg exclude each other: give one of them')
        if out_indices is not None:
            ascending = isinstance(out_indices, Sequence) and sorted({*out_indices})
            if not ascending or [*out_indices] != ascending:
                raise ValueError(f'out_indices must be ascending levels, but got {out_indices!r}')
            kwargs['out_indices'] = tuple(out_indices)
        if pretrained:  # timm checks the fit of all weights if it knows of no classifier
            overlay = kwargs.get('pretrained_cfg_overlay') or {}
            kwargs['pretrained_cfg_overlay'] = {'classifier': None, **overlay}
        # on the meta device, where tools count, weights are not worth a download
        loads = bool(pretrained) and not torch.empty(0).is_meta
        self.timm_model = _create(model_name, pretrained=loads, in_chans=in_channels, **kwargs)

        info = self.timm_model.feature_info
        strides = info.reduction()
        self._taken = [i for i, stride in enumerate(strides) if out_indices or stride >= 4]
        self.out_indices = tuple(info.out_indices[i] % len(info) for i in self._taken)
        self.out_channels = tuple(info.channels()[i] for i in self._taken)
        self.out_strides = tuple(strides[i] for i in self._taken)
        check_choice('frozen_stages', frozen_stages, range(-1, self.out_indices[-1] + 1))
        self.model_name = model_name
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        for part in self._frozen_parts():
            part.requires_grad_(False)
            part.eval()  # not chained: LeViT's returns None
        if frozen_stages >= 0:  # tokens and position embeddings, which come before every level
            for name, parameter in self.timm_model.named_parameters():
                if re.fullmatch(r'(model\.)?\w*(token|pos_embed)\w*', name):
                    parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the levels in ``out_indices``, (N, C, H, W), of images (N, C, H, W)."""
        levels = self.timm_model(x)
        levels = [levels[i] for i in self._taken]
        if getattr(self.timm_model, 'output_fmt', None) == 'NHWC':  # Swin and others
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return tuple(levels)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Sets the mode; frozen parts and, with ``norm_eval``, batch norm stay in evaluation."""
        for module in self.modules():
            act = getattr(module, 'act', nn.Identity())
            if type(module) is nn.SyncBatchNorm and not isinstance(act, nn.Identity):
                raise ValueError(
                    f"sync_bn has removed the activations inside {self.model_name}'s norms: train "
                    'without it, or use timm.layers.convert_sync_batchnorm'
                )
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        if mode and self.norm_eval:
            freeze_statistics(self)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Without a prefix it is init_cfg's Pretrained, which only warns if no name matches
        if not prefix and not any(key.startswith('timm_model.') for key in state_dict):
            raise ValueError(f"none of the weights' names begins with timm_model.; {_OWN_FILE}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _frozen_parts(self) -> list[nn.Module]:
        """All modules up to the frozen level; timm registers modules in the order of their use."""
        if self.frozen_stages < 0:
            return []
        name = self.timm_model.feature_info.get('module', self.frozen_stages)
        modules = dict(self.timm_model.named_modules())
        # timm's wrappers move or rename the modules of the network
        names = (name, name.replace('.', '_', 1), f'model.{name}', f'body.{name}')
        last = next((modules[n] for n in names if n in modules), None)
        if last is None or hasattr(self.timm_model, 'incre_modules'):  # HRNet's, in parallel
            what = 'its levels do not follow one another' if last else f'it has no {name}'
            raise ValueError(f'frozen_stages must be -1 for {self.model_name}: {what}')
        order = list(modules.values())
        done = set(order[: order.index(list(last.modules())[-1]) + 1])
        return [module for module in order if done.issuperset(module.modules())]


def _create(name: str, **kwargs: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError("TimmBackbone needs timm: pip install 'res2net_mm[timm]'") from error
    if ':' not in name and not timm.is_model(name.partition('.')[0]):  # 'hf-hub:...' is not listed
        hint = did_you_mean(name, timm.list_models())
        raise ValueError(f'model_name must be one of timm.list_models(), but got {name!r}{hint}')
    try:
        return timm.create_model(name, features_only=True, **kwargs)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        reason = ' '.join(str(error).split())[:500]
        if isinstance(error, IndexError) and 'out_indices' in kwargs:
            reason = f'it has no such levels as out_indices={kwargs["out_indices"]}'
        raise ValueError(f'timm cannot build model_name={name!r} as asked: {reason}') from error
