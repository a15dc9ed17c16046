"""Convolutions whose weight gradient is a matrix product."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from res2net_mm import create_backbone
from res2net_mm.deploy import optimize_for_inference
from res2net_mm.ops import trained_conv
from res2net_mm.ops.fixed_conv import FixedConv2d
from res2net_mm.ops.trained_conv import TrainedConv2d, train_convolutions, trained_conv2d

# kernel, stride, padding, dilation, channels in and out, size, batch, ways: products of pixels, or
# of columns in so many blocks, or of shifts
CASES = {
    '1x1': (1, 1, 0, 1, 40, 24, (13, 11), 3, 'pixels'),
    '1x1 over many pixels': (1, 1, 0, 1, 8, 5, (61, 67), 2, 'pixels'),
    '1x1 with a stride': (1, (2, 3), 0, 1, 40, 32, (14, 11), 2, 1),
    '3x3': (3, 1, 1, 1, 32, 40, (31, 37), 2, 2),
    '3x3 of one row a block': (3, 1, 1, 1, 32, 32, (3, 1900), 1, 3),
    '3x3 of several images a block': (3, 1, 1, 1, 40, 32, (15, 16), 5, 1),
    '3x3 of some images a block': (3, 1, 1, 1, 104, 104, (13, 14), 7, 3),
    '3x3 with a stride': (3, 2, 1, 1, 33, 40, (41, 46), 2, 1),
    '3x3 with strides': (3, (1, 3), 1, 1, 33, 40, (14, 17), 2, 1),
    '3x3 over many pixels': (3, 1, 1, 1, 32, 33, (91, 93), 1, 'shifts'),
    '3x3 without padding': (3, 1, 0, 1, 32, 32, (93, 95), 2, 'shifts'),
    '3x3 without padding in blocks': (3, 1, 0, 1, 32, 32, (23, 25), 2, 1),
    'dilated': (3, 1, 2, 2, 33, 32, (90, 94), 2, 'shifts'),
    'dilated in blocks': (3, 1, 2, 2, 33, 32, (20, 24), 2, 1),
    'dilated with a stride': (3, 2, (1, 3), (3, 2), 32, 32, (27, 28), 3, 1),
    'dilated with little padding': (3, 1, 1, 3, 32, 32, (97, 99), 1, 'shifts'),
    '4x2': ((4, 2), 1, (2, 0), (1, 2), 32, 32, (95, 97), 2, 'shifts'),
    '4x2 in blocks': ((4, 2), 1, (2, 0), (1, 2), 32, 32, (45, 47), 2, 4),
}


@pytest.fixture(autouse=True)
def vectors(request, monkeypatch):
    """The processor's, which decide where the products gain."""
    kind = getattr(request, 'param', 'AVX2')
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: kind)
    return kind


def inputs(case, dtype=torch.float32):
    kernel, *places, ins, outs, size, batch, _ = CASES[case]
    places = [v if isinstance(v, tuple) else (v, v) for v in places]
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, ins, *size), nn.Conv2d(ins, outs, kernel).weight.shape, (outs,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    x, weight, bias = (t.to(dtype).requires_grad_() for t in tensors)
    return x, weight, bias, places


def gradients(function, x, weight, bias, places):
    out = function(x, weight, bias, *places)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return out, *torch.autograd.grad(out, [x, weight, bias], g.to(out.dtype))


def channels_last(x):
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize('case', CASES)
def test_features_and_gradients(case, monkeypatch):
    reference = gradients(F.conv2d, *inputs(case, torch.float64))
    x, *rest = inputs(case)
    ways = dict.fromkeys(('_by_columns', '_by_shifts', '_product'), 0)
    blocks = []

    def counting(name):
        real = getattr(trained_conv, name)

        def call(*args):
            ways[name] += 1
            return real(*args)

        return call

    for name in ways:
        monkeypatch.setattr(trained_conv, name, counting(name))
    addmm = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor, 'addmm_', lambda *args: (blocks.append(args[2].shape), addmm(*args))[1]
    )
    ours = gradients(trained_conv2d, channels_last(x), *rest)
    way = CASES[case][-1]
    assert [ways['_by_columns'], ways['_by_shifts']] == [isinstance(way, int), way == 'shifts']
    if way == 'pixels':
        assert ways['_product'] == 1
    if isinstance(way, int):
        assert ways['_product'] == 0 and len(blocks) == way
        row = ours[0].shape[3]  # of pixels: the least
        assert all(pixels * values <= max(2**19, row * values) for pixels, values in blocks)
    for name, a, b in zip(('out', 'x', 'weight', 'bias'), ours, reference, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 2e-6 * b.abs().max(), name


def test_gradients_that_are_not_asked_for():
    x, weight, bias, places = inputs('3x3')
    x = channels_last(x)
    out = trained_conv2d(x.detach(), weight, None, *places)
    (grad,) = torch.autograd.grad(out.square().sum(), [weight])
    expected = F.conv2d(x.detach(), weight, None, *places)
    (reference,) = torch.autograd.grad(expected.square().sum(), [weight])
    torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-2)
    frozen = trained_conv2d(x, weight.detach(), bias, *places)
    assert 'Convolution' in type(frozen.grad_fn).__name__  # PyTorch's own
    assert frozen.requires_grad


