"""Deformable convolution as it is called: modes, ways, errors; and its layers against mmcv's."""

import copy
import math
import pickle
import random
from pathlib import Path

import mmcv.ops  # noqa: E402
import pytest
import torch
import torch.nn.functional as F
import torchvision
from references import randomise
from test_deform_conv import CASES, NAMES, call, check, make, results, setting, torchvisions
from torch import nn
from torch.utils.checkpoint import checkpoint

from res2net_mm.ops import (
    DeformConv2d,
    ModulatedDeformConv2d,
    deform_conv,
    deform_conv2d,
)
from res2net_mm.ops.sampling import grid_sample_and_multiply

ROOT = Path(__file__).parents[2]
LAYERS = {  # ours and mmcv's, numbers a tap
    'v1': (DeformConv2d, mmcv.ops.DeformConv2dPack, 2),
    'v2': (ModulatedDeformConv2d, mmcv.ops.ModulatedDeformConv2dPack, 3),
}


@pytest.mark.parametrize('batch, size, groups', [(1, 7, 1), (3, 1, 2)])
@pytest.mark.parametrize('way', ['torch', 'torchvision'])
def test_offsets_that_are_nan_do_not_crash(monkeypatch, way, batch, size, groups):
    """torchvision's kernel would read memory far from the image."""
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    x = torch.rand(batch, 4, size, size, requires_grad=True)
    offset = torch.zeros(batch, 18 * groups, size, size)
    offset[0, 3, 0, 0] = offset[-1, -2:, -1, -1] = math.nan
    weight = torch.ones(2, 4 // groups, 3, 3, requires_grad=True)
    out = deform_conv2d(x, offset.requires_grad_(), weight, None, 1, 1)
    out.sum().backward()
    bad = out.isnan().any(1)
    assert (bad.sum(), bad[0, 0, 0]) == ((2, True) if way == 'torch' else (0, False))
    assert x.grad.shape == x.shape


@pytest.mark.parametrize('way', ['torch', 'torchvision'])
def test_nan_is_no_sample_far_from_the_image_too(monkeypatch, way):
    """Wherever the tap was: with much padding it is far from the image by itself."""
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    offset = torch.full((1, 2, 41, 41), math.nan)
    out = deform_conv2d(torch.ones(1, 1, 1, 1), offset, torch.ones(1, 1, 1, 1), padding=20)
    assert out.isnan().all() if way == 'torch' else not out.any()


@pytest.mark.parametrize('name', NAMES)
def test_gradient_of_one_alone(name):
    tensors, places = make(padding=(1, 1), groups=2)
    expected = results(deform_conv2d, tensors, places)
    alone = {k: v.detach().requires_grad_(k == name) for k, v in tensors.items()}
    found = results(deform_conv2d, alone, places)
    assert found.keys() == {'out', name}
    check(found, {k: expected[k] for k in found}, 1e-14)


def test_modes_of_autograd():
    tensors, places = make(padding=(1, 1))
    values = list(tensors.values())
    expected = results(deform_conv2d, tensors, places)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = call(deform_conv2d, tensors, places)
        assert not out.requires_grad and out.equal(expected['out'])
    out = call(deform_conv2d, tensors, places)
    grad = torch.cos(torch.arange(out.numel())).view(out.shape).double()
    for _ in range(2):
        grads = torch.autograd.grad(out, values, grad, retain_graph=True)
        assert all(g.equal(expected[name]) for name, g in zip(tensors, grads, strict=True))

    def compute(*values):
        return call(deform_conv2d, dict(zip(tensors, values, strict=True)), places)

    out = checkpoint(compute, *values, use_reentrant=False)
    grads = torch.autograd.grad(out, values, grad)
    assert all(g.equal(expected[name]) for name, g in zip(tensors, grads, strict=True))


def random_of(*shape):
    return torch.rand(shape)


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(input=random_of(4, 5, 4)), r'input must have 4 dimensions.*\(4, 5, 4\)'),
        (dict(offset=random_of(18)), r'offset must have 4 dimensions.*\(18,\)'),
        (dict(weight=random_of(2, 4, 3)), r'weight must have 4 dimensions.*\(2, 4, 3\)'),
        (dict(weight=random_of(2, 3, 3, 3)), r'weight must .* 4 channels .*\(2, 3, 3, 3\)'),
        (dict(weight=random_of(2, 8, 3, 3)), r'weight must .* 4 channels .*\(2, 8, 3, 3\)'),
        (dict(weight=random_of(3, 2, 3, 3)), r'weight must .* divide .*\(3, 2, 3, 3\)'),
        (dict(weight=random_of(2, 4, 6, 3)), r'offset .*\(2, 36, 0, 2\).*\(2, 18, 3, 2\)'),
        (dict(dilation=3), r'offset .*\(2, 18, -1, -2\)'),
        (dict(input=random_of(2, 4, 5, 0)), r'offset .*\(2, 18, 3, -2\)'),
        (dict(offset=random_of(2, 18, 3, 3)), r'offset .*\(2, 18, 3, 2\).*\(2, 18, 3, 3\)'),
        (dict(offset=random_of(1, 18, 3, 2)), r'offset .*\(2, .*18, 3, 2\).*\(1, 18, 3, 2\)'),
        (dict(offset=random_of(2, 20, 3, 2)), r'offset .*\(2, .*18, 3, 2\).*\(2, 20, 3, 2\)'),
        (dict(offset=random_of(2, 9, 3, 2)), r'offset .*\(2, 9, 3, 2\)'),
        (dict(offset=random_of(2, 54, 3, 2)), r'deform_groups .*divide the 4.* 3'),
        (dict(mask=random_of(2, 18, 3, 2)), r'mask .*\(2, 9, 3, 2\).*\(2, 18, 3, 2\)'),
        (dict(mask=random_of(2, 9, 1, 1)), r'mask .*\(2, 9, 3, 2\).*\(2, 9, 1, 1\)'),
        (dict(bias=random_of(4)), r'bias .*\(2,\).*\(4,\)'),
    ],
    ids=lambda value: (
        str({k: getattr(v, 'shape', v) for k, v in value.items()})
        if isinstance(value, dict)
        else ''
    ),
)
def test_shapes_that_do_not_fit_are_named(change, words):
    tensors, places = make(dtype=torch.float32)
    with pytest.raises(ValueError, match=words) as raised:
        deform_conv2d(**{**tensors, **places, **change})
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('without', [(), ('mask', 'bias')])
def test_every_way_gives_the_same(monkeypatch, without):
    tensors, places = make(
        dtype=torch.float32, groups=2, deform_groups=2, stride=(1, 2), padding=(2, 1),
        dilation=(2, 1), without=without,
    )  # fmt: skip
    expected = results(deform_conv2d, tensors, places)
    used = []

    def spied(function):
        return lambda *args, **given: used.append(function) or function(*args, **given)

    compute = torchvision.ops.deform_conv2d, deform_conv.sample_and_multiply
    monkeypatch.setattr(torchvision.ops, 'deform_conv2d', spied(compute[0]))
    monkeypatch.setattr(deform_conv, 'sample_and_multiply', spied(compute[1]))
    for way in ('torchvision', 'torch'):
        monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
        check(results(deform_conv2d, tensors, places), expected, 1e-6)
    assert tuple(used) == compute
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', 'cuda')
    with pytest.raises(ValueError, match="RES2NET_MM_DEFORM_CONV must be .*, but got 'cuda'"):
        call(deform_conv2d, tensors, places)


