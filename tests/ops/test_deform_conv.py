"""Deformable convolution against loops, torchvision, numbers by hand and numerical gradients."""

import math
import random
from functools import partial

import pytest
import torch
import torchvision

from res2net_mm.ops import deform_conv2d, sampling

NAMES = ('input', 'offset', 'mask', 'weight', 'bias')
HALVES = [torch.bfloat16, torch.float16]
PLAIN = dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1))


def slow_deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask):
    """Loops over pixels and taps; a pixel's share of a sample falls linearly with distance."""
    (batch, channels, height, width), (_, _, out_height, out_width) = input.shape, offset.shape
    (_, per_group, _, columns), taps = weight.shape, weight[0, 0].numel()
    deform_groups, groups = offset.shape[1] // (2 * taps), channels // weight.shape[1]
    images = input.reshape(batch, deform_groups, -1, height, width)
    outs = []
    for n in range(batch):
        for i in range(out_height):
            for j in range(out_width):
                samples = []
                for tap in range(taps):
                    for g in range(deform_groups):
                        y, x = offset[n, 2 * (g * taps + tap) : 2 * (g * taps + tap) + 2, i, j]
                        y = y + i * stride[0] - padding[0] + tap // columns * dilation[0]
                        x = x + j * stride[1] - padding[1] + tap % columns * dilation[1]
                        by_row = (1 - (torch.arange(height) - y).abs()).clamp(min=0)
                        by_column = (1 - (torch.arange(width) - x).abs()).clamp(min=0)
                        sample = torch.einsum('chw,h,w->c', images[n, g], by_row, by_column)
                        samples.append(
                            sample if mask is None else sample * mask[n, g * taps + tap, i, j]
                        )
                column = torch.cat(samples).reshape(taps, groups, per_group)
                kernel = weight.reshape(groups, -1, per_group, taps)
                outs.append(torch.einsum('tgc,goct->go', column, kernel).flatten())
    out = torch.stack(outs).reshape(batch, out_height, out_width, -1).permute(0, 3, 1, 2)
    return out if bias is None else out + bias[:, None, None]


def torchvisions(input, offset, weight, bias, stride, padding, dilation, mask):
    return torchvision.ops.deform_conv2d(
        input.contiguous(), offset, weight, bias, stride, padding, dilation, mask
    )


