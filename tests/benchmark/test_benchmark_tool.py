"""Peers are equal, a difference stops the benchmark, records hold what tables are made of."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from res2net_mm.benchmark import (
    backbones,
    deformable,
    measure,
    operators,
    peers,
    training,
)
from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.memory import can_keep_memory

REPO = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(REPO))
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
    return peers.make_state(peers.VARIANT)


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', REPO / 'tools/benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick(monkeypatch):
    """No process for each memory, no products for the machine's rate, nothing warmed up."""
    for module in (backbones, training, deformable, operators):
        monkeypatch.setattr(module, 'peak_memory', lambda *args, **kwargs: 1.0)
        monkeypatch.setattr(module, 'interleave', partial(measure.interleave, warmup=0))
    monkeypatch.setattr(measure, 'matmul_gflops', lambda *args: 100.0)


def test_whole_run(tool, tmp_path, capsys):
    args = ['backbone', '--size', '64x64', '--rounds', '1', '--threads', '1']
    json_file, chart = tmp_path / 'record.json', tmp_path / 'chart.png'
    run = subprocess.run(
        [sys.executable, 'tools/benchmark.py', *args]
        + ['--peers', 'mmdet', 'timm', '--json', str(json_file), '--chart', str(chart)],
        env=ENV,
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    record = json.loads(json_file.read_text())
    assert set(record) == set(
        'task title yardstick settings command date machine rows profile'.split()
    )
    assert (record['task'], record['yardstick']) == ('backbone', 'mmdet')
    assert record['title'] == 'Inference of res2net50_v1b_26w_4s, 1x3x64x64'
    assert record['command'].startswith('python tools/benchmark.py backbone --size 64x64')
    assert record['settings']['peers'] == ['mmdet', 'timm'] and record['settings']['batch'] == 1
    assert set(record['machine']) == set(
        'cpu flags cores threads gpu python versions matmul_gflops'.split()
    )
    assert record['machine']['threads'] == 1 and record['machine']['matmul_gflops']['float32'] > 1
    for row, name in zip(record['rows'], ('mmdet', 'timm'), strict=True):
        assert row['name'] == name and len(row['times']) == 1 and row['times'][0] > 0
        assert row['difference'] < 1e-5 and row['memory_mib'] > 0 and row['note'] == ''
        # 4.5 G for 224 x 224, as timm's and the authors' tables have it
        assert row['gmacs'] == pytest.approx(4.5 * (64 / 224) ** 2, rel=0.01)
    ratio = record['rows'][0]['times'][0] / record['rows'][1]['times'][0]
    assert f'{ratio:.2f}' in run.stdout
    assert chart.stat().st_size > 1000 and len(list(tmp_path.iterdir())) == 2

    tool.main(['tables', str(json_file)])
    assert f'| 1x3x64x64 | timm | {ratio:.2f} |' in capsys.readouterr().out
    readme = tmp_path / 'README.md'
    readme.write_text('<!-- benchmarks --><!-- /benchmarks -->')
    tool.main(['tables', str(json_file), '--readme', str(readme)])
    assert f'| 1x3x64x64 | timm | {ratio:.2f} |' in readme.read_text()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['backbone', '--size', '10x64'], "each of 32 pixels or more, but got '10x64'"),
        (['backbone', '--size', '64x64', '64x64'], '--size must differ'),
        (['backbone', '--batch', '0'], '--batch must be at least 1'),
        (['backbone', '--peers', 'someone'], "but got 'someone'"),
        (['backbone', '--peers', 'timm', 'timm'], '--peers must differ'),
        (['backbone', '--peers', 'ours fast float16'], 'is not for device cpu'),
        (['backbone', '--dtype', 'float16'], 'no peer of type float16 is for device cpu'),
        (
            ['backbone', '--variant', 'res2net101_v1b_26w_4s', '--peers', 'resnet50'],
            'resnet50 is not for res2net101_v1b_26w_4s',
        ),
        (['backbone', '--device', 'abacus'], '--device must be cpu or cuda, but is abacus'),
        (['backbone', '--rounds', '0'], '--rounds must be at least 1, but is 0'),
        (['backbone', '--threads', '0'], '--threads must be at least 1, but is 0'),
        (['backbone', '--json', 'none/record.json'], 'none is no folder to write to'),
        (['backbone', '--json', 'record.png'], '--json must end in .json'),
        (['sweep', '--batch', '2', '2'], 'no two the same'),
        (['train', '--size', '64x64', '96x96'], '--size must be one'),
        (['train', '--peers', 'someone'], "but got 'someone'"),
        (['dcn', '--size', 'big'], "but got 'big'"),
        (['tables', 'none.json'], 'none.json cannot be read'),
    ],
)
def test_mistakes_are_told_before_anything_runs(tool, args, message):
    with pytest.raises(ToolError) as error:
        tool.main(args)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_mistake_is_one_line(tool, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: tool.main(['backbone', '--peers', 'someone']))
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: --peers must be of')


