"""Loading weights: every source, what the report says, what is refused, and marks."""

import copy
import hashlib
import itertools
import pickle
import re
import textwrap
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import mmcv.ops
import other_layouts
import pytest
import timm
import torch
import torchvision
from filled_files import SMALL, bits, filled, write_paddle
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint
from references import randomise, relative_error

from res2net_mm import Res2Net, Res2NetDLA, backbones, create_backbone
from res2net_mm.backbones import VARIANTS
from res2net_mm.weights import ZOO, CheckpointError, Published, convert_state_dict, load_weights

SMALL_DLA = dict(base_width=8, base_channels=16)
V1 = dict(deep_stem=False, avg_down=False)
THREE = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
DEFORMABLE = dict(SMALL, conv_cfg=dict(type='DCN', deform_groups=1))
RULES = ('official', 'mmdet', 'paddle')
FC = ['fc.weight', 'fc.bias']


def weights(cls=Res2Net, **args):
    """Weights as other projects publish them: without a mark."""
    return dict(filled(cls, **(args or SMALL)).state_dict())


@contextmanager
def refused(net, match=None, error=CheckpointError):
    """Inside, an error is raised in one line, and the network stays what it was, bit for bit."""
    before = bits(net)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert '\n' not in str(caught.value) and bits(net) == before


@pytest.fixture
def published(cache, tmp_path, monkeypatch):
    """The published file 'tiny', in a mirror folder, and its weights."""
    state, path = weights(), tmp_path / 'saved'
    torch.save(other_layouts.official(state), path)
    name = f'tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth'
    about = dict(layout='official', variant='tiny', licence='for tests only', source='a test')
    monkeypatch.setitem(ZOO, 'tiny', Published(url=f'https://weights.invalid/{name}', **about))
    monkeypatch.setitem(VARIANTS, 'tiny', SMALL)
    hub = {'here': f'https://elsewhere.invalid/{name}'}
    monkeypatch.setattr('res2net_mm.weights.sources.get_external_models', lambda: hub)
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    return path.rename(tmp_path / name), state


SOURCES = ['path', 'string', '~', 'http', 'res2net://tiny', 'tiny', 'open-mmlab://here']


@pytest.mark.parametrize('kind', SOURCES)
def test_every_source_in_every_way(published, server, monkeypatch, kind):
    path, state = published
    source = {'path': path, 'string': str(path), '~': f'~/{path.name}'}.get(kind, kind)
    if kind == 'http':
        source = server.address(path.rename(server.folder / path.name).name)
        monkeypatch.delenv('RES2NET_MM_MIRROR')
    net = filled(seed=1, **SMALL)
    report = load_weights(net, source)
    assert bits(net) == bits(state)
    assert (report.source, report.layout, report.first_block) == (str(source), *2 * ['official'])
    assert (report.matched, report.licence) == (list(state), 'for tests only')
    assert (report.missing, report.unexpected, report.note) == ([], [], '')
    assert report.dropped == {'classifier': FC}
    assert bits(create_backbone('tiny', pretrained=source)) == bits(state)
    net = filled(first_block='mmdet', **SMALL)
    with refused(net, "needs first_block='official', but", ValueError):
        load_weights(net, source)


def test_create_backbone_loads_what_it_is_told(published):
    _, state = published
    net = create_backbone('tiny', pretrained=True, out_indices=(1,), frozen_stages=1)
    assert bits(net) == bits(state) and net.out_channels == (128,)
    assert not net.layer1[0].conv1.weight.requires_grad and net.layer2[0].conv1.weight.requires_grad
    with pytest.raises(ValueError, match="needs first_block='official'.*has first_block='paddle'"):
        create_backbone('tiny', pretrained=True, first_block='paddle')
    with pytest.raises(ValueError, match='se_res2net50_26w_4s: no published weights of this name'):
        create_backbone('se_res2net50_26w_4s', pretrained=True)
    with pytest.raises(FileNotFoundError, match='nowhere.pth does not exist'):
        create_backbone('tiny', pretrained='nowhere.pth')
    with pytest.raises(CheckpointError, match=r'Set base_width=8 \(the network has base_width=4\)'):
        create_backbone('tiny', pretrained=True, base_width=4)