def test_where_it_does_not_gain_it_is_conv2d():
    x, weight, bias, places = inputs('3x3')
    image = channels_last(x)

    def own(*args, **kwargs):
        return '_Conv2d' in type(trained_conv2d(*args, **kwargs).grad_fn).__name__

    assert own(image, weight, bias, *places)
    assert not own(x, weight, bias, *places)  # NCHW
    assert own(image, weight, bias, (2, 2), *places[1:])
    assert not own(image, weight, bias, 1, *places[1:])  # not the pair that layers have
    assert not own(image, weight[:31].detach().requires_grad_(), bias[:31], *places)
    large = torch.zeros(40, 32, 5, 2, requires_grad=True)
    assert not own(image, large, bias, *places)
    thin = torch.zeros(40, 16, 1, 1, requires_grad=True)
    few = channels_last(image[:, :16])
    assert own(few, thin, bias) and not own(few, thin, bias, (2, 2))
    assert not own(image, weight, bias, (1, 1), 'same')
    assert not own(image, weight, bias, (1, 1), [1, 1], 1)
    assert not own(image, weight, bias, (1, 1), (1,), (1, 1))
    grouped = weight.detach()[:, :16].requires_grad_()
    assert not own(image, grouped, bias, *places, groups=2)
    assert not own(image.double(), weight.double(), bias.double(), *places)
    with torch.autocast('cpu', torch.bfloat16):
        assert not own(image, weight, bias, *places)
    with torch.no_grad():
        assert not trained_conv2d(image, weight, bias, *places).requires_grad


@pytest.mark.parametrize('vectors', ['AVX2', 'AVX512', 'DEFAULT'], indirect=True)
def test_where_it_gains_depends_on_the_processor(vectors):
    weight = torch.randn(512, 512, 1, 1, requires_grad=True)
    bias = torch.zeros(512)
    few, many = torch.randn(4, 512, 16, 16), torch.randn(1, 512, 25, 41)  # 1024 and 1025 pixels

    def own(x, *args, **kwargs):
        return '_Conv2d' in type(trained_conv2d(channels_last(x), *args, **kwargs).grad_fn).__name__

    known = vectors != 'DEFAULT'
    assert own(few, weight, bias) is known
    assert own(many, weight, bias) is (vectors == 'AVX2')
    fewer = weight[1:].detach().requires_grad_()
    assert own(few, fewer, bias[1:]) is (vectors == 'AVX2')
    assert not own(few, weight, bias, (1, 1), (1, 1))
    x, *three = inputs('3x3')
    assert own(x, *three[:2], *three[2]) is (vectors == 'AVX2')


@pytest.mark.parametrize('vectors', ['AVX512'], indirect=True)
@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(vectors, autocast, monkeypatch):
    monkeypatch.setattr(trained_conv, 'onednn_computes', lambda dtype: True)
    monkeypatch.setattr(trained_conv, '_MANY_WEIGHTS', 0)
    x, weight, bias, places = inputs('1x1')
    x = channels_last(x)
    half = [t.detach().bfloat16().requires_grad_() for t in (x, weight, bias)]
    reference = gradients(F.conv2d, *(t.detach().double().requires_grad_() for t in half), places)
    given = (x, weight, bias) if autocast else half
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        ours = gradients(trained_conv2d, *given, places)
    assert '_Conv2d' in type(ours[0].grad_fn).__name__ and ours[0].dtype == torch.bfloat16
    for of, a, b in zip(given, ours[1:], reference[1:], strict=True):
        assert a.dtype == of.dtype
        assert (a - b).abs().max() <= 1e-2 * b.abs().max()
    monkeypatch.setattr(trained_conv, 'onednn_computes', lambda dtype: False)
    assert '_Conv2d' not in type(trained_conv2d(*half).grad_fn).__name__
    with torch.autocast('cpu', torch.bfloat16):
        assert trained_conv2d(*half[:2], bias).dtype == torch.bfloat16


