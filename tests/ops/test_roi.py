"""RoIAlign of channels_last features against torchvision's kernel in float64."""

from contextlib import contextmanager

import pytest
import torch
import torchvision

from res2net_mm.ops.mmcv_ext import roi
from res2net_mm.ops.mmcv_ext.roi import roi_align, roi_align_gradient

CASES = {  # (N, C, H, W), sides of regions from and to, bins
    'many samples': ((2, 8, 20, 30), (-5, 90), (7, 7)),
    'below a pixel': ((1, 4, 5, 6), (0, 3), (2, 3)),
    'larger than the image': ((1, 4, 5, 6), (20, 60), (3, 2)),
    'one column': ((1, 3, 4, 1), (0, 30), (2, 3)),
    'tall': ((3, 16, 33, 17), (10, 300), (14, 14)),
}


def make(shape, sides, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    side = torch.empty(60, 2).uniform_(*sides, generator=generator)
    centre = torch.rand(60, 2, generator=generator) * torch.tensor(shape[:1:-1]) * 4.6 - 1
    image = torch.randint(shape[0], (60, 1), generator=generator)
    rois = torch.cat([image, centre - side / 2, centre + side / 2], 1).to(dtype)
    return features.to(memory_format=torch.channels_last), rois


@pytest.fixture
def own_work(monkeypatch):
    """Fails where torchvision's kernel would be taken."""

    def refuse(*args):
        raise AssertionError('torchvision.ops.roi_align was called')

    kernel = torchvision.ops.roi_align
    monkeypatch.setattr(torchvision.ops, 'roi_align', refuse)
    return kernel


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2, 3])
@pytest.mark.parametrize('case', CASES)
def test_equals_torchvision(own_work, case, ratio, aligned):
    shape, sides, size = CASES[case]
    features, rois = make(shape, sides)
    args = size, 0.25, ratio, aligned
    reference = own_work(features.contiguous(), rois, *args)
    assert reference.abs().max() > 0.1
    torch.testing.assert_close(roi_align(features, rois, *args), reference, rtol=1e-11, atol=1e-12)
    single = roi_align(features.float(), rois.float(), *args)
    # torchvision's own float32 is as far from float64
    theirs = own_work(features.float().contiguous(), rois.float(), *args)
    bound = 2 * (theirs - reference).abs().max() + 1e-6 * reference.abs().max()
    assert (single - reference).abs().max() < bound


def torchvisions_gradient(features, rois, grad, size, *arguments):
    leaf = features.detach().contiguous().requires_grad_()
    out = torchvision.ops.roi_align(leaf, rois, size, *arguments)
    return torch.autograd.grad(out, leaf, grad)[0]


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2, 3])
@pytest.mark.parametrize('case', CASES)
def test_gradient_equals_torchvisions(monkeypatch, case, ratio, aligned):
    shape, sides, size = CASES[case]
    features, rois = make(shape, sides)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn((len(rois), shape[1], *size), generator=generator, dtype=torch.float64)
    args = 0.25, ratio, aligned
    reference = torchvisions_gradient(features, rois, grad, size, *args)
    theirs = torchvisions_gradient(features.float(), rois.float(), grad.float(), size, *args)
    assert reference.abs().max() > 0.1
    monkeypatch.delattr(roi, 'torchvisions_gradient')  # it is not needed
    ours = roi_align_gradient(grad, rois, shape, *args)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-12)
    single = roi_align_gradient(grad.float(), rois.float(), shape, *args)
    bound = 2 * (theirs - reference).abs().max() + 1e-6 * reference.abs().max()
    assert (single - reference).abs().max() < bound


def test_gradient_by_hand():
    grad = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # half a pixel back, the samples in the middle of the bins are at pixels 1 and 2
    found = roi_align_gradient(grad, torch.tensor([[0.0, 1, 1, 3, 3]]), (1, 1, 4, 4), 1.0, 1, True)
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = grad[0, 0]
    assert torch.equal(found[0, 0], expected)


@pytest.mark.parametrize('what', ['none', 'huge', 'few samples'])
def test_gradients_that_torchvision_computes(monkeypatch, what):
    shape, sides, size = CASES['many samples']
    features, rois = make(shape, sides)
    ratio = 0
    if what == 'none':
        rois = rois[:0]
    elif what == 'few samples':  # in bins with many pixels
        rois[:, 3:] += 400
        ratio = 2
    else:
        monkeypatch.setattr(roi, '_LARGEST_GRADIENT', 1000)
    grad = torch.rand(len(rois), shape[1], *size, dtype=torch.float64)
    expected = torchvisions_gradient(features, rois, grad, size, 0.25, ratio, True)
    calls, real = [], roi.torchvisions_gradient
    monkeypatch.setattr(
        roi, 'torchvisions_gradient', lambda *args: calls.append(args) or real(*args)
    )
    assert torch.equal(roi_align_gradient(grad, rois, shape, 0.25, ratio, True), expected)
    assert len(calls) == 1


