"""Contenders compute the same, a difference stops the benchmark, records hold what was measured."""

import json
import sys

import pytest
import torch
import torchvision
from benchmark import contenders, networks, operators
from benchmark.contenders import DCN, VARIANT, Contender, choose, without_kept
from benchmark.networks import INFERENCE, TRAINING, Work
from torch import nn

from res2net_mm.engine.errors import ToolError
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.internals import torchvisions_gradient
from res2net_mm.ops.mmcv_ext import roi

SIZE = (64, 64)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """As fast for images this small, and several times as fast where others share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def state():
    return contenders.make_state(VARIANT)


def test_names_describe_contenders():
    def shown(name):
        c = Contender(name)
        kind = str(c.dtype).removeprefix('torch.')
        return c.source, kind, c.fast, c.as_trained, c.channels_last, c.keeps_memory, c.arguments

    yes, no = True, False
    assert shown('mmdet') == ('mmdet', 'float32', no, no, no, no, {})
    assert shown('mmdet bfloat16') == ('mmdet', 'bfloat16', no, no, no, no, {})
    assert shown('timm channels_last kept memory') == ('timm', 'float32', no, no, yes, yes, {})
    assert shown('resnet50') == ('resnet50', 'float32', no, no, yes, no, {})
    assert shown('torchvision fast') == ('torchvision', 'float32', yes, no, no, yes, {})
    assert shown('ours') == ('ours', 'float32', no, no, no, no, {})
    assert shown('ours fast float16') == ('ours', 'float16', yes, no, no, yes, {})
    trained = 'float32', no, yes, yes, yes
    assert shown('ours channels_last') == ('ours', *trained, {})
    assert shown('ours compile') == ('ours', *trained, dict(compile=True))
    assert shown('ours with_cp') == ('ours', *trained, dict(with_cp=True))
    stages = (False, True, False, False)
    assert shown('ours with_cp C3') == ('ours', *trained, dict(with_cp=stages))
    assert [Contender(name).rule for name in ('mmdet', 'timm', 'resnet50')] == [
        *('mmdet', 'official', None)
    ]


def test_names_that_need_kept_memory(monkeypatch):
    names = ['mmdet', 'mmdet kept memory', 'ours fast']
    for can, device, expected in (
        (1, 'cpu', names),
        (0, 'cpu', names[::2]),
        (1, 'cuda', names[::2]),
    ):
        monkeypatch.setattr(contenders, 'can_keep_memory', lambda can=can: can)
        assert without_kept(names, device) == expected


def test_chosen_contenders():
    training = networks.CONTENDERS[TRAINING]
    half = choose(training, 'cpu', VARIANT, dtypes=['bfloat16'])
    assert [*half] == ['ours bfloat16 channels_last', 'mmdet bfloat16']
    every = choose(training, 'cpu', VARIANT, dtypes=['float32', 'bfloat16'])
    assert {*training} - {*every} - {*without_kept(training, 'cpu')} == set()
    assert 'ours compile' not in every and 'torchvision' not in every
    assert [*choose(training, 'cpu', VARIANT, ['ours compile', 'ours'])] == ['ours compile', 'ours']
    assert 'resnet50' not in choose(networks.CONTENDERS[INFERENCE], 'cpu', [*contenders.CHOICES][1])


def test_yardsticks_run_on_torchvisions_kernels():
    own = roi.roi_align, roi.roi_align_gradient
    with pytest.raises(KeyError), contenders.torchvision_kernels():
        assert roi.roi_align is torchvision.ops.roi_align
        assert roi.roi_align_gradient is torchvisions_gradient
        raise KeyError
    assert (roi.roi_align, roi.roi_align_gradient) == own


def test_missing_package_is_named(monkeypatch, state):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ToolError, match='needs timm: pip install timm, or leave it out'):
        contenders.BUILDERS['timm'](VARIANT, state)


def call(name, work, state, batch=1, **options):
    image = contenders.normal_image(SIZE, batch)
    return networks.make_call(Contender(name), Work(work, VARIANT, **options), state, image)


@pytest.fixture(scope='module')
def levels(state):
    """Of every contender of float32, for one image."""
    chosen = choose(networks.CONTENDERS[INFERENCE], 'cpu', VARIANT, None, ['float32'])
    return {name: call(name, INFERENCE, state)() for name in chosen}


def test_contenders_have_the_same_features(levels):
    assert {'mmdet', 'timm', 'resnet50', 'ours', 'ours fast'} < {*levels}
    shapes = [(1, 256 << i, 16 >> i, 16 >> i) for i in range(4)]
    for found in levels.values():
        assert isinstance(found, tuple) and [tuple(x.shape) for x in found] == shapes
    for a, b in (
        ('timm', 'ours'),
        ('timm channels_last', 'timm'),
        ('ours fast', 'timm'),
        ('mmdet channels_last', 'mmdet'),
    ):
        for x, y in zip(levels[a], levels[b], strict=True):
            assert (x - y).abs().max() <= 1e-5 * y.abs().max(), (a, b)
    for x, y in zip(levels['mmdet'], levels['ours'], strict=True):  # another first block
        assert (x - y).abs().max() > 1e-3 * y.abs().max()


def test_other_network_is_resnet50(levels):
    net = contenders.randomise(torchvision.models.resnet50(weights=None)).eval()
    x = net.maxpool(net.relu(net.bn1(net.conv1(contenders.normal_image(SIZE, 1)))))
    with torch.no_grad():
        for stage, found in zip((1, 2, 3, 4), levels['resnet50'], strict=True):
            x = net.get_submodule(f'layer{stage}')(x)
            assert (x - found).abs().max() <= 1e-5 * x.abs().max()
    folded = contenders.BUILDERS['resnet50'](VARIANT, {})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_ours_by_mmdets_rule_is_mmdet(state, levels):
    net = contenders.ours(VARIANT, state, first_block='mmdet')
    with torch.inference_mode():
        for x, y in zip(net(contenders.normal_image(SIZE, 1)), levels['mmdet'], strict=True):
            assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_difference_stops_the_benchmark(state, monkeypatch):
    image = contenders.normal_image(SIZE, 1)
    given = {'timm': Contender('timm')}, Work(INFERENCE, VARIANT), state, image
    apart = networks.compare(*given)
    assert 0 <= apart['timm'] < 1e-5

    def changed(variant, state):
        net = contenders.ours(variant, state)
        with torch.no_grad():
            net.layer4[-1].conv3.weight.mul_(1.001)
        return net

    monkeypatch.setitem(contenders.BUILDERS, 'timm', changed)
    message = r"timm and ours \(first_block='official', float32\) .* differ by \d.*bound is 1e-05"
    with pytest.raises(ToolError, match=message):
        networks.compare(*given)


def test_difference_is_relative_to_the_largest_value():
    def difference(theirs, reference, bound=1e-4):
        theirs, reference = ([torch.tensor(x) for x in side] for side in (theirs, reference))
        return contenders.check_equal('a', theirs, 'b', reference, bound)

    assert difference([[2.0, -8.0], [2.5]], [[1.0, -8.0], [2.0]], 1) == 0.25
    for wrong in (float('nan'), float('inf')):
        for theirs in ([[wrong], [1.0]], [[1.0], [wrong]]):
            with pytest.raises(ToolError, match='a and b do not compute the same'):
                difference(theirs, [[1.0], [1.0]])
    with pytest.raises(ToolError, match='do not compute the same'):
        difference([[[1.0, 1.0]]], [[1.0, 1.0]])


class Single(nn.Module):
    """A convolution as a network of one level."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, bias=False, **kwargs)

    def forward(self, x):
        return (self.conv(x),)


