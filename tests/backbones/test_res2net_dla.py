import copy
import importlib
import math

import pytest
import timm
import torch
from references import randomise, relative_error
from torch import nn

from res2net_mm import Bottle2neck, Res2NetDLA, create_backbone

SMALL = dict(base_width=8, base_channels=16)
STEM = {'base_layer', 'level0', 'level1'}
STAGES = {'level2', 'level3', 'level4', 'level5'}
NETS = {'dla60_res2net': 'res2net_dla60', 'dla60_res2next': 'res2next_dla60'}  # timm's, ours


def pair(name):
    """timm's network and ours with its weights, random in every layer."""
    theirs = randomise(timm.create_model(name)).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith('fc.')}
    ours = create_backbone(NETS[name]).eval()
    ours.load_state_dict(state, strict=True)
    return ours, theirs


def image_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def levels_of(theirs, image):
    return theirs.forward_intermediates(image, indices=(2, 3, 4, 5), intermediates_only=True)


def largest_error(ours, theirs, image):
    with torch.no_grad():
        pairs = zip(ours(image), levels_of(theirs, image), strict=True)
        return max(relative_error(out, reference) for out, reference in pairs)


@pytest.mark.parametrize('name', NETS)
def test_equals_timm(name):
    ours, theirs = pair(name)
    images = image_of(3, 3, 64, 96), image_of(1, 3, 96, 128)
    for image in images:
        assert largest_error(ours, theirs, image) < 1e-5
    ours.double(), theirs.double()
    for image in images:
        assert largest_error(ours, theirs, image.double()) < 1e-10
    image = images[0].double()
    for levels in (ours(image), levels_of(theirs, image)):
        sum(out.square().mean() for out in levels).backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, gradients[key]) < 1e-10, key


@pytest.mark.parametrize('name', NETS)
def test_sizes_that_are_no_multiple_of_32(name):
    """timm's shortcuts round down and do not fit its convs; rounding up they do."""
    ours, theirs = pair(name)
    with pytest.raises(RuntimeError, match='size of tensor'):
        theirs(image_of(1, 3, 75, 61))
    for module in theirs.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    ours.double(), theirs.double()
    for size in ((75, 61), (33, 98), (1, 20)):
        image = image_of(1, 3, *size).double()
        assert largest_error(ours, theirs, image) < 1e-10
        for i, out in enumerate(ours(image)):
            assert out.shape == (1, 128 * 2**i, *(math.ceil(side / 2 ** (i + 2)) for side in size))


def test_gradients_reach_every_parameter():
    net = randomise(Res2NetDLA(**SMALL, norm_eval=False))
    sum(out.square().mean() for out in net(image_of(2, 3, 64, 64))).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('indices', [(0, 2), (1,)])
def test_outputs_and_unused_stages(indices):
    net = randomise(Res2NetDLA(**SMALL)).eval()
    part = Res2NetDLA(**SMALL, out_indices=indices).eval()
    part.load_state_dict(net.state_dict())
    assert part.out_channels == tuple((32, 64, 128, 256)[i] for i in indices)
    assert part.out_strides == tuple((4, 8, 16, 32)[i] for i in indices)
    unused = {f'level{i}' for i in range(indices[-1] + 3, 6)}
    for name in unused:
        delattr(part, name)
    image = image_of(1, 3, 64, 64)
    with torch.no_grad():
        levels = net(image)
        for out, i in zip(part(image), indices, strict=True):
            assert out.equal(levels[i])
    part = Res2NetDLA(**SMALL, out_indices=indices)
    trained = {name.split('.')[0] for name, p in part.named_parameters() if p.requires_grad}
    assert trained == (STEM | STAGES) - unused


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages_stay_as_they_are(frozen):
    net = randomise(Res2NetDLA(**SMALL, frozen_stages=frozen, norm_eval=False))
    net.eval()
    assert net.train() is net
    names = {*(STEM if frozen >= 0 else ()), *(f'level{i + 2}' for i in range(frozen))}
    before = copy.deepcopy(net.state_dict())
    parameters = [p for p in net.parameters() if p.requires_grad]
    loss = sum(out.square().mean() for out in net(image_of(2, 3, 64, 64)))
    if parameters:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        loss.backward()
        optimizer.step()
    changed = {k.split('.')[0] for k, v in net.state_dict().items() if not v.equal(before[k])}
    assert changed == (STEM | STAGES) - names


