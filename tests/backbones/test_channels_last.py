"""On a CPU networks compute in channels_last by themselves, and give what they are asked for."""

import pytest
import torch
from references import randomise

import res2net_mm

SMALL = dict(base_width=8)
CASES = {
    'Res2Net': lambda: res2net_mm.Res2Net(depth=14, base_channels=16, **SMALL),
    'Res2NetDCN': lambda: res2net_mm.Res2NetDCN(depth=14, base_channels=16, **SMALL),
    'Res2NetDLA': lambda: res2net_mm.Res2NetDLA(base_channels=16, **SMALL),
}


@pytest.fixture(params=CASES)
def net(request):
    return randomise(CASES[request.param]()).eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 65, 48, generator=torch.Generator().manual_seed(0))


def form_inside(net, image):
    """Whether the first stage is given channels_last, and the levels."""
    found = []
    stage = getattr(net, net.stage_names[0])
    hook = stage.register_forward_pre_hook(lambda module, args: found.append(args[0].stride(1)))
    levels = net(image)
    hook.remove()
    return found == [1], levels


def test_without_gradients(net, image):
    turned, expected = form_inside(net, image)
    assert not turned
    with torch.no_grad():
        turned, levels = form_inside(net, image)
    assert turned and all(level.is_contiguous() for level in levels)
    for level, reference in zip(levels, expected, strict=True):
        assert (level - reference).abs().max() < 1e-5 * reference.abs().max()


@pytest.mark.parametrize('what', ['image', 'weights'])
def test_channels_last_that_is_asked_for(net, image, what):
    last = torch.channels_last
    if what == 'image':
        image = image.contiguous(memory_format=last)
    else:
        net.to(memory_format=last)
    with torch.no_grad():
        turned, levels = form_inside(net, image)
    assert turned and all(level.is_contiguous(memory_format=last) for level in levels)
    assert not any(level.is_contiguous() for level in levels)


def test_graphs_are_of_the_network_alone(net, image):
    with torch.no_grad():
        traced = torch.jit.trace(net, image)
        assert all(level.is_contiguous() for level in traced(image))
    forms = [
        node
        for node in traced.inlined_graph.nodes()
        if node.kind() == 'aten::contiguous' and node.inputsAt(1).toIValue() == 2  # channels_last
    ]
    assert not forms


def test_gray_images_have_the_form_that_weights_ask_for():
    net = randomise(res2net_mm.Res2Net(depth=14, base_channels=16, in_channels=1, **SMALL)).eval()
    image = torch.rand(2, 1, 65, 48, generator=torch.Generator().manual_seed(0))
    expected = net(image)
    for form in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=form)
        with torch.no_grad():
            levels = net(image)
        for level, reference in zip(levels, expected, strict=True):
            assert level.is_contiguous(memory_format=form)
            assert (level - reference).abs().max() < 1e-5 * reference.abs().max()


def test_weights_whose_form_cannot_be_told(image):
    net = randomise(res2net_mm.Res2Net(depth=14, base_channels=16, **SMALL)).eval()
    net.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU())
    net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        levels = net(image)
    assert net.stem[0].weight.is_contiguous() and not any(x.is_contiguous() for x in levels)


def test_without_weights_of_its_own(net, image):
    """As in a replica of nn.DataParallel, or where a wrapper holds the weights."""
    with torch.no_grad():
        expected = net(image)
        for module in net.modules():
            for name, value in list(module._parameters.items()):
                module._parameters.pop(name)
                setattr(module, name, None if value is None else value.detach())
        assert not list(net.parameters())
        for level, reference in zip(net(image), expected, strict=True):
            assert (level - reference).abs().max() < 1e-5 * reference.abs().max()
