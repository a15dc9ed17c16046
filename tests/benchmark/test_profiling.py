"""The profile by kind of operation."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from res2net_mm.benchmark.profiling import REST, _kind, least_profiles, profile_kinds


@pytest.mark.parametrize(
    ('names', 'kind'),
    [
        (['aten::mkldnn_convolution', 'aten::_convolution', 'aten::conv2d'], 'convolution'),
        (['mkldnn::_convolution_pointwise_'], 'convolution'),
        (['aten::bmm'], 'convolution'),
        (['aten::mm', '_Conv2dBackward', 'evaluate: _Conv2dBackward'], 'convolution, backward'),
        (['aten::convolution_backward', 'ConvolutionBackward0'], 'convolution, backward'),
        (['aten::mm', '_DeformConv'], 'deformable convolution'),
        (['torchvision::deform_conv2d'], 'deformable convolution'),
        (['aten::sort', '_DeformConvBackward'], 'deformable convolution, backward'),
        (
            ['torchvision::_deform_conv2d_backward', 'autograd::CppNode<vision::ops::X>'],
            'deformable convolution, backward',
        ),
        (['aten::addmm', 'aten::linear'], 'linear'),
        (['aten::mm', 'AddmmBackward0'], 'linear'),
        (['aten::native_batch_norm'], 'batch norm'),
        (['aten::clamp_min_', 'aten::relu_'], 'ReLU'),
        (['aten::threshold_backward', 'ReluBackward0'], 'ReLU'),
        (['aten::add_', 'Optimizer.step#SGD.step'], 'optimizer'),
        (['aten::add_'], 'sum, split and concatenation'),
        (['aten::cat', 'SplitBackward0'], 'sum, split and concatenation'),
        (['aten::max_pool2d_with_indices', 'aten::max_pool2d'], 'pooling'),
        (['aten::mul'], REST),
    ],
)
def test_kinds(names, kind):
    event = None
    for name in reversed(names):
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert _kind(event) == kind


def test_profile_of_a_step():
    net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    image = torch.rand(2, 8, 64, 64)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    calls = []

    def step():
        calls.append(None)
        net(image).square().sum().backward()
        sgd.step()

    found = least_profiles(dict(step=lambda: profile_kinds(step)), rounds=2)['step']
    assert len(calls) == 2
    assert min(found.values()) > 0
    kinds = {'optimizer', 'convolution, backward', 'convolution', 'batch norm', 'ReLU', REST}
    assert {*found} >= kinds
    assert found['convolution'] + found['convolution, backward'] > found['optimizer']
    assert least_profiles(dict(step=lambda: profile_kinds(step, 'cuda'))) is None


def test_profile_is_that_of_the_shortest_call():
    taken = iter([dict(a=3, b=1), dict(a=1, b=2), dict(a=9)])
    assert least_profiles(dict(x=lambda: next(taken)), rounds=3) == dict(x=dict(a=1, b=2))
