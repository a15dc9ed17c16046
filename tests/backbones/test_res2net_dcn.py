"""Res2NetDCN against mmdet's networks, the plain network, and counts by hand."""

import copy
import importlib
import os
from pathlib import Path

import mmcv.ops
import mmdet.registry
import mmengine.registry
import pytest
import torch
from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import Res2Net as BuiltIn
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from mmengine.model import BaseModule
from references import randomise, relative_error
from torch import nn

from res2net_mm import Res2Net, Res2NetDCN, create_backbone
from res2net_mm.evaluation.complexity import describe_stages
from res2net_mm.ops import DeformConv2d, ModulatedDeformConv2d
from res2net_mm.weights import load_weights
from res2net_mm.weights.saving import convert_weights

KAIMING, XAVIER = (dict(type=kind, layer='Conv2d') for kind in ('Kaiming', 'Xavier'))
SMALL = dict(depth=14, base_width=8, base_channels=16, stem_channels=16)
V1, V2 = dict(type='DCN', deform_groups=1), dict(type='DCNv2', deform_groups=1)
FALLBACK = dict(fallback_on_stride=True)  # mmdet's first block alone has it: one dict for all


def offsets_of(net):
    return {k: v for k, v in net.state_dict().items() if '.conv_offset.' in k}


def randomised(net, seed=0):
    """Random everywhere: offsets of some pixels, and masks that differ."""
    randomise(net, seed)
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if hasattr(module, 'conv_offset'):
            spread = (1.4 / module.weight[0].numel()) ** 0.5
            module.weight.data.normal_(0, spread, generator=g)
            module.conv_offset.bias.data.normal_(0, 0.7, generator=g)
            module.conv_offset.weight.data *= 0.1
    return net


def image_of(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def check_equal(ours, theirs):
    ours.eval(), theirs.eval()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        ours.to(dtype), theirs.to(dtype)
        for size in ((75, 61), (33, 98)):
            image = image_of(2, 3, *size, dtype=dtype)
            with torch.no_grad():
                pairs = list(zip(ours(image), theirs(image), strict=True))
            assert len(pairs) == 4
            for out, reference in pairs:
                assert relative_error(out, reference) < tolerance, (dtype, size)


@pytest.mark.parametrize(
    'depth, args',
    [
        (50, dict(dcn=V2)),
        pytest.param(101, dict(dcn=V1), marks=pytest.mark.slow),
        (50, dict(dcn=dict(V2, deform_groups=2), stage_with_dcn=(True, False, True, False))),
        (50, dict(dcn=dict(V1, deform_groups=2), stage_with_dcn=(True,) * 4, scales=2)),
    ],
    ids=str,
)
def test_equals_mmdets(depth, args):
    args = dict(stage_with_dcn=(False, True, True, True)) | args
    args.update(depth=depth, base_width=8, base_channels=16, stem_channels=16)
    theirs = randomised(BuiltIn(**copy.deepcopy(args)))
    ours = Res2NetDCN(first_block='mmdet', **args)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert offsets_of(ours)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert all(value.any() for value in offsets_of(ours).values())
    check_equal(ours, theirs)


@pytest.mark.parametrize('style, dcn', [('pytorch', V1), ('caffe', dict(V2, deform_groups=2))])
def test_one_scale_is_mmdets_resnet(style, dcn):
    args = dict(depth=50, base_channels=16, stem_channels=16, style=style)
    args.update(stage_with_dcn=(False, True, True, True), dcn=dcn)
    theirs = randomised(ResNet(**copy.deepcopy(args)))
    ours = Res2NetDCN(**args, scales=1, base_width=16, deep_stem=False, avg_down=False)
    names = {'conv2': 'convs.0', 'bn2': 'bns.0'}
    state = {
        '.'.join(names.get(part, part) for part in key.split('.')): value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state, strict=True)
    check_equal(ours, theirs)


def test_names_of_mmdets_own_config():
    """VFNet with Res2Net-101, whose published weights are to fit."""
    name = 'vfnet/vfnet_res2net101-mdconv-c3-c5_fpn_ms-2x_coco.py'
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / name).model.backbone
    cfg.pop('init_cfg')
    with torch.device('meta'):
        theirs = mmdet.registry.MODELS.build(dict(cfg, type='mmdet.Res2Net'))
        ours = mmdet.registry.MODELS.build(dict(cfg, type='res2net_mm.Res2NetDCN'))
        named = Res2NetDCN(depth=101)
    assert type(ours) is Res2NetDCN and len(offsets_of(ours)) == 2 * 3 * 30
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (theirs, ours, named)]
    assert shapes[0] == shapes[1] == shapes[2]
    frozen = [{k for k, p in n.named_parameters() if not p.requires_grad} for n in (theirs, ours)]
    assert frozen[0] == frozen[1] != set()


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize(
    'kind, init_cfg',
    [
        ('DCN', None),
        ('mmengine.DCN', KAIMING),
        ('DCNv2', [KAIMING, XAVIER]),
        ('mmengine.DCNv2', None),
    ],
)
def test_offsets_start_at_zero(kind, init_cfg, inside):
    net = Res2NetDCN(**SMALL, dcn=dict(type=kind, deform_groups=1), init_cfg=init_cfg)
    parent = net
    if inside:  # as detectors hold it
        parent = BaseModule(init_cfg=dict(type='Normal', layer='Conv2d', std=0.5))
        parent.backbone, parent.conv = net, nn.Conv2d(3, 3, 1)
    before = net.layer1[0].convs[0].weight.clone()
    parent.init_weights()
    assert not net.layer1[0].convs[0].weight.equal(before)
    assert len(offsets_of(net)) == 2 * 9 and net.layer4[0].convs[2].weight.any()
    assert [k for k, v in offsets_of(net).items() if v.any()] == []


