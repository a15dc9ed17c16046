"""Names of other projects to ours: nothing lost, nothing guessed, and the rule kept."""

import copy
import functools

import numpy as np
import other_layouts
import pytest
import torch
from mmengine.model import StochasticWeightAverage
from references import empty
from torch import nn

from res2net_mm import Res2Net, list_backbones
from res2net_mm.backbones import VARIANTS
from res2net_mm.weights import CheckpointError, convert_state_dict, load_weights, read_source
from res2net_mm.weights.layouts import convert, unwrap

SMALL = dict(depth=14, base_width=8, base_channels=16, stem_channels=16)
RULES = {'official', 'mmdet', 'paddle'}
V1 = dict(deep_stem=False, avg_down=False)

# name of the writer -> layout, rule, and what is dropped by which rule
WRITERS = {
    'official': ('official', 'official', {'classifier': ['fc.weight', 'fc.bias']}),
    'mmpretrain': ('mmpretrain', 'official', {'classifier': ['head.fc.weight', 'head.fc.bias']}),
    'paddle': (
        'paddle',
        'paddle',
        {
            'classifier': ['out.weight', 'out.bias'],
            "names in Paddle's program": ['StructuredToParameterName@@'],
        },
    ),
    'detector': (
        'mmdet',
        None,
        {
            'rest of the model around the backbone': [
                'neck.lateral_convs.0.conv.weight',
                'rpn_head.rpn_conv.bias',
            ]
        },
    ),
}
NOT_IN_PADDLE = ('dla', 'dcn', 'se_', 'res2next29')


@functools.cache
def names_and_shapes(variant):
    """A state dict of the variant's names and shapes: every tensor is full of its own number."""
    state = empty(VARIANTS[variant]).state_dict()
    numbered = {}
    for number, (key, value) in enumerate(state.items()):
        number = 0 if key.endswith('num_batches_tracked') else number
        numbered[key] = torch.tensor(number, dtype=value.dtype).expand(value.shape)
    return numbered


def write(layout, state):
    return getattr(other_layouts, layout)(state)


def small_state(**args):
    return dict(Res2Net(**SMALL, **args).state_dict())


@pytest.mark.parametrize(
    ('variant', 'writer'),
    [
        (variant, writer)
        for variant in list_backbones()
        for writer in WRITERS
        if writer != 'paddle' or not any(part in variant for part in NOT_IN_PADDLE)
    ],
)
def test_round_trip(variant, writer):
    ours = names_and_shapes(variant)
    written = write(writer, ours)
    before = dict(written)
    layout, rule, dropped = WRITERS[writer]
    dropped = dict(dropped)
    if writer == 'official' and 'dla' in variant:
        dropped['projections that DLA computes and discards'] = [
            f'{tree}.project.{leaf}'
            for tree in other_layouts.DISCARDING
            for leaf in other_layouts.PROJECTION
        ]
    converted = convert(dict(state_dict=written) if writer == 'mmpretrain' else written)
    assert set(converted.state) == set(ours)
    for key, value in converted.state.items():
        made = writer == 'paddle' and key.endswith('num_batches_tracked')
        assert value.equal(ours[key]) if made else value is ours[key], key
    assert converted.layout == layout
    assert converted.convention == (dict(first_block=rule, style='pytorch') if rule else {})
    assert converted.dropped == dropped
    assert list(written) == list(before) and all(written[k] is before[k] for k in before)
    # every name of the file is accounted for, and once
    made = sum(key.endswith('num_batches_tracked') for key in ours) if writer == 'paddle' else 0
    assert len(written) == len(ours) - made + sum(map(len, dropped.values()))

    again = convert(converted.state)
    assert (
        again.layout == 'mmdet' and again.dropped == {} and again.convention == converted.convention
    )
    assert again.state.keys() == converted.state.keys()
    assert all(again.state[key] is value for key, value in converted.state.items())
    assert convert_state_dict(written)[1] == layout


