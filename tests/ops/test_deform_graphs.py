"""Deformable convolution as others see it: traced in half precision and exported."""

import pytest
import torch
from references import randomise, relative_error

from res2net_mm.ops import ModulatedDeformConv2d


def wide_image():
    """Far to the right, positions need more digits than half precision has."""
    return torch.randn(1, 8, 20, 200, generator=torch.Generator().manual_seed(0))


def moved():
    layer = randomise(ModulatedDeformConv2d(8, 8, 3, padding=1)).eval()
    layer.conv_offset.weight.data.mul_(0.1)
    layer.conv_offset.bias.data[:18].uniform_(-2, 2, generator=torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_traced_layer_samples_in_float32(dtype):
    layer, x = moved().to(dtype), wide_image().to(dtype)
    traced = torch.jit.trace(layer, x)(x)
    assert traced.dtype == dtype
    assert relative_error(traced.float(), layer(x).float()) < (
        1e-5 if dtype.itemsize == 4 else 5e-3
    )


@torch.no_grad()
def test_layer_traced_under_autocast_samples_in_float32():
    layer, x = moved(), wide_image()
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        eager = layer(x)
        graph = torch.jit.trace(layer, x, check_trace=False)
    traced = graph(x)  # casts are part of the graph, the way out of autocast is not
    assert traced.dtype == eager.dtype == torch.float32
    assert relative_error(traced, eager) < 1e-4


@torch.no_grad()
def test_exported_program():
    layer, x = moved(), wide_image()
    program = torch.export.export(layer, (x,)).run_decompositions()
    assert relative_error(program.module()(x), layer(x)) < 1e-5