def test_created_networks():
    small = dict(base_channels=16, base_width=8)
    net = create_backbone('res2net14_v1b_26w_4s_dcn', **small, out_indices=[2])
    assert type(net) is Res2NetDCN and net.out_channels == (256,)
    assert not any(v.any() for v in offsets_of(net).values())
    assert not net.layer3[0].norm3.weight.any()
    assert not any(p.requires_grad for p in net.layer4.parameters())  # not run
    dcn = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    own = dict(dcn=dcn, stage_with_dcn=(False, True, True, True))
    assert Res2NetDCN.arguments() == Res2Net.arguments() | own
    with pytest.raises(TypeError, match='stage_with_dcns'):
        create_backbone('res2net14_v1b_26w_4s_dcn', stage_with_dcns=())
    assert Res2NetDCN(14, 2, 8).layer2[0].scales == 2


@pytest.mark.parametrize('dcn', [V1, dict(V2, deform_groups=2, **FALLBACK), dict(deform_groups=1)])
def test_arguments_are_the_callers(dcn):
    given, stages = copy.deepcopy(dcn), [True, False, True, False]
    nets = [Res2NetDCN(**SMALL, dcn=dcn, stage_with_dcn=stages) for _ in range(2)]
    assert dcn == given and stages == [True, False, True, False]
    assert repr(nets[0]) == repr(nets[1])
    kind = DeformConv2d if dcn is V1 else ModulatedDeformConv2d
    for net in nets:
        for layer, chosen in ((net.layer1, True), (net.layer2, False)):
            assert any(type(m) is kind for m in layer.modules()) == chosen
        on_stride = type(net.layer3[0].convs[0])
        assert on_stride is (nn.Conv2d if 'fallback_on_stride' in dcn else kind)
    configured = Config(dict(dcn=dcn)).dcn  # mmengine's own kind of dict
    assert repr(Res2NetDCN(**SMALL, dcn=configured, stage_with_dcn=stages)) == repr(nets[0])


def test_fallback_on_stride():
    """In strided convolutions alone, of which caffe's style has none."""
    args = dict(SMALL, depth=26, dcn=dict(V2, **FALLBACK), stage_with_dcn=(True,) * 4)
    for style, strided in (('pytorch', nn.Conv2d), ('caffe', ModulatedDeformConv2d)):
        net = Res2NetDCN(**args, style=style)
        for number, layer in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            first = strided if number else ModulatedDeformConv2d
            assert {type(c) for c in layer[0].convs} == {first}
            assert {type(c) for c in layer[1].convs} == {ModulatedDeformConv2d}


