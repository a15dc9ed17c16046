"""3x3 convolution with a quarter of the multiplications, as matrix products."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 4  # of the square of outputs that one tile gives
# Points of the interpolation, with infinity as the sixth. With the usual 0, 1, -1, 2, -2 rounding
# errors are about twice as large (tests/ops/test_fixed_conv.py).
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_CACHE = 2**21  # values of transformed input at a time, which stay in the processor's cache


def winograd_weight(weight: Tensor) -> Tensor:
    """Transforms a weight (K, C, 3, 3) for :func:`winograd_conv2d`: (36, C, K), same type."""
    g = _matrices()[1]
    out = torch.einsum('ai,bj,kcij->abck', g, g, weight.detach().double().cpu())
    return out.flatten(0, 1).to(weight).contiguous()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """``conv2d`` 3x3 with stride and padding 1, by F(4x4, 3x3) (https://arxiv.org/abs/1509.09308).

    Faster than a direct convolution on a CPU where both numbers of channels are about 100 or more.
    A value that is not finite reaches all outputs of the tiles that it is in.

    Args:
        x: (N, C, H, W), of float32 or float64.
        weight: From :func:`winograd_weight`, (36, C, K).
        bias: (K,) or None.
        relu: Clamp the output at zero.

    Returns:
        (N, K, H, W) in channels_last.
    """
    (count, channels, height, width), outputs = x.shape, weight.shape[2]
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    image = x.permute(0, 2, 3, 1)
    out = x.new_empty(count, height, width, outputs)
    tiles = max(1, _CACHE // (36 * channels))
    step = max(1, min(rows, tiles // columns))  # rows of tiles at a time
    images = max(1, tiles // (rows * columns))
    forward, inverse = (matrix.to(x) for matrix in _transforms())
    products = x.new_empty(37, min(images, count) * step * columns, outputs)
    products[36] = 0 if bias is None else bias
    for first in range(0, count, images):
        for top in range(0, rows, step):
            part = image[first : first + images]
            square = _tiles(part, top, min(step, rows - top), columns)  # (n, r, c, 6, 6, C)
            shape = square.shape[:3]
            square = square.reshape(-1, 36, channels)
            product = products[:, : len(square)]
            spectrum = torch.bmm(forward.expand(len(square), 36, 36), square)
            torch.bmm(spectrum.transpose(0, 1), weight, out=product[:36])
            square = inverse @ product.reshape(37, -1)
            square = square.view(SIDE, SIDE, *shape, outputs).permute(2, 3, 0, 4, 1, 5)
            _write(square, out[first : first + images, SIDE * top :], relu)
    return out.permute(0, 3, 1, 2)


def _tiles(image: Tensor, top: int, rows: int, columns: int) -> Tensor:
    """Overlapping tiles of (N, H, W, C), zeros beyond its edges: (N, rows, columns, 6, 6, C)."""
    height, width = image.shape[1:3]
    start, stop = SIDE * top - 1, SIDE * (top + rows) + 1
    right = SIDE * columns + 1 - width
    strip = image[:, max(start, 0) : min(stop, height)]
    strip = F.pad(strip, (0, 0, 1, right, max(-start, 0), max(stop - height, 0)))
    n, y, x, c = strip.stride()
    shape = (len(image), rows, columns, 6, 6, image.shape[3])
    return strip.as_strided(shape, (n, SIDE * y, SIDE * x, y, x, c))


def _write(tiles: Tensor, out: Tensor, relu: bool) -> None:
    """Puts (N, rows, 4, columns, 4, K) into (N, H, W, K); what is beyond its edges is left out."""
    images, rows, _, columns, _, outputs = tiles.shape
    out = out[:, : SIDE * rows]
    if out.shape[1:3] != (SIDE * rows, SIDE * columns):
        tiles = tiles.reshape(images, SIDE * rows, SIDE * columns, outputs)
        tiles = tiles[:, : out.shape[1], : out.shape[2]]
    elif images == 1:
        out = out[0].view(1, rows, SIDE, columns, SIDE, outputs)
    else:
        out = out.view(images, rows, SIDE, columns, SIDE, outputs)
    if relu:
        torch.clamp_min(tiles, 0, out=out)
    else:
        out.copy_(tiles)


@lru_cache(maxsize=1)
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """B^T (6, 6), G (6, 3) and A^T (4, 6) of Toom and Cook for a row, in float64."""
    points = torch.tensor(_POINTS, dtype=torch.float64)

    def powers(count: int) -> Tensor:
        infinity = torch.zeros(1, count, dtype=torch.float64)
        infinity[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(count), infinity])

    return torch.linalg.inv(powers(6)).T.contiguous(), powers(3), powers(4).T.contiguous()


@lru_cache(maxsize=1)
def _transforms() -> tuple[Tensor, Tensor]:
    """The transforms of a tile: (36, 36) of inputs, (16, 37) of products and, last, the bias."""
    rows, _, outputs = _matrices()
    inverse = torch.kron(outputs, outputs)
    return torch.kron(rows, rows), torch.cat([inverse, torch.ones(16, 1).double()], dim=1)
