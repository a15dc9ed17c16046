"""A convolution whose weight gradient is computed as matrix products, for training on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fixed_conv import onednn_computes

# With AVX-512 oneDNN is slow at 1x1 convolutions of many weights over few pixels alone
_FEW_PIXELS = 1024
_MANY_WEIGHTS = 2**18
# The others are of AVX2. With fewer the products are too thin to be faster than oneDNN's kernel
_CHANNELS = 32
_ELEMENTS = 9  # of the kernel: with more, columns are too much to copy
_COLUMNS = 2**19  # values of columns at a time, which stay in the processor's cache
_SHIFT_PIXELS = 8000  # with fewer, a product for each element of the kernel is too short
# A product over many pixels is split: MKL lets its threads share channels alone
_CHUNKS = 8
_CHUNK_PIXELS = 1024
Places = tuple[int, int]


def trained_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Places = (1, 1),
    padding: Places = (0, 0),
    dilation: Places = (1, 1),
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``, with a backward pass that channels_last features do not slow.

    With AVX2 oneDNN (3.10) is slower at weight gradients of channels_last features than in other
    layouts, while all other passes are as fast or faster (``torch.backends.mkldnn.verbose`` tells
    the time of each); with AVX-512 it is where many weights meet few pixels, most of all in
    bfloat16. Where it gains, the gradient is matrix products over all pixels here.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, kh, kw).
        bias: (K,) or None.
        stride: Of rows and columns, as are padding and dilation.
        padding: Pixels of zeros on each side.
        dilation: Distance of the kernel's elements.
        groups: Of channels.

    Returns:
        (N, K, H', W').
    """
    dtype = _computed_in(x, weight, bias)
    if _gains(x, weight, dtype, stride, padding, dilation, groups):
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        return _Conv2d.apply(x, weight, bias, stride, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


class TrainedConv2d(nn.Conv2d):
    """``Conv2d`` that computes as :func:`trained_conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != 'zeros':
            return super()._conv_forward(input, weight, bias)
        places = self.stride, self.padding, self.dilation, self.groups
        return trained_conv2d(input, weight, bias, *places)


def train_convolutions(model: nn.Module) -> nn.Module:
    """Makes every plain ``Conv2d`` of a model a :class:`TrainedConv2d`, and returns the model."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = TrainedConv2d
    return model


def _computed_in(*tensors: Tensor | None) -> torch.dtype | None:
    """The type that a convolution on a CPU takes, or None where it takes several."""
    dtypes = {t.dtype for t in tensors if t is not None}
    if torch.is_autocast_enabled('cpu') and dtypes <= {torch.float32, torch.bfloat16}:
        return torch.get_autocast_dtype('cpu')
    return dtypes.pop() if len(dtypes) == 1 else None


def _gains(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype | None,
    stride: Places,
    padding: Places,
    dilation: Places,
    groups: int,
) -> bool:
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _transforms()
        or not torch.is_grad_enabled()
        or not weight.requires_grad
        or not x.is_cpu
        or x.dim() != 4
        or groups != 1
        or any(not isinstance(p, tuple) or len(p) != 2 for p in (stride, padding, dilation))
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.is_contiguous()
    ):
        return False
    pointwise = weight.shape[2:] == (1, 1) and stride == (1, 1)
    vectors = torch.backends.cpu.get_cpu_capability()
    if vectors == 'AVX512':
        few = x.shape[0] * x.shape[2] * x.shape[3] <= _FEW_PIXELS
        few = few and weight.numel() >= _MANY_WEIGHTS
        halves = dtype == torch.bfloat16 and onednn_computes(dtype)
        return pointwise and padding == (0, 0) and few and (dtype == torch.float32 or halves)
    if vectors != 'AVX2' or dtype != torch.float32:
        return False
    if pointwise:
        return padding == (0, 0)
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [side + 2 * p - span for side, p, span in zip(x.shape[2:], padding, spans, strict=True)]
    thick = min(weight.shape[:2]) >= _CHANNELS and weight[0, 0].numel() <= _ELEMENTS
    return thick and min(sides) > 0