CAFFE = dict(style='caffe')
# writer -> variants that the project has, layout, convention, names around the backbone
PROJECTS = {
    'detectron2': (
        ('res2net101_v1b_26w_4s', 'res2net101_v1b_26w_4s_dcn'),
        'detectron2',
        dict(CAFFE, first_block='mmdet'),
        ['backbone.fpn_lateral2.weight', 'pixel_mean'],
    ),
    'maskrcnn': (
        ('res2net50_14w_8s', 'res2net101_26w_4s'),
        'maskrcnn',
        dict(CAFFE, first_block='official'),
        ['backbone.fpn.fpn_inner1.weight'],
    ),
    'fork': (
        ('res2net101_v1b_26w_4s',),
        'official',
        dict(style='pytorch', first_block='official'),
        ['neck.lateral_convs.0.conv.weight', 'rpn_head.rpn_conv.bias'],
    ),
}


@pytest.mark.parametrize('writer', PROJECTS)
def test_other_projects_of_the_authors(writer):
    variants, layout, convention, around = PROJECTS[writer]
    for variant in variants:
        ours = names_and_shapes(variant)
        written = write(writer, ours)
        converted = convert(dict(model=written, iteration=3))
        assert set(converted.state) == set(ours)
        for key, value in converted.state.items():
            made = key.endswith(('num_batches_tracked', 'conv_offset.bias'))
            assert value is ours[key] or made, key
            assert value.shape == ours[key].shape
            assert value is ours[key] or not value.any()
        assert (converted.layout, converted.convention) == (layout, convention)
        assert converted.dropped == {'rest of the model around the backbone': around}


def test_names_in_detectron2_and_maskrcnn():
    """A few written out in full, as the writers are code too."""
    written = other_layouts.detectron2(names_and_shapes('res2net101_v1b_26w_4s_dcn'))
    names = {key.removeprefix('backbone.bottom_up.') for key in written}
    assert {'stem.conv1.0.weight', 'stem.conv1.4.running_var', 'stem.bn1.bias'} <= names
    assert {'res2.0.conv1.norm.weight', 'res2.0.shortcut.1.norm.running_mean'} <= names
    assert {'res4.22.convs.2.weight', 'res4.22.bns.2.bias', 'res5.0.shortcut.1.weight'} <= names
    assert 'res3.1.conv2_offsets.0.weight' in names and 'res3.1.conv2_offsets.0.bias' not in names
    state = convert(written).state
    last = written['backbone.bottom_up.res5.2.conv3.norm.bias']
    assert state['layer4.2.bn3.bias'] is last and not any('num_batches' in name for name in names)
    written = other_layouts.maskrcnn(names_and_shapes('res2net50_26w_4s'))
    body = 'module.backbone.body.'
    assert {f'{body}stem.conv1.weight', f'{body}stem.bn1.running_var'} <= set(written)
    assert {f'{body}layer1.0.downsample.1.bias', f'{body}layer3.5.convs.2.weight'} <= set(written)


def test_names_in_paddles_program():
    """A few written out in full, as the writer is code too."""
    fifty, deep = (
        other_layouts.paddle(names_and_shapes(f'res2net{d}_vd_26w_4s')) for d in (50, 200)
    )
    plain = other_layouts.paddle(names_and_shapes('res2net50_26w_4s'))
    for written, names in (
        (fifty, ('conv1_1._conv.weight', 'conv1_3._batch_norm._variance')),
        (fifty, ('bb_0_0.conv0._conv.weight', 'bb_0_0.res2a_branch2b_1._batch_norm._mean')),
        (fifty, ('bb_2_5.res4f_branch2b_3._conv.weight', 'bb_3_0.short._batch_norm.bias')),
        (deep, ('bb_1_11.res3l_branch2b_2._conv.weight', 'bb_2_0.res4a_branch2b_1._conv.weight')),
        (deep, ('bb_2_47.res4b47_branch2b_3._conv.weight', 'bb_3_2.conv2._batch_norm.weight')),
        (plain, ('conv1._conv.weight', 'conv1._batch_norm.weight', 'bb_1_0.short._conv.weight')),
    ):
        assert set(names) <= set(written)
    assert (
        convert(deep).state['layer3.47.convs.2.weight']
        is deep['bb_2_47.res4b47_branch2b_3._conv.weight']
    )
    assert (
        convert(fifty).state['layer4.0.downsample.2.bias'] is fifty['bb_3_0.short._batch_norm.bias']
    )
    assert (
        convert(plain).state['layer2.0.downsample.0.weight'] is plain['bb_1_0.short._conv.weight']
    )
    assert convert(fifty).state['stem.7.running_var'] is fifty['conv1_3._batch_norm._variance']