def test_paddles_published_files(cache, tmp_path, monkeypatch):
    """An entry of the table with a file that is named and written as Paddle does."""
    name = 'res2net50_vd_26w_4s'
    net = create_backbone(name)
    net.layer4[2].bn3.running_mean.fill_(0.25)
    write_paddle(net.state_dict(), tmp_path / ZOO[name].filename)
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(tmp_path))
    loaded = create_backbone(name, pretrained=True)
    assert bits(loaded) == bits(net)
    report = load_weights(loaded, name)
    assert (report.layout, report.first_block, report.licence) == ('paddle', 'paddle', 'Apache-2.0')
    names = {"names in Paddle's program": ['StructuredToParameterName@@']}
    assert report.dropped == {'classifier': ['out.weight', 'out.bias'], **names}


def test_the_text_of_a_report(published):
    path, state = published
    net = Res2Net(**SMALL)
    report = load_weights(net, 'tiny')
    line = 'tiny: 162 tensors loaded, layout official, first_block official\n  left out, '
    line += 'classifier: fc.weight, fc.bias'
    for _ in range(2):  # making the text changes nothing
        assert str(report) == f'{line}\n  licence of these weights: for tests only'
    assert load_weights(net, path).licence == 'for tests only'
    around = {f'neck.{i}.weight': torch.ones(1) for i in range(8)}
    detector = {f'backbone.{key}': value for key, value in state.items()} | around
    report = load_weights(net, detector)
    assert report.dropped == {'rest of the model around the backbone': list(around)}
    assert str(report).splitlines() == [
        'the state dict: 162 tensors loaded, layout mmdet, first_block not known',
        '  left out, rest of the model around the backbone: neck.0.weight, neck.1.weight, '
        'neck.2.weight, neck.3.weight, neck.4.weight, neck.5.weight and 2 more',
        "  the file does not say its first-block rule; the network has first_block='official'. If "
        "mmdet trained it with its own Res2Net, set first_block='mmdet'",
    ]


def test_what_is_left_out_is_listed_by_rule():
    report = load_weights(Res2Net(**SMALL), other_layouts.official(weights()))
    assert (report.layout, report.dropped) == ('official', {'classifier': FC})
    whole = dict(state_dict=other_layouts.mmpretrain(weights()))
    report = load_weights(Res2Net(**SMALL), whole)
    assert (report.layout, report.first_block) == ('mmpretrain', 'official')
    assert report.dropped == {'classifier': [f'head.{key}' for key in FC]}
    beyond = [key for key in weights() if key.startswith('layer4.')]
    net = Res2Net(**SMALL, **THREE)
    report = load_weights(net, weights())
    assert report.dropped == {'stages that the network was built without': beyond}
    assert bits(net) == {k: v for k, v in bits(weights()).items() if k not in beyond}
    dla = other_layouts.official(weights(Res2NetDLA, **SMALL_DLA))
    report = load_weights(Res2NetDLA(**SMALL_DLA), dla)
    unused = [key for key in dla if key.startswith(('level3.project.', 'level4.'))]
    unused = [key for key in unused if re.match(r'level\d(\.tree1)?\.project', key)]
    discarded = {'projections that DLA computes and discards': unused}
    assert report.dropped == {**discarded, 'classifier': FC} and len(unused) == 18


def test_unknown_rules_are_noted_where_they_matter():
    plain = SMALL | dict(scales=1)
    assert load_weights(Res2Net(**SMALL), weights()).note
    assert not load_weights(Res2Net(**SMALL), filled(**SMALL).state_dict()).note
    assert not load_weights(Res2Net(**plain), weights(**plain)).note
    assert not load_weights(Res2NetDLA(**SMALL_DLA), weights(Res2NetDLA, **SMALL_DLA)).note


TWO = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
ALONE = dict(depth=26, base_width=13, scales=3, groups=2, deep_stem=False, avg_down=False)
ALONE |= dict(stem_channels=32, base_channels=32, in_channels=1)
CHANGES = [TWO, *({name: value} for name, value in ALONE.items())]
CHANGES += [dict(V1, depth=26, scales=2, base_width=16, stem_channels=8)]
CHANGES += [dict(groups=4, base_width=2, scales=3, in_channels=4, base_channels=8)]