@pytest.mark.parametrize(
    'args, words',
    [
        (dict(stage_with_dcn=(True, True)), r'stage_with_dcn .* 4 values.*\(True, True\)'),
        (dict(stage_with_dcn=(True, 2, True, True)), 'stage_with_dcn .* but got 2'),
        (dict(stage_with_dcn=True), 'stage_with_dcn .* True'),
        (dict(dcn=dict(type='DCNv4')), "dcn's type must be 'DCN' or 'DCNv2', but got 'DCNv4'"),
        (dict(dcn=dict(type='Conv2d')), "dcn's type must be 'DCN' or 'DCNv2', but got 'Conv2d'"),
        (dict(dcn=dict(V2, deform_groups=3)), r'deform_groups must divide .* 3'),
        (dict(depth=34), 'depth .* 34'),
    ],
)
def test_wrong_values_are_named(args, words):
    with pytest.raises(ValueError, match=words):
        Res2NetDCN(**{**SMALL, **args})


@pytest.mark.parametrize('frozen', [1, 2])
def test_frozen_stages_with_offsets(frozen):
    args = dict(SMALL, frozen_stages=frozen, norm_eval=False, stage_with_dcn=(True,) * 4)
    net = randomised(Res2NetDCN(**args)).train()
    stages = net.layer1, net.layer2, net.layer3, net.layer4
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(out.square().mean() for out in net(image_of(2, 3, 64, 64))).backward()
    optimizer.step()
    for number, layer in enumerate(stages, 1):
        assert any(m.training for m in layer.modules()) == (number > frozen)
        assert {p.requires_grad for p in layer.parameters()} == {number > frozen}
    changed = {k.split('.')[0] for k, v in net.state_dict().items() if not v.equal(before[k])}
    assert changed == {f'layer{i}' for i in range(frozen + 1, 5)}
    same = {k for k, v in offsets_of(net).items() if v.equal(before[k])}
    assert not [k for k in same if k.startswith('layer4')]


def test_norm_eval_and_checkpointing():
    plain, saving = (Res2NetDCN(**SMALL, norm_eval=False, with_cp=cp).train() for cp in (0, 1))
    saving.load_state_dict(randomised(plain).state_dict())
    for net in (plain, saving):
        sum(out.square().mean() for out in net(image_of(2, 3, 64, 64))).backward()
    for (name, ours), reference in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad.equal(reference.grad) and ours.grad.any(), name
    assert all(v.equal(plain.state_dict()[k]) for k, v in saving.state_dict().items())
    steady = Res2NetDCN(**SMALL).train()
    before = copy.deepcopy(steady.state_dict())
    steady(image_of(2, 3, 64, 64))
    assert all(v.equal(before[k]) for k, v in steady.state_dict().items())
    assert steady.layer2.training and not steady.layer2[0].bns[0].training


OTHERS = {
    'caffe': dict(style='caffe'),
    'dilated': dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    'Res2NeXt': dict(base_width=2, groups=8, deep_stem=False, avg_down=False),
    'one scale': dict(scales=1),
    'paddle': dict(first_block='paddle', depth=26),
}


@pytest.mark.parametrize('dcn', [V1, V2], ids=['v1', 'v2'])
@pytest.mark.parametrize('kind', OTHERS)
def test_plain_weights_fit(kind, dcn):
    """Offsets are zero: a plain network, with every deformable convolution halved in v2."""
    plain = randomise(Res2Net(**{**SMALL, **OTHERS[kind]})).double().eval()
    net = Res2NetDCN(**{**SMALL, **OTHERS[kind]}, dcn=dcn).double().eval()
    randomised(net, 1)
    report = load_weights(net, plain.state_dict())
    assert set(report.missing) == set(offsets_of(net)) and report.unexpected == []
    assert 'not in the file, and zero: ' in str(report) and 'conv_offset' in str(report)
    assert not any(v.any() for v in offsets_of(net).values())
    if dcn is V2:
        for stage in (plain.layer2, plain.layer3, plain.layer4):
            for block in stage:
                for conv in block.convs:
                    conv.weight.data /= 2
    image = image_of(1, 3, 65, 70).double()
    with torch.no_grad():
        for out, reference in zip(net(image), plain(image), strict=True):
            assert relative_error(out, reference) < 1e-10
    randomised(net, 1)
    sum(out.square().mean() for out in net(image)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def refused(net, source, *words):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError) as raised:
        load_weights(net, source)
    for word in words:
        assert word in str(raised.value)
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    return str(raised.value)


