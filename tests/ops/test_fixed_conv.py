"""Convolutions with fixed weights against float64 and ``Conv2d``."""

import copy
import pickle

import pytest
import torch
from references import relative_error
from torch import nn
from torch.nn.functional import conv2d

from res2net_mm.ops import fixed_conv, winograd
from res2net_mm.ops.fixed_conv import FixedConv2d
from res2net_mm.ops.winograd import winograd_conv2d, winograd_weight

needs_onednn = pytest.mark.skipif(
    not fixed_conv.onednn_computes(torch.float32), reason='PyTorch was built without oneDNN'
)
SHAPES = {  # images, channels in and out, height, width
    'whole tiles': (1, 5, 7, 8, 12),
    'edges': (1, 5, 7, 9, 11),
    'one tile': (3, 8, 8, 4, 4),
    'one pixel': (1, 4, 4, 1, 1),
    'one row': (2, 3, 2, 1, 17),
    'images together': (5, 96, 96, 16, 16),
    'images together with edges': (5, 96, 96, 15, 18),
    'in strips': (2, 256, 8, 64, 70),
    'one row of tiles at a time': (1, 6, 2, 9, 80000),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(out, reference):
    return ((out - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('case', SHAPES)
def test_winograd(case, relu):
    images, channels, outputs, height, width = SHAPES[case]
    x = normal(images, channels, height, width).to(memory_format=torch.channels_last)
    weight, bias = normal(outputs, channels, 3, 3, seed=1) / 3, normal(outputs, seed=2)
    reference = conv2d(x.double(), weight.double(), bias.double(), padding=1)
    reference = reference.relu() if relu else reference
    out = winograd_conv2d(x, winograd_weight(weight), bias, relu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    direct = error(
        conv2d(x, weight, bias, padding=1).relu_() if relu else conv2d(x, weight, bias, padding=1),
        reference,
    )
    assert error(out, reference) < max(3e-6, 4 * direct)
    exact = winograd_conv2d(x.double(), winograd_weight(weight.double()), bias.double(), relu)
    assert error(exact, reference) < 1e-13
    no_bias = winograd_conv2d(x.contiguous(), winograd_weight(weight), None)
    assert error(no_bias, conv2d(x.double(), weight.double(), padding=1)) < 3e-6


def test_winograd_is_exact_by_the_choice_of_its_points(monkeypatch):
    x, weight = normal(1, 256, 40, 40).relu(), normal(256, 256, 3, 3, seed=1) / 48
    reference = conv2d(x.double(), weight.double(), padding=1)

    def error():
        winograd._matrices.cache_clear()
        winograd._transforms.cache_clear()
        out = winograd_conv2d(x, winograd_weight(weight), None)
        return relative_error(out, reference)

    ours = error()
    monkeypatch.setattr(winograd, '_POINTS', (0.0, 1.0, -1.0, 2.0, -2.0))
    usual = error()
    monkeypatch.undo()
    assert error() == ours < 3e-6
    assert usual > 1.7 * ours


CONVS = {
    '1x1': dict(kernel_size=1),
    '3x3': dict(kernel_size=3, padding=1),
    'stride': dict(kernel_size=3, padding=1, stride=2),
    'dilation': dict(kernel_size=3, padding=2, dilation=2),
    'groups': dict(kernel_size=3, padding=1, groups=4),
    'no bias': dict(kernel_size=3, padding=1, bias=False),
    'reflected': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'same': dict(kernel_size=3, padding='same'),
}


@pytest.mark.parametrize('channels', [12, 96])
@pytest.mark.parametrize('kind', CONVS)
def test_equals_conv2d_with_sum_and_relu(kind, channels):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, **CONVS[kind])
    x = normal(2, channels, 17, 15)
    double = copy.deepcopy(conv).double()
    with torch.no_grad():
        reference = double(x.double())
        added = normal(*reference.shape, seed=3)
        assert error(FixedConv2d(conv)(x), reference) < 2e-6
        assert error(FixedConv2d(conv, relu=True)(x), reference.relu()) < 2e-6
        kept = added.clone()
        for relu in (False, True):
            both = reference + added
            both = both.relu() if relu else both
            assert error(FixedConv2d(conv, relu)(x, added), both) < 2e-6
            assert torch.equal(added, kept)
            assert error(FixedConv2d(conv, relu)(x, added.clone(), overwrite=True), both) < 2e-6


@needs_onednn
def test_images_of_changing_sizes(monkeypatch):
    packed = []
    ops = torch.ops.mkldnn
    pack = ops._reorder_convolution_weight
    monkeypatch.setattr(
        ops, '_reorder_convolution_weight', lambda *args: packed.append(1) or pack(*args)
    )
    conv = nn.Conv2d(8, 12, 3, padding=1)
    fixed = FixedConv2d(conv)
    with torch.no_grad():
        for side, count in ((7, 0), (9, 0), (9, 1), (9, 1), (7, 1), (9, 1), (9, 2)):
            x = normal(1, 8, side, 11)
            assert error(fixed(x), conv(x).double()) < 2e-6
            assert len(packed) == count


@needs_onednn
def test_ways(monkeypatch):
    called = []
    monkeypatch.setattr(
        fixed_conv, 'winograd_conv2d', lambda *args: called.append(1) or winograd_conv2d(*args)
    )
    with torch.no_grad():
        FixedConv2d(nn.Conv2d(96, 96, 3, padding=1))(normal(1, 96, 16, 16))
        assert called == [1]
        for args, shape in (
            ((95, 96, 3), (1, 95, 16, 16)),
            ((96, 96, 3), (1, 96, 8, 8)),
            ((96, 96, 3, 2), (1, 96, 32, 32)),
            ((96, 96, 1), (1, 96, 32, 32)),
        ):
            FixedConv2d(nn.Conv2d(*args, padding=args[2] // 2))(normal(*shape))
    assert called == [1]


def test_no_image_and_gradients():
    conv = nn.Conv2d(96, 96, 3, padding=1)
    fixed = FixedConv2d(conv, relu=True)
    assert fixed(torch.zeros(0, 96, 14, 14)).shape == (0, 96, 14, 14)
    x = normal(1, 96, 16, 16).requires_grad_()
    (given,) = torch.autograd.grad(fixed(x).sum(), x)
    (wanted,) = torch.autograd.grad(conv(x).relu().sum(), x)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize('channels', [12, 96])
def test_the_packed_weight_follows_the_weight(channels):
    x = normal(1, channels, 16, 16)
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    with torch.no_grad():
        fixed = FixedConv2d(first)
        before = [fixed(x) for _ in range(2)][1]
        assert torch.equal(copy.deepcopy(fixed)(x), before)
        assert torch.equal(pickle.loads(pickle.dumps(fixed))(x), before)
        fixed.load_state_dict(second.state_dict())
        assert error(fixed(x), second(x)) < 3e-6
        fixed.double()
        assert error(fixed(x.double()), copy.deepcopy(second).double()(x.double())) < 1e-13


def test_an_image_without_a_batch():
    conv = nn.Conv2d(96, 96, 3, padding=1)
    x = normal(96, 16, 16)
    with torch.no_grad():
        assert error(FixedConv2d(conv)(x), conv(x).double()) < 2e-6


@pytest.mark.parametrize('channels', [12, 96])
def test_weights_that_are_trained(channels):
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    given = torch.autograd.grad(FixedConv2d(conv)(normal(1, channels, 16, 16)).sum(), conv.weight)
    wanted = torch.autograd.grad(conv(normal(1, channels, 16, 16)).sum(), conv.weight)
    torch.testing.assert_close(given, wanted)