@pytest.mark.parametrize('change', CHANGES, ids='-'.join)
@pytest.mark.parametrize('back', [False, True])
def test_errors_name_the_arguments_to_set(change, back):
    """What they name is what differs, and with it the weights fit."""
    if back and (change is TWO or change == dict(in_channels=1)):
        return  # weights of more stages, or for RGB, fit
    defaults = dict(deep_stem=True, avg_down=True, scales=4, groups=1, in_channels=3, num_stages=4)
    wanted, other = ({}, change) if back else (change, {})
    net, state = filled(seed=1, **SMALL | other), weights(**SMALL | wanted)
    with refused(net) as caught:
        load_weights(net, state)
    told = re.search(r'Set (.*) \(the network has (.*)\)\.', str(caught.value))
    needs, has = (eval(f'dict({text})') for text in told.groups())
    names = change.keys() & (defaults | SMALL)
    names -= {'in_channels'} if back else set()  # weights for RGB are adapted
    assert needs == {name: (defaults | SMALL | wanted)[name] for name in names}
    assert has == {name: (defaults | SMALL | other)[name] for name in names}
    net = Res2Net(**SMALL | other | wanted | needs | (dict(in_channels=3) if back else {}))
    load_weights(net, state)
    assert bits(net) == bits(state)


@pytest.mark.parametrize(
    ('name', 'channels'),
    [('res2net50d', 1), ('res2net50d', 4), ('res2net50_26w_4s', 1)],
)
def test_first_convolution_for_other_images(tmp_path, name, channels):
    """As timm adapts the same file; the report says it in one line."""
    path, layers = tmp_path / 'rgb.pth', dict(layers=(1, 1, 1, 1))
    torch.save(randomise(timm.create_model(name, **layers)).state_dict(), path)
    given = dict(pretrained=True, in_chans=channels, pretrained_cfg_overlay=dict(file=str(path)))
    theirs = timm.create_model(name, **layers, **given).state_dict()
    args = dict(V1 if '26w' in name else {}, depth=14)
    net, plain = Res2Net(**args, in_channels=channels), Res2Net(**args)
    report = load_weights(net, path)
    key, weight = next(iter(net.state_dict().items()))
    assert weight.equal(next(iter(theirs.values()))) and weight.shape[1] == channels
    how = 'summed' if channels == 1 else f'repeated and scaled by 3/{channels}'
    line = f'adapted, {key}: its 3 input channels are {how} for the {channels} of the network'
    assert report.adapted == line and line in [said.strip() for said in str(report).splitlines()]
    assert load_weights(plain, path).adapted == ''
    rest = {name: value for name, value in bits(net).items() if name != key}
    assert rest == {name: value for name, value in bits(plain).items() if name != key}
    if channels == 1:  # the same as the grey image in all three channels
        grey = torch.rand(2, 1, 64, 64)
        with torch.no_grad():
            pairs = zip(net.eval()(grey), plain.eval()(grey.expand(-1, 3, -1, -1)), strict=True)
            assert all(relative_error(a, b) < 1e-5 for a, b in pairs)


def test_first_convolution_of_dla_and_of_halves():
    state = weights(Res2NetDLA, **SMALL_DLA)
    net = filled(Res2NetDLA, **SMALL_DLA, in_channels=1)
    load_weights(net, state)
    assert net.base_layer[0].weight.equal(state['base_layer.0.weight'].sum(1, keepdim=True))
    state = {k: v.half() if v.is_floating_point() else v for k, v in weights().items()}
    net = filled(**SMALL, in_channels=1)
    load_weights(net, state)
    wide = state['stem.0.weight'].float().sum(1, keepdim=True)  # as timm: summed in float32
    assert net.stem[0].weight.equal(wide.half().float())
    load_weights(net, {k: v.half() for k, v in weights().items()})  # counters too
    assert net.stem[1].num_batches_tracked.dtype == torch.int64


def test_channels_that_are_not_three_are_not_adapted():
    four = weights(**SMALL, in_channels=4)
    for channels in (1, 3):
        net = filled(**SMALL, in_channels=channels)
        with refused(net, rf'Set in_channels=4 \(the network has in_channels={channels}\)'):
            load_weights(net, four)
    assert load_weights(filled(**SMALL, in_channels=4), four).adapted == ''


