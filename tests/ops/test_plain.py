"""Operators in plain PyTorch, through mmcv's own Python code.

Against loops in float64 written from the definitions, torchvision, and numerical gradients.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv.ops import (
    CARAFE,
    PSAMask,
    sigmoid_focal_loss,
)
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

gradcheck = partial(torch.autograd.gradcheck, rtol=1e-6, atol=1e-7)
HALVES = [torch.float16, torch.bfloat16]


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_sigmoid_focal(logits, target, gamma, alpha, weight):
    loss = torch.zeros_like(logits)
    for n, row in enumerate(logits.tolist()):
        for c, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if target[n] == c:
                loss[n, c] = -alpha * (1 - p) ** gamma * math.log(p)
            else:
                loss[n, c] = -(1 - alpha) * p**gamma * math.log(1 - p)
            if weight is not None and target[n] < len(weight):
                loss[n, c] *= weight[target[n]]
    return loss


TARGETS = torch.tensor([0, 3, 1, 4, 2, 4])  # 4 is the background
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize('weight', [None, WEIGHTS])
@pytest.mark.parametrize('gamma,alpha', [(2.0, 0.25), (0.0, 0.5), (1.5, 0.6)])
def test_sigmoid_focal_loss(gamma, alpha, weight):
    logits = (rand(6, 4, dtype=torch.float64) * 3).requires_grad_()
    result = sigmoid_focal_loss(logits, TARGETS, gamma, alpha, weight, 'none')
    expected = slow_sigmoid_focal(logits.detach(), TARGETS, gamma, alpha, weight)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)
    for reduction in ('none', 'mean', 'sum'):
        assert gradcheck(
            lambda x, way=reduction: sigmoid_focal_loss(x, TARGETS, gamma, alpha, weight, way),
            logits,
            fast_mode=reduction != 'none',
        )
    if weight is None:
        one_hot = F.one_hot(TARGETS, 5)[:, :4].double()
        theirs = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha, gamma)
        torch.testing.assert_close(result, theirs)


def test_sigmoid_focal_loss_of_certain_answers():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for target, losses, slopes in ((0, [0, 0], [0, 0]), (1, [150, 50], [0.75, -0.25])):
        loss = sigmoid_focal_loss(logits, torch.tensor([target]), 2.0, 0.25, None, 'none')
        assert loss.tolist() == [losses]
        assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [slopes]


@pytest.mark.parametrize('dtype', HALVES)
def test_focal_loss_in_half_precision(dtype):
    logits = rand(4, 4).to(dtype).requires_grad_()
    full = logits.detach().float().requires_grad_()
    target = torch.tensor([0, 3, 1, 2])
    result = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    expected = sigmoid_focal_loss(full, target, 2.0, 0.25, None, 'none')
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=1e-4)
    result.float().sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad.float(), full.grad, rtol=2**-5, atol=2e-3)


def test_focal_loss_without_samples():
    logits = torch.zeros(0, 4, requires_grad=True)
    result = sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum')
    result.backward()
    assert result == 0 and logits.grad.shape == (0, 4)


def attention_inputs(dtype):
    shapes = torch.tensor([[4, 3], [2, 2]])
    starts = torch.tensor([0, 12])
    value = rand(2, 16, 2, 3, dtype=dtype)
    places = torch.rand(2, 5, 2, 2, 3, 2, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    weights = rand(2, 5, 2, 6, seed=2, dtype=dtype).softmax(-1).view(2, 5, 2, 2, 3)
    return value, shapes, starts, places.to(dtype), weights


def test_deformable_attention():
    value, shapes, starts, places, weights = (
        t.requires_grad_() if t.is_floating_point() else t for t in attention_inputs(torch.float64)
    )

    def run(value, places, weights):
        return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)

    expected = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    for n, q, h, level, p in torch.ones(places.shape[:5]).nonzero().tolist():
        height, width = shapes[level].tolist()
        x, y = (places[n, q, h, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    pixel = value[n, int(starts[level]) + row * width + column, h]
                    expected[n, q, h] += share * weights[n, q, h, level, p] * pixel
    result = run(value, places, weights)
    torch.testing.assert_close(result, expected.flatten(2), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        result, multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    )
    assert gradcheck(run, (value, places, weights), fast_mode=True)


@pytest.mark.parametrize('dtype', HALVES)
def test_deformable_attention_in_half_precision(dtype):
    value, shapes, starts, places, weights = attention_inputs(torch.float32)
    value = value.to(dtype).requires_grad_()
    result = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)
    exact = multi_scale_deformable_attn_pytorch(
        value.float(), shapes, places.to(dtype).float(), weights.to(dtype).float()
    )
    assert result.dtype == dtype and torch.equal(result, exact.to(dtype))
    result.sum().backward()
    assert value.grad.dtype == dtype and value.grad.any()


@pytest.mark.parametrize('mask_size', [(7, 9), (3, 5)])
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psa_mask(kind, mask_size):
    (height, width), (tall, wide) = (4, 5), mask_size
    given = rand(2, tall * wide, height, width, dtype=torch.float64).requires_grad_()
    expected = torch.zeros(2, height * width, height, width, dtype=torch.float64)
    for y, x, a, b in torch.ones(height, width, tall, wide).nonzero().tolist():
        there_y, there_x = y + a - tall // 2, x + b - wide // 2
        if 0 <= there_y < height and 0 <= there_x < width:
            value = given.detach()[:, a * wide + b, y, x]
            if kind == 'collect':
                expected[:, there_y * width + there_x, y, x] = value
            else:
                expected[:, y * width + x, there_y, there_x] = value
    layer = PSAMask(kind, mask_size)
    assert torch.equal(layer(given), expected)
    assert gradcheck(layer, given, fast_mode=True)


def slow_carafe(features, masks, kernel, groups, scale):
    """From the definition: output pixels are weighted sums of the pixels around their place."""
    batch, channels, height, width = features.shape
    result = torch.zeros(batch, channels, height * scale, width * scale, dtype=features.dtype)
    for n, c, y, x in torch.ones(result.shape).nonzero().tolist():
        group = c // (channels // groups)
        for a in range(kernel):
            for b in range(kernel):
                row, column = y // scale + a - kernel // 2, x // scale + b - kernel // 2
                if 0 <= row < height and 0 <= column < width:
                    weight = masks[n, (group * kernel + a) * kernel + b, y, x]
                    result[n, c, y, x] += weight * features[n, c, row, column]
    return result


@pytest.mark.parametrize('kernel, groups, scale', [(5, 1, 2), (3, 2, 3), (1, 4, 1)])
def test_carafe(kernel, groups, scale):
    features = rand(2, 4, 3, 4, dtype=torch.float64).requires_grad_()
    masks = rand(2, groups * kernel**2, 3 * scale, 4 * scale, seed=1, dtype=torch.float64)
    masks.requires_grad_()
    layer = CARAFE(kernel, groups, scale)
    expected = slow_carafe(features.detach(), masks.detach(), kernel, groups, scale)
    torch.testing.assert_close(layer(features, masks), expected, rtol=1e-12, atol=1e-12)
    assert gradcheck(layer, (features, masks), fast_mode=True)


@pytest.mark.parametrize('dtype', HALVES)
def test_carafe_in_half_precision(dtype):
    features = rand(1, 4, 3, 4).to(dtype).requires_grad_()
    masks = rand(1, 9, 6, 8, seed=1).to(dtype).requires_grad_()
    result = CARAFE(3, 1, 2)(features, masks)
    assert result.dtype == dtype
    expected = slow_carafe(features.detach().float(), masks.detach().float(), 3, 1, 2)
    assert torch.equal(result, expected.to(dtype))
    result.float().sum().backward()
    assert features.grad.dtype == masks.grad.dtype == dtype and features.grad.any()