def test_second_derivatives_and_function_transforms():
    x, weight, bias, places = inputs('3x3')
    image = channels_last(x)

    def penalty(function, x, weight, bias):
        out = function(x, weight, bias, *places)
        (first,) = torch.autograd.grad(out.square().sum(), [x], create_graph=True)
        return torch.autograd.grad(first.square().sum(), [weight])[0]

    reference = penalty(
        F.conv2d, *(t.detach().double().requires_grad_() for t in (x, weight, bias))
    )
    ours = penalty(trained_conv2d, image, weight, bias)
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()

    image, bias = image.detach(), bias.detach()

    def loss(w):
        return trained_conv2d(image, w, bias, *places).square().sum()

    transformed = torch.func.grad(loss)(weight.detach())
    (expected,) = torch.autograd.grad(loss(weight), [weight])
    assert (transformed - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format])
def test_derivatives_of_other_kinds(layout):
    x, weight, bias, _ = inputs('1x1')
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    images = torch.stack([x.detach(), 2 * x.detach()])

    def values(conv):
        out = conv(x, weight, bias)
        several = torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)])
        batched = torch.autograd.grad(out, [weight], several, is_grads_batched=True)[0]
        mapped = torch.func.vmap(lambda image: conv(image, weight, bias))(images)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
            moved = torch.autograd.forward_ad.unpack_dual(conv(dual, weight, bias)).tangent
        return batched, mapped, moved

    for ours, theirs in zip(values(trained_conv2d), values(F.conv2d), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_pass_within_autocast():
    x, weight, bias, _ = inputs('1x1 over many pixels')
    out = trained_conv2d(channels_last(x), weight, bias)
    with torch.autocast('cpu', torch.bfloat16):
        (grad,) = torch.autograd.grad(out.square().sum(), [weight])
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, bias).square().sum(), [weight])
    assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gradients_lie_in_memory_as_weights_do():
    for case in ('1x1', '1x1 with a stride', '3x3', '3x3 over many pixels'):
        x, weight, bias, places = inputs(case)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:])
        for form in (torch.contiguous_format, torch.channels_last):
            if form == torch.channels_last or case.startswith('1x1'):
                weight = conv.to(memory_format=form).weight
                out = trained_conv2d(channels_last(x), weight, bias, *places)
                (grad,) = torch.autograd.grad(out.sum(), [weight])
                assert grad.stride() == weight.stride()


class OtherConv2d(nn.Conv2d):
    pass


def test_convolutions_of_a_model():
    plain = nn.Conv2d(32, 32, 3, padding=1)
    mirrored = nn.Conv2d(32, 32, 3, padding=1, padding_mode='reflect')
    other = OtherConv2d(32, 32, 1)
    net = nn.Sequential(plain, mirrored, other)
    x = channels_last(torch.randn(1, 32, 45, 45))
    expected = net(x)
    (reference,) = torch.autograd.grad(expected.square().sum(), [plain.weight])
    assert train_convolutions(net) is net
    assert [type(m) for m in net] == [TrainedConv2d, TrainedConv2d, OtherConv2d]
    out = net(x)
    assert '_Conv2d' in type(plain(x).grad_fn).__name__
    (grad,) = torch.autograd.grad(out.square().sum(), [plain.weight])
    assert out.equal(expected)
    assert (grad - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_a_model_that_was_trained_is_optimised_as_any_other():
    net = create_backbone('res2net50_26w_4s').eval()
    image = torch.rand(1, 3, 64, 64)
    expected = net(image)
    fast = optimize_for_inference(train_convolutions(net))
    kinds = [type(m) for m in fast.modules()]
    assert TrainedConv2d not in kinds and nn.BatchNorm2d not in kinds
    pools = 4  # of the first block of each stage
    assert kinds.count(FixedConv2d) == pools + sum(type(m) is TrainedConv2d for m in net.modules())
    for a, b in zip(fast(image), expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
