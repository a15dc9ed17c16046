"""RoIAlign and deformable convolution through mmcv's own Python code.

Against loops in float64 written from the definitions, torchvision, and numerical gradients.
"""

import math
from functools import partial

import pytest
import torch
import torchvision
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    RoIAlign,
    deform_conv2d,
    modulated_deform_conv2d,
    roi_align,
)
from test_deform_conv import mmcvs_gradient_of_offset

gradcheck = partial(torch.autograd.gradcheck, rtol=1e-6, atol=1e-7)
HALVES = [torch.float16, torch.bfloat16]


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bilinear(image, y, x):
    """Of an image (C, H, W) at one point, with zeros outside; in float64."""
    top, left = math.floor(y), math.floor(x)
    value = torch.zeros(len(image), dtype=torch.float64)
    for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value += share_y * share_x * image[:, row, column]
    return value


def slow_roi_align(images, rois, size, scale, ratio, aligned):
    images = images.double()
    height, width = images.shape[2:]
    result = torch.zeros(len(rois), images.shape[1], *size, dtype=torch.float64)
    for k, (index, *box) in enumerate(rois.double().tolist()):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in box)
        least = 0 if aligned else 1
        bin_h, bin_w = max(y2 - y1, least) / size[0], max(x2 - x1, least) / size[1]
        count_h, count_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for i in range(size[0]):
            for j in range(size[1]):
                for a in range(count_h):
                    for b in range(count_w):
                        y = y1 + (i + (a + 0.5) / count_h) * bin_h
                        x = x1 + (j + (b + 0.5) / count_w) * bin_w
                        if -1 <= y <= height and -1 <= x <= width:  # the border is stretched
                            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                            value = bilinear(images[int(index)], y, x)
                            result[k, :, i, j] += value / (count_h * count_w)
    return result


ROIS = torch.tensor(
    [
        [0, 3.2, 1.7, 17.9, 14.1],
        [1, 0.0, 0.0, 23.0, 19.0],
        [1, 10.5, 8.25, 11.0, 8.5],
        [0, -6.0, -3.0, 9.0, 40.0],
        [1, 4.0, 4.0, 4.0, 9.0],
    ]
)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('size', [(3, 4), (1, 1)])
def test_roi_align(size, ratio, aligned):
    images = rand(2, 3, 10, 12)
    result = roi_align(images, ROIS, size, 0.5, ratio, 'avg', aligned)
    expected = slow_roi_align(images, ROIS, size, 0.5, ratio, aligned)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(result, torchvision.ops.roi_align(images, ROIS, size, 0.5, ratio, aligned))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradient(ratio, aligned):
    images = rand(2, 2, 6, 7, dtype=torch.float64).requires_grad_()
    assert gradcheck(
        lambda x: roi_align(x, ROIS.double(), (2, 3), 0.5, ratio, 'avg', aligned), images
    )


@pytest.mark.parametrize('dtype', HALVES)
def test_roi_align_in_half_precision(dtype):
    """Computed in float32; boxes keep their own type, so that they lose no pixels."""
    images = rand(2, 3, 10, 12).to(dtype).requires_grad_()
    result = roi_align(images, ROIS, (3, 4), 0.5, 0, 'avg', True)
    expected = roi_align(images.detach().float(), ROIS, (3, 4), 0.5, 0, 'avg', True)
    assert result.dtype == dtype and torch.equal(result, expected.to(dtype))
    result.float().square().sum().backward()
    full = images.detach().float().requires_grad_()
    roi_align(full, ROIS, (3, 4), 0.5, 0, 'avg', True).backward(2 * result.detach().float())
    assert images.grad.dtype == dtype and torch.equal(images.grad, full.grad.to(dtype))
    # boxes of half precision are taken for what they say
    rounded = roi_align(images, ROIS.to(dtype), (3, 4), 0.5, 0, 'avg', True)
    assert torch.equal(
        rounded, roi_align(images, ROIS.to(dtype).float(), (3, 4), 0.5, 0, 'avg', True)
    )


def test_roi_align_under_autocast():
    images, weight = rand(2, 3, 10, 12), rand(3, 3, 1, 1, seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        features = torch.nn.functional.conv2d(images, weight)
        result = RoIAlign((3, 4), 0.5, 0)(features, ROIS)
    assert features.dtype == result.dtype == torch.bfloat16
    expected = slow_roi_align(features, ROIS, (3, 4), 0.5, 0, True)
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=1e-6)


