"""Deformable convolution as others see it: traced in half precision, exported, measured."""

import argparse

import pytest
import torch
from references import randomise, relative_error

from res2net_mm.ops import ModulatedDeformConv2d, bench_deform_conv


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


def test_benchmark_compares_equal_results(monkeypatch, capsys):
    monkeypatch.setattr(bench_deform_conv, 'SHAPES', {'C3': (4, 8), 'C4': (6, 4)})
    monkeypatch.setattr(bench_deform_conv, '_memory', lambda *args: '7')
    args = argparse.Namespace(batch=1, device='cpu', rounds=1, threads=None, channels_last=True)
    bench_deform_conv._compare('torchvision', args)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith('C')]
    assert [row[0] for row in rows] == ['C3', 'C3', 'C4', 'C4']
    assert all(float(row[-4]) > 0 and float(row[-1]) < 1e-5 for row in rows)


def test_peak_memory_is_that_of_the_call():
    args = argparse.Namespace(batch=2, device='cpu', rounds=1, threads=None, channels_last=False)
    peak = bench_deform_conv._memory('torch', 'forward', args, (64, 64))
    assert peak == '-' or 2 <= int(peak) < 64  # MiB: its output at least


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--rounds 0', '--rounds must be at least 1'),
        ('--device nowhere', '--device nowhere cannot'),
    ],
)
def test_benchmark_errors(options, message, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['bench_deform_conv', *options.split()])
    with pytest.raises(SystemExit) as stopped:
        bench_deform_conv.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