def test_gradient_without_pixels():
    shape, sides, size = CASES['many samples']
    rois, shape = make(shape, sides)[1], (*shape[:2], 0, shape[3])
    grad = torch.ones(len(rois), shape[1], *size, dtype=torch.float64)
    assert roi_align_gradient(grad, rois, shape, 0.25, 0, True).shape == shape


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(
    'surroundings',
    [
        torch.device('meta'),
        torch.autocast('cpu', torch.bfloat16),
        default_dtype(torch.float64),
    ],
    ids=['default device', 'autocast', 'default dtype'],
)
def test_surroundings_change_nothing(surroundings):
    features, rois = make(*CASES['many samples'][:2], torch.float32)
    grad = torch.ones(len(rois), 8, 7, 7)
    arguments = 0.25, 0, True
    expected = roi_align(features, rois, (7, 7), *arguments)
    gradient = roi_align_gradient(grad, rois, features.shape, *arguments)
    with surroundings:
        found = roi_align(features, rois, (7, 7), *arguments)
        of_features = roi_align_gradient(grad, rois, features.shape, *arguments)
    assert torch.equal(found, expected) and torch.equal(of_features, gradient)


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_regions_that_are_not_finite_are_zero(ratio, aligned, form):
    """torchvision's kernel takes them for an index, which may crash, or fails to count samples."""
    features, grad = torch.ones(2, 3, 6, 6).contiguous(memory_format=form), torch.ones(3, 3, 2, 2)
    good = [0, 1, 1, 5, 5]
    lost = [[0, 1, 1, 5, bad] for bad in map(float, ('nan', 'inf', '-inf'))]
    lost += [[0, *[bad] * 4] for *_, bad in lost] + [[0, bad, bad, 5, 5] for *_, bad in lost]
    if aligned and not ratio:
        lost.append([1, 5, 1, 1, 5])  # inverted
    for bad in lost:
        rois = torch.tensor([good, bad, good], dtype=torch.float32)
        out = roi_align(features, rois, (2, 2), 1.0, ratio, aligned)
        assert not out[1].any() and out[::2].eq(1).all(), bad
        found = roi_align_gradient(grad, rois, features.shape, 1.0, ratio, aligned)
        expected = roi_align_gradient(grad[:2], rois[::2], features.shape, 1.0, ratio, aligned)
        assert torch.equal(found, expected) and found.sum() == 24


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('image', [-1, 2])
def test_images_that_are_not_there(image, form):
    features, rois = make(*CASES['many samples'][:2])
    features = features.contiguous(memory_format=form)
    rois[7, 0] = image
    grad = torch.ones(len(rois), 8, 7, 7, dtype=torch.float64)
    message = r'first column of rois must name images 0 to 1, but names '
    with pytest.raises(ValueError, match=message):
        roi_align(features, rois, (7, 7), 0.25, 0, True)
    with pytest.raises(ValueError, match=message):
        roi_align_gradient(grad, rois, features.shape, 0.25, 0, True)


def test_by_hand(own_work):
    features = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 2, 4, 4)
    features = features.to(memory_format=torch.channels_last)
    # of pixels 1 to 3: samples at 0.5 + 0.5 and 0.5 + 1.5 behind the corner, half a pixel back
    out = roi_align(features, torch.tensor([[0.0, 1, 1, 3, 3]]), (2, 2), 1.0, 1, True)
    assert torch.equal(out[0, 1], torch.tensor([[5.0, 6.0], [9.0, 10.0]]))


@pytest.mark.parametrize('what', ['contiguous', 'none', 'huge', 'beyond'])
def test_what_torchvision_computes(monkeypatch, what):
    features, rois = make(*CASES['many samples'][:2], torch.float32)
    if what == 'contiguous':
        features = features.contiguous()
    elif what == 'none':
        rois = rois[:0]
    elif what == 'beyond':
        rois[3, 1:] = torch.tensor([-3e38, -3e38, 3e38, 3e38])
    else:
        rois[3, 3] = 1e5
        monkeypatch.setattr(roi, '_LARGEST', 10**6)
    calls = []
    monkeypatch.setattr(torchvision.ops, 'roi_align', lambda *args: calls.append(args))
    roi_align(features, rois, (7, 7), 0.25, 0, True)
    assert len(calls) == 1


def test_a_region_far_outside_is_zero(own_work):
    features, rois = make(*CASES['many samples'][:2])
    rois[5, 1:] = torch.tensor([-900.0, -900, -800, -800])
    rois[6, 1:] = torch.tensor([900.0, 10, 990, 20])
    out = roi_align(features, rois, (7, 7), 0.25, 0, True)
    assert out[5:7].abs().max() == 0
    reference = own_work(features.contiguous(), rois, (7, 7), 0.25, 0, True)
    torch.testing.assert_close(out, reference, rtol=1e-11, atol=1e-12)