def test_errors_name_the_type():
    ours, dla = filled(seed=1, **SMALL), filled(Res2NetDLA, seed=1, **SMALL_DLA)
    types = r"Set type='{}'.*the network has type='{}'"
    with refused(ours, types.format('Res2NetDLA', 'Res2Net')):
        load_weights(ours, weights(Res2NetDLA, **SMALL_DLA))
    with refused(dla, types.format('Res2Net', 'Res2NetDLA')):
        load_weights(dla, weights())
    for name, value in dict(base_width=4, groups=2, scales=2, in_channels=1).items():
        with refused(dla, rf'Set {name}={value} \(the network has {name}=\d+\)\. \['):
            load_weights(dla, weights(Res2NetDLA, **SMALL_DLA | {name: value}))


def test_a_plain_resnet_gets_no_advice_that_cannot_fit():
    net = filled(**SMALL)
    state = torchvision.models.resnet50().state_dict()
    with refused(net, r'nothing was loaded\. It is no Res2Net: its blocks have no convs\. \[miss'):
        load_weights(net, state)


def test_errors_name_rule_and_style():
    for wanted, other in itertools.permutations(RULES, 2):
        net = filled(seed=1, **SMALL, first_block=other)
        message = f"needs first_block='{wanted}', but the network has first_block='{other}': set"
        with refused(net, message, ValueError):
            load_weights(net, filled(**SMALL, first_block=wanted).state_dict())
    net = filled(seed=1, **SMALL, style='caffe')
    with refused(net, "needs style='pytorch', but the network has style='caffe'", ValueError):
        load_weights(net, filled(**SMALL).state_dict())
    with refused(net, r"Set scales=2, first_block='mmdet', style='pytorch' \(the network has sc"):
        load_weights(net, filled(**SMALL, scales=2, first_block='mmdet').state_dict())
    assert load_weights(net, filled(**SMALL, style='caffe').state_dict()).first_block == 'official'


def test_errors_list_the_names():
    net, state = filled(seed=1, **SMALL), weights()
    gone, there = 'layer2.0.bns.1.weight', 'layer2.0.bns.7.weight'
    state[there] = state.pop(gone)
    state['layer3.0.conv1.weight'] = torch.ones(2, 3)
    with refused(net) as caught:
        load_weights(net, state)
    assert str(caught.value) == (
        'the state dict (layout mmdet) does not fit the network, and nothing was loaded. [missing: '
        f'{gone}; unexpected: {there}; other shapes: layer3.0.conv1.weight (2, 3) for '
        '(128, 128, 1, 1)]'
    )
    with pytest.raises(TypeError, match='must be a backbone of res2net_mm, but is Identity'):
        load_weights(torch.nn.Identity(), state)


@pytest.mark.parametrize('version', ['DCN', 'DCNv2'])
def test_plain_weights_in_deformable_networks(version):
    """Fresh offsets leave a plain convolution; version 2 halves it (the gate of 0 is 0.5)."""
    args = dict(SMALL, conv_cfg=dict(type=version, deform_groups=1))
    net, state = filled(seed=1, **args), weights()
    gate = 0.5 if isinstance(net.stem[0], mmcv.ops.ModulatedDeformConv2d) else 1.0
    offsets = [key for key in net.state_dict() if '.conv_offset.' in key]
    assert len(offsets) == 2 * sum(value.ndim == 4 for value in state.values())
    with refused(net, 'missing: layer2.0.conv3.weight]'):
        load_weights(net, {k: v for k, v in state.items() if k != 'layer2.0.conv3.weight'})
    report = load_weights(net, state)
    assert report.missing == offsets and report.matched == list(state)
    assert f'not in the file, and zero: {offsets[0]}, ' in str(report)
    zeros = {key: torch.zeros_like(net.state_dict()[key]) for key in offsets}
    assert bits(net) == bits({key: {**state, **zeros}[key] for key in net.state_dict()})
    plain = Res2Net(**SMALL).eval()
    load_weights(plain, {k: v * gate if v.ndim == 4 else v for k, v in state.items()})
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(net(image), plain(image), rtol=1e-4, atol=1e-5)
    deformed = filled(seed=2, **args)
    assert load_weights(net, dict(deformed.state_dict())).missing == []
    assert bits(net) == bits(deformed)
    with refused(plain, 'unexpected: stem.0.conv_offset.weight'):
        load_weights(plain, dict(deformed.state_dict()))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights().items()}
    state['layer1.0.conv1.weight'] *= 1 + 1e-9
    torch.save(state, tmp_path / 'other.pth')
    net = filled(seed=1, **SMALL)
    load_weights(net, tmp_path / 'other.pth')
    assert bits(net) == bits({k: v.to(net.state_dict()[k].dtype) for k, v in state.items()})


