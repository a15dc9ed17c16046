"""Costs against fvcore and the published sizes, receptive fields against gradients, the tool."""

import json
import math

import mmcv.ops
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from res2net_mm import Res2Net, TimmBackbone
from res2net_mm.backbones import VARIANTS
from res2net_mm.evaluation.complexity import (
    describe_backbone,
    describe_stages,
    format_architecture,
    format_comparison,
    format_stages,
)
from res2net_mm.registry import MODELS
from res2net_mm.weights import ZOO

# parameters in millions and multiply-adds in billions at 224 x 224, with the classifier, as
# published or counted from the authors' code
PUBLISHED = {
    'res2net50_48w_2s': ('25.29', '4.183'),
    'res2net50_26w_4s': ('25.70', '4.280'),
    'res2net50_14w_8s': ('25.06', '4.206'),
    'res2net50_26w_6s': ('37.05', '6.326'),
    'res2net50_26w_8s': ('48.40', '8.372'),
    'res2net101_26w_4s': ('45.21', '8.104'),
    'res2next50_4w_4s_8c': ('24.67', '4.200'),
    'res2net50_v1b_26w_4s': ('25.72', '4.522'),
    'res2net101_v1b_26w_4s': ('45.23', '8.345'),
    'res2net200_vd_26w_4s': ('76.22', '15.773'),  # published cut off: 76.21 M, 15.77 G
    'res2net_dla60': ('20.85', '4.147'),
    'res2next_dla60': ('17.03', '3.485'),
}
SMALL = dict(depth=14, base_channels=8, base_width=8)
CONTEXT = dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv3')


def build(args, device='meta'):
    args = dict(args)
    with torch.device(device):
        return MODELS.get(args.pop('type', 'Res2Net'))(**args).eval()


def check_against_fvcore(args, *sizes):
    real = build(args, 'cpu')
    for height, width in sizes:
        counted = FlopCountAnalysis(real, torch.zeros(1, 3, height, width))
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted.set_op_handle('aten::grid_sampler', lambda *_: 0)  # interpolation is left out
        with torch.no_grad():
            outs = real(torch.zeros(1, 3, height, width))
            expected = counted.by_module()
        costs = describe_stages(build(args), height, width)
        assert costs[0].macs == sum(expected[name] for name in real.stem_names)
        assert [c.macs for c in costs[1:]] == [expected[name] for name in real.stage_names]
        assert sum(c.macs for c in costs) == expected['']
        assert [c.shape for c in costs if c.shape][1:] == [tuple(o.shape[1:]) for o in outs]
        assert not any(c.uncounted for c in costs)
    params = [sum(p.numel() for p in getattr(real, n).parameters()) for n in real.stage_names]
    assert [c.params for c in costs[1:]] == params
    assert sum(c.params for c in costs) == sum(p.numel() for p in real.parameters())


# they differ from another one in depth, width or scales only
ALIKE = [
    n for n in PUBLISHED if n[7:9] in ('10', '20') or n[-5:] in ('8w_2s', '4w_8s', '6w_6s', '6w_8s')
]


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in PUBLISHED]
)
def test_published_sizes(name):
    text = format_stages(describe_stages(build(VARIANTS[name]), 224, 224))
    params, macs = PUBLISHED[name]
    total = f'with a 1000-class classifier: {params} M parameters, {macs} G multiply-adds'
    assert total in text.splitlines()


def test_plugins_may_see_the_whole_image():
    args = {'stem_channels': 8, **VARIANTS['se_res2net50_26w_4s']}
    lines = format_stages(describe_stages(build(args), 64, 64)).splitlines()
    assert [' without plugins' in line for line in lines[:6]] == [False, False] + [True] * 4


def test_counts_are_fvcores():
    check_against_fvcore(VARIANTS['res2next_dla60'], (75, 97))


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_counts_of_all_variants_are_fvcores(name):
    check_against_fvcore(VARIANTS[name], (224, 224), (75, 97))


