"""Res2Net with deformable 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ops import DeformConv2d, ModulatedDeformConv2d
from ..registry import MODELS
from .bottle2neck import Bottle2neck
from .res2net import Res2Net, check_each

# Only in this scope: without a scope, these names stay mmcv's.
MODELS.register_module(name='DCN', module=DeformConv2d, force=True)
MODELS.register_module(name='DCNv2', module=ModulatedDeformConv2d, force=True)

DCNV2 = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)


@MODELS.register_module(force=True)
class Res2NetDCN(Res2Net):
    """Res2Net with deformable 3x3 convolutions in chosen stages.

    All 3x3 convolutions of these stages are deformable, as in mmdet's ``Res2Net`` with ``dcn``,
    which has the same state-dict names. Offsets start at zero, and weights of the plain network
    fit (:func:`res2net_mm.weights.load_weights`).

    Args:
        *args: Arguments of :class:`Res2Net`, like all keywords not named here.
        dcn: The layer's type, ``'DCN'`` (v1, https://arxiv.org/abs/1703.06211) or ``'DCNv2'`` (v2,
            https://arxiv.org/abs/1811.11168), and its arguments, such as ``deform_groups``. With
            ``fallback_on_stride=True`` convolutions with a stride stay plain (in mmdet only those
            of the first block). ``'mmengine.DCNv2'`` is mmcv's layer.
        stage_with_dcn: Whether the 3x3 convolutions of each stage are deformable.

    Example:
        >>> net = Res2NetDCN(depth=50, dcn=dict(type='DCN', deform_groups=1))
        >>> [tuple(level.shape) for level in net(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    def __init__(
        self,
        *args: Any,
        dcn: Mapping[str, Any] = DCNV2,
        stage_with_dcn: Sequence[bool] = (False, True, True, True),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(dcn, Mapping):
            raise ValueError(f'dcn must be a dict, but got {dcn!r}; without it, use Res2Net')
        check_each('stage_with_dcn', stage_with_dcn, len(self.stage_names), (False, True))
        for name, chosen in zip(self.stage_names, stage_with_dcn, strict=True):
            for block in getattr(self, name) if chosen else ():
                _deform(block, **dcn)
        self._freeze()


def _deform(
    block: Bottle2neck,
    type: str | type = 'DCNv2',
    fallback_on_stride: bool = False,
    **arguments: Any,
) -> None:
    layer = MODELS.get(type) if isinstance(type, str) else type
    for i, conv in enumerate(block.convs):
        if fallback_on_stride and max(conv.stride) > 1:
            continue
        built = layer and layer(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=False,
            **arguments,
        )
        if not hasattr(built, 'conv_offset'):
            raise ValueError(f"dcn's type must be 'DCN' or 'DCNv2', but got {type!r}")
        block.convs[i] = built