def test_numbers_that_a_network_cannot_hold():
    huge = torch.full((64,), 1e39, dtype=torch.float64)
    for net, value in ((filled(seed=1, **SMALL), huge), (Res2Net(**SMALL).half(), huge.sqrt())):
        with refused(net, 'layer1.0.bn3.weight .*infinite'):
            load_weights(net, weights() | {'layer1.0.bn3.weight': value})


def test_files_of_a_gpu_are_read_without_one(tmp_path, monkeypatch):
    net, path = filled(**SMALL), tmp_path / 'gpu.pth'
    for zipped, location in itertools.product((True, False), ('cpu', torch.device('cpu'))):
        with monkeypatch.context() as patch:
            patch.setattr('torch.serialization.location_tag', lambda storage: 'cuda:99')
            torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(RuntimeError, match='CUDA'):  # there is none of this number
            torch.load(path, weights_only=True)
        other = filled(seed=1, **SMALL)
        load_weights(other, path, map_location=location)
        assert bits(other) == bits(net)


def test_wrappers():
    state, other = weights(), weights(**SMALL, seed=3)
    module = {f'module.{key}': value for key, value in state.items()}
    wrapped = [module, dict(state_dict=module), dict(state_dict=state, ema=other, epoch=3)]
    wrapped += [dict(state_dict=dict(model=module)), MappingProxyType(state)]
    wrapped += [{key: module} for key in ('model', 'state_dict_ema', 'model_ema', 'ema')]
    for checkpoint in wrapped:
        net = filled(seed=1, **SMALL)
        load_weights(net, checkpoint)
        assert bits(net) == bits(state)


def test_averaged_weights_come_first_as_in_timm(tmp_path):
    theirs, path = timm.create_model('res2net50d', layers=(1, 1, 1, 1)), tmp_path / 'theirs.pth'
    averaged, state = (copy.deepcopy(randomise(theirs, seed).state_dict()) for seed in (0, 1))
    torch.save(dict(epoch=3, state_dict=state, state_dict_ema=averaged), path)
    timm.models.load_checkpoint(theirs, str(path))
    net = Res2Net(depth=14)
    report = load_weights(net, path)
    assert bits(net) == bits(convert_state_dict(theirs.state_dict())[0])
    assert '\n  left out, weights other than state_dict_ema: state_dict\n' in str(report)


@pytest.mark.parametrize('prefix', ['model.backbone.', 'model.backbone', 'module.net.', 'module.'])
def test_prefixes(prefix):
    """With or without the last point, as mmengine takes them."""
    state = weights()
    net = filled(seed=1, **SMALL)
    named = {f'{prefix.rstrip(".")}.{key}': value for key, value in state.items()}
    load_weights(net, named, prefix=prefix)
    assert bits(net) == bits(state)