def test_missing_package_is_named(monkeypatch, state):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ToolError, match='needs timm: pip install timm, or leave it out'):
        peers.PEERS['timm'].build(peers.VARIANT, state)


@pytest.fixture(scope='module')
def levels(state):
    """Of every peer of float32, for one image."""
    image = peers.normal_image(SIZE, 1)
    chosen = peers.choose_peers(None, peers.VARIANT, 'cpu', ['float32'])
    with torch.inference_mode():
        return {name: p.build(peers.VARIANT, state)(image) for name, p in chosen.items()}


def test_peers_have_the_same_features(levels):
    assert set(levels) == {name for name, p in peers.PEERS.items() if p.dtype == torch.float32}
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


def test_ours_by_mmdets_rule_is_mmdet(state, levels):
    net = peers.ours(peers.VARIANT, state, first_block='mmdet')
    with torch.inference_mode():
        for x, y in zip(net(peers.normal_image(SIZE, 1)), levels['mmdet'], strict=True):
            assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_difference_stops_the_benchmark(state):
    image = peers.normal_image(SIZE, 1)
    net = peers.ours(peers.VARIANT, state)
    assert peers.differences(dict(timm=net), peers.VARIANT, state, image) == dict(timm=0.0)
    with torch.no_grad():
        net.layer4[-1].conv3.weight.mul_(1.001)
    message = r"timm and ours \(first_block='official', float32\) .* differ by \d.*bound is 1e-05"
    with pytest.raises(ToolError, match=message):
        peers.differences(dict(timm=net), peers.VARIANT, state, image)


def test_difference_is_relative_to_the_largest_value():
    reference = [torch.tensor([1.0, -8.0]), torch.tensor([2.0])]
    theirs = [torch.tensor([2.0, -8.0]), torch.tensor([2.5])]
    assert peers.worst_difference(theirs, reference) == 0.25
    for wrong in (float('nan'), float('inf')):
        with pytest.raises(ToolError, match='a and b do not compute the same'):
            peers.check_equal('a', [torch.tensor(wrong)], 'b', [torch.tensor(1.0)], 1e-4)
    with pytest.raises(ToolError, match='do not compute the same'):
        peers.check_equal('a', [torch.ones(1, 2)], 'b', [torch.ones(2)], 1e-4)


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
    assert peers.multiply_adds(net, shape) == pytest.approx(forward)
    assert peers.multiply_adds(net, shape, train=True) == pytest.approx(2 * forward)
    assert net.conv.weight.device.type == 'cpu'