@pytest.mark.parametrize(
    'args',
    [
        dict(frozen_stages=2, norm_cfg=dict(type='SyncBN'), with_cp=True),
        dict(num_stages=3, strides=(1, 2, 1), dilations=(1, 1, 2), out_indices=(0, 1, 2)),
        dict(norm_cfg=dict(type='GN', num_groups=2), groups=2, base_width=4),
        dict(plugins=[CONTEXT, *VARIANTS['se_res2net50_26w_4s']['plugins']]),
        dict(conv_cfg=dict(type='ConvWS'), style='caffe', scales=1, deep_stem=False),
    ],
    ids=lambda args: ' '.join(args),
)
def test_counts_of_other_networks_are_fvcores(args):
    check_against_fvcore(dict(SMALL, **args), (64, 96))


def test_real_networks_stay_as_they_are():
    net = Res2Net(**SMALL, out_indices=(0, 1)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    *run, third, fourth = describe_stages(net, 33, 65)
    assert net.training and all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert [c.shape for c in run] == [(8, 9, 17), (32, 9, 17), (64, 5, 9)]
    assert [c.field.stride for c in run] == [4, 4, 8]
    for cost in (third, fourth):
        assert cost.shape is cost.field is None and cost.macs == 0 and cost.params > 0
    table = format_stages([*run, third, fourth])
    assert 'not run' in table.splitlines()[-4]
    sizes = sum(p.numel() for p in net.parameters()) / 1e6
    assert f'backbone: {sizes:.2f} M' in table
    with pytest.raises(ValueError, match='height must be a positive integer, but got 0'):
        describe_stages(net, 0, 10)


def test_deformable_convolutions_count_as_convolutions():
    plain = describe_stages(build(SMALL), 64, 64)
    deformable = build(dict(SMALL, conv_cfg=dict(type='DCNv2')))
    assert isinstance(deformable.layer4[0].convs[2], mmcv.ops.ModulatedDeformConv2d)
    costs = describe_stages(deformable, 64, 64)
    stem = [deformable.stem[i].conv_offset for i in (0, 3, 6)]
    extra = sum(o.weight.numel() for o in stem) * 32 * 32
    assert costs[0].macs == plain[0].macs + extra
    assert [c.field for c in costs] == [c.field for c in plain]
    assert not any(c.uncounted for c in costs)


class Unknown(nn.Module):
    """A convolution that no counter knows: its weights meet the features in no operator."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3, 3, 3))
        self.offset = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x + self.offset(x).sum()


def test_what_is_not_counted_is_said():
    net = build(SMALL)
    net.stem.insert(0, Unknown())
    net.layer2[0].relu = nn.PReLU()
    costs = describe_stages(net, 64, 64)
    assert costs[0].uncounted == ('Unknown',) and costs[2].uncounted == ('PReLU',)
    lines = format_stages(costs).splitlines()
    assert lines[-2:] == [
        'not in the multiply-adds: Unknown (of 1 layers)',
        'not in the multiply-adds: PReLU (of 1 layers)',
    ]


def averaging(net):
    """Positive weights, so that no paths cancel; a max pool's gradient would reach one pixel."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                args = child.kernel_size, child.stride, child.padding, child.ceil_mode
                setattr(module, name, nn.AvgPool2d(*args))
    return net.double()


def seen(net, level, index, size):
    """First and last row of the image that row ``index`` of a level depends on."""
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    net(image)[level][:, :, index].sum().backward()
    rows = image.grad.sum((0, 1, 3)).nonzero()
    return rows.min().item(), rows.max().item()


TINY = dict(depth=14, base_channels=4, base_width=4)
V1 = dict(deep_stem=False, avg_down=False)
DILATED = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


@pytest.mark.parametrize(
    'args',
    [
        dict(V1, scales=2),
        dict(V1, scales=4, style='caffe'),
        dict(V1, scales=8, first_block='paddle', depth=26),
        dict(scales=1),
        dict(scales=4, groups=2, depth=26),
        dict(DILATED, first_block='paddle'),
        dict(DILATED, first_block='mmdet', contract_dilation=True, depth=26),
        dict(DILATED, scales=2, multi_grid=(1, 3), depth=26, style='caffe'),
        dict(first_block='paddle', style='caffe'),
        dict(first_block='mmdet', strides=(3, 2, 2, 1)),  # a shortcut that sees further
        dict(type='Res2NetDLA', depth=60),
    ],
    ids=lambda args: ' '.join(f'{k}={v}' for k, v in args.items()),
)
def test_receptive_fields_are_those_of_gradients(args):
    net = averaging(build({**TINY, **args}, 'cpu'))
    _, *stages = describe_stages(net, 64, 64)
    for level, field in enumerate(cost.field for cost in stages):
        index = -field.low // field.stride + 2
        low, high = (field.stride * index + edge for edge in (field.low, field.high))
        assert seen(net, level, index, (high + 2 * field.stride, 9)) == (low, high)


@pytest.mark.parametrize('name', ['resnet10t', 'rexnet_100', 'resnest14d', 'res2net50d'])
def test_networks_of_timm_cost_what_fvcore_counts(name):
    net = TimmBackbone(name).eval()
    counted = FlopCountAnalysis(net, torch.zeros(1, 3, 75, 97))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # fvcore knows a global pool only by its other name
    counted.set_op_handle('aten::mean', lambda inputs, _: math.prod(inputs[0].type().sizes()))
    with torch.no_grad():
        expected = counted.total()
    cost = describe_backbone(net, 75, 97)
    assert cost.macs == expected
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert (cost.channels, cost.strides) == (net.out_channels, net.out_strides)
    assert not any(p.is_meta for p in net.parameters())


def test_backbones_cost_the_sum_of_their_stages():
    from mmdet.models import ResNet

    for args in (VARIANTS['res2net50_v1b_26w_4s'], VARIANTS['res2net_dla60'], DILATED):
        net = build(args)
        stages, cost = describe_stages(net, 80, 112), describe_backbone(net, 80, 112)
        assert cost.macs == sum(stage.macs for stage in stages)
        assert cost.params == sum(stage.params for stage in stages)
        assert (cost.channels, cost.strides) == (net.out_channels, net.out_strides)
    with torch.device('meta'):
        theirs, ours = ResNet(depth=50), TimmBackbone('resnet50')
    cost = describe_backbone(theirs, 224, 224)
    assert (cost.channels, cost.strides) == ((256, 512, 1024, 2048), (4, 8, 16, 32))
    timms = describe_backbone(ours, 224, 224)
    assert (cost.params, cost.macs) == (timms.params, timms.macs)
    table = format_comparison({'a': cost, 'b': timms}, {}).splitlines()
    assert table[0].split('  ')[0] == 'network' and 'model' not in table[0] and len(table) == 3
    assert table[1].split()[1:3] == ['23.51', f'{cost.macs / 1e9:.3f}']


def test_architecture_without_a_checkpoint():
    text = format_architecture({'type': 'Res2Net', 'init_cfg': {'type': 'Pretrained'}})
    assert 'pretrained: no checkpoint is named' in text.splitlines()


def test_architecture_of_variants():
    """Every variant is known by its arguments, and every published file is told of."""
    told = []
    for name, args in VARIANTS.items():
        text = format_architecture({'type': 'Res2Net', **args})
        assert f'variant: {name}' in text.splitlines()
        for title, entry in ZOO.items():
            if entry.variant == name.removesuffix('_dcn'):
                place = text.index(f'res2net://{title}:')
                facts = f'first_block={entry.rule!r}, layout {entry.layout}; {entry.licence}'
                assert facts in text[place:] and f'{entry.source}: {entry.url}' in text[place:]
                told.append(title)
        assert ('published weights: none' in text) == (
            name.removesuffix('_dcn') not in {e.variant for e in ZOO.values()}
        )
    assert {*told} == {*ZOO}


@pytest.mark.parametrize(
    'args, variant',
    [
        (dict(norm_cfg=dict(type='SyncBN', requires_grad=True)), 'res2net50_v1b_26w_4s'),
        (dict(strides=[1, 2, 2, 2], stem_channels=64, out_indices=(1, 3)), 'res2net50_v1b_26w_4s'),
        (dict(depth=101, first_block='paddle'), 'res2net101_vd_26w_4s'),
        (dict(first_block='mmdet', depth=101), 'res2net101_v1b_26w_4s, but for first_block'),
        (
            dict(deep_stem=False, avg_down=False, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
            'res2net50_26w_4s, but for dilations, strides',
        ),
        (dict(in_channels=1), 'res2net50_v1b_26w_4s, but for in_channels'),
        (
            dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
            'res2net50_v1b_26w_4s, but for dilations, num_stages, strides',
        ),
        (dict(base_channels=32), 'none of the named ones'),
        (dict(norm_cfg=dict(type='GN', num_groups=32)), 'none of the named ones'),
        (dict(type='res2net_mm.Res2NetDLA', frozen_stages=2), 'res2net_dla60'),
    ],
)
def test_variant_of_arguments(args, variant):
    lines = format_architecture({'type': 'res2net_mm.Res2Net', **args}).splitlines()
    assert f'variant: {variant}' in lines
    entries = [name for name, entry in ZOO.items() if entry.variant == variant.partition(',')[0]]
    weights = [line.strip().partition(':') for line in lines if line.startswith('  res2net://')]
    assert len(weights) == len(entries)


# calls of the tool in one process: a list of arguments each
CALLS = """
import contextlib, io, json, sys
sys.path.insert(0, 'tools')
import describe
from res2net_mm.engine.errors import run_tool
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ['describe.py', *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_tool(describe.main)
        except SystemExit as end:
            results.append((end.code, out.getvalue(), err.getvalue()))
print('RESULTS' + json.dumps(results))
"""


def call_all(python, env, *calls):
    run = python('-c', CALLS, json.dumps(calls), env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.rpartition('RESULTS')[2])


VARIANT = """\
res2net50_v1b_26w_4s: Res2Net, image 224 x 224

stage           output  stride  blocks  params (M)  multiply-adds (G)  receptive field
stem      64 x 56 x 56       4               0.029              0.361               15
layer1   256 x 56 x 56       4       3       0.214              0.671               71
layer2   512 x 28 x 28       8       4       1.230              1.090              223
layer3  1024 x 14 x 14      16       6       7.198              1.537              719
layer4    2048 x 7 x 7      32       3      14.998              0.860             1135

backbone: 23.67 M parameters, 4.520 G multiply-adds
with a 1000-class classifier: 25.72 M parameters, 4.522 G multiply-adds

arguments: first_block='official'
variant: res2net50_v1b_26w_4s
published weights:
  res2net://res2net50_v1b_26w_4s: ImageNet top-1 80.27
"""


def mistakes(tmp_path):
    """Arguments, and what the error says."""
    plain = tmp_path / 'plain.py'
    plain.write_text("model = dict(type='mmdet.ResNet', depth=50)")
    wrong = tmp_path / 'wrong.py'
    wrong.write_text("model = dict(backbone=dict(type='res2net_mm.Res2Net', scales=0))")
    nothing = tmp_path / 'nothing.py'
    nothing.write_text('x = 1')
    none = 'has no backbone of this package, and as a whole it cannot be counted: '
    return {
        ('res2net50_v1b_26w4s',): 'did you mean res2net50_v1b_26w_4s?',
        ('res2net://res2net200_vd_26w_4s_sld',): 'did you mean res2net200_vd_26w_4s_ssld?',
        ('faster_rcnn_r2n5.py',): 'faster_rcnn_r2n50.py?',
        ('qqqqqq',): 'qqqqqq is no variant, no name of published weights and no config',
        ('configs/faster_rcnn_r2n5.py',): 'faster_rcnn_r2n50.py?',
        (
            str(plain),
        ): f'{none}model must be a detector, classifier or segmentor of one head, but is ',
        (str(nothing),): f"{nothing} {none}'ConfigDict' object has no attribute 'model'",
        (str(wrong),): 'scales must be a positive integer, but got 0',
        ('res2net_dla60', '--input', '0', '224'): 'height must be a positive integer, but got 0',
        ('res2net_dla60', '--cfg-options', 'scale=3'): "unexpected keyword argument 'scale'",
        ('timm/resnet10', '--compare'): 'did you mean resnet10t?',
        ('timm/swin_tiny_patch4_window7_224', '--input', '96', '96'): "doesn't match model (224)",
    }


def check_mistakes(expected, results):
    *results, helped = results
    assert helped[0] == 0 and 'example:\n  python tools/describe.py res2net50_v1b' in helped[1]
    for (code, out, err), (arguments, text) in zip(results, expected.items(), strict=True):
        assert code == 1 and out == '', arguments
        assert err.startswith('error: ') and err.count('\n') == 1, err
        assert text in err


@pytest.mark.parametrize(
    'stack', [pytest.param('default', marks=pytest.mark.slow), 'originals'], indirect=True
)
def test_tool(stack, python, tmp_path):
    options = ['--cfg-options', 'dilations=1,1,1,2', 'plugins.0.cfg.reduction=8']
    config = 'configs/faster_rcnn_r2n50.py'
    calls = [
        ['res2net50_v1b_26w_4s'],
        [config, '--input', '800', '1280', '--cfg-options', 'model.backbone.frozen_stages=2'],
        ['res2net://faster_rcnn_r2_101_fpn_2x_coco'],
        ['se_res2net50_26w_4s', *options],
        ['res2net_dla60', '--input', '75', '97'],
        [
            '--compare',
            config,
            'res2net50_v1b_26w_4s',
            'timm/resnet50',
            'configs/faster_rcnn_r50.py',
        ],
        ['timm/resnet10t', '--cfg-options', 'output_stride=8'],
    ]
    expected = mistakes(tmp_path)
    results = call_all(python, stack, *calls, *expected, ['--help'])
    check_mistakes(expected, results[len(calls) :])
    results = results[: len(calls)]
    assert [code for code, _, _ in results] == [0] * len(calls), results
    variant, config, zoo, changed, dla, compared, one = [out for _, out, _ in results]
    head, *rows = compared.splitlines()
    assert head.split('  ')[0] == 'network' and head.endswith('strides  model (M)  model GFLOPs')
    assert [row.split()[0] for row in rows] == calls[5][1:] and len(rows) == 4
    costs = [row.split()[1:3] for row in rows]
    assert costs[0] == costs[1] == ['23.67', '4.520']
    assert costs[2] == costs[3]
    for row in rows:
        assert '256, 512, 1024, 2048  4, 8, 16, 32' in row
    assert f'{rows[0].split()[-2]} M parameters' in config  # of the whole model
    assert one.splitlines()[1].startswith('timm/resnet10t') and '4, 8, 8, 8' in one
    assert variant.startswith(VARIANT)
    entry = ZOO['res2net50_v1b_26w_4s']
    for text in (entry.url, entry.licence, entry.source, 'layout official'):
        assert text in variant
    assert 'layer4   2048 x 25 x 40      32       3' in config
    assert 'backbone: 23.67 M parameters, 92.236 G multiply-adds' in config
    assert "arguments: first_block='official', frozen_stages=2\n" in config
    assert 'pretrained: res2net://res2net50_v1b_26w_4s\n' in config
    assert 'variant: res2net50_v1b_26w_4s\n' in config and entry.url in config
    assert "arguments: first_block='mmdet', depth=101\n" in zoo
    assert 'variant: res2net101_v1b_26w_4s, but for first_block\n' in zoo
    assert 'faster_rcnn_r2_101_fpn_2x_coco: COCO box AP 43.0\n' in zoo
    head, *rows = [line.split() for line in changed.splitlines()[2:8]]
    assert head[3] == 'dilation' and rows[4][7] == '2' and "'reduction': 8" in changed
    assert 'level5' in dla and '1024 x 3 x 4' in dla