def test_channels_last(tmp_path):
    net, other = filled(**SMALL), filled(seed=1, **SMALL).to(memory_format=torch.channels_last)
    load_weights(other, net.state_dict())
    assert bits(other) == bits(net)
    assert other.layer1[0].convs[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.save(other.state_dict(), tmp_path / 'last.pth')
    third = filled(seed=2, **SMALL)
    load_weights(third, tmp_path / 'last.pth')
    assert bits(third) == bits(net) and third.layer1[0].convs[0].weight.is_contiguous()


@pytest.mark.parametrize('saving', ['torch', 'mmengine', 'a copy', 'a copied dict', 'a pickle'])
def test_marks_outlast_saving(tmp_path, saving):
    net, path = filled(**SMALL, first_block='paddle'), tmp_path / 'marked.pth'
    copied = {'a copy': copy.deepcopy, 'a pickle': lambda net: pickle.loads(pickle.dumps(net))}
    state = copied.get(saving, lambda net: net)(net).state_dict()
    state = copy.deepcopy(state) if saving == 'a copied dict' else state
    save = save_checkpoint if saving == 'mmengine' else torch.save
    save(dict(state_dict=state), str(path))
    state = torch.load(path)['state_dict']
    same, other = filled(seed=1, **SMALL, first_block='paddle'), filled(seed=1, **SMALL)
    report = load_weights(same, path)
    assert (report.layout, report.first_block, report.note) == ('mmdet', 'paddle', '')
    assert bits(same) == bits(net)
    needs = "needs first_block='paddle', but the network has first_block='official'"
    with refused(other, f'{path} {needs}', ValueError):
        load_weights(other, path)
    for strict in (True, False):
        with refused(other, f'the state dict {needs}', ValueError):
            other.load_state_dict(state, strict=strict)
        same.load_state_dict(state, strict=strict)


def test_plain_bottlenecks_carry_no_rule():
    plain = SMALL | dict(scales=1)
    state = filled(**plain, first_block='paddle').state_dict()
    assert state._metadata['']['res2net_mm'] == dict(style='pytorch')
    net = filled(seed=1, **plain, first_block='mmdet')
    assert load_weights(net, state).first_block is None
    assert bits(net) == bits(state)
    net.load_state_dict(state)


@pytest.mark.parametrize('args', [SMALL, SMALL | THREE, DEFORMABLE], ids=['', 'three', 'deform'])
@pytest.mark.parametrize('layout', ['ours', 'official', 'detector'])
def test_a_callers_dict_stays_what_it_is(layout, args):
    state = filled(**SMALL).state_dict()
    if layout == 'official':
        state = {k: v for k, v in other_layouts.official(state).items() if 'tracked' not in k}
    elif layout == 'detector':
        state = dict(state_dict=OrderedDict(other_layouts.detector(state)), meta=dict(epoch=1))
    before = copy.deepcopy(state)
    nets = [filled(seed=seed, **args) for seed in (1, 2)]
    reports = [load_weights(net, state) for net in nets]
    assert reports[0] == reports[1] and bits(nets[0]) == bits(nets[1])
    if layout == 'detector':
        assert state.pop('meta') == before.pop('meta') and list(state) == list(before)
        state, before = state['state_dict'], before['state_dict']
    assert list(state) == list(before) and bits(state) == bits(before)
    assert getattr(state, '_metadata', None) == getattr(before, '_metadata', None)


def test_both_stacks(stack, python, tmp_path):
    code = f"""
        import mmengine.runner, res2net_mm
        build = mmengine.registry.MODELS.build
        args = dict({SMALL!r}, type='res2net_mm.Res2Net')
        net = build(dict(args, first_block='mmdet'))
        net.init_weights()
        path = {str(tmp_path / 'saved.pth')!r}
        mmengine.runner.save_checkpoint(dict(state_dict=net.state_dict(), meta={{}}), path)
        args['init_cfg'] = dict(type='Pretrained', checkpoint=path)
        loaded = build(dict(args, first_block='mmdet'))
        loaded.init_weights()
        equal = [v.equal(net.state_dict()[k]) for k, v in loaded.state_dict().items()]
        print('equal:', sum(equal), 'of', len(equal))
        try:
            build(args).init_weights()
        except ValueError as error:
            print('refused:', error)
    """
    run = python('-c', textwrap.dedent(code), env=stack)
    assert run.returncode == 0 and 'equal: 162 of 162' in run.stdout, run.stderr[-2000:]
    assert "saved.pth needs first_block='mmdet', but the network has first_block='o" in run.stdout


def test_init_cfg_is_exact_in_every_scope(tmp_path):
    """mmdet's scope is active while its models are built; its Pretrained loads what matches."""
    torch.save(Res2Net(**SMALL).state_dict(), tmp_path / 'small.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'small.pth'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        Res2Net(**SMALL, init_cfg=init_cfg).init_weights()
        with pytest.raises(ValueError, match='does not fit the network'):
            Res2Net(**SMALL | dict(depth=26), init_cfg=init_cfg).init_weights()


def test_backbones_stand_alone():
    files = Path(backbones.__file__).parent.glob('*.py')
    code = {file.name: file.read_text() for file in files}
    named = re.compile(r'^\s*(from|import) .*weights|res2net_mm\.Pretrained', re.M)
    assert code and [name for name, text in code.items() if named.search(text)] == []
