"""One stage of a Res2Net, as the shared head of a detector on C4."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_choice
from ..registry import MODELS
from .res2net import Res2Net


@MODELS.register_module(force=True)
class Res2NetStage(BaseModule):
    """A stage that runs on regions of interest: ``roi_head.shared_head``, as mmdet's ``ResLayer``.

    Names of parameters are those of the stage in the whole network: ``layer4.0.conv1.weight``.

    Args:
        stage: Which one, 0 to 3 for layer1 to layer4.
        norm_eval: Keep batch norm in evaluation mode while training.
        init_cfg: As :class:`Res2Net` takes it. Pretrained weights are those of the whole network,
            of which this one stage is kept; they fit the whole network exactly or are refused.
        **network: Other arguments of :class:`Res2Net`; they describe the whole network.

    Raises:
        ValueError: An argument has a value that it cannot have.

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
        check_choice('stage', stage, range(4))
        self.norm_eval = norm_eval
        self.network = network
        self.layer = f'layer{stage + 1}'
        self.add_module(self.layer, getattr(Res2Net(**network), self.layer))

    def forward(self, x: Tensor) -> Tensor:
        """Features of regions.

        Args:
            x: (N, C, H, W), C being the channels of the stage before.

        Returns:
            (N, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        return getattr(self, self.layer)(x)

    def train(self, mode: bool = True) -> Res2NetStage:
        """Sets the mode, batch norm staying in evaluation where ``norm_eval`` says so."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialises a whole network by ``init_cfg``, and takes this stage's weights from it.

        Raises:
            ValueError: Pretrained weights do not fit exactly.
        """
        net = Res2Net(**self.network, init_cfg=self.init_cfg)
        net.init_weights()
        self.load_state_dict(
            {key: value for key, value in net.state_dict().items() if key.startswith(self.layer)}
        )
        self.is_init = True