@pytest.mark.parametrize('offsets', ['zero', 'integer', 'fractional', 'huge'])
def test_form_that_exports(offsets):
    rng = random.Random(offsets)
    settings = [setting(rng, offsets, torch.float32) for _ in range(20)]
    settings += [make(**c, offsets=offsets, dtype=torch.float32) for c in CASES.values()]
    ones = [dict(size=(1, 1)), dict(size=(1, 4)), dict(size=(5, 1), deform_groups=2)]
    settings += [make(**c, padding=(1, 1), offsets=offsets, dtype=torch.float32) for c in ones]

    def exported(stride, padding, dilation, **given):
        tensors = (given[name] for name in NAMES)
        return grid_sample_and_multiply(*tensors, stride, padding, dilation)

    for tensors, places in settings:
        with torch.no_grad():
            found = call(exported, tensors, places)
            expected = call(torchvisions, tensors, places)
        check(dict(out=found), dict(out=expected), 1e-5)


def image_of(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def deformed(layer, scale=0.3, seed=0):
    """Random weights, offsets of about ``scale`` pixels."""
    randomise(layer, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data.normal_(0, scale, generator=generator)
    return layer


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize(
    'args',
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, stride=2, padding=2, dilation=2, groups=2, deform_groups=2),
        dict(kernel_size=(1, 3), padding=(0, 1), deform_groups=4),
    ],
    ids=str,
)
def test_layer_is_mmcvs(kind, args):
    ours, theirs, numbers = LAYERS[kind]
    torch.manual_seed(0)
    ours = ours(8, 4, **args, bias=False)
    torch.manual_seed(0)
    theirs = theirs(8, 4, **args, bias=False)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    taps = math.prod(ours.kernel_size)
    assert shapes[0]['conv_offset.bias'] == (numbers * taps * args.get('deform_groups', 1),)
    assert not any(p.any() for p in ours.conv_offset.parameters())
    # the first bound and the last are alike: both draw uniformly, with the same bounds
    bounds = [m.weight.abs().max().item() for m in (ours, theirs)]
    assert bounds[0] == pytest.approx(bounds[1], rel=0.1)
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.15)

    theirs.load_state_dict(deformed(ours).state_dict(), strict=True)
    x = image_of(2, 8, 9, 7).requires_grad_()
    grads = {}
    for name, layer in dict(out=ours, other=theirs).items():
        out = layer(x)
        values = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        grads[name] = dict(zip(('x', *dict(layer.named_parameters())), values, strict=True))
        grads[name]['out'] = out.detach()
    check(grads['out'], grads['other'], 1e-5)