def test_roi_align_when_compiled():
    images = rand(2, 4, 9, 8).requires_grad_()
    expected = roi_align(2 * images, ROIS, (3, 4), 0.5, 0, 'avg', True)
    (reference,) = torch.autograd.grad(expected.square().sum(), images)
    compiled = torch.compile(
        lambda x: roi_align(2 * x, ROIS, (3, 4), 0.5, 0, 'avg', True), backend='aot_eager'
    )
    out = compiled(images)
    (grad,) = torch.autograd.grad(out.square().sum(), images)
    assert torch.equal(out, expected) and reference.abs().max() > 0.1
    torch.testing.assert_close(grad, reference)


def test_roi_align_takes_memory_in_any_order():
    images = rand(2, 3, 10, 12)
    plain = roi_align(images, ROIS, (3, 4), 0.5)
    turned = images.to(memory_format=torch.channels_last).requires_grad_()
    result = roi_align(turned, ROIS, (3, 4), 0.5)
    torch.testing.assert_close(result, plain, rtol=1e-5, atol=1e-6)
    result.backward(rand(5, 4, 3, 3).permute(0, 3, 2, 1))
    straight = images.clone().requires_grad_()
    roi_align(straight, ROIS, (3, 4), 0.5).backward(rand(5, 4, 3, 3).permute(0, 3, 2, 1))
    assert torch.equal(turned.grad, straight.grad)


def test_roi_align_without_regions_or_images():
    for count in (2, 0):
        images = torch.zeros(count, 3, 10, 12, requires_grad=True)
        result = roi_align(images, torch.zeros(0, 5), (3, 4), 0.5)
        assert result.shape == (0, 3, 3, 4)
        result.sum().backward()
        assert images.grad.shape == images.shape and not images.grad.any()


def test_roi_align_of_the_maximum_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*install mmcv"):
        roi_align(rand(1, 1, 4, 4), ROIS[:1], (2, 2), 1.0, 0, 'max')


def slow_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups):
    """From the definition: sum of w(tap) * mask(tap) * x(place + tap + offset(tap))."""
    x, offset, weight = x.double(), offset.double(), weight.double()
    count, _, kernel_h, kernel_w = weight.shape
    group_out = count // groups
    taps = kernel_h * kernel_w
    offset_groups = offset.shape[1] // (2 * taps)
    share = x.shape[1] // offset_groups
    result = torch.zeros(len(x), count, *offset.shape[2:], dtype=torch.float64)
    for n, _, i, j in torch.ones(len(x), 1, *offset.shape[2:]).nonzero().tolist():
        columns = torch.zeros(x.shape[1], taps, dtype=torch.float64)
        for g in range(offset_groups):
            part = slice(g * share, (g + 1) * share)
            for tap in range(taps):
                dy, dx = offset[n, 2 * (g * taps + tap) : 2 * (g * taps + tap) + 2, i, j].tolist()
                y = i * stride - padding + tap // kernel_w * dilation + dy
                column = j * stride - padding + tap % kernel_w * dilation + dx
                columns[part, tap] = bilinear(x[n, part], y, column)
                if mask is not None:
                    columns[part, tap] *= mask[n, g * taps + tap, i, j].double()
        for o in range(count):
            first = o // group_out * weight.shape[1]
            mine = columns[first : first + weight.shape[1]]
            result[n, o, i, j] = (weight[o].flatten(1) * mine).sum()
    return result if bias is None else result + bias.double()[:, None, None]