def test_multiply_adds():
    net, shape = Single(3, 8, 3, padding=1), (2, 3, 5, 4)
    forward = 2 * 5 * 4 * 8 * 3 * 9 / 1e9
    assert networks.multiply_adds(net, shape) == pytest.approx(forward)
    assert networks.multiply_adds(net, shape, train=True) == pytest.approx(2 * forward)


def test_step_is_that_of_sgd():
    """Weight 3 on the images 1 and 2: the loss is 9 * (1 + 4) / 2, its gradient 2 * 3 * 2.5."""
    net = Single(1, 1, 1)
    net.conv.weight.data.fill_(3)
    step = networks.Step(net, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    loss, gradient, same = step.results()  # the first convolution, and the last 1x1
    assert gradient.equal(same)
    assert (loss.item(), gradient.item(), net.conv.weight.item()) == (22.5, 15, 3)
    step()
    assert net.conv.weight.item() == pytest.approx(3 - 1e-4 * (15 + 1e-4 * 3), abs=1e-7)


@pytest.mark.slow
def test_record_of_a_sweep(here, tool, tmp_path):
    path = tmp_path / 'sweep.json'
    sizes = ['--size', '64x64', '96x64', '--batch', '1', '--rounds', '1']
    tool.main(['sweep', *sizes, '--peers', 'mmdet', 'ours fast', '--json', str(path)])
    record = json.loads(path.read_text())
    rows = record['rows']
    assert [row['name'] for row in rows] == ['mmdet', 'ours fast'] * 2
    assert [row['group'] for row in rows[::2]] == ['1x3x64x64', '1x3x96x64']
    assert [(row['size'], row['batch']) for row in rows[1::2]] == [([64, 64], 1), ([96, 64], 1)]
    assert [row['note'] for row in rows] == ['', 'kept'] * 2 and record['profile'] is None


@pytest.mark.slow
def test_record_of_training(here, tool, tmp_path):
    path = tmp_path / 'train.json'
    names = ['mmdet', 'ours channels_last', 'ours with_cp C3']
    args = ['train', '--size', '64x64', '--rounds', '1', '--json', str(path), '--peers', *names]
    tool.main(args)
    record = json.loads(path.read_text())
    rows = {row['name']: row for row in record['rows']}
    assert list(rows) == names and [*record['profile']] == names[:2]
    assert record['title'] == 'Training step of res2net50_v1b_26w_4s, 2x3x64x64, fixed statistics'
    forward = 2 * 4.5 * (64 / 224) ** 2
    for row in rows.values():
        assert row['difference'] < 1e-6 and row['memory_mib'] == 1.0 and len(row['times']) == 1
        assert row['gmacs'] == pytest.approx(3 * forward, rel=0.02)  # no gradient of the image


def test_recomputed_stages_are_those_of_the_name(state):
    net = call('ours with_cp C3', TRAINING, state).net
    for name in net.stage_names:
        assert all(block.with_cp is (name == 'layer2') for block in net.get_submodule(name))


def test_ours_trains_as_the_tools_do(state):
    for name, expected in (('ours', False), ('ours channels_last', True)):
        net = call(name, TRAINING, state).net
        weight = net.layer1[0].convs[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is expected


def test_statistics_stay_where_they_are_fixed(state):
    for name in ('mmdet', 'timm', 'ours'):
        for fixed in (True, False):
            net = call(name, TRAINING, state, batch=2, norm_eval=fixed).net
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            assert len(norms) > 50 and all(norm.training is not fixed for norm in norms)


@pytest.mark.parametrize(('dtype', 'factor'), [(torch.float64, 1.001), (torch.float32, 1.05)])
def test_another_gradient_stops_the_benchmark(here, tool, monkeypatch, dtype, factor):
    """Also where only the type that is timed has it."""
    original = contenders.BUILDERS['mmdet']

    def build(variant, state):
        net = original(variant, state)
        weight = net.stem[0].weight
        weight.register_hook(lambda grad: grad * factor if grad.dtype == dtype else grad)
        return net

    monkeypatch.setitem(contenders.BUILDERS, 'mmdet', build)
    with pytest.raises(ToolError, match=r"mmdet and ours \(first_block='mmdet', float64\) do not"):
        tool.main(['train', '--size', '64x64', '--rounds', '1', '--peers', 'mmdet'])


def test_prepared_step_is_of_the_whole_image():
    step = networks.prepare('ours channels_last', Work(TRAINING, VARIANT), (64, 96), 1, 'cpu')
    assert step.image.shape == (1, 3, 64, 96)
    assert step.image.is_contiguous(memory_format=torch.channels_last)
    assert step.net.layer1[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_record_of_deformable_convolution(here, tool, tmp_path, monkeypatch):
    offsets = []
    operator = torchvision.ops.deform_conv2d

    def counted(x, offset, *args, **kwargs):
        offsets.append(offset.detach())
        return operator(x, offset, *args, **kwargs)

    monkeypatch.delenv('RES2NET_MM_DEFORM_CONV', raising=False)
    monkeypatch.setattr(torchvision.ops, 'deform_conv2d', counted)
    path = tmp_path / 'dcn.json'
    tool.main(['dcn', '--size', '64x64', '--batch', '1', '--rounds', '1', '--json', str(path)])
    record = json.loads(path.read_text())
    on_step = ['torchvision', 'torchvision kept memory', 'ours', 'ours channels_last']
    assert [(row['group'], row['name']) for row in record['rows']] == [
        *(('inference', name) for name in without_kept(networks.OF_DCN[:-1], 'cpu')),
        *(('training step', name) for name in without_kept(on_step, 'cpu')),
    ]
    for row in record['rows']:
        # two ways of computing
        assert row['difference'] < 1e-4 and (row['difference'] > 0) is (row['name'] != 'ours')
    assert record['yardstick'] == 'torchvision'
    assert record['settings']['RES2NET_MM_DEFORM_CONV'] == 'torch'
    # counting multiply-adds runs without data
    offsets = [offset for offset in offsets if offset.device.type == 'cpu']
    assert len(offsets) % (3 * (4 + 6 + 3)) == 0 < len(offsets)  # all blocks of C3 to C5
    assert all(0.1 < offset.std() < 10 for offset in offsets)
    macs = [row['gmacs'] for row in record['rows'] if row['group'] == 'inference']
    assert min(macs) == max(macs) == pytest.approx(4.7 * (64 / 224) ** 2, rel=0.05)


def test_record_of_the_operator(here, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(operators, 'SHAPES', {'C3': (4, 8), 'C5': (6, 4)})
    path = tmp_path / 'operator.json'
    tool.main(
        ['deform_conv', '--batch', '1', '--rounds', '1', '--channels-last', '--json', str(path)]
    )
    record = json.loads(path.read_text())
    groups = [f'{level} {name}' for level in ('C3', 'C5') for name in operators.PASSES]
    assert [row['group'] for row in record['rows']][::2] == groups
    assert [row['name'] for row in record['rows']] == ['torchvision', 'ours'] * 4
    for theirs, own in zip(record['rows'][::2], record['rows'][1::2], strict=True):
        assert 0 < theirs['difference'] < 1e-5 and own['difference'] == 0
    times = [row['times'][0] for row in record['rows'] if row['group'].endswith(' forward')]
    mean = (times[0] / times[1] * times[2] / times[3]) ** 0.5
    assert record['notes'][0] == f'forward: {mean:.2f} times as fast in the geometric mean'


def test_other_offsets_stop_the_benchmark(monkeypatch):
    original = contenders._by_torchvision

    def shifted(self, x, offset, mask=None):
        return original(self, x, offset + 0.01, mask)

    monkeypatch.setattr(contenders, '_by_torchvision', shifted)
    given = Work(INFERENCE, DCN), contenders.make_state(DCN), contenders.normal_image(SIZE, 1)
    with pytest.raises(ToolError, match='torchvision and ours .* do not compute'):
        networks.compare({'torchvision': Contender('torchvision')}, *given)


def test_all_layers_are_exchanged():
    net = contenders.on_torchvision(contenders.ours(DCN))
    layers = [m for m in net.modules() if isinstance(m, DeformConv2d)]
    assert all(m._convolve.__func__ is contenders._by_torchvision for m in layers)
    assert all(m._convolve.__self__ is m for m in layers) and len(layers) == 39