def test_checkpointing_changes_nothing_but_memory():
    """A recomputed batch is not counted into the running statistics a second time."""
    args = dict(SMALL, norm_eval=False, frozen_stages=1)
    plain = randomise(Res2NetDLA(**args)).train()
    saving = Res2NetDLA(**args, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    runs = []
    for module in saving.level3.modules():
        if isinstance(module, Bottle2neck):
            module.conv1.register_forward_hook(lambda *_: runs.append(1))
    image = image_of(2, 3, 64, 64)
    outs = [net(image) for net in (plain, saving)]
    for ours, reference in zip(outs[1], outs[0], strict=True):
        assert ours.equal(reference)
    assert len(runs) == 4
    for levels in outs:
        sum(out.square().mean() for out in levels).backward()
    assert len(runs) == 8
    for ours, reference in zip(saving.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (reference.grad is None)
        assert ours.grad is None or ours.grad.equal(reference.grad)
    reference = plain.state_dict()
    assert all(v.equal(reference[k]) for k, v in saving.state_dict().items())
    assert reference['level3.tree1.tree1.bn1.num_batches_tracked'] == 1


def test_compiled_checkpointing_changes_nothing():
    args = dict(SMALL, norm_eval=False, out_indices=(0,))
    plain = randomise(Res2NetDLA(**args)).double().train()
    saving = Res2NetDLA(**args, with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    for net in (plain, torch.compile(saving, backend='aot_eager', fullgraph=True)):
        net(image_of(2, 3, 32, 32).double())[0].square().mean().backward()
    for ours, reference in zip(saving.level2.parameters(), plain.level2.parameters(), strict=True):
        assert relative_error(ours.grad, reference.grad) < 1e-10
    reference = plain.state_dict()
    for key, value in saving.state_dict().items():
        torch.testing.assert_close(value, reference[key], msg=key)
    assert reference['level2.tree1.bn1.num_batches_tracked'] == 1


@pytest.mark.slow
def test_traces_and_compiles():
    net = randomise(Res2NetDLA(**SMALL)).eval()
    images = image_of(1, 3, 64, 96), image_of(2, 3, 75, 61)
    with torch.no_grad():
        traced = torch.jit.trace(net, images[0])
        compiled = torch.compile(net, backend='eager', fullgraph=True)
        for image in images:
            for ours in (traced, compiled):
                for out, reference in zip(ours(image), net(image), strict=True):
                    assert relative_error(out, reference) < 1e-6


def test_norm_and_conv_configs():
    net = Res2NetDLA(
        **SMALL, norm_cfg=dict(type='GN', num_groups=2), conv_cfg=dict(type='ConvWS'), scales=2
    )
    kinds = {type(m).__name__ for m in net.modules()}
    assert {'GroupNorm', 'ConvWS2d'} <= kinds and not kinds & {'BatchNorm2d', 'Conv2d'}


def test_one_scale_and_image_channels():
    net = Res2NetDLA(**SMALL, scales=1, in_channels=1).eval()
    assert net.base_layer[0].in_channels == 1
    assert [len(m.convs) for m in net.modules() if isinstance(m, Bottle2neck)] == [1] * 16
    assert [tuple(out.shape) for out in net(image_of(1, 1, 32, 32))] == [
        (1, 32, 8, 8),
        (1, 64, 4, 4),
        (1, 128, 2, 2),
        (1, 256, 1, 1),
    ]


@pytest.mark.parametrize('package', ['mmengine', 'mmdet', 'mmseg'])
def test_builds_from_every_registry(package):
    models = importlib.import_module(f'{package}.registry').MODELS
    net = models.build(dict(type='res2net_mm.Res2NetDLA', **SMALL, out_indices=(3,)))
    assert type(net) is Res2NetDLA and net.out_channels == (256,)


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (dict(depth=50), 'depth .* 60, .* 50'),
        (dict(scales=0), 'scales .*positive integer.* 0'),
        (dict(base_width='28'), "base_width .*positive integer.* '28'"),
        (dict(groups=0), 'groups .*positive integer.* 0'),
        (dict(in_channels=0), 'in_channels .*positive integer.* 0'),
        (dict(base_channels=-4), 'base_channels .*positive integer.* -4'),
        (dict(base_channels=18), 'base_channels .*multiple of 4.* 18'),
        (dict(frozen_stages=5), 'frozen_stages .* 5'),
        (dict(out_indices=(4,)), r'out_indices .* 0 to 3.*\(4,\)'),
        (dict(out_indices=(1, 0)), r'out_indices .*ascending.*\(1, 0\)'),
    ],
)
def test_wrong_values_are_named(args, words):
    with pytest.raises(ValueError, match=words):
        Res2NetDLA(**args)
    with pytest.raises(TypeError, match='first_block'):
        Res2NetDLA(first_block='mmdet')
