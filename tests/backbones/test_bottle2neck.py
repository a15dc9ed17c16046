"""Recomputation by stage, and compiled blocks."""

import pytest
import torch

from res2net_mm import Res2Net
from res2net_mm.backbones import bottle2neck

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


def test_compiled_blocks_share_a_graph_and_give_the_same(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(bottle2neck.Bottle2neck._forward, dynamic=False, backend=backend)
    monkeypatch.setattr(bottle2neck, '_compiled', lambda function: compiled)
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
    torch.compiler.reset()


def test_only_blocks_are_compiled_and_no_trace(monkeypatch):
    """An export or a trace takes the blocks as they are."""
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: pytest.fail('compiled'))
    net = Res2Net(**SMALL, compile=True, out_indices=(0,)).eval()
    image = torch.rand(1, 3, 32, 32)
    traced = torch.jit.trace(net, image, check_trace=False)
    net.layer1[0].compile_forward = False
    torch.testing.assert_close(traced(image)[0], net(image)[0])
