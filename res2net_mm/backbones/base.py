"""What the backbones share: outputs, freezing, modes, initialisation, conventions of weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checks import check_choice
from ..ops.internals import makes_graph
from ..registry import WEIGHT_INITIALIZERS
from .bottle2neck import Bottle2neck
from .frozen_norm import freeze_statistics, frozen_norm_warning

CONVENTION = 'res2net_mm'  # key in a state dict's _metadata and in a checkpoint's meta


class Conventional(BaseModule):
    """A module whose weights only fit with the convention that they were trained with.

    It is saved with them, as metadata of the state dict, and checked on loading.
    """

    first_block: str | None = None  # None: published with one rule only
    style = 'pytorch'

    def __init__(self, init_cfg: dict | list[dict] | None) -> None:
        super().__init__(init_cfg)
        self.register_state_dict_post_hook(_write_convention)

    @property
    def convention(self) -> dict[str, str]:
        """The arguments that change features without changing any weight's name or shape."""
        scales = {m.scales for m in self.modules() if isinstance(m, Bottle2neck)}
        has_rule = self.first_block is not None and scales != {1}
        return {**(dict(first_block=self.first_block) if has_rule else {}), 'style': self.style}

    def check_convention(
        self, convention: Mapping[str, str], source: str = 'the state dict'
    ) -> None:
        """Raises ``ValueError`` if weights need another convention, naming what to set.

        Args:
            convention: The :attr:`convention` of the weights; {} fits every network.
            source: What the message calls the weights.
        """
        own = self.convention
        differs = [key for key in own if convention.get(key, own[key]) != own[key]]
        if differs:
            needs, has = (
                ', '.join(f'{key}={values[key]!r}' for key in differs)
                for values in (convention, own)
            )
            raise ValueError(
                f'{source} needs {needs}, but the network has {has}: set the former (names and '
                'shapes are equal, features are not)'
            )

    def _load_from_state_dict(
        self, state_dict: Mapping, prefix: str, local_metadata: Mapping, *args: Any
    ) -> None:
        self.check_convention(local_metadata.get(CONVENTION, {}))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Backbone(Conventional):
    """Base of the Res2Net backbones.

    A subclass builds its modules, calls :meth:`_set_outputs`, and computes its features in
    ``_levels``.

    Args:
        norm_eval: Keep batch norm in evaluation mode during training. This is for loaded weights;
            without them the first training step warns.
        zero_init_residual: Start each block as the identity (where ``init_cfg`` is None).
        init_cfg: mmengine's initialisation config; None is Kaiming. ``Pretrained`` means this
            package's initializer of that name: a file, an address or ``res2net://name`` in any
            published layout, which fits exactly or fails.
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    said_frozen_norm = False  # whether the user was warned that batch norm stays as built
    _checks_norm = True  # whether the next training step looks at batch norm

    def __init__(
        self, *, norm_eval: bool, zero_init_residual: bool, init_cfg: dict | list[dict] | None
    ) -> None:
        default_init = [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
        super().__init__(default_init if init_cfg is None else init_cfg)
        self.norm_eval = norm_eval
        self.zero_init_residual = zero_init_residual and init_cfg is None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of the stages in ``out_indices``.

        Args:
            x: Images, (N, in_channels, H, W).

        Returns:
            One (N, out_channels[i], ceil(H / out_strides[i]), ceil(W / out_strides[i])) per stage.
        """
        if self._checks_norm and self.training and torch.is_grad_enabled() and not makes_graph():
            self._check_norm()
        return self._levels(x)

    def _levels(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _check_norm(self) -> None:
        """Warns once, when training starts, about batch norm that stays as it was built."""
        self._checks_norm = False
        try:
            message = frozen_norm_warning(self)
        except RuntimeError:  # inside vmap and the like, values cannot be read
            return
        if message is not None:
            self.said_frozen_norm = True
            warnings.warn(message, stacklevel=5)  # the line that calls the network

    def train(self, mode: bool = True) -> Backbone:
        """Sets the mode; frozen parts and, with ``norm_eval``, batch norm stay in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            freeze_statistics(self)
        self._checks_norm = mode and not self.said_frozen_norm
        return self

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says, once.

        Raises:
            ValueError: Pretrained weights do not fit exactly.
        """
        pretrained = pretrained_cfgs(self.init_cfg)
        if pretrained and not self.is_init:
            # this package's initializer, which sets every weight; mmengine's loads what matches
            for cfg in pretrained:
                arguments = {key: value for key, value in cfg.items() if key != 'type'}
                WEIGHT_INITIALIZERS.get('Pretrained')(self, **arguments)
            self.is_init = True
            return
        trained = self.is_init
        super().init_weights()  # only warns if it ran before
        for name, module in () if trained else self.named_modules():
            if name.endswith('.conv_offset'):  # a deformable convolution, ours or mmcv's
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Bottle2neck) and self.zero_init_residual:
                nn.init.zeros_(module.norm3.weight)

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Names and defaults of all arguments, including those of base classes."""
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__[: cls.__mro__.index(Backbone)]):
            for p in inspect.signature(base).parameters.values():
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                    found[p.name] = p.default
        return found

    def _set_outputs(
        self,
        stem: Sequence[str],
        stages: Sequence[tuple[str, int, int]],
        out_indices: Sequence[int],
        frozen_stages: int,
    ) -> None:
        """Takes the stem's modules, name, channels and stride of all stages, and what to return."""
        check_choice('frozen_stages', frozen_stages, range(-1, len(stages) + 1))
        frozen_stages = int(frozen_stages)  # 1.0 is a choice too
        known = isinstance(out_indices, Sequence) and {*map(type, out_indices)} - {bool, float}
        if not known or list(out_indices) != sorted({*out_indices} & {*range(len(stages))}):
            raise ValueError(
                f'out_indices must be ascending stage numbers from 0 to {len(stages) - 1}, '
                f'but got {out_indices!r}'
            )
        self.stem_names = tuple(stem)
        self.stage_names, channels, strides = zip(*stages, strict=True)
        self.out_indices = tuple(map(int, out_indices))
        self.frozen_stages = frozen_stages
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self._freeze()

    def _freeze(self) -> None:
        frozen = self.stem_names if self.frozen_stages >= 0 else ()
        frozen += self.stage_names[: max(self.frozen_stages, 0)]
        for name in frozen:
            getattr(self, name).eval()
        # A stage that does not run gets no gradient, and DistributedDataParallel would wait for it
        for name in (*frozen, *self.stage_names[self.out_indices[-1] + 1 :]):
            getattr(self, name).requires_grad_(False)


def pretrained_cfgs(init_cfg: dict | list[dict] | None) -> list[dict]:
    """The initialisations that load weights."""
    cfgs = init_cfg if isinstance(init_cfg, list) else [init_cfg]
    kinds = ('Pretrained', 'PretrainedInit')  # with a scope or module in front, or the class
    return [cfg for cfg in cfgs if isinstance(cfg, dict) and _kind(cfg).split('.')[-1] in kinds]


def _kind(cfg: dict) -> str:
    kind = cfg.get('type') or ''
    return kind if isinstance(kind, str) else kind.__name__


def _write_convention(module: Conventional, state: Any, prefix: str, metadata: dict) -> None:
    metadata[CONVENTION] = module.convention
