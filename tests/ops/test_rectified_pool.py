"""Max pooling of rectified features against PyTorch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from res2net_mm.ops.rectified_pool import RectifiedMaxPool2d

SHAPES = [(2, 5, 8, 6), (1, 64, 33, 17), (1, 3, 1, 1), (1, 4, 2, 1), (3, 2, 1, 7), (2, 1, 5, 4)]


def make(shape, dtype, form=torch.channels_last):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    return x.to(dtype).contiguous(memory_format=form)


@pytest.fixture
def pool():
    return RectifiedMaxPool2d(3, stride=2, padding=1)


@pytest.fixture
def own_work(monkeypatch):
    """Fails where PyTorch's kernel would be taken; gives it."""

    def refuse(*args, **kwargs):
        raise AssertionError('F.max_pool2d was called')

    kernel = F.max_pool2d
    monkeypatch.setattr(F, 'max_pool2d', refuse)
    return kernel


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_pytorchs(pool, own_work, shape, dtype):
    x = make(shape, dtype)
    expected = own_work(x, 3, 2, 1)
    out = pool(x)
    assert out.dtype == dtype and torch.equal(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_infinity_and_nan_of_either_sign(pool, own_work):
    x = make((1, 3, 9, 9), torch.float32)
    x[0, 0, 4, 4], x[0, 1, 4, 4] = torch.inf, torch.nan
    x[0, 2, 4, 4] = -torch.tensor(torch.nan)
    assert torch.equal(x[0, 2, 4, 4].view(torch.int32) < 0, torch.tensor(True))
    expected = own_work(x, 3, 2, 1)
    out = pool(x)
    assert out[0, 0, 2, 2] == torch.inf and out[0, 1:, 2, 2].isnan().all()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    'x',
    [
        make((1, 3, 6, 6), torch.float64),
        make((1, 3, 6, 6), torch.float32, torch.contiguous_format),
        make((1, 3, 6, 6), torch.float32).requires_grad_(),
        make((3, 6, 6), torch.float32, torch.contiguous_format),
    ],
    ids=['float64', 'NCHW', 'gradients', 'one image'],
)
def test_what_pytorch_computes(pool, x):
    before = x.detach().clone()
    assert torch.equal(pool(x), F.max_pool2d(x, 3, 2, 1)) and torch.equal(x, before)


@pytest.mark.parametrize(
    ('layer', 'suits'),
    [
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.MaxPool2d(3, 2), False),
        (nn.MaxPool2d(2, 2, 1), False),
        (nn.MaxPool2d(3, 1, 1), False),
        (nn.MaxPool2d(3, 2, 1, dilation=2), False),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), False),
        (nn.MaxPool2d(3, 2, 1, return_indices=True), False),
        (nn.AvgPool2d(3, 2, 1), False),
    ],
    ids=repr,
)
def test_what_it_stands_for(layer, suits):
    assert RectifiedMaxPool2d.suits(layer) is suits