def inputs(batch=2, offset_groups=2, groups=2, stride=1, kernel=3, dtype=torch.float32, size=6):
    out = (size + 2 - kernel) // stride + 1  # padding 1, dilation 1
    taps = kernel * kernel * offset_groups
    x = rand(batch, 4, size, size, dtype=dtype)
    offset = rand(batch, 2 * taps, out, out, seed=1, dtype=dtype) * 1.5
    mask = torch.sigmoid(rand(batch, taps, out, out, seed=2, dtype=dtype))
    weight = rand(6, 4 // groups, kernel, kernel, seed=3, dtype=dtype)
    return x, offset, mask, weight, rand(6, seed=4, dtype=dtype)


@pytest.mark.parametrize('groups,offset_groups', [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_deform_conv(stride, groups, offset_groups):
    x, offset, mask, weight, bias = inputs(
        offset_groups=offset_groups, groups=groups, stride=stride
    )
    result = deform_conv2d(x, offset, weight, stride, 1, 1, groups, offset_groups)
    expected = slow_deform_conv(x, offset, None, weight, None, stride, 1, 1, groups)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)

    for some_bias in (None, bias):
        result = modulated_deform_conv2d(
            x, offset, mask, weight, some_bias, stride, 1, 1, groups, offset_groups
        )
        expected = slow_deform_conv(x, offset, mask, weight, some_bias, stride, 1, 1, groups)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_deform_conv_of_uneven_shapes():
    """Height is not width in the image, the kernel, stride, padding and dilation."""
    x, weight = rand(1, 2, 9, 7), rand(3, 2, 3, 2, seed=1)
    offset, mask = torch.zeros(1, 12, 4, 9), torch.ones(1, 6, 4, 9)
    where = (2, 1), (1, 2), (2, 2)
    expected = torch.nn.functional.conv2d(x, weight, None, *where)
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, *where), expected, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        modulated_deform_conv2d(x, offset, mask, weight, None, *where),
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize('groups,offset_groups', [(1, 1), (2, 2)])
def test_deform_conv_gradients(groups, offset_groups):
    x, offset, mask, weight, bias = (
        t.requires_grad_()
        for t in inputs(
            batch=1,
            offset_groups=offset_groups,
            groups=groups,
            stride=2,
            size=3,
            kernel=2,
            dtype=torch.float64,
        )
    )
    assert gradcheck(
        lambda *t: deform_conv2d(*t, 2, 1, 1, groups, offset_groups), (x, offset, weight)
    )
    assert gradcheck(
        lambda *t: modulated_deform_conv2d(*t, None, 2, 1, 1, groups, offset_groups),
        (x, offset, mask, weight),
    )
    assert gradcheck(
        lambda *t: modulated_deform_conv2d(*t, 2, 1, 1, groups, offset_groups),
        (x, offset, mask, weight, bias),
    )


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_offsets_that_are_not_finite_are_no_samples(value, axis, modulated):
    """As in the extension; torchvision's kernel takes them for an index, which may crash."""
    x, mask = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    weight, offset = torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 3, 3)
    offset[0, axis, 1, 1] = value
    wanted = offset.requires_grad_(), weight.requires_grad_()
    if modulated:
        out = modulated_deform_conv2d(x, offset, mask, weight, None, 1, 0, 1, 1, 1)
    else:
        out = deform_conv2d(x, offset, weight)
    of_offset, of_weight = torch.autograd.grad(out.sum(), wanted)
    # slopes of the last row and column, where the image ends, and no others
    assert (out.sum(), of_offset.sum(), of_weight) == (8, -6, 8)


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('stride, groups, offset_groups', [(1, 1, 2), (2, 2, 1)])
def test_deform_conv_gradient_of_integer_offsets(stride, groups, offset_groups, modulated):
    x, offset, mask, weight, _ = inputs(
        batch=1, size=4, stride=stride, groups=groups, offset_groups=offset_groups,
        dtype=torch.float64,
    )  # fmt: skip
    offset = offset.round().requires_grad_()
    where, mask = (stride, 1, 1, groups, offset_groups), mask if modulated else None
    if modulated:
        out = modulated_deform_conv2d(x, offset, mask, weight, None, *where)
    else:
        out = deform_conv2d(x, offset, weight, *where)
    grad = rand(*out.shape, seed=5, dtype=torch.float64)
    (found,) = torch.autograd.grad(out, offset, grad)
    places = dict(stride=(stride, stride), padding=(1, 1), dilation=(1, 1))
    expected = mmcvs_gradient_of_offset(x, offset.detach(), weight, **places, mask=mask, grad=grad)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_deform_conv_gradient_for_the_weight_alone():
    x, offset, _, weight, _ = inputs(batch=1, dtype=torch.float64, size=3, kernel=2)
    weight.requires_grad_()
    assert gradcheck(lambda w: deform_conv2d(x, offset, w, 1, 1, 1, 2, 2), weight)


