"""Max pooling of what a ReLU gave, for inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_INTEGERS = {  # of the same size, and all of their bits but that of the sign
    torch.float32: (torch.int32, 2**31 - 1),
    torch.bfloat16: (torch.int16, 2**15 - 1),
    torch.float16: (torch.int16, 2**15 - 1),
}


class RectifiedMaxPool2d(nn.MaxPool2d):
    """``MaxPool2d(3, stride=2, padding=1)`` of values that are nowhere negative.

    Such numbers are ordered as their bits are when these are read as integers, a NaN above all
    others, and integers are compared faster, most of all in half precision: rows first, then
    columns, a vector of channels at a time. It computes as ``MaxPool2d`` where features are not
    channels_last, on other devices, where a graph is recorded and where gradients are asked for.
    """

    @classmethod
    def suits(cls, pool: nn.Module) -> bool:
        """Whether a layer computes the same where values are as this one demands."""
        kind = ('kernel_size', 'stride', 'padding', 'dilation', 'ceil_mode', 'return_indices')
        own = cls(3, stride=2, padding=1)
        return type(pool) is nn.MaxPool2d and all(getattr(pool, k) == getattr(own, k) for k in kind)

    def forward(self, input: Tensor) -> Tensor:
        """Pools; the memory of the input is written to (zeros and NaNs lose their sign).

        Args:
            input: (N, C, H, W), without negative numbers.

        Returns:
            (N, C, ceil(H / 2), ceil(W / 2)).
        """
        if (
            not input.is_cpu
            or input.dtype not in _INTEGERS
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or input.requires_grad
            or input.dim() != 4
            or not input.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(input)
        integer, magnitude = _INTEGERS[input.dtype]
        pixels = input.permute(0, 2, 3, 1).view(integer).bitwise_and_(magnitude)
        for axis in (1, 2):
            pixels = _every_second_of_three(pixels, axis)
        return pixels.view(input.dtype).permute(0, 3, 1, 2)


def _every_second_of_three(x: Tensor, axis: int) -> Tensor:
    """Largest of 0 and 1, of 1, 2 and 3, of 3, 4 and 5, ... along an axis."""
    places = (slice(None),) * axis
    even, odd = (x[(*places, slice(first, None, 2))] for first in (0, 1))
    count, pairs = even.shape[axis], odd.shape[axis]
    out = torch.empty_like(even, memory_format=torch.contiguous_format)
    torch.maximum(even.narrow(axis, 0, pairs), odd, out=out.narrow(axis, 0, pairs))
    if pairs < count:
        out.narrow(axis, pairs, 1).copy_(even.narrow(axis, pairs, 1))
    later = out.narrow(axis, 1, count - 1)
    torch.maximum(later, odd.narrow(axis, 0, count - 1), out=later)
    return out