def test_weights_of_another_kind_are_refused():
    """The message says what to set, and nothing is loaded."""
    deformable = randomised(Res2NetDCN(**SMALL))
    state = dict(deformable.state_dict())
    names = 'unexpected: layer2.0.convs.0.conv_offset.weight'
    refused(Res2Net(**SMALL), state, "Set type='Res2NetDCN'", names)
    advice = "dcn={'type': 'DCNv2', 'deform_groups': 1, "
    refused(Res2NetDCN(**SMALL, dcn=V1), state, f'Set {advice}', f'network has dcn={V1}'[:-1])
    refused(Res2NetDCN(**SMALL, dcn=dict(V2, deform_groups=2)), state, advice)
    advice = r'stage_with_dcn=(False, True, True, True)'
    refused(Res2NetDCN(**SMALL, stage_with_dcn=(False, False, True, True)), state, 'Set ', advice)
    other = refused(Res2NetDCN(**dict(SMALL, depth=26)), Res2Net(**SMALL).state_dict(), 'depth=14')
    assert "type='Res2Net'" not in other  # which is not what is wrong
    rule = "needs first_block='official', but the network has first_block='mmdet'"
    refused(Res2NetDCN(**SMALL, first_block='mmdet'), deformable.state_dict(), rule)
    refused(Res2NetDCN(**SMALL, first_block='mmdet'), Res2Net(**SMALL).state_dict(), rule)
    with pytest.raises(ValueError, match=rule):
        Res2NetDCN(**SMALL, first_block='mmdet').load_state_dict(deformable.state_dict())


@pytest.mark.parametrize('part', ['conv_offset.bias', 'conv_offset'])
def test_lost_offsets_are_no_gap(part):
    """A file with offsets has all of them; or it was damaged, and features would be others."""
    part = f'layer3.0.convs.1.{part}'
    state = dict(randomised(Res2NetDCN(**SMALL)).state_dict())
    lacking = {k: v for k, v in state.items() if not k.startswith(part)}
    refused(Res2NetDCN(**SMALL), lacking, 'missing: ' + part)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_are_written_and_read(tmp_path, suffix):
    net = randomised(Res2NetDCN(depth=14))
    detector = {f'backbone.{k}': v for k, v in net.state_dict().items()} | {'neck.b': torch.ones(1)}
    torch.save(dict(state_dict=detector), tmp_path / 'detector.pth')
    written = convert_weights(
        tmp_path / 'detector.pth', tmp_path / f'out{suffix}', first_block='official'
    )
    assert written.report.startswith('res2net14_v1b_26w_4s_dcn: Res2NetDCN, ')
    assert "dcn={'type': 'DCNv2', 'deform_groups': 1, " in written.report
    assert "'fallback_on_stride': False" in written.report
    again = create_backbone('res2net14_v1b_26w_4s_dcn', pretrained=str(written.path))
    assert all(v.equal(net.state_dict()[k]) for k, v in again.state_dict().items())
    rule = "needs first_block='official'"
    refused(Res2NetDCN(depth=14, first_block='paddle'), written.path, rule)