@pytest.mark.parametrize('step', [1, 2, 32])
def test_deform_conv_does_not_depend_on_im2col_step(step):
    x, offset, _, weight, _ = (t.requires_grad_() for t in inputs(batch=4))
    result = deform_conv2d(x, offset, weight, 1, 1, 1, 2, 2, False, step)
    single = [
        deform_conv2d(x[n : n + 1], offset[n : n + 1], weight, 1, 1, 1, 2, 2) for n in range(4)
    ]
    torch.testing.assert_close(result, torch.cat(single), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(result.square().sum(), (x, offset, weight))
    expected = torch.autograd.grad(torch.cat(single).square().sum(), (x, offset, weight))
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', HALVES)
def test_deform_conv_in_half_precision(dtype):
    given = [t.to(dtype) for t in inputs()]
    full = [t.float().requires_grad_() for t in given]
    given = [t.requires_grad_() for t in given]

    def run(x, offset, mask, weight, bias):
        modulated = modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1, 1, 2, 2)
        return modulated, deform_conv2d(x, offset, weight, 1, 1, 1, 2, 2)

    for mine, reference in zip(run(*given), run(*full), strict=True):
        assert mine.dtype == dtype and torch.equal(mine, reference.to(dtype))
        slope = rand(*mine.shape, seed=7).to(dtype)
        grads = torch.autograd.grad(mine, given, slope, allow_unused=True)
        expected = torch.autograd.grad(reference, full, slope.float(), allow_unused=True)
        for grad, other in zip(grads, expected, strict=True):
            assert (grad is None) == (other is None)
            if grad is not None:
                assert grad.dtype == dtype and torch.equal(grad, other.to(dtype))


@pytest.mark.parametrize('pack', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_deform_conv_layers_under_autocast(pack):
    torch.manual_seed(0)
    layer, x = pack(4, 6, 3, padding=1), rand(2, 4, 6, 6)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    exact = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, rtol=0.1, atol=0.1)
    result.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_deform_conv_without_offsets_is_a_convolution():
    x = rand(2, 4, 6, 6)
    layer, offset = DeformConv2d(4, 6, 3, padding=1), torch.zeros(2, 18, 6, 6)
    expected = torch.nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, offset), expected, rtol=1e-5, atol=1e-5)
    # sigmoid(0) = 0.5: a fresh DCNv2 is half a convolution
    layer = ModulatedDeformConv2dPack(4, 6, 3, padding=1, bias=False)
    expected = torch.nn.functional.conv2d(x, layer.weight, padding=1) / 2
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    # smaller than the kernel: mmcv pads
    assert layer(x[:, :, :2, :2]).shape == (2, 6, 2, 2)
    assert ModulatedDeformConv2d(4, 6, 1)(x, offset[:, :2], offset[:, :1]).abs().max() == 0


def test_deform_conv_refuses_wrong_offsets():
    x, offset, mask, weight, _ = inputs()
    with pytest.raises(ValueError, match='offset'):
        deform_conv2d(x, offset[..., :-1], weight, 1, 1, 1, 2, 2)
    with pytest.raises(ValueError, match='mask'):
        modulated_deform_conv2d(x, offset, mask[..., :-1], weight, None, 1, 1, 1, 2, 2)


def test_deform_conv_reads_the_first_values_of_larger_maps():
    """As mmcv's kernel reads memory; DyHead convolves with the offsets of the level below."""
    x, offset, mask, weight, bias = (t.double() for t in inputs(groups=1))
    larger_offset = rand(2, 36, 9, 8, seed=5, dtype=torch.float64).requires_grad_()
    larger_mask = rand(2, 18, 9, 8, seed=6, dtype=torch.float64).requires_grad_()
    places = 1, 1, 1, 1, 2
    result = modulated_deform_conv2d(x, larger_offset, larger_mask, weight, bias, *places)
    # the first 36 * 6 * 6 and 18 * 6 * 6 values of each image
    counts = {larger_offset: 36 * 36, larger_mask: 18 * 36}
    taken = [t.detach().flatten(1)[:, :n].clone().requires_grad_() for t, n in counts.items()]
    shaped = taken[0].view(2, 36, 6, 6), taken[1].view(2, 18, 6, 6)
    expected = slow_deform_conv(x, shaped[0].detach(), shaped[1].detach(), weight, bias, 1, 1, 1, 1)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    same = modulated_deform_conv2d(x, *shaped, weight, bias, *places)
    grads = torch.autograd.grad(result.square().sum(), (larger_offset, larger_mask))
    wanted = torch.autograd.grad(same.square().sum(), taken)
    for grad, other in zip(grads, wanted, strict=True):
        grad, count = grad.flatten(1), other.shape[1]
        torch.testing.assert_close(grad[:, :count], other, rtol=1e-10, atol=1e-10)
        assert other.any() and not grad[:, count:].any()