def mmcvs_gradient_of_offset(input, offset, weight, stride, padding, dilation, mask, grad):
    """Loops over mmcv's ``dmcn_get_coordinate_weight``, which is the same in v1 and in v2."""
    (batch, channels, height, width), (_, _, out_height, out_width) = input.shape, offset.shape
    (_, per_group, _, columns), taps = weight.shape, weight[0, 0].numel()
    deform_groups, groups = offset.shape[1] // (2 * taps), channels // per_group
    found = torch.zeros_like(offset)
    for n, g, tap, i, j in torch.ones(batch, deform_groups, taps, out_height, out_width).nonzero():
        at = 2 * (g * taps + tap)
        y, x = offset[n, at : at + 2, i, j].tolist()
        y += i.item() * stride[0] - padding[0] + tap.item() // columns * dilation[0]
        x += j.item() * stride[1] - padding[1] + tap.item() % columns * dilation[1]
        if y <= -1 or y >= height or x <= -1 or x >= width:
            continue
        top, left = math.floor(y), math.floor(x)
        for c in range(g * channels // deform_groups, (g + 1) * channels // deform_groups):
            outs = slice(*((c // per_group + k) * len(weight) // groups for k in (0, 1)))
            slope = weight[outs, c % per_group].flatten(1)[:, tap] @ grad[n, outs, i, j]
            slope = slope if mask is None else slope * mask[n, g * taps + tap, i, j]
            for row, share_y, sign_y in ((top, top + 1 - y, -1), (top + 1, y - top, 1)):
                for column, share_x, sign_x in ((left, left + 1 - x, -1), (left + 1, x - left, 1)):
                    if 0 <= row < height and 0 <= column < width:
                        value = slope * input[n, c, row, column]
                        found[n, at, i, j] += sign_y * share_x * value
                        found[n, at + 1, i, j] += sign_x * share_y * value
    return found


def make(
    seed=0, *, batch=2, width=4, out=2, size=(5, 4), kernel=(3, 3), groups=1, deform_groups=1,
    offsets='fractional', without=(), dtype=torch.float64, **places,
):  # fmt: skip
    """Tensors by name, all wanting gradients, and stride, padding and dilation."""
    places = {**PLAIN, **places}
    g = torch.Generator().manual_seed(seed)
    rand = partial(torch.rand, generator=g, dtype=torch.float64)
    outs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, *places.values(), strict=True)
    ]
    shape, taps = (batch, deform_groups * 2 * math.prod(kernel), *outs), math.prod(kernel)
    offset = {
        'zero': lambda: torch.zeros(shape),
        'integer': lambda: rand(shape).mul(7).floor() - 3,
        'fractional': lambda: rand(shape).mul(5).floor() - 2 + rand(shape) * 0.9 + 0.05,
        'huge': lambda: (rand(shape) - 0.5) * 6 * max(size),
    }[offsets]()
    values = dict(
        input=rand(batch, width, *size) - 0.5,
        offset=offset,
        mask=rand(batch, deform_groups * taps, *outs),
        weight=rand(out, width // groups, *kernel) - 0.5,
        bias=rand(out) - 0.5,
    )
    tensors = {k: v.to(dtype).requires_grad_() for k, v in values.items() if k not in without}
    return tensors, places


def call(compute, tensors, places):
    return compute(**{**dict.fromkeys(NAMES), **tensors}, **places)


def results(compute, tensors, places, grad=None):
    """Output and gradients, by name."""
    out = call(compute, tensors, places)
    wanted = {k: v for k, v in tensors.items() if v.requires_grad}
    grad = torch.cos(torch.arange(out.numel())).view(out.shape) if grad is None else grad
    grads = torch.autograd.grad(out, list(wanted.values()), grad.to(out))
    return dict(zip(('out', *wanted), (out.detach(), *grads), strict=True))


def check(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        reference = expected[name]
        assert value.shape == reference.shape and value.dtype == reference.dtype, name
        if value.numel():
            error = (value - reference).abs().max() / (1 + reference.abs().max())
            assert error < tolerance, (name, error)  # also where it is NaN


CASES = {
    'plain': dict(),
    'strides': dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), width=2, batch=1),
    'groups': dict(groups=2, deform_groups=2, padding=(1, 1), size=(3, 2), out=4),
    'kernel 1 x 3': dict(kernel=(1, 3), deform_groups=4, stride=(1, 2), padding=(1, 0)),
    'kernel 3 x 2': dict(kernel=(3, 2), groups=4, dilation=(2, 1), out=4, batch=1),
    'unlike groups': dict(groups=3, deform_groups=2, width=6, out=3, kernel=(2, 2), size=(3, 3)),
    'one tap': dict(kernel=(1, 1), size=(3, 2)),
}


@pytest.mark.parametrize('without', [(), ('mask', 'bias')], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_gradients_are_numerical_ones(case, without):
    tensors, places = make(**CASES[case], without=without)
    assert ((tensors['offset'] - tensors['offset'].round()).abs() > 1e-2).all()

    def compute(*values):
        return call(deform_conv2d, dict(zip(tensors, values, strict=True)), places)

    assert torch.autograd.gradcheck(compute, tuple(tensors.values()), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize('offsets', ['zero', 'integer', 'fractional', 'huge'])
@pytest.mark.parametrize('case', CASES)
def test_loops(case, offsets):
    tensors, places = make(**CASES[case], offsets=offsets, seed=1)
    found, expected = (results(f, tensors, places) for f in (deform_conv2d, slow_deform_conv2d))
    if offsets in ('zero', 'integer'):  # the loops have no gradient there
        del found['offset'], expected['offset']
    check(found, expected, 1e-12)


@pytest.mark.parametrize('without', [(), ('mask', 'bias')], ids=str)
@pytest.mark.parametrize('offsets', ['zero', 'integer', 'fractional'])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('way', ['torch', 'torchvision'])
def test_gradient_of_offsets_is_mmcvs(monkeypatch, way, case, offsets, without):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    args = dict(padding=(1, 1)) | CASES[case] | dict(batch=1)
    tensors, places = make(**args, offsets=offsets, without=without)
    out = call(deform_conv2d, tensors, places)
    grad = torch.cos(torch.arange(out.numel())).view(out.shape).double()
    (found,) = torch.autograd.grad(out, tensors['offset'], grad)
    given = {k: v.detach() for k, v in tensors.items() if k != 'bias'}
    expected = mmcvs_gradient_of_offset(**{'mask': None, **given}, **places, grad=grad)
    check(dict(offset=found), dict(offset=expected), 1e-12)


def on_a_line(tensors, places):
    """Where offsets put a tap on row -1 or H, or column -1 or W, of the shape of ``offset``."""
    (height, width), (rows, columns) = (tensors[k].shape[2:] for k in ('input', 'weight'))
    by_tap = tensors['offset'].detach().unflatten(1, (-1, rows, columns, 2))
    (sy, sx), (py, px), (dy, dx) = places.values()
    out_height, out_width = by_tap.shape[5:]
    y = torch.arange(rows).view(-1, 1, 1, 1) * dy + torch.arange(out_height).view(-1, 1) * sy - py
    x = torch.arange(columns).view(-1, 1, 1) * dx + torch.arange(out_width) * sx - px
    y, x = by_tap[:, :, :, :, 0] + y, by_tap[:, :, :, :, 1] + x
    line = (y == -1) | (y == height) | (x == -1) | (x == width)
    return torch.stack([line, line], 4).flatten(1, 4)


def setting(rng, offsets, dtype):
    """Any shapes, memory formats and missing parts."""
    kernel = rng.randint(1, 3), rng.randint(1, 3)
    dilation = rng.randint(1, 3), rng.randint(1, 3)
    size = tuple(d * (k - 1) + rng.randint(1, 7) for k, d in zip(kernel, dilation, strict=True))
    groups, deform_groups = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 3))
    tensors, places = make(
        rng.randrange(10**6), batch=rng.randint(1, 3), width=6 * rng.randint(1, 2), size=size,
        out=groups * rng.randint(1, 3), kernel=kernel, groups=groups, deform_groups=deform_groups,
        offsets=offsets, without=[n for n in ('mask', 'bias') if rng.random() < 0.3], dtype=dtype,
        stride=(rng.randint(1, 3), rng.randint(1, 3)), dilation=dilation,
        padding=(rng.randint(0, 3), rng.randint(0, 3)),
    )  # fmt: skip
    for name in ('input', 'offset', 'mask', 'weight'):
        if name in tensors:
            value = tensors[name].detach()
            layout = rng.choice(('as it is', 'channels last', 'split', 'transposed', 'expanded'))
            if layout == 'channels last':
                value = value.contiguous(memory_format=torch.channels_last)
            elif layout == 'split':
                value = torch.cat([value, value], 1).split(value.shape[1], 1)[1]
            elif layout == 'transposed':
                value = value.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
            elif layout == 'expanded':
                value = value[:1].expand_as(value)
            tensors[name] = value.requires_grad_()
    return tensors, places


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('offsets', ['zero', 'integer', 'fractional', 'huge'])
def test_torchvision(offsets, dtype, tolerance):
    rng, differs = random.Random(offsets), 0
    for number in range(25):
        tensors, places = setting(rng, offsets, dtype)
        generator = torch.Generator().manual_seed(number)
        shape = call(deform_conv2d, tensors, places).shape
        grad = torch.randn(shape, dtype=dtype, generator=generator)
        kinds = grad, grad[:1, :1, :1, :1].expand_as(grad), grad.mT.contiguous().mT
        grad = (*kinds, grad.contiguous(memory_format=torch.channels_last))[number % 4]
        found = results(deform_conv2d, tensors, places, grad)
        expected = results(torchvisions, tensors, places, grad)
        line = on_a_line(tensors, places)
        differs += expected['offset'][line].count_nonzero().item()
        expected['offset'][line] = 0  # mmcv's rule
        check(found, expected, tolerance)
    assert (differs > 50) == (offsets in ('zero', 'integer'))


def image():
    """0 to 24 in rows of 5."""
    return torch.arange(25.0, dtype=torch.float64).view(1, 1, 5, 5).requires_grad_()


def sampled(y, x, mask=None):
    """The image, a kernel of one tap, everything moved by (y, x): output and its gradients."""
    offset = torch.tensor([y, x], dtype=torch.float64).view(1, 2, 1, 1).repeat(1, 1, 5, 5)
    tensors = dict(input=image(), offset=offset.requires_grad_())
    tensors['weight'] = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    if mask is not None:
        tensors['mask'] = torch.full((1, 1, 5, 5), mask, dtype=torch.float64).requires_grad_()
    return results(deform_conv2d, tensors, PLAIN, torch.ones(1, 1, 5, 5))


def test_half_a_pixel_by_hand():
    """Down by half a pixel: means of two rows; below the last row there are zeros."""
    found = sampled(0.5, 0)
    rows = [[2.5, 3.5, 4.5, 5.5, 6.5], [7.5, 8.5, 9.5, 10.5, 11.5]]
    rows += [[12.5, 13.5, 14.5, 15.5, 16.5], [17.5, 18.5, 19.5, 20.5, 21.5], [10, 10.5, 11, 11.5]]
    rows[-1].append(12)
    assert found['out'].tolist() == [[rows]]
    assert found['input'].tolist() == [[[[0.5] * 5] + [[1.0] * 5] * 4]]
    assert found['offset'][0, 0].tolist() == [[5.0] * 5] * 4 + [[-20.0, -21, -22, -23, -24]]
    diagonal = sampled(0.5, 0.5, mask=0.25)  # means of four pixels, times 0.25
    assert diagonal['out'][0, 0, 0].tolist() == [0.75, 1.0, 1.25, 1.5, 0.25 * (4 + 9) / 4]
    assert diagonal['mask'][0, 0, 0].tolist() == [3.0, 4, 5, 6, 3.25]
    assert diagonal['offset'][0, :, 1, 1].tolist() == [0.25 * 5, 0.25 * 1]
    assert diagonal['input'][0, 0, :2, :2].tolist() == [[0.0625, 0.125], [0.125, 0.25]]


@pytest.mark.parametrize(
    'y, row, upwards',
    [
        (-1.0, [0.0] * 5, [0.0] * 5),  # the row before the first is outside: mmcv's rule
        (-1.25, [0.0] * 5, [0.0] * 5),
        (-0.75, [0.0, 0.25, 0.5, 0.75, 1], [0.0, 1, 2, 3, 4]),
        (0.0, [0.0, 1, 2, 3, 4], [5.0] * 5),  # kinks take the slope behind them
        (3.0, [15.0, 16, 17, 18, 19], [5.0] * 5),
        (4.0, [20.0, 21, 22, 23, 24], [-20.0, -21, -22, -23, -24]),
        (4.75, [5.0, 5.25, 5.5, 5.75, 6], [-20.0, -21, -22, -23, -24]),
        (5.0, [0.0] * 5, [0.0] * 5),
        (5.25, [0.0] * 5, [0.0] * 5),
    ],
)
def test_border_and_kinks_by_hand(y, row, upwards):
    """The first row, moved to y; and the first column, which is the same across."""
    found = sampled(y, 0.0)
    assert found['out'][0, 0, 0].tolist() == row
    assert found['offset'][0, 0, 0].tolist() == upwards
    offset = torch.tensor([0, y]).view(1, 2, 1, 1).repeat(1, 1, 5, 5).double().requires_grad_()
    tensors = dict(input=image().mT, offset=offset, weight=torch.ones(1, 1, 1, 1).double())
    found = results(deform_conv2d, tensors, PLAIN, torch.ones(1, 1, 5, 5))
    assert found['out'][0, 0, :, 0].tolist() == row
    assert found['offset'][0, 1, :, 0].tolist() == upwards


def test_one_tap_moved_by_hand():
    """The centre of a 3x3 kernel at pixel (2, 2): 1 + ... + 9 times the pixels, then one tap."""
    weight = torch.arange(1.0, 10).view(1, 1, 3, 3).double()
    offset, mask = torch.zeros(1, 18, 3, 3).double(), torch.ones(1, 9, 3, 3).double()
    pixels = [6, 7, 8, 11, 12, 13, 16, 17, 18]
    total = sum(k * v for k, v in enumerate(pixels, 1))
    compute = partial(deform_conv2d, image().detach(), weight=weight, mask=mask)
    assert compute(offset)[0, 0, 1, 1] == total == 636
    offset[0, 2 * 5 : 2 * 5 + 2, 1, 1] = torch.tensor([-2.0, 0.5])  # tap 5, (2, 3) -> (0, 3.5)
    assert compute(offset)[0, 0, 1, 1] == total + 6 * (3.5 - 13)
    offset[0, 2 * 5 + 1, 1, 1] = 2.0  # -> (0, 5), outside
    assert compute(offset)[0, 0, 1, 1] == total - 6 * 13
    mask[0, 8, 1, 1] = 0.5
    assert compute(offset)[0, 0, 1, 1] == total - 6 * 13 - 9 * 18 / 2
    offset = torch.zeros(1, 18, 3, 3).double()
    assert compute(offset, bias=torch.tensor([0.25]).double())[0, 0, 0, 0] == 366.25


@pytest.mark.parametrize('block', [1, 300, 5000, 10**9])
@pytest.mark.parametrize('offsets', ['fractional', 'huge'])
def test_blocks_change_nothing(block, offsets, monkeypatch):
    """The smallest is one pixel, and some hold the end of one image and all of another."""
    args = dict(batch=5, size=(3, 4), padding=(1, 1), groups=2, deform_groups=2)
    tensors, places = make(**args, offsets=offsets)
    monkeypatch.setattr(sampling, 'CPU_BLOCK', block)
    counted, real = [], sampling._gather
    monkeypatch.setattr(sampling, '_gather', lambda *a: counted.append(a) or real(*a))
    found = results(deform_conv2d, tensors, places)
    assert len(counted) == {1: 2 * 60, 300: 2 * 30, 5000: 2 * 4, 10**9: 2}[block]
    check(found, results(torchvisions, tensors, places), 1e-12)


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_computes_in_float32(dtype):
    tensors, places = make(dtype=dtype, padding=(1, 1), groups=2)
    grad = torch.ones(2, 2, 5, 4)
    found = results(deform_conv2d, tensors, places, grad)
    rounded = {k: v.detach().float().requires_grad_() for k, v in tensors.items()}
    expected = results(torchvisions, rounded, places, grad)
    eps = torch.finfo(dtype).eps
    check(found, {k: v.to(dtype) for k, v in expected.items()}, eps)
    ours = results(deform_conv2d, rounded, places, grad)
    assert all(found[k].equal(v.to(dtype)) for k, v in ours.items())


@pytest.mark.parametrize('way', ['torch', 'torchvision'])
def test_autocast_and_mixed_types(monkeypatch, way):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    tensors, places = make(dtype=torch.float32, padding=(1, 1))
    expected = results(deform_conv2d, tensors, places)
    autocast = torch.autocast('cpu', torch.bfloat16)
    check(results(autocast(deform_conv2d), tensors, places), expected, 1e-6)
    with autocast:
        if way == 'torch':  # torchvision 0.29's own backward pass computes in the type of autocast
            check(results(deform_conv2d, tensors, places), expected, 1e-6)
        out = call(deform_conv2d, tensors, places)
    grads = torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))
    assert out.dtype == torch.float32 and [g.dtype for g in grads] == [torch.float32] * 5
    dtypes = torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.float32
    pairs = zip(tensors.items(), dtypes, strict=True)
    mixed = {k: v.detach().to(t).requires_grad_() for (k, v), t in pairs}
    found = results(autocast(deform_conv2d), mixed, places, torch.ones_like(out))
    wide = {k: v.detach().double().requires_grad_() for k, v in mixed.items()}
    expected = results(torchvisions, wide, places, torch.ones_like(out))
    assert found['out'].dtype == torch.bfloat16  # the input's
    assert found['out'].equal(expected['out'].bfloat16())
    for name, dtype in zip(tensors, dtypes, strict=True):
        check({name: found[name]}, {name: expected[name].to(dtype)}, torch.finfo(dtype).eps)


