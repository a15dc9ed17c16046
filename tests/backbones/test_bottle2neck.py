"""Recomputation by stage, and compiled blocks."""

import warnings

import pytest
import torch

from res2net_mm import Res2Net
from res2net_mm.backbones import bottle2neck, compiling

SMALL = dict(depth=14, base_channels=16, base_width=7, zero_init_residual=False)


def gradients(net, image):
    outs = net(image)
    sum((out * out.detach().cos()).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in net.named_parameters()}


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
    compiling._compiled.cache_clear()
    yield
    compiling._compiled.cache_clear()
    torch.compiler.reset()


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


@pytest.mark.usefixtures('fresh_compilation')
def test_a_failed_compilation_is_that_of_one_network(monkeypatch):
    """The next network tries again, and warns by itself where it fails."""
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        if len(calls) == 1:
            raise OSError('no compiler yet')
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **kw: compile(f, **kw, backend=backend))
    nets = [Res2Net(**SMALL, compile=True).eval() for _ in range(2)]
    image = torch.rand(1, 3, 32, 32)
    with pytest.warns(UserWarning, match='compile=True has no effect.*no compiler yet'):
        nets[0](image)
    assert len(calls) == 1
    nets[1](image)
    assert len(calls) == 5  # a kind of block in each stage
    nets[0](image)
    assert len(calls) == 5
