"""The stem as a level, and PoolNet's backbone, which needs it."""

from collections import OrderedDict

import pytest
import torch
from references import randomise, relative_error
from torch.nn import functional as F

from res2net_mm import Res2Net, Res2NetDCN, create_backbone
from res2net_mm.weights import convert_state_dict, load_weights

SMALL = dict(depth=14, base_width=8, base_channels=16, stem_channels=24)
POOLNET = dict(
    deep_stem=False,
    avg_down=False,
    strides=(1, 2, 2, 1),
    dilations=(1, 1, 1, 2),
    with_stem=True,
    ceil_mode=True,
)


def image(height, width, seed=1):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('network', [Res2Net, Res2NetDCN])
@pytest.mark.parametrize('deep_stem', [True, False])
def test_other_levels_stay_the_same(network, deep_stem):
    args = dict(SMALL, deep_stem=deep_stem)
    plain, net = (network(**args, with_stem=stem).eval() for stem in (False, True))
    net.load_state_dict(randomise(plain).state_dict())
    stem, *others = net(image(70, 61))
    for ours, theirs in zip(others, plain(image(70, 61)), strict=True):
        assert torch.equal(ours, theirs)
    assert (net.out_channels, net.out_strides) == ((24, 64, 128, 256, 512), (2, 4, 8, 16, 32))
    assert (plain.out_channels, plain.out_strides) == ((64, 128, 256, 512), (4, 8, 16, 32))
    if deep_stem:
        expected = net.stem(image(70, 61))
    else:
        expected = F.relu(net.bn1(net.conv1(image(70, 61))))
    assert relative_error(stem, expected) < 1e-6
    assert stem.shape == (2, 24, 35, 31)


def test_chosen_levels_and_gradients():
    net = create_backbone('res2net14_v1b_26w_4s', with_stem=True, out_indices=(1,))
    assert (net.out_channels, net.out_strides) == ((64, 512), (2, 8))
    stem, c3 = net(image(64, 64))
    assert (stem.shape, c3.shape) == ((2, 64, 32, 32), (2, 512, 8, 8))
    stem.square().mean().backward()
    touched = {name.split('.')[0] for name, p in net.named_parameters() if p.grad is not None}
    assert touched == {'stem'}
    frozen = Res2Net(**SMALL, with_stem=True, frozen_stages=0).train()
    assert not frozen(image(64, 64))[0].requires_grad


@pytest.mark.parametrize('side, up, down', [(64, 17, 16), (65, 17, 17), (66, 17, 17), (67, 18, 17)])
def test_rounding_up(side, up, down):
    """The stem has 32, 33, 33 and 34 rows."""
    nets = [Res2Net(**SMALL, out_indices=(0,), ceil_mode=ceil).eval() for ceil in (True, False)]
    assert [net(image(side, side))[0].shape[2] for net in nets] == [up, down]


def poolnet_levels(weights, x):
    """The five levels of PoolNet's Res2Net-50, written from its description with functions only.

    Max pool that rounds up; C5 at stride 1 with dilation 2 in all its blocks; the last group of
    a first block is pooled with the stride, at stride 1 too.
    """

    def conv_norm(x, conv, norm, stride=1, dilation=1):
        kernel = weights[f'{conv}.weight']
        padding = kernel.shape[-1] // 2 * dilation
        x = F.conv2d(x, kernel, None, stride, padding, dilation)
        mean, variance, scale, shift = (
            weights[f'{norm}.{leaf}'][:, None, None]
            for leaf in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(x, name, first, stride, dilation):
        *groups, last = conv_norm(x, f'{name}.conv1', f'{name}.bn1').relu().chunk(4, 1)
        outs = []
        for i, group in enumerate(groups):
            y = group if first or not outs else group + outs[-1]
            y = conv_norm(y, f'{name}.convs.{i}', f'{name}.bns.{i}', stride, dilation)
            outs.append(y.relu())
        outs.append(F.avg_pool2d(last, 3, stride, 1) if first else last)
        y = conv_norm(torch.cat(outs, 1), f'{name}.conv3', f'{name}.bn3')
        if first:
            x = conv_norm(x, f'{name}.downsample.0', f'{name}.downsample.1', stride)
        return (y + x).relu()

    x = conv_norm(x, 'conv1', 'bn1', 2).relu()
    levels = [x]
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        stride, dilation = (1, 2, 2, 1)[stage], (1, 1, 1, 2)[stage]
        for i in range(blocks):
            x = block(x, f'layer{stage + 1}.{i}', i == 0, stride if i == 0 else 1, dilation)
        levels.append(x)
    return levels


@pytest.mark.parametrize('size', [(64, 96), (75, 58)])
def test_poolnet(size):
    """A file of the whole network loads, and gives the features of the authors' arrangement."""
    source = randomise(Res2Net(deep_stem=False, avg_down=False)).double()
    whole = OrderedDict((f'base.resnet.{k}', v) for k, v in source.state_dict().items())
    whole['base.resnet.fc.weight'] = torch.zeros(1000, 2048)
    whole['base.resnet.fc.bias'] = torch.zeros(1000)
    whole['base.ppms_pre.weight'] = whole['convert.convert0.0.0.weight'] = torch.zeros(8, 8, 1, 1)
    whole['score.score.bias'] = torch.zeros(1)
    state, layout = convert_state_dict(whole)
    assert layout == 'official' and state.keys() == source.state_dict().keys()
    net = Res2Net(**POOLNET).double()
    report = load_weights(net, whole)
    assert report.first_block == 'official' and not report.missing and not report.note
    dropped = {name for names in report.dropped.values() for name in names}
    assert dropped == {k for k in whole if k.removeprefix('base.resnet.') not in state}
    assert net.out_channels == (64, 256, 512, 1024, 2048)
    assert net.out_strides == (2, 4, 8, 16, 16)
    x = image(*size).double()
    with torch.no_grad():
        levels = net.eval()(x)
        for ours, theirs in zip(levels, poolnet_levels(source.state_dict(), x), strict=True):
            assert ours.shape == theirs.shape
            assert relative_error(ours, theirs) < 1e-12