@pytest.mark.parametrize('way', ['torch', 'torchvision'])
@pytest.mark.parametrize('groups', [1, 2])
def test_empty_batch(monkeypatch, way, groups):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    tensors, places = make(batch=0, groups=groups, deform_groups=groups, padding=(1, 1))
    found = results(deform_conv2d, tensors, places)
    assert found['out'].shape == (0, 2, 5, 4)
    for name, value in tensors.items():
        assert found[name].shape == value.shape and not found[name].any()


@pytest.mark.parametrize('size', [(1, 1), (5, 1), (1, 4)])
def test_maps_of_one_pixel(size):
    for offsets in ('fractional', 'huge'):
        tensors, places = make(size=size, padding=(1, 1), groups=2, offsets=offsets)
        found, expected = (results(f, tensors, places) for f in (deform_conv2d, slow_deform_conv2d))
        check(found, expected, 1e-12)


@pytest.mark.parametrize('way', ['torch', 'torchvision'])
@pytest.mark.parametrize('far', [-1e3, 1e6, -1e20, 3e38, math.inf, -math.inf])
def test_far_outside_nothing_is_sampled(monkeypatch, way, far):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    tensors, places = make(offsets='zero', dtype=torch.float32, padding=(1, 1))
    for axis in (0, 1):
        offset = torch.zeros_like(tensors['offset'])
        offset[:, axis::2] = far
        tensors['offset'] = offset.requires_grad_()
        found = results(deform_conv2d, tensors, places)
        assert found['out'].equal(tensors['bias'][:, None, None].expand_as(found['out']))
        for name in ('input', 'offset', 'mask', 'weight'):
            assert found[name].eq(0).all(), name
