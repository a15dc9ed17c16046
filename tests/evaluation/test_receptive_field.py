"""Effective receptive fields, against numbers computed by hand and torchvision's ResNet-50."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from res2net_mm.evaluation.receptive_field import (
    effective_fields,
    fields_by_level,
    format_fields,
    luo_side,
    random_fields,
    random_network,
    square_side,
)


class Levels(nn.Module):
    """A chain of layers; the outputs of the last ``count`` of them are the levels."""

    def __init__(self, *layers, count=1):
        super().__init__()
        self.layers, self.count = nn.ModuleList(layers), count

    def forward(self, x):
        outs = []
        for layer in self.layers:
            x = layer(x)
            outs.append(x)
        return tuple(outs[-self.count :])


def uniform_conv(channels=1, **options):
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **options)
    nn.init.constant_(conv.weight, 1 / 9)
    return conv


def test_uniform_convolutions_have_trinomial_profiles():
    net = Levels(*(uniform_conv() for _ in range(3)), count=2)
    two, three = effective_fields(net, [torch.rand(1, 1, 11, 11)])
    for field, profile in ((two, [1, 2, 3, 2, 1]), (three, [1, 3, 6, 7, 6, 3, 1])):
        expected = np.zeros(11)
        middle = 5 - len(profile) // 2
        expected[middle : middle + len(profile)] = np.array(profile) / sum(profile)
        np.testing.assert_allclose(field, np.outer(expected, expected), atol=1e-6)
    # shares of three: (7/27)^2 = 0.07 in 1 px, (19/27)^2 = 0.50 in 3, (25/27)^2 = 0.86 in 5
    assert square_side(three) == 7
    assert square_side(three, 0.85) == 5 and square_side(three, 0.86) == 7
    # 4.55 % of 7 * 7 is 2.2: only the corners, 1 * 1, are below
    assert luo_side(three) == pytest.approx(45**0.5)


def test_stride_widens_a_field():
    plain, strided = (
        Levels(uniform_conv(), uniform_conv()),
        Levels(uniform_conv(stride=2), uniform_conv()),
    )
    (narrow,), (wide,) = (
        effective_fields(net, [torch.rand(1, 1, 17, 17)]) for net in (plain, strided)
    )
    assert (square_side(narrow, 1), square_side(wide, 1)) == (5, 7)
    # 1 1 1 at steps of 2, each spread over 1 1 1: 1 1 2 1 2 1 1
    row = wide[8, 5:12] / wide[8, 5]
    assert row.tolist() == pytest.approx([1, 1, 2, 1, 2, 1, 1])


def test_signs_of_images_do_not_cancel():
    """Each image has gradients 2 * middle there and 1 beside it: (2, 1), then (-4, 1)."""

    class Net(nn.Module):
        def forward(self, x):
            return (x**2 + x.roll(-1, 3),)

    images = [torch.full((1, 1, 3, 3), value) for value in (1.0, -2.0)]
    (field,) = effective_fields(Net(), images)
    assert field[1].tolist() == pytest.approx([0, 0.75, 0.25])


def test_channels_are_summed_before_the_gradient_and_after():
    conv = nn.Conv2d(2, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[3.0, 1.0], [-1.0, -2.0]])[:, :, None, None]
    x = torch.rand(1, 2, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(conv(x).sum(), x)
    assert gradient.flatten().tolist() == [2, -1]  # columns summed
    (field,) = effective_fields(Levels(conv, uniform_conv(2)), [torch.rand(1, 2, 5, 5)])
    assert field.sum() == pytest.approx(1)
    assert field[1:4, 1:4].flatten().tolist() == pytest.approx([1 / 9] * 9)


@pytest.mark.parametrize('side', [64, 65])
def test_middle_unit(side):
    net = Levels(uniform_conv(stride=2), uniform_conv(stride=2))
    if side == 65:
        assert effective_fields(net, [torch.rand(1, 1, side, side)])[0][32, 32] > 0
    else:
        with pytest.raises(ValueError, match='odd sides.*64 x 64 px give one of 16 x 16'):
            effective_fields(net, [torch.rand(1, 1, side, side)])


def test_no_influence_is_an_error():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.zeros_(conv.weight)
    with pytest.raises(ValueError, match='influence'):
        effective_fields(Levels(conv), [torch.rand(1, 1, 5, 5)])


def test_resnet50_is_torchvisions():
    """The same weights give the same features and fields in float64."""
    torch.manual_seed(0)
    ours = random_network('resnet50').double().eval()
    theirs = torchvision.models.resnet50(weights=None).double().eval()
    names = {'convs.0': 'conv2', 'bns.0': 'bn2'}
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert missing == ['fc.weight', 'fc.bias'] and not unexpected

    names = ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4')
    stages = Levels(*map(theirs.get_submodule, names))
    images = [torch.randn(1, 3, 65, 65, dtype=torch.float64)]
    (field,), (expected,) = (
        effective_fields(net, images) for net in (lambda x: ours(x)[-1:], stages)
    )
    torch.testing.assert_close(field, expected, rtol=1e-9, atol=1e-12)


def test_every_block_of_a_random_network_counts():
    net = random_network('res2net26_v1b_26w_4s')
    assert all(block.norm3.weight.abs().min() > 0 for block in net.layer3)
    with pytest.raises(ValueError, match='did you mean'):
        random_network('res2net50_14w_8')


def test_levels_of_others_backbones():
    from mmdet.models import MobileNetV2, ResNet  # their train() returns None

    image = torch.randn(1, 3, 65, 65)
    assert [*fields_by_level(ResNet(18, num_stages=2, strides=(1, 2), dilations=(1, 1),
                                    out_indices=(0, 1)), [image])] == ['C2', 'C3']  # fmt: skip
    names = [*fields_by_level(MobileNetV2(out_indices=(1, 2)), [image])]
    assert names == ['level 0', 'level 1']


def test_statistics_come_from_the_images(monkeypatch):
    """So scaled images have the same fields."""
    state = torch.get_rng_state()
    fields, again = (random_fields('res2net14_v1b_26w_4s', 2, 65) for _ in range(2))
    assert all(torch.equal(field, again[level]) for level, field in fields.items())
    assert torch.equal(torch.get_rng_state(), state)
    randn = torch.randn
    monkeypatch.setattr(torch, 'randn', lambda *shape: 7 * randn(*shape))
    scaled = random_fields('res2net14_v1b_26w_4s', 2, 65)
    assert list(fields) == ['C2', 'C3', 'C4', 'C5']
    for level, field in fields.items():
        assert square_side(field) == square_side(scaled[level])
        assert (field - scaled[level]).abs().sum() < 0.01, 'of a sum of 1'
    lines = format_fields({'small': fields}).splitlines()
    assert len(lines) == 5 and lines[1].split()[:3] == [
        'small',
        'C2',
        str(square_side(fields['C2'])),
    ]