def test_defaults_and_biases_are_mmcvs():
    assert LAYERS['v1'][0](4, 4, 3).bias is None and LAYERS['v1'][1](4, 4, 3, bias=False)
    ours, theirs = (layer(4, 6, 3) for layer in LAYERS['v2'][:2])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))
    assert not ours.bias.any() and not theirs.bias.any()
    x = image_of(1, 4, 6, 6)
    theirs.load_state_dict(deformed(ours).state_dict())
    check(dict(out=ours(x)), dict(out=theirs(x)), 1e-5)


@pytest.mark.parametrize('kind, factor', [('v1', 1.0), ('v2', 0.5)])
def test_fresh_layer_is_a_convolution(kind, factor):
    x = image_of(2, 8, 9, 7)
    places = dict(stride=2, padding=(2, 1), dilation=(2, 1))
    for groups in (1, 2):
        layer = LAYERS[kind][0](8, 6, 3, **places, groups=groups, deform_groups=2, bias=False)
        expected = factor * F.conv2d(x, layer.weight, None, **places, groups=groups)
        check(dict(out=layer(x)), dict(out=expected), 1e-6)


def test_order_of_offsets_by_hand():
    """Each tap's y and x, then the logits of the masks; tap 5 is right of the centre."""
    layer = ModulatedDeformConv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        layer.conv_offset.bias[2 * 5] = 1.0
        layer.conv_offset.bias[2 * 5 + 1] = -2.0
        layer.conv_offset.bias[18 + 3] = math.log(3)  # a mask of 3 / 4
        x = torch.arange(25.0).view(1, 1, 5, 5)
        # the 3x3 pixels around 12 are 6 7 8, 11 12 13, 16 17 18; tap 5 moves from 13 to 16
        plain = sum(k * v for k, v in enumerate([6, 7, 8, 11, 12, 16, 16, 17, 18]))
        assert layer(x)[0, 0, 2, 2].item() == pytest.approx(plain / 2 + 3 * 11 / 4, abs=1e-4)


@pytest.mark.parametrize('kind', LAYERS)
def test_copies(kind):
    layer = deformed(LAYERS[kind][0](4, 4, (3, 1), 2, (1, 0), groups=2, deform_groups=2, bias=True))
    x = image_of(1, 4, 6, 6)
    other = LAYERS[kind][0](4, 4, (3, 1), 2, (1, 0), groups=2, deform_groups=2, bias=True)
    assert not other(x).equal(layer(x))
    other.load_state_dict(layer.state_dict(), strict=True)
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same(x).equal(layer(x))
    layer.reset_parameters()
    assert not any(p.any() for p in layer.conv_offset.parameters())


