"""Contenders compute the same, a difference stops the benchmark, records hold what was measured."""

import json

import pytest
import torch
import torchvision
from benchmark import contenders, networks
from benchmark.contenders import (
    DCN,
    INFERENCE,
    TRAINING,
    VARIANT,
    Contender,
    Work,
    choose,
    without_kept,
)
from torch import nn

from res2net_mm.engine.errors import ToolError

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


def call(name, work, state, batch=1, **options):
    image = contenders.normal_image(SIZE, batch)
    return networks.make_call(Contender(name), Work(work, VARIANT, **options), state, image)


@pytest.fixture(scope='module')
def levels(state):
    """Of every contender of float32, for one image."""
    chosen = choose(
        networks.CONTENDERS[INFERENCE], Work(INFERENCE, VARIANT), 'cpu', dtypes=['float32']
    )
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


class Single(nn.Module):
    """A convolution as a network of one level."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, bias=False, **kwargs)

    def forward(self, x):
        return (self.conv(x),)


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
    for row in rows.values():
        assert row['difference'] < 1e-6 and row['memory_mib'] == 1.0 and len(row['times']) == 1


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
    assert [(row['group'], row['name']) for row in record['rows']] == [
        (kind, name)
        for kind, names in networks.OF_DCN.items()
        for name in without_kept(names, 'cpu')
    ]
    for row in record['rows']:
        # two ways of computing
        assert row['difference'] < 1e-4 and (row['difference'] > 0) is (row['name'] != 'ours')
    assert record['yardstick'] == 'torchvision'
    assert record['settings']['RES2NET_MM_DEFORM_CONV'] == 'torch'
    assert len(offsets) % (3 * (4 + 6 + 3)) == 0 < len(offsets)  # all blocks of C3 to C5
    assert all(0.1 < offset.std() < 10 for offset in offsets)


def test_other_offsets_stop_the_benchmark(monkeypatch):
    original = contenders._by_torchvision

    def shifted(self, x, offset, mask=None):
        return original(self, x, offset + 0.01, mask)

    monkeypatch.setattr(contenders, '_by_torchvision', shifted)
    given = Work(INFERENCE, DCN), contenders.make_state(DCN), contenders.normal_image(SIZE, 1)
    with pytest.raises(ToolError, match='torchvision and ours .* do not compute'):
        networks.compare({'torchvision': Contender('torchvision')}, *given)
