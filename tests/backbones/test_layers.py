"""Batch norm with fixed statistics: features, gradients, and what stays a module call."""

import copy

import pytest
import torch
from references import randomise
from torch import nn

from res2net_mm import Res2Net, Res2NetDCN, Res2NetDLA
from res2net_mm.backbones.layers import BATCH_NORMS, conv_norm

SMALL = dict(depth=14, base_channels=16, base_width=7, zero_init_residual=False)
NETWORKS = {
    'v1b': lambda: Res2Net(**SMALL),
    'v1': lambda: Res2Net(**SMALL, deep_stem=False, avg_down=False),
    'synchronised': lambda: Res2Net(**SMALL, norm_cfg=dict(type='SyncBN')),
    'standardised weights': lambda: Res2Net(**SMALL, conv_cfg=dict(type='ConvWS')),
    'frozen': lambda: Res2Net(**SMALL, frozen_stages=2),
    'norms frozen': lambda: Res2Net(**SMALL, norm_cfg=dict(type='BN', requires_grad=False)),
    'with_cp': lambda: Res2Net(**SMALL, with_cp=True),
    'deformable': lambda: Res2NetDCN(**SMALL),
    'dla': lambda: Res2NetDLA(base_channels=16),
}


def gradients(net, image):
    outs = net(image)
    sum((out * out.detach().cos()).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize('kind', NETWORKS)
def test_fixed_statistics_give_the_same_features_and_gradients(kind):
    net = randomise(NETWORKS[kind]()).double().train()
    reference = copy.deepcopy(net)
    for module in reference.modules():
        if isinstance(module, BATCH_NORMS):
            module.register_forward_hook(lambda *_: None)  # with a hook, modules run one by one
    before = copy.deepcopy(net.state_dict())
    image = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(0)).double()
    (outs, given), (wanted_outs, wanted) = gradients(net, image), gradients(reference, image)
    for out, other in zip(outs, wanted_outs, strict=True):
        torch.testing.assert_close(out, other, rtol=1e-10, atol=1e-10)
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (given[name] is None) is (gradient is None), name
        if gradient is not None:
            scale = gradient.abs().max() + 1e-12
            assert ((given[name] - gradient).abs().max() / scale).item() < 1e-9, name
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_several_derivatives_at_once(dtype):
    net = Res2Net(depth=14, base_channels=8, out_indices=(0,)).eval()
    net = randomise(net).to(dtype, memory_format=torch.channels_last)
    x = torch.rand(2, 3, 16, 16).to(dtype, memory_format=torch.channels_last).requires_grad_()

    def features(image):
        return net(image)[0].flatten()[:3]

    with torch.no_grad():
        mapped = torch.func.vmap(net)(x[:, None])[0]
    torch.testing.assert_close(mapped.flatten(0, 1), net(x)[0], rtol=2e-2, atol=2e-2)
    one_by_one = torch.stack([torch.autograd.grad(features(x)[i], x)[0] for i in range(3)])
    out = features(x)
    several = torch.eye(3, dtype=dtype)
    (batched,) = torch.autograd.grad(out, x, several, is_grads_batched=True)
    for found in (batched, torch.func.jacrev(features)(x.detach())):
        error = (found - one_by_one).abs().max() / one_by_one.abs().max()
        assert error < (1e-4 if dtype == torch.float32 else 5e-2)


def test_norms_run_where_their_statistics_change_or_no_gradient_is_asked_for():
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    calls = []
    norm.forward = lambda x: calls.append(1) or nn.BatchNorm2d.forward(norm, x)
    x = torch.rand(2, 3, 5, 5)
    conv_norm(conv, norm, x)
    assert len(calls) == 1 and not torch.equal(norm.running_mean, torch.zeros(4))
    norm.eval()
    with torch.no_grad():
        conv_norm(conv, norm, x)
    assert len(calls) == 2
    conv_norm(conv, norm, x)
    assert len(calls) == 2


def test_norms_in_another_type_and_of_another_kind_run_by_themselves():
    class Doubling(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    conv, x = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 5, 5)
    norm = Doubling(4).eval()
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    half, norm = conv.bfloat16(), nn.BatchNorm2d(4).eval()
    assert torch.equal(conv_norm(half, norm, x.bfloat16()), norm(half(x.bfloat16())))


@pytest.mark.parametrize('kind', ['v1b', 'deformable', 'dla'])
def test_without_weights_of_its_own(kind):
    """As in a replica of nn.DataParallel, or where a wrapper holds the weights."""
    net = randomise(NETWORKS[kind]()).eval()
    image = torch.rand(2, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    expected = net(image)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            setattr(module, name, value.detach())
    assert not list(net.parameters())
    for level, reference in zip(net(image), expected, strict=True):
        torch.testing.assert_close(level, reference)


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kind', ['v1b', 'deformable', 'dla'])
def test_memory_format_changes_no_feature(kind, form):
    net = randomise(NETWORKS[kind]()).eval()
    image = torch.rand(2, 3, 65, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(image)
        levels = net.to(memory_format=form)(image.contiguous(memory_format=form))
    for level, reference in zip(levels, expected, strict=True):
        assert level.is_contiguous(memory_format=form)
        assert (level - reference).abs().max() < 1e-5 * reference.abs().max()