@pytest.mark.parametrize(
    'layer, way',
    [(ModulatedDeformConv2d, way) for way in ('torch', 'torchvision', 'traced')]
    + [(mmcv.ops.ModulatedDeformConv2dPack, None)],
)
def test_fresh_layer_has_the_gradients_of_mmcvs_operator(monkeypatch, layer, way):
    """Figures of mmcv's tests: taps on the line around the image give offsets no gradient."""
    if way in ('torch', 'torchvision'):
        monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    x = torch.tensor([1.0, 2, 3]).expand(1, 1, 3, 3).clone().requires_grad_()
    layer = layer(1, 1, 2, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    out = torch.jit.trace(layer, x)(x) if way == 'traced' else layer(x)
    out.sum().backward()
    assert out[0, 0, 1].tolist() == pytest.approx([1, 3, 5, 3])
    assert x.grad.flatten().tolist() == pytest.approx([2] * 9)
    assert layer.weight.grad.flatten().tolist() == pytest.approx([9] * 4)
    of_bias = layer.conv_offset.bias.grad
    assert of_bias.tolist() == pytest.approx([-3, -1.5] * 4 + [4.5] * 4, abs=1e-5)
    of_weight = layer.conv_offset.weight.grad[:2].flatten()
    assert of_weight.tolist() == pytest.approx([-7, -4, 0, 0, -9, 7.5, -6, 5], abs=1e-5)


def test_what_a_layer_shows():
    shown = '4, 6, kernel_size=(3, 1), stride=(2, 2), padding=(1, 0), dilation=(1, 1), groups=2, '
    layer = DeformConv2d(4, 6, (3, 1), 2, (1, 0), groups=2, deform_groups=4)
    assert layer.extra_repr() == shown + 'deform_groups=4, bias=False'
    assert repr(ModulatedDeformConv2d(4, 4, 3)).startswith('ModulatedDeformConv2d(\n  4, 4, kernel')


@pytest.mark.parametrize(
    'way, backend',
    [
        ('torch', 'aot_eager'),
        ('torchvision', 'aot_eager'),
        pytest.param('torch', 'inductor', marks=pytest.mark.slow),
    ],
)
def test_compiled_layer(monkeypatch, way, backend):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    layer = deformed(ModulatedDeformConv2d(4, 6, 3, padding=1)).double()
    compiled = torch.compile(copy.deepcopy(layer), backend=backend)
    x = image_of(2, 4, 7, 6, dtype=torch.float64)
    found = []
    for net in (layer, compiled):
        out = net(x)
        out.square().sum().backward()
        grads = {k.removeprefix('_orig_mod.'): p.grad for k, p in net.named_parameters()}
        found.append(dict(out=out.detach(), **grads))
    check(*found, 1e-12)


def test_layer_in_autocast():
    """Offsets come from a bfloat16 convolution; what leaves has the type of what came in."""
    layer = deformed(ModulatedDeformConv2d(4, 6, 3, padding=1, bias=False))
    for dtype in (torch.float32, torch.bfloat16):
        x = image_of(2, 4, 7, 6).to(dtype).requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(x)
            offset, logit = layer.conv_offset(x).split((18, 9), 1)
            out.float().square().sum().backward()
        assert out.dtype == dtype and offset.dtype == torch.bfloat16
        mask = logit.sigmoid()
        values = [v.detach().double() for v in (x, offset, layer.weight)]
        expected = torchvisions(*values, None, (1, 1), (1, 1), (1, 1), mask.detach().double())
        check(dict(out=out.double()), dict(out=expected), 1e-5 if dtype == torch.float32 else 8e-3)
        assert x.grad.dtype == dtype and x.grad.isfinite().all() and x.grad.any()
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_layer_trains_on_parts():
    """Frozen weights and learned offsets, as when a plain network's weights are kept."""
    layer = deformed(DeformConv2d(4, 4, 3, padding=1))
    layer.weight.requires_grad_(False)
    reference = copy.deepcopy(layer).requires_grad_()
    for net in (layer, reference):
        nn.functional.relu(net(image_of(1, 4, 5, 5))).sum().backward()
    assert layer.weight.grad is None and reference.weight.grad is not None
    assert layer.conv_offset.weight.grad.equal(reference.conv_offset.weight.grad)
    assert layer.conv_offset.weight.grad.any()


@pytest.mark.parametrize('layer', [DeformConv2d, ModulatedDeformConv2d])
def test_traced_layer_takes_other_sizes(layer):
    layer = deformed(layer(4, 6, 3, stride=2, padding=1, groups=2, deform_groups=2)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, image_of(2, 4, 7, 6))
        for shape in ((2, 4, 7, 6), (3, 4, 12, 9), (1, 4, 1, 1)):
            x = image_of(*shape)
            check(dict(out=traced(x)), dict(out=layer(x)), 1e-5)


def test_without_data():
    """Shapes alone, as sizes and costs are worked out."""
    layer = ModulatedDeformConv2d(4, 6, 3, stride=2, padding=1).to('meta')
    out = layer(torch.empty(2, 4, 7, 6, device='meta'))
    assert out.shape == (2, 6, 4, 3) and out.is_meta
