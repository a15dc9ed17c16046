import copy
import warnings

import pytest
import torch
from mmengine.model import PretrainedInit, revert_sync_batchnorm
from references import randomise, relative_error
from torch import nn

import res2net_mm
from res2net_mm import Bottle2neck, Res2Net, create_backbone, list_backbones

SMALL = dict(depth=14, base_width=8, base_channels=16, stem_channels=16)


@pytest.mark.parametrize('rule', ['official', 'mmdet', 'paddle'])
def test_first_block_of_a_dilated_stage(rule):
    """Stride 1 in stage 4: official still pools and does not add, paddle is a normal block."""
    args = dict(SMALL, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), first_block=rule)
    net = randomise(Res2Net(**args)).double().eval()
    block = net.layer4[0]
    x = torch.randn(1, 16 * 4 * 4, 9, 7, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        groups = block.bn1(block.conv1(x)).relu().chunk(4, 1)
        outs = []
        for i in range(3):
            y = groups[i] + outs[-1] if rule == 'paddle' and i else groups[i]
            y = nn.functional.conv2d(y, block.convs[i].weight, padding=2, dilation=2)
            outs.append(block.bns[i](y).relu())
        last = groups[3]
        if rule == 'official':  # the pool counts the padding: every sum is divided by 9
            kernel = torch.full((last.shape[1], 1, 3, 3), 1 / 9, dtype=torch.float64)
            last = nn.functional.conv2d(last, kernel, padding=1, groups=last.shape[1])
        out = block.bn3(block.conv3(torch.cat([*outs, last], 1)))
        expected = (out + block.downsample[2](block.downsample[1](x))).relu()
        assert relative_error(block(x), expected) < 1e-12


@pytest.mark.parametrize('style', ['pytorch', 'caffe'])
def test_one_scale_is_a_resnet(style):
    from mmdet.models.backbones import ResNet

    small = dict(depth=50, base_channels=16, stem_channels=16, style=style)
    theirs = randomise(ResNet(**small))
    theirs.eval()  # which returns None
    ours = Res2Net(**small, scales=1, base_width=16, deep_stem=False, avg_down=False).eval()
    names = {'conv2': 'convs.0', 'bn2': 'bns.0'}
    state = {}
    for key, value in theirs.state_dict().items():
        parts = key.split('.')
        state['.'.join(names.get(part, part) for part in parts)] = value
    ours.load_state_dict(state, strict=True)
    image = torch.randn(1, 3, 65, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for out, reference in zip(ours(image), theirs(image), strict=True):
            assert relative_error(out, reference) < 1e-5


LARGE = ('_6s', '_8s', '101', '200')  # the same with more blocks or groups


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * any(part in name for part in LARGE))
        for name in list_backbones()
    ],
)
def test_every_variant_trains(name):
    net = create_backbone(name, norm_eval=False)
    side = 2 * net.out_strides[-1]
    outs = net(torch.randn(2, 3, side, side))
    sides = [side // stride for stride in net.out_strides]
    expected = [(2, c, s, s) for c, s in zip(net.out_channels, sides, strict=True)]
    assert [tuple(out.shape) for out in outs] == expected
    sum(out.square().mean() for out in outs).backward()
    # zero_init_residual: conv3 and what lies before it start with a gradient of zero, not None
    assert all(p.grad is not None for p in net.parameters())
    assert not [m for m in net.modules() if hasattr(m, 'norm3') and m.norm3.weight.any()]


def test_outputs_and_unused_stages():
    net = Res2Net(**SMALL, out_indices=(1, 2))
    assert (net.out_channels, net.out_strides) == ((128, 256), (8, 16))
    assert [tuple(x.shape) for x in net(torch.rand(1, 3, 64, 64))] == [
        (1, 128, 8, 8),
        (1, 256, 4, 4),
    ]
    trained = {name.split('.')[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {'stem', 'layer1', 'layer2', 'layer3'}
    dilated = Res2Net(**SMALL, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert dilated.out_strides == (4, 8, 8, 8)
    assert [x.shape[-1] for x in dilated(torch.rand(1, 3, 64, 64))] == [16, 8, 8, 8]
    three = Res2Net(**SMALL, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=[2])
    assert three.out_channels == (256,) and not hasattr(three, 'layer4')


def dilations_of(net):
    return [
        [block.convs[0].dilation[0] for block in getattr(net, f'layer{i}')] for i in (1, 2, 3, 4)
    ]


def test_dilation_arguments_as_mmseg():
    from mmseg.models.backbones import ResNet

    for args in (
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
        dict(
            dilations=(1, 1, 1, 2),
            strides=(1, 2, 2, 1),
            multi_grid=(1, 2, 4),
            contract_dilation=True,
        ),
    ):
        with torch.device('meta'):
            theirs, ours = ResNet(depth=50, **args), Res2Net(depth=50, **args)
        expected = [
            [block.conv2.dilation[0] for block in getattr(theirs, f'layer{i}')]
            for i in (1, 2, 3, 4)
        ]
        assert dilations_of(ours) == expected


@pytest.mark.parametrize('deep_stem', [True, False])
@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_freezing(deep_stem, frozen):
    net = Res2Net(**SMALL, deep_stem=deep_stem, frozen_stages=frozen, norm_eval=False)
    assert net.train() is net and net.eval() is net
    net.train()
    names = ['stem'] if deep_stem else ['conv1', 'bn1']
    frozen_names = (names if frozen >= 0 else []) + [f'layer{i}' for i in range(1, frozen + 1)]
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(out.square().mean() for out in net(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    changed = {k.split('.')[0] for k, v in net.state_dict().items() if not v.equal(before[k])}
    everything = {*names, 'layer1', 'layer2', 'layer3', 'layer4'}
    assert changed == everything - set(frozen_names)


@pytest.mark.parametrize('kind', ['BN', 'SyncBN'])
def test_norm_eval_keeps_statistics(kind):
    net = Res2Net(**SMALL, norm_cfg=dict(type=kind), norm_eval=True)
    net = revert_sync_batchnorm(net).train()  # as mmengine does in a single process
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(2, 3, 64, 64))
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert net.layer1.training and not net.layer1[0].bn1.training


@pytest.mark.parametrize(
    'kind', ['Pretrained', 'mmengine.Pretrained', 'mmengine.model.PretrainedInit', PretrainedInit]
)
def test_every_name_of_the_initialisation_loads_all_weights(kind, tmp_path):
    source, file = Res2Net(**SMALL), tmp_path / 'x.pth'
    randomise(source)
    torch.save(source.state_dict(), file)
    net = Res2Net(**SMALL, init_cfg=dict(type=kind, checkpoint=str(file)))
    net.init_weights()
    assert all(value.equal(net.state_dict()[key]) for key, value in source.state_dict().items())


def test_open_batch_of_an_exported_program():
    net, x = Res2Net(**SMALL).eval(), torch.randn(5, 3, 64, 64)
    sizes = ({0: torch.export.Dim('batch', min=2, max=8)},)
    program = torch.export.export(net, (x[:2],), dynamic_shapes=sizes).module()
    for ours, theirs in zip(program(x), net(x), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    'args, words',
    [
        (dict(norm_eval=True), '27 of 27 batch norms .*set norm_eval=False$'),
        (dict(frozen_stages=1), '9 of 27 batch norms .*set frozen_stages=-1$'),
        (dict(norm_eval=True, frozen_stages=0), 'set norm_eval=False and frozen_stages=-1$'),
    ],
)
def test_batch_norm_that_stays_as_built_is_said_once(args, words):
    args, x = {**SMALL, 'norm_eval': False, **args}, torch.randn(2, 3, 64, 64)
    net = Res2Net(**args).train()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        with torch.no_grad():
            net(x)
        Res2Net(**args).eval()(x)
        Res2Net(**SMALL, norm_eval=False)(x)
    with pytest.warns(UserWarning, match=words) as caught:
        net(x)
        net.train()(x)
    assert len(caught) == 1 and caught[0].filename == __file__
    folded = Res2Net(**SMALL)  # as caffe's: statistics are part of scale and shift
    for module in folded.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        for source in (randomise(Res2Net(**SMALL)), folded):
            net = Res2Net(**args).train()
            net.load_state_dict(source.state_dict())
            net(x)


@pytest.mark.parametrize(
    'transform',
    [
        lambda net, x: torch.compile(net, backend='aot_eager', fullgraph=True),
        lambda net, x: torch.jit.trace(net, x, check_trace=False),
    ],
    ids=['compiled', 'traced'],
)
def test_graphs_do_not_look_at_batch_norm(transform):
    net, x = Res2Net(**SMALL, out_indices=(0,), norm_eval=True).train(), torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        found = transform(net, x)(x)[0]
    net.eval()
    torch.testing.assert_close(found, net(x)[0], rtol=1e-4, atol=1e-5)


def test_batch_norms_of_several_networks_at_once():
    nets = [Res2Net(**SMALL, norm_eval=True).train() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(2, 3, 64, 64)

    def run(parameters, buffers):
        return torch.func.functional_call(nets[0], (parameters, buffers), x)[3]

    both = torch.func.vmap(run)(parameters, buffers)
    nets[1].eval()
    torch.testing.assert_close(both[1], nets[1](x)[3], rtol=1e-4, atol=1e-4)


def test_checkpointing_changes_nothing():
    """Outputs, gradients and running statistics: a recomputed batch is not counted twice."""
    plain = randomise(Res2Net(**SMALL, norm_eval=False, frozen_stages=1)).train()
    saving = Res2Net(**SMALL, norm_eval=False, frozen_stages=1, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for net in (plain, saving):
        sum(out.square().mean() for out in net(image)).backward()
    for ours, reference in zip(saving.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (reference.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, reference.grad)
    reference = plain.state_dict()
    assert all(v.equal(reference[k]) for k, v in saving.state_dict().items())
    assert reference['layer2.0.bn1.num_batches_tracked'] == 1


def test_plugins_see_the_channels_of_their_position():
    plugins = [
        dict(cfg=dict(type='ContextBlock', ratio=0.25), position=f'after_conv{i}', stages=stages)
        for i, stages in ((1, (True, False, False, False)), (2, (False, True, False, False)))
    ]
    plugins.append(
        dict(cfg=dict(type='ContextBlock', ratio=0.25, postfix='_c'), position='after_conv3')
    )
    given = copy.deepcopy(plugins)
    net = Res2Net(**SMALL, plugins=plugins)
    assert plugins == given
    assert net.layer1[0].context_block.conv_mask.in_channels == 8 * 4
    assert net.layer2[0].context_block.conv_mask.in_channels == 16 * 4
    assert net.layer4[0].context_block_c.conv_mask.in_channels == 512
    assert not hasattr(net.layer3[0], 'context_block')
    sum(out.sum() for out in net(torch.randn(1, 3, 64, 64))).backward()
    assert net.layer2[0].context_block.conv_mask.weight.grad is not None
    twice = [dict(cfg=dict(type='ContextBlock', ratio=0.5), position='after_conv1')] * 2
    with pytest.raises(ValueError, match='context_block.*postfix'):
        Res2Net(**SMALL, plugins=twice)


def test_norm_and_conv_configs():
    net = Res2Net(
        **SMALL, norm_cfg=dict(type='GN', num_groups=4), conv_cfg=dict(type='ConvWS'), scales=2
    )
    assert isinstance(net.layer1[0].gn1, nn.GroupNorm)
    assert type(net.layer1[0].convs[0]).__name__ == 'ConvWS2d'


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (dict(depth=34), 'depth .*14, 26, 50, 101, 152, 200.* 34'),
        (dict(scales=0), 'scales .*positive integer.* 0'),
        (dict(base_width='26'), "base_width .*positive integer.* '26'"),
        (dict(first_block='timm'), "first_block .*'official', 'mmdet', 'paddle'.* 'timm'"),
        (dict(num_stages=5), 'num_stages .* 5'),
        (dict(strides=(1, 2)), r'strides .* 4 values.*\(1, 2\)'),
        (dict(dilations=(1, 1, 0, 1)), 'dilations .*positive integer.* 0'),
        (dict(multi_grid=(1, 2)), r'multi_grid .* 3 values.*\(1, 2\)'),
        (dict(out_indices=(0, 4)), r'out_indices .*0 to 3.*\(0, 4\)'),
        (dict(out_indices=(2, 1)), r'out_indices .*ascending.*\(2, 1\)'),
        (dict(out_indices=()), 'out_indices'),
        (dict(frozen_stages=5), 'frozen_stages .* 5'),
        (dict(style='tensorflow'), "style .*'pytorch', 'caffe'.*'tensorflow'"),
        (dict(stem_channels=33), 'stem_channels .*even.* 33'),
        (dict(base_channels=-1), 'base_channels .* -1'),
        (dict(plugins=['se']), "plugins must be .*'se'"),
        (dict(plugins=[dict(cfg={}, position='before_conv1')]), "position .*'before_conv1'"),
        (dict(plugins=[dict(cfg={}, stages=(True,))]), r'stages .* 4 values.*\(True,\)'),
    ],
)
def test_wrong_values_are_named(args, words):
    with pytest.raises(ValueError, match=words):
        Res2Net(**args)


def test_wrong_block_values_are_named():
    with pytest.raises(ValueError, match='base_width .* 1 with base_channels=64 .* 16 planes'):
        Bottle2neck(16, 16, base_width=1)
    with pytest.raises(ValueError, match="stride must be 1 if stage_type is 'normal'.* 2"):
        Bottle2neck(16, 16, stride=2)
    with pytest.raises(ValueError, match="stage_type .*'normal', 'stage'.*'first'"):
        Bottle2neck(16, 16, stage_type='first')


def test_create_backbone():
    with pytest.raises(ValueError, match="'res2net50_v1b_26w4s'; did you mean res2net50_v1b_26w"):
        create_backbone('res2net50_v1b_26w4s')
    with pytest.raises(TypeError, match='out_indexes'):
        create_backbone('res2net14_v1b_26w_4s', out_indexes=(0,))
    net = res2net_mm.create_backbone('res2net26_v1b_26w_4s', out_indices=[3])
    assert net.out_strides == (32,)


def test_create_backbone_trains_batch_norm_unless_weights_are_loaded(tmp_path):
    name = 'res2net14_v1b_26w_4s'
    kaiming = dict(type='Kaiming', layer='Conv2d')
    nets = [create_backbone(name, **a) for a in ({}, dict(init_cfg=kaiming))]
    nets[0](torch.randn(2, 3, 64, 64))
    assert all(m.num_batches_tracked == 1 for m in nets[0].modules() if hasattr(m, 'running_var'))
    torch.save(nets[0].state_dict(), tmp_path / 'weights.pth')
    nets.append(create_backbone(name, norm_eval=True))
    source = str(tmp_path / 'weights.pth')
    nets += [create_backbone(name, pretrained=source, **a) for a in ({}, dict(norm_eval=False))]
    assert [net.norm_eval for net in nets] == [False, False, True, True, False]
    for net in nets[3:]:  # as it is returned, in a loop that calls no train()
        norms = [module for module in net.modules() if hasattr(module, 'running_var')]
        before = [norm.running_mean.clone() for norm in norms]
        net(torch.randn(2, 3, 64, 64))
        kept = [norm.running_mean.equal(old) for norm, old in zip(norms, before, strict=True)]
        assert set(kept) == {net.norm_eval}


def test_init_weights():
    net = Res2Net(**SMALL)
    net.init_weights()
    conv = net.layer3[0].conv1.weight
    fan_out = conv.shape[0]
    assert conv.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert not net.layer3[0].norm3.weight.any()
    net.layer3[0].norm3.weight.data.fill_(0.3)
    net.init_weights()  # warns and leaves trained weights alone
    assert net.layer3[0].norm3.weight.eq(0.3).all()
    kept = Res2Net(**SMALL, zero_init_residual=False)
    kept.init_weights()
    assert kept.layer3[0].norm3.weight.eq(1).all()
