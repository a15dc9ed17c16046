"""A convolution whose weights stay as they are, with what follows it done in the same pass."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .winograd import winograd_conv2d, winograd_weight

# With less the transforms cost more than the multiplications that they save
_WINOGRAD_CHANNELS = 96
_WINOGRAD_PIXELS = 240
_PLAIN_3X3 = ((3, 3), (1, 1), (1, 1), (1, 1), 1)


class FixedConv2d(nn.Conv2d):
    """``Conv2d`` for inference, which keeps its weight in the form that is the fastest.

    On a CPU that is oneDNN's own layout, with sum and ReLU inside of the convolution, or Winograd's
    transform where a 3x3 convolution has many channels. Elsewhere, and where a graph is recorded or
    gradients are asked for, it computes as ``Conv2d`` does.

    Args:
        conv: The convolution, whose parameters are shared.
        relu: Clamp the output at zero.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        self._parameters = dict(conv._parameters)
        self.relu = relu
        self._forget()

    def forward(self, x: Tensor, added: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """Convolves, adds and clamps.

        Args:
            x: (N, in_channels, H, W).
            added: Of the output's shape, added to it before ReLU; None adds nothing.
            overwrite: The memory of ``added`` may be used for the output.
        """
        way = self._way(x)
        if way == 'onednn':
            return self._onednn(x, added, overwrite)
        relu = self.relu and added is None
        if way == 'winograd':
            if self._transformed is None:
                self._transformed = winograd_weight(self.weight)
            out = winograd_conv2d(x, self._transformed, self.bias, relu)
        else:
            out = super().forward(x)
            out = out.relu_() if relu else out
        if added is None:
            return out
        return (out + added).relu_() if self.relu else out + added

    def _way(self, x: Tensor) -> str:
        trains = (x, self.weight, *(() if self.bias is None else (self.bias,)))
        if (
            not x.is_cpu
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or x.dim() != 4
            or 0 in x.shape
            or x.dtype != self.weight.dtype
            or (torch.is_grad_enabled() and any(t.requires_grad for t in trains))
            or self.padding_mode != 'zeros'
            or isinstance(self.padding, str)
            or not onednn_computes(x.dtype)
        ):
            return 'torch'
        kind = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        suits = (
            kind == _PLAIN_3X3
            and x.dtype == torch.float32
            and min(self.in_channels, self.out_channels) >= _WINOGRAD_CHANNELS
            and x.shape[0] * x.shape[2] * x.shape[3] >= _WINOGRAD_PIXELS
        )
        return 'winograd' if suits else 'onednn'

    def _onednn(self, x: Tensor, added: Tensor | None, overwrite: bool) -> Tensor:
        ops = torch.ops.mkldnn
        x = x.contiguous(memory_format=torch.channels_last)
        places = self.padding, self.stride, self.dilation, self.groups
        shape, weight = self._packed  # at once: another thread may run with another shape
        if x.shape != shape:
            self._packed = x.shape, None
            weight = self.weight
        elif weight is None:
            weight = ops._reorder_convolution_weight(self.weight, *places, x.shape)
            self._packed = shape, weight
        if added is None:
            relu = 'relu' if self.relu else 'none'
            return ops._convolution_pointwise(x, weight, self.bias, *places, relu, [], '')
        if not overwrite:
            added = added.clone(memory_format=torch.channels_last)
        added = added.contiguous(memory_format=torch.channels_last)
        after = 'add', 1.0, 'relu' if self.relu else None, [], ''
        return ops._convolution_pointwise_.binary(added, x, weight, self.bias, *places, *after)

    def _forget(self) -> None:
        """Drops what was made of a weight that changes now."""
        self._transformed: Tensor | None = None
        # The layout of a packed weight suits one shape of images, and with another takes far longer
        # than the plain weight: it is packed when a shape comes twice in a row.
        self._packed: tuple[torch.Size | None, Tensor | None] = None, None

    def _apply(self, *args: Any, **kwargs: Any) -> FixedConv2d:
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_packed': (None, None)}  # oneDNN's layout is not written


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, with instructions for the type in this processor."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, '_convolution_pointwise_'):
        return False
    supported = {torch.float32: lambda: True}
    supported[torch.bfloat16] = ops._is_mkldnn_bf16_supported
    supported[torch.float16] = ops._is_mkldnn_fp16_supported
    return dtype in supported and supported[dtype]()