def test_step_is_that_of_sgd():
    """Weight 3 on the images 1 and 2: the loss is 9 * (1 + 4) / 2, its gradient 2 * 3 * 2.5."""
    net = Single(1, 1, 1)
    net.conv.weight.data.fill_(3)
    step = training.Step(net, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    loss, gradient, same = step.results()  # the first convolution, and the last 1x1
    assert gradient.equal(same)
    assert (loss.item(), gradient.item(), net.conv.weight.item()) == (22.5, 15, 3)
    step()
    assert net.conv.weight.item() == pytest.approx(3 - 1e-4 * (15 + 1e-4 * 3), abs=1e-7)


def names_of(record):
    return [row['name'] for row in record['rows']]


@pytest.mark.slow
def test_sweep_says_whose_memory_is_kept(quick, tool, tmp_path):
    path = tmp_path / 'sweep.json'
    sizes = ['--size', '64x64', '96x64', '--batch', '1', '--rounds', '1']
    tool.main(['sweep', *sizes, '--peers', 'mmdet', 'ours fast', '--json', str(path)])
    record = json.loads(path.read_text())
    assert names_of(record) == ['mmdet', 'ours fast'] * 2 and record['profile'] is None
    assert [row['group'] for row in record['rows'][::2]] == ['1x3x64x64', '1x3x96x64']
    kept = 'keeps freed memory' if can_keep_memory() else ''
    assert [row['note'] for row in record['rows']] == ['', kept] * 2
    assert all(row['memory_mib'] is None for row in record['rows'])


@pytest.mark.slow
def test_record_of_training(quick, tool, tmp_path):
    path = tmp_path / 'train.json'
    names = ['mmdet', 'ours channels_last', 'ours with_cp C3']
    args = ['train', '--size', '64x64', '--rounds', '1', '--json', str(path), '--peers', *names]
    tool.main(args)
    record = json.loads(path.read_text())
    rows = {row['name']: row for row in record['rows']}
    assert list(rows) == names
    assert record['title'] == 'Training step of res2net50_v1b_26w_4s, 2x3x64x64, fixed statistics'
    forward = 2 * 4.5 * (64 / 224) ** 2
    for row in rows.values():
        assert row['difference'] < 1e-6 and row['memory_mib'] == 1.0 and len(row['times']) == 1
        assert row['gmacs'] == pytest.approx(3 * forward, rel=0.02)  # no gradient of the image


def test_recomputed_stages_are_those_of_the_name(state):
    image = peers.normal_image(SIZE, 2)
    net = training.make_step('ours with_cp C3', peers.VARIANT, state, image).net
    for name in net.stage_names:
        assert all(block.with_cp is (name == 'layer2') for block in net.get_submodule(name))


def test_statistics_stay_where_they_are_fixed(state):
    image = peers.normal_image(SIZE, 2)
    for name in ('mmdet', 'timm', 'ours'):
        for fixed in (True, False):
            net = training.make_step(name, peers.VARIANT, state, image, norm_eval=fixed).net
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            assert len(norms) > 50 and all(norm.training is not fixed for norm in norms)


@pytest.mark.parametrize(('dtype', 'factor'), [(torch.float64, 1.001), (torch.float32, 1.05)])
def test_another_gradient_stops_the_benchmark(quick, tool, monkeypatch, dtype, factor):
    """Also where only the type that is timed has it."""

    def build(variant, state, **arguments):
        net = peers.mmdets(variant, state, **arguments)
        weight = net.stem[0].weight
        weight.register_hook(lambda grad: grad * factor if grad.dtype == dtype else grad)
        return net

    contender = training.Contender(build, rule='mmdet')
    monkeypatch.setitem(training.CONTENDERS, 'mmdet', contender)
    with pytest.raises(ToolError, match=r"mmdet and ours \(first_block='mmdet', float64\) do not"):
        tool.main(['train', '--size', '64x64', '--rounds', '1', '--peers', 'mmdet'])


def test_a_broken_weight_gradient_stops_the_benchmark(quick, tool, monkeypatch):
    def zeros(x, grad, weight, *places):
        return torch.zeros_like(weight)

    monkeypatch.setattr('res2net_mm.ops.trained_conv._weight_gradient', zeros)
    with pytest.raises(ToolError, match='ours channels_last and ours .* do not compute the same'):
        tool.main(['train', '--size', '64x64', '--rounds', '1', '--peers', 'ours channels_last'])


def test_prepared_step_is_of_the_whole_image():
    step = training.prepare('ours channels_last', peers.VARIANT, (64, 96), 1, 'cpu', True)
    assert step.image.shape == (1, 3, 64, 96)
    assert step.image.is_contiguous(memory_format=torch.channels_last)
    assert step.net.layer1[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_record_of_deformable_convolution(quick, tool, tmp_path, monkeypatch):
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
        (part, name) for part, names in deformable.PARTS.items() for name in names
    ]
    for row in record['rows']:
        # two ways of computing
        assert row['difference'] < 1e-4 and (row['difference'] > 0) is (row['name'] != 'ours')
    assert record['yardstick'] == 'torchvision'
    assert record['settings']['RES2NET_MM_DEFORM_CONV'] == 'torch'
    # each network on it calls it to be compared (others are timed), three times in each of the
    # blocks of C3 to C5; counting multiply-adds runs without data
    offsets = [offset for offset in offsets if offset.device.type == 'cpu']
    on_it = [name for name in names_of(record) if name.startswith('torchvision')]
    assert len(offsets) == 5 * 3 * (4 + 6 + 3) and len(on_it) == (5 if can_keep_memory() else 3)
    notes = {row['name']: row['note'] for row in record['rows']}
    kept = 'keeps freed memory' if can_keep_memory() else ''
    assert notes.pop('torchvision') == notes.pop('ours') == '' and {*notes.values()} == {kept}
    assert all(0.1 < offset.std() < 10 for offset in offsets)


def test_record_of_the_operator(quick, tool, tmp_path, monkeypatch):
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
    original = deformable._by_torchvision

    def shifted(self, x, offset, mask=None):
        return original(self, x, offset + 0.01, mask)

    monkeypatch.setattr(deformable, '_by_torchvision', shifted)
    dcn_state = peers.make_state(deformable.VARIANT)
    with pytest.raises(ToolError, match=r'torchvision and ours \(inference\) do not compute'):
        deformable.compare('inference', peers.normal_image(SIZE, 1), dcn_state)


def test_all_layers_are_exchanged():
    net = deformable.use_torchvision(peers.ours(deformable.VARIANT))
    layers = [m for m in net.modules() if isinstance(m, DeformConv2d)]
    assert all(m._convolve.__func__ is deformable._by_torchvision for m in layers)
    assert all(m._convolve.__self__ is m for m in layers) and len(layers) == 39