def test_paddles_arrays():
    """As Paddle gives them; the result has memory of its own."""
    ours = small_state()
    arrays = other_layouts.as_arrays(other_layouts.paddle(ours))
    converted = convert(arrays)
    assert converted.layout == 'paddle' and set(converted.state) == set(ours)
    assert all(value.equal(ours[key]) for key, value in converted.state.items())
    before = converted.state['stem.0.weight'].clone()
    arrays['conv1_1._conv.weight'] += 1
    assert converted.state['stem.0.weight'].equal(before)
    foreign = arrays['conv1_2._conv.weight'].astype('>f4')
    foreign.flags.writeable = False
    converted = convert({**arrays, 'conv1_2._conv.weight': foreign})
    assert converted.state['stem.3.weight'].equal(ours['stem.3.weight'])
    for array in (np.array([None]), np.array(['a'])):
        with pytest.raises(CheckpointError, match=r'conv1_1\._conv\.weight must be a tensor'):
            convert({**arrays, 'conv1_1._conv.weight': array})


WRAPPERS = {
    'state_dict': lambda state: dict(state_dict=state, epoch=3, optimizer=dict(state={})),
    'model': lambda state: dict(model=state, epoch=3),
    'ema': lambda state: dict(ema=state, epoch=3),
    'state_dict_ema': lambda state: dict(state_dict_ema=state),
    'nested': lambda state: dict(model=dict(state_dict=state)),
    'module.': lambda state: {f'module.{key}': value for key, value in state.items()},
    'state_dict of module.': lambda state: dict(state_dict=WRAPPERS['module.'](state)),
    'not averaged first': lambda state: dict(ema={'other': torch.ones(1)}, state_dict=state),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('writer', WRITERS)
def test_wrapped(writer, wrapper):
    written = write(writer, small_state())
    bare, wrapped = convert(written), convert(WRAPPERS[wrapper](written))
    assert list(wrapped.state) == list(bare.state)
    assert all(value.equal(bare.state[key]) for key, value in wrapped.state.items())
    others = {'weights other than state_dict': ['ema']} if 'averaged' in wrapper else {}
    assert wrapped.dropped == others | bare.dropped
    for attribute in ('layout', 'convention'):
        if (writer, attribute) != ('mmpretrain', 'convention'):  # see below
            assert getattr(wrapped, attribute) == getattr(bare, attribute)


def test_a_bare_classifier_does_not_tell_its_rule():
    """It has mmpretrain's names, and may be ours, whose metadata a safetensors file lacks."""
    bare = other_layouts.mmpretrain(small_state(first_block='paddle'))
    assert convert(bare).convention == {}
    report = load_weights(Res2Net(**SMALL, first_block='paddle'), bare)
    assert report.first_block is None and "has first_block='paddle'" in report.note
    assert convert(dict(state_dict=bare)).convention['first_block'] == 'official'


@pytest.mark.parametrize(
    ('writer', 'args', 'key'),
    [
        ('official', {}, 'conv1.2.weight'),
        ('official', {}, 'neck.0.weight'),
        ('official', dict(deep_stem=False), 'avgpool.weight'),
        ('official', dict(deep_stem=False), 'layer1.weight'),
        ('mmpretrain', {}, 'backbone.norm.weight'),
        ('detector', {}, 'backbone.layer1.conv1'),
        ('paddle', {}, 'bb_0_0.conv1._conv.weight'),
        ('paddle', {}, 'conv1_4._conv.weight'),
        ('detectron2', {}, 'backbone.bottom_up.stem.conv1.2.weight'),
        ('maskrcnn', V1, 'module.backbone.body.res2.0.conv1.weight'),
    ],
)
def test_unknown_name_is_an_error_that_names_it(writer, args, key):
    written = write(writer, small_state(**args))
    layout = WRITERS.get(writer, (writer,))[0]
    name = key.removeprefix('module.')
    words = f'names in layout {layout} have no rule: {name}; is it a Res2Net'.replace('.', r'\.')
    with pytest.raises(CheckpointError, match=words):
        convert({**written, key: torch.ones(1)})


@pytest.mark.parametrize(
    ('writer', 'args', 'key', 'ours'),
    [
        ('official', {}, 'stem.0.weight', 'stem.0.weight'),
        ('paddle', {}, 'bb_0_0.conv0._batch_norm.running_mean', 'layer1.0.bn1.running_mean'),
        ('paddle', {}, 'layer1.0.conv1.weight', 'layer1.0.conv1.weight'),
        ('paddle', {}, 'bb_0_0.res2b_branch2b_1._conv.weight', 'layer1.0.convs.0.weight'),
        ('detectron2', {}, 'backbone.bottom_up.res2.0.bn1.weight', 'layer1.0.bn1.weight'),
        ('maskrcnn', V1, 'module.backbone.body.bn1.weight', 'bn1.weight'),
    ],
)
def test_two_names_of_one_tensor(writer, args, key, ours):
    written = {**write(writer, small_state(**args)), key: torch.ones(1)}
    with pytest.raises(CheckpointError, match=f'two tensors of the file become {ours}, one of'):
        convert(written)


def test_many_unknown_names_are_counted():
    written = other_layouts.official(small_state()) | {
        f'x{i}.weight': torch.ones(1) for i in range(9)
    }
    with pytest.raises(CheckpointError, match=r'no rule: x0\.weight, .*, x5\.weight and 3 more;'):
        convert(written)


def test_what_is_no_state_dict_of_a_res2net():
    ours = small_state()
    no_stem = {k: v for k, v in ours.items() if not k.startswith('stem')}
    for state, words in (
        (
            {},
            r'no layout of Res2Net .*: no stem \(.*\) among no names; prefix \(convert_weights\.py',
        ),
        (no_stem, r'no layout of Res2Net .* among layer1\.0\.conv1\.weight, .* and \d+ more'),
        ({**ours, 3: torch.ones(1)}, 'has names as keys, but this one has 3'),
        ({**ours, 'stem.0.weight': [1.0]}, r'stem\.0\.weight must be a tensor, but is list'),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert(state)


def test_names_that_two_layouts_share_tell_no_rule():
    """The authors' v1 without its classifier could be mmdet's; their deep stem is theirs alone."""
    for args, layout, mark in (
        (dict(deep_stem=False, avg_down=False), 'mmdet', {}),
        (dict(), 'official', dict(first_block='official', style='pytorch')),
    ):
        written = other_layouts.official(small_state(**args))
        converted = convert({k: v for k, v in written.items() if not k.startswith('fc.')})
        assert (converted.layout, converted.convention, converted.dropped) == (layout, mark, {})


@pytest.mark.parametrize('writer', ['official', 'paddle'])
@pytest.mark.parametrize('prefix', ['backbone.', 'encoder.net.'])
def test_backbone_of_other_names_in_a_model(writer, prefix):
    """The rule is in the names, whatever stands before them."""
    ours = small_state()
    written = {f'{prefix}{key}': value for key, value in write(writer, ours).items()}
    program = written.pop(f'{prefix}StructuredToParameterName@@', None)
    converted = convert(written | {'neck.bias': torch.ones(1)}, prefix)
    layout, rule, dropped = WRITERS[writer]
    assert (converted.layout, converted.convention['first_block']) == (layout, rule)
    assert converted.dropped == {
        'rest of the model around the backbone': ['neck.bias'],
        'classifier': [prefix + key for key in dropped['classifier']],
    }
    assert set(converted.state) == set(ours) and (program is None) == (writer == 'official')
    if prefix == 'backbone.':
        assert convert(written | {'neck.bias': torch.ones(1)}).convention == converted.convention


def refuses(net, source, words):
    """Whether loading is an error and the network stays as it was."""
    before = copy.deepcopy(net.state_dict())
    loads = [lambda: load_weights(net, source)]
    if getattr(source, '_metadata', None):
        loads.append(lambda: net.load_state_dict(source))
    for load in loads:
        with pytest.raises(ValueError, match=words):
            load()
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    return True


@pytest.mark.parametrize('writer', ['official', 'mmpretrain', 'paddle'])
def test_network_of_another_rule_refuses(writer):
    rule = WRITERS[writer][1]
    ours = Res2Net(**SMALL, first_block=rule)
    written = write(writer, ours.state_dict())
    if writer == 'mmpretrain':
        written = dict(state_dict=written)
    converted = convert_state_dict(written)[0]
    for source in (written, converted, convert_state_dict(converted)[0]):
        for other in RULES - {rule}:
            words = f"needs first_block='{rule}', but the network has first_block='{other}'"
            assert refuses(Res2Net(**SMALL, first_block=other), source, words)
        caffe = Res2Net(**SMALL, first_block=rule, style='caffe')
        assert refuses(caffe, source, "needs style='pytorch', but the network has style='caffe'")
        fits = Res2Net(**SMALL, first_block=rule)
        report = load_weights(fits, source)
        assert (report.first_block, report.note) == (rule, '')
        assert all(
            value.equal(written_)
            for value, written_ in zip(
                fits.state_dict().values(), ours.state_dict().values(), strict=True
            )
        )
    fits = Res2Net(**SMALL, first_block=rule)
    fits.load_state_dict(converted)


@pytest.mark.parametrize('averaged', [torch.optim.swa_utils.AveragedModel, StochasticWeightAverage])
def test_models_that_average_weights(averaged, tmp_path):
    ours = Res2Net(**SMALL, first_block='paddle')
    torch.save(dict(state_dict=averaged(nn.Sequential(ours)).state_dict()), tmp_path / 'whole.pth')
    whole = read_source(tmp_path / 'whole.pth')['state_dict']
    with pytest.raises(ValueError, match="needs first_block='paddle'"):
        nn.Sequential(Res2Net(**SMALL)).load_state_dict(whole, strict=False)
    state = averaged(ours).state_dict()
    (counter,) = (key for key in state if '.' not in key)
    converted = convert(state)
    assert converted.dropped == {'counter of averaged weights': [counter]}
    assert converted.convention['first_block'] == 'paddle'
    assert all(value.equal(converted.state[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize('rule', sorted(RULES))
def test_rule_of_our_own_models_is_kept(rule):
    """Also of a whole model, and of one that was wrapped for several processes."""
    model, wrapper = nn.Module(), nn.Module()
    model.backbone, wrapper.module = Res2Net(**SMALL, first_block=rule), model
    for source in (model.backbone, model, wrapper):
        state = source.state_dict()
        assert convert(state).convention == dict(first_block=rule, style='pytorch')
        for other in RULES - {rule}:
            net = Res2Net(**SMALL, first_block=other)
            with pytest.raises(ValueError, match=f"needs first_block='{rule}', but"):
                load_weights(net, dict(state_dict=state))
        assert refuses(Res2Net(**SMALL, first_block=other), convert_state_dict(state)[0], rule)


def test_what_is_named_like_averaged_weights_and_is_none():
    state = small_state()
    for other in (dict(decay=0.9, updates=3), dict(module=state), dict(shadow=[torch.ones(1)])):
        for key in ('state_dict', 'model'):
            assert load_weights(Res2Net(**SMALL), {key: state, 'model_ema': other})
    assert unwrap(dict(model={}, model_ema=dict(decay=0.9, state_dict=state))) is state


def test_detector_of_mmdet_does_not_tell_its_rule():
    written = other_layouts.detector(small_state())
    for rule in RULES:
        report = load_weights(Res2Net(**SMALL, first_block=rule), written)
        assert report.layout == 'mmdet' and report.first_block is None
        assert f"the network has first_block='{rule}'" in report.note
