"""Fixed statistics inside of the weights, recomputation by stage, compiled blocks."""

import copy
import warnings

import pytest
import torch
from references import randomise
from torch import nn

from res2net_mm import Res2Net, Res2NetDCN, Res2NetDLA
from res2net_mm.backbones import bottle2neck, compiling
from res2net_mm.backbones.layers import conv_norm, join_groups, split_groups

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
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
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
@pytest.mark.parametrize('form', [torch.channels_last, torch.contiguous_format])
def test_groups_of_channels(form, dtype):
    x = torch.rand(2, 12, 5, 7).to(dtype, memory_format=form).requires_grad_()
    groups = split_groups(x, 3)
    own = form == torch.channels_last and dtype == torch.bfloat16
    owned = [group.is_contiguous(memory_format=form) for group in groups]
    assert owned == [own] * 3 + [False]  # the last is in no sum
    for group, wanted in zip(groups, x.split(3, dim=1), strict=True):
        assert group.equal(wanted)
    seen = {}
    mine = [group.clone(memory_format=form) for group in groups]
    for i, group in enumerate(mine):
        group.register_hook(lambda g, i=i: seen.update({i: g.is_contiguous(memory_format=form)}))
    out = join_groups(mine)
    factor = torch.arange(12.0).view(-1, 1, 1).to(dtype)
    (grad,) = torch.autograd.grad((out * factor).sum(), [x])
    assert out.equal(x) and grad.equal(factor.expand_as(x))
    assert [seen[i] for i in range(4)] == [form == torch.channels_last] * 3 + [False]
    with torch.no_grad():
        assert join_groups(mine).equal(x)


def test_blocks_split_and_join_by_them(monkeypatch):
    calls = []
    for name in ('split_groups', 'join_groups'):
        real = getattr(bottle2neck, name)

        def call(*args, real=real, name=name):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(bottle2neck, name, call)
    Res2Net(**SMALL).eval()(torch.rand(1, 3, 32, 32))
    assert calls == ['split_groups', 'join_groups'] * 4


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


def test_recomputation_by_stage(monkeypatch):
    recomputed = []
    checkpoint = bottle2neck.checkpoint
    monkeypatch.setattr(
        bottle2neck,
        'checkpoint',
        lambda run, *args, **kwargs: (
            recomputed.append(run.__self__) or checkpoint(run, *args, **kwargs)
        ),
    )
    net = Res2Net(**SMALL, with_cp=(False, True, False, True)).train()
    image = torch.rand(1, 3, 32, 32)
    _, given = gradients(net, image)
    assert recomputed == [*net.layer2, *net.layer4]
    plain = Res2Net(**SMALL).train()
    plain.load_state_dict(net.state_dict())
    _, wanted = gradients(plain, image)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, msg=name)


@pytest.mark.parametrize('value', [(True,), (True, False, 'no', True), 'yes'])
def test_recomputation_refuses_other_values(value):
    with pytest.raises(ValueError, match='with_cp'):
        Res2Net(**SMALL, with_cp=value)


@pytest.fixture
def fresh_compilation(monkeypatch):
    monkeypatch.setattr(compiling, '_failures', [])
    compiling._compile.cache_clear()
    yield
    compiling._compile.cache_clear()
    torch._dynamo.reset()


@pytest.mark.usefixtures('fresh_compilation')
def test_compiled_blocks_share_a_graph_and_give_the_same(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: compile(f, **kw, backend=backend))
    args = dict(SMALL, depth=50)
    net, plain = Res2Net(**args, compile=True).train(), Res2Net(**args).train()
    plain.load_state_dict(net.state_dict())
    assert net.state_dict().keys() == plain.state_dict().keys()
    image = torch.rand(1, 3, 32, 32)
    (outs, given), (wanted_outs, wanted) = gradients(net, image), gradients(plain, image)
    for out, other in zip(outs, wanted_outs, strict=True):
        torch.testing.assert_close(out, other)
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, msg=name)
    assert len(graphs) == 8  # first and other blocks of four stages, not 16 blocks


@pytest.mark.usefixtures('fresh_compilation')
def test_blocks_run_where_they_cannot_be_compiled(monkeypatch):
    def backend(graph, inputs):
        raise OSError('no compiler here\nand a long trace')

    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: compile(f, **kw, backend=backend))
    net, plain = Res2Net(**SMALL, compile=True).eval(), Res2Net(**SMALL).eval()
    plain.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with pytest.warns(UserWarning, match='compile=True has no effect here.*no compiler here'):
        outs = net(image)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = net(image)
    for out, second, other in zip(outs, again, plain(image), strict=True):
        assert torch.equal(out, other) and torch.equal(second, other)