@pytest.mark.parametrize(
    'args',
    [
        dict(dcn=dict(V1, deform_groups=2), stage_with_dcn=(True, False, True, False)),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1,) * 3, out_indices=[2],
             stage_with_dcn=(False, True, True)),
        dict(dcn=dict(V2, **FALLBACK), depth=26),
    ],
    ids=str,
)  # fmt: skip
def test_other_networks_are_written(tmp_path, args):
    net = randomised(Res2NetDCN(**{**SMALL, **args}))
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    written = convert_weights(tmp_path / 'net.pth', tmp_path / 'out.pth')
    again = Res2NetDCN(**{**SMALL, **args})
    load_weights(again, written.path)
    assert all(v.equal(net.state_dict()[k]) for k, v in again.state_dict().items())


def test_costs_by_hand():
    """A deformable convolution costs the plain one and the convolution of its offsets."""
    with torch.device('meta'):
        plain, net = Res2Net(depth=14), Res2NetDCN(depth=14)
    rows = [describe_stages(n, 64, 96) for n in (plain, net)]
    extra, params = [0, 0], [0, 0]
    for width, pixels in ((52, 8 * 12), (104, 4 * 6), (208, 2 * 3)):
        extra.append(3 * 27 * width * 9 * pixels)
        params.append(3 * (27 * width * 9 + 27))
    assert [b.macs - a.macs for a, b in zip(*rows, strict=True)] == extra
    assert [b.params - a.params for a, b in zip(*rows, strict=True)] == params
    assert not any(row.uncounted for row in rows[1])


@pytest.mark.slow
def test_describe(python):
    env = dict(os.environ, OMP_NUM_THREADS='1')
    run = python('tools/describe.py', 'configs/faster_rcnn_r2n50_dcn.py', env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    pairs = ((52, 12, 28), (104, 18, 14), (208, 9, 7))  # width, convolutions, side of the map
    macs = sum(number * 27 * width * 9 * side**2 for width, number, side in pairs)
    params = sum(number * (27 * width * 9 + 27) for width, number, _ in pairs)
    line = next(x for x in run.stdout.splitlines() if x.startswith('backbone: ')).split()
    assert float(line[1]) == pytest.approx(23.67 + params / 1e6, abs=0.011)
    assert float(line[4]) == pytest.approx(4.520 + macs / 1e9, abs=0.0011)
    assert 'variant: res2net50_v1b_26w_4s_dcn\n' in run.stdout


def test_names_of_others_stay_theirs():
    root = mmengine.registry.MODELS
    for name in ('DCN', 'DCNv2'):
        theirs = {'DCN': mmcv.ops.DeformConv2dPack, 'DCNv2': mmcv.ops.ModulatedDeformConv2dPack}[
            name
        ]
        kind = {'DCN': DeformConv2d, 'DCNv2': ModulatedDeformConv2d}[name]
        assert root.get(name) is mmdet.registry.MODELS.get(name) is theirs
        sizes = dict(kernel_size=3, padding=1, bias=False)
        assert type(build_conv_layer(dict(type=name), 4, 4, **sizes)) is theirs
        assert type(build_conv_layer(dict(type=f'res2net_mm.{name}'), 4, 4, **sizes)) is kind
        inside = Res2NetDCN(**SMALL, dcn=dict(type=f'mmengine.{name}')).layer2[0].convs[0]
        assert type(inside) is theirs
    for package in ('mmengine', 'mmdet', 'mmseg'):
        models = importlib.import_module(f'{package}.registry').MODELS
        assert type(models.build(dict(type='res2net_mm.Res2NetDCN', **SMALL))) is Res2NetDCN


STEP = """
import torch
import res2net_mm
from mmdet.registry import MODELS
net = MODELS.build(dict(type='res2net_mm.Res2NetDCN', depth=14, base_width=8, base_channels=16))
net.init_weights()
outs = net(torch.rand(1, 3, 64, 64))
sum(out.square().sum() for out in outs).backward()
with_offsets = [p.grad is not None for n, p in net.named_parameters() if 'conv_offset' in n]
print([tuple(out.shape[1:]) for out in outs], len(with_offsets), all(with_offsets))
"""


def test_step_on_each_stack(stack, python):
    run = python('-c', STEP, env=stack)
    assert run.returncode == 0, run.stderr[-2000:]
    shapes = '[(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]'
    assert run.stdout.splitlines()[-1] == f'{shapes} 18 True'