def _transforms() -> bool:
    """Whether derivatives are taken in a way that the function below does not know."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._are_functorch_transforms_active()


def is_transformed(x: Tensor) -> bool:
    """Whether a tensor stands for several, or is of another transform of ``torch.func``."""
    kinds = torch._C._functorch
    return kinds.is_functorch_wrapped_tensor(x) or kinds.is_legacy_batchedtensor(x)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *places: Places
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places = places  # stride, padding, dilation
        return F.conv2d(x, weight, bias, *places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast('cpu', enabled=False):
            return *_gradients(ctx, grad), None, None, None


def _gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    x, weight = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    # for second derivatives, and for several gradients at once, PyTorch's own
    own = not torch.is_grad_enabled() and not is_transformed(grad)
    if own:
        grad = grad.contiguous(memory_format=torch.channels_last)
    mask = [needs[0], False, False] if own else needs
    grads: list[Tensor | None] = [None] * 3
    if any(mask):
        sizes = [weight.shape[0]]
        places = *ctx.places, False, [0, 0], 1
        grads = [*torch.ops.aten.convolution_backward(grad, x, weight, sizes, *places, mask)]
    if needs[1] and own:
        grads[1] = _weight_gradient(x, grad, weight, *ctx.places)
    if needs[2] and own:
        grads[2] = grad.sum((0, 2, 3))
    return grads


def _weight_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, stride: Places, padding: Places, dilation: Places
) -> Tensor:
    """Gradient of a weight, (K, C, kh, kw) in channels_last."""
    grads = grad.permute(0, 2, 3, 1)  # (N, H', W', K)
    outs, ins, *kernel = weight.shape
    if kernel == [1, 1] and stride == (1, 1):
        total = _product(grads.reshape(-1, outs), x.permute(0, 2, 3, 1).reshape(-1, ins))
    elif stride == (1, 1) and grads.shape[1] * grads.shape[2] >= _SHIFT_PIXELS:
        total = _by_shifts(x, grads, kernel, padding, dilation)
    else:
        total = _by_columns(x, grads, kernel, stride, padding, dilation)
    if kernel == [1, 1]:
        # any strides of the ones are right: those of the weight, which DDP expects
        return total.as_strided(weight.shape, (ins, 1, *weight.stride()[2:]))
    return total.view(outs, *kernel, ins).permute(0, 3, 1, 2)


def _by_columns(x: Tensor, grads: Tensor, kernel: Sequence[int], *places: Places) -> Tensor:
    """A product for all elements of the kernel, (K, kh * kw * C), block by block of pixels."""
    outs, values = grads.shape[3], kernel[0] * kernel[1] * x.shape[1]
    total = x.new_zeros(outs, values)
    images, rows = _block(grads.shape, values)
    for group, of_group in zip(x.split(images), grads.split(images), strict=True):
        samples = _samples(group, kernel, grads.shape[1:3], *places)
        for top in range(0, grads.shape[1], rows):
            columns = samples[:, top : top + rows].reshape(-1, values)
            total.addmm_(of_group[:, top : top + rows].reshape(-1, outs).t(), columns)
    return total


def _by_shifts(
    x: Tensor, grads: Tensor, kernel: Sequence[int], padding: Places, dilation: Places
) -> Tensor:
    """A product for each element of the kernel, (K, kh * kw, C), which copies less."""
    outs, ins = grads.shape[3], x.shape[1]
    total = x.new_zeros(outs, kernel[0] * kernel[1], ins)
    for image, out in zip(x.split(1), grads, strict=True):
        # Both on rows of the padded width, so that every shift of the kernel is a contiguous range
        padded = _padded(image, padding)[0]
        width = padded.shape[1]
        pixels = out.shape[0] * width - (kernel[1] - 1) * dilation[1]
        out = F.pad(out, (0, 0, 0, width - out.shape[1])).reshape(-1, outs)[:pixels]
        rows = padded.reshape(-1, ins)
        for element in range(total.shape[1]):
            i, j = divmod(element, kernel[1])
            start = i * dilation[0] * width + j * dilation[1]
            total[:, element] += _product(out, rows[start : start + pixels])
    return total


def _padded(x: Tensor, padding: Places) -> Tensor:
    """The image with zeros around it, (N, H, W, C)."""
    image = x.permute(0, 2, 3, 1)
    if padding == (0, 0):
        return image.contiguous()
    return F.pad(image, (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()


def _samples(x: Tensor, kernel: Sequence[int], out: Sequence[int], *places: Places) -> Tensor:
    """What each element of the kernel meets, (N, H', W', kh, kw, C): a view of the padded image."""
    stride, padding, dilation = places
    padded = _padded(x, padding)
    n, *steps, c = padded.stride()
    moved = [step * by for step, by in zip(steps, stride, strict=True)]
    spread = [step * by for step, by in zip(steps, dilation, strict=True)]
    return padded.as_strided((len(x), *out, *kernel, x.shape[1]), (n, *moved, *spread, c))


def _block(shape: torch.Size, values: int) -> tuple[int, int]:
    """How many images, and rows of each, give columns of a block: (N, H', W', ...), of a pixel."""
    _, height, width = shape[:3]
    rows = max(_COLUMNS // (values * width), 1)
    return max(rows // height, 1), min(rows, height)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b`` of (P, K) and (P, C)."""
    chunks = min(_CHUNKS, len(a) // _CHUNK_PIXELS)
    if chunks < 2:
        return a.t() @ b
    pixels = len(a) // chunks * chunks
    first, second = (t[:pixels].view(chunks, -1, t.shape[1]) for t in (a, b))
    product = torch.bmm(first.transpose(1, 2), second).sum(0)
    return product.addmm_(a[pixels:].t(), b[pixels:]) if pixels < len(a) else product
