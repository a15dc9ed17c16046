"""One stage of a Res2Net, as the shared head of a detector on C4."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import check_choice
from ..registry import MODELS
from .base import Conventional
from .frozen_norm import freeze_statistics
from .res2net import Res2Net


@MODELS.register_module(force=True)
class Res2NetStage(Conventional):
    """A stage that runs on regions of interest (``roi_head.shared_head``), as mmdet's ``ResLayer``.

    Parameters have the names of the stage in the whole network: ``layer4.0.conv1.weight``.

    Args:
        stage: 0 to 3 for layer1 to layer4.
        norm_eval: Keep batch norm in evaluation mode during training.
        init_cfg: As in :class:`Res2Net`. Pretrained weights are those of the whole network: they
            must fit it exactly, and the weights of this stage are kept.
        **network: Other arguments of :class:`Res2Net` that describe the whole network.

    Example:
        >>> Res2NetStage(stage=3, depth=50)(torch.rand(2, 1024, 14, 14)).shape
        torch.Size([2, 2048, 7, 7])
    """

    def __init__(
        self,
        stage: int = 3,
        norm_eval: bool = True,
        init_cfg: dict | list[dict] | None = None,
        **network: Any,
    ) -> None:
        super().__init__(init_cfg)
        net = Res2Net(**network)
        check_choice('stage', stage, range(len(net.stage_names)))
        self.norm_eval = norm_eval
        self.network = network
        self.first_block, self.style = net.first_block, net.style
        self.layer = f'layer{stage + 1}'
        self.add_module(self.layer, getattr(net, self.layer))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) of the stage before -> (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        return getattr(self, self.layer)(x)

    def train(self, mode: bool = True) -> Res2NetStage:
        """Sets the mode; with ``norm_eval``, batch norm stays in evaluation."""
        super().train(mode)
        if mode and self.norm_eval:
            freeze_statistics(self)
        return self

    def init_weights(self) -> None:
        """Initialises a whole network as ``init_cfg`` says and takes this stage's weights from it.

        Raises:
            ValueError: Pretrained weights do not fit exactly.
        """
        net = Res2Net(**self.network, init_cfg=self.init_cfg)
        net.init_weights()
        self.get_submodule(self.layer).load_state_dict(net.get_submodule(self.layer).state_dict())
        self.is_init = True
