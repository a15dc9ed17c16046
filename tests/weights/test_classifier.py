"""Classifiers give the logits of the code that their weights were published with."""

import pickle

import numpy as np
import pytest
import timm
import torch
from filled_files import SMALL, filled
from mmengine.logging import MMLogger
from other_layouts import as_arrays, mmpretrain, official, paddle
from references import paddle_levels, randomise, relative_error

from res2net_mm import Classifier, Res2Net, Res2NetDLA, create_backbone, create_classifier
from res2net_mm.weights import CheckpointError, load_weights
from res2net_mm.weights.classifier import load_classifier, name_as_classifier

# timm's name -> ours; features are those of tests/backbones/test_parity.py, so three kinds of stem
# and layer are enough
TIMM = {
    'res2net50_26w_4s': 'res2net50_26w_4s',
    'res2net50_48w_2s': 'res2net50_48w_2s',
    'res2net50_14w_8s': 'res2net50_14w_8s',
    'res2net50_26w_6s': 'res2net50_26w_6s',
    'res2net50_26w_8s': 'res2net50_26w_8s',
    'res2net101_26w_4s': 'res2net101_26w_4s',
    'res2next50': 'res2next50_4w_4s_8c',
    'res2net50d': 'res2net50_v1b_26w_4s',
    'res2net101d': 'res2net101_v1b_26w_4s',
    'dla60_res2net': 'res2net_dla60',
    'dla60_res2next': 'res2next_dla60',
}
FAST = ('res2net50_14w_8s', 'res2net50d', 'dla60_res2next')
CLASSES = 10  # of the writers of other layouts


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', lines.append)
    return lines


def random_layer(state, weight, bias, seed=5):
    """The state with random values in its classification layer."""
    generator = torch.Generator().manual_seed(seed)
    for key in (weight, bias):
        state[key] = torch.randn(state[key].shape, generator=generator) / 8
    return state


def small(cls=Res2Net, classes=CLASSES, **args):
    torch.manual_seed(1)
    args = args or (dict(base_width=8) if cls is Res2NetDLA else SMALL)
    return Classifier(cls(**args), classes).eval()


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in TIMM]
)
def test_logits_equal_timm(tmp_path, name):
    theirs = randomise(timm.create_model(name)).eval()
    state = random_layer(theirs.state_dict(), 'fc.weight', 'fc.bias')
    theirs.load_state_dict(state)
    torch.save(state, tmp_path / 'timm.pth')
    ours = create_classifier(TIMM[name], pretrained=tmp_path / 'timm.pth').eval().double()
    theirs.double()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        features, logits = theirs.forward_features(image), theirs(image)
        assert relative_error(ours.backbone(image)[-1], features) < 1e-10
        assert relative_error(ours(image), logits) < 1e-10
    assert logits.shape == (2, 1000) and logits.std() > 0.1


@pytest.mark.parametrize(
    ('variant', 'args'),
    [
        ('res2net50_14w_8s', dict(scales=8, base_width=14, deep_stem=False, avg_down=False)),
        ('res2net50_v1b_26w_4s', dict()),
    ],
)
def test_logits_equal_mmpretrain(tmp_path, variant, args):
    from mmpretrain.models import build_classifier

    theirs = build_classifier(
        dict(
            type='ImageClassifier',
            backbone=dict(type='Res2Net', depth=50, **args),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=2048),
        )
    )
    state = random_layer(randomise(theirs).state_dict(), 'head.fc.weight', 'head.fc.bias')
    theirs.load_state_dict(state)
    torch.save(dict(meta={}, state_dict=state), tmp_path / 'theirs.pth')
    ours = create_classifier(variant, pretrained=tmp_path / 'theirs.pth')
    checkpoint = dict(state_dict=state)
    name_as_classifier(ours, checkpoint)  # as for load_from
    ours.load_state_dict(checkpoint['state_dict'])
    with pytest.raises(ValueError, match="needs first_block='official'"):
        load_weights(create_backbone(variant, first_block='mmdet'), dict(state_dict=state))
    image = torch.randn(2, 3, 65, 47, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        logits = theirs.eval().double()(image)
        assert relative_error(ours.eval().double()(image), logits) < 1e-10


@pytest.mark.parametrize('variant', ['res2net50_vd_26w_4s', 'res2net50_14w_8s'])
def test_logits_equal_paddles_description(tmp_path, variant):
    source = create_classifier(variant, first_block='paddle')
    weights = random_layer(
        paddle(randomise(source.backbone).state_dict()), 'out.weight', 'out.bias'
    )
    (tmp_path / 'net.pdparams').write_bytes(pickle.dumps(as_arrays(weights), protocol=2))
    ours = create_classifier(
        variant, tmp_path / 'net.pdparams', num_classes=CLASSES, first_block='paddle'
    )
    image = torch.randn(2, 3, 64, 33, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        pooled = paddle_levels(weights, image)[-1].mean((2, 3))
        logits = pooled @ weights['out.weight'].double() + weights['out.bias'].double()
        assert relative_error(ours.eval().double()(image), logits) < 1e-10


@pytest.mark.parametrize(
    ('write', 'layer', 'args'),
    [
        (official, 'fc', dict(SMALL)),
        (official, 'fc', dict(SMALL, deep_stem=False, avg_down=False)),
        (mmpretrain, 'head.fc', dict(SMALL)),
        (paddle, 'out', dict(SMALL, first_block='paddle')),
    ],
)
def test_every_layout_loads_whole(write, layer, args):
    source = filled(**args)
    written = random_layer(write(source.state_dict()), f'{layer}.weight', f'{layer}.bias')
    given = as_arrays(written) if write is paddle else written
    model = small(**args)
    report = load_classifier(model, given)
    state = model.state_dict()
    assert set(report.matched) == set(state) and report.missing == []
    weight = written[f'{layer}.weight']
    assert torch.equal(state['head.fc.weight'], weight.T if write is paddle else weight)
    assert torch.equal(state['head.fc.bias'], written[f'{layer}.bias'])
    assert 'classifier' not in report.dropped
    for key, value in source.state_dict().items():
        assert torch.equal(state[f'backbone.{key}'], value) or key.endswith('_tracked')


def test_a_layer_that_is_a_convolution():
    source = filled(Res2NetDLA, base_width=8)
    written = random_layer(official(source.state_dict()), 'fc.weight', 'fc.bias')
    assert written['fc.weight'].dim() == 4
    model = small(Res2NetDLA)
    assert 'head.fc.weight' in load_classifier(model, written).matched
    assert torch.equal(model.head.fc.weight, written['fc.weight'][..., 0, 0])


def test_its_own_weights_come_back(tmp_path):
    model = small(**SMALL, first_block='mmdet')
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    other = small(**SMALL, first_block='mmdet')
    with torch.no_grad():
        other.head.fc.weight.zero_()
    load_classifier(other, tmp_path / 'own.pth')
    assert torch.equal(other.head.fc.weight, model.head.fc.weight)
    with pytest.raises(ValueError, match="needs first_block='mmdet'"):
        load_classifier(small(), tmp_path / 'own.pth')


def test_another_number_of_classes_is_said(warned):
    written = official(filled(**SMALL).state_dict())
    model = small(classes=3)
    before = model.head.fc.weight.clone()
    report = load_classifier(model, written)
    assert warned == [
        'the state dict: the file has 10 classes, the model 3: its classification layer stays '
        'random'
    ]
    assert torch.equal(model.head.fc.weight, before)
    assert set(report.matched) == {k for k in model.state_dict() if k.startswith('backbone.')}
    assert report.dropped['classifier'] == ['fc.weight', 'fc.bias']


def test_a_file_without_the_layer_is_said(warned):
    load_classifier(small(), filled(**SMALL).state_dict())
    assert len(warned) == 1 and 'the file has no classification layer' in warned[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.update({'fc.weight': torch.ones(CLASSES, 7)}), 'gives 512 channels'),
        (lambda s: s.pop('fc.bias'), 'its classification layer has'),
        (lambda s: s['fc.bias'].fill_(float('nan')), 'bias of its classification layer has values'),
        (lambda s: s.pop('layer2.0.conv1.weight'), 'does not fit the network'),
    ],
)
def test_what_does_not_fit_changes_nothing(change, message):
    written = official(filled(**SMALL).state_dict())
    change(written)
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_classifier(model, written)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_arguments(tmp_path):
    model = create_classifier('res2net14_v1b_26w_4s', num_classes=3, base_channels=16)
    assert model.training and not model.backbone.norm_eval
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match='did you mean res2net50_v1b_26w_4s'):
        create_classifier('res2net50_v1b_26w4s')
    with pytest.raises(ValueError, match='num_classes must be a positive integer, but got 0'):
        create_classifier('res2net14_v1b_26w_4s', num_classes=0)
    with pytest.raises(FileNotFoundError):
        create_classifier('res2net14_v1b_26w_4s', tmp_path / 'nowhere.pth')
    with pytest.raises(ValueError, match='exclude each other'):
        create_classifier('res2net14_v1b_26w_4s', True, init_cfg=dict(type='Kaiming'))


def test_an_odd_layer_does_not_stop_the_backbone():
    """Whoever loads the backbone does not need the layer."""
    source = filled(**SMALL)
    for odd in (np.full((3, 3, 3), np.nan, np.float32), np.ones((), np.float32)):
        written = paddle(source.state_dict()) | {'out.weight': torch.from_numpy(odd)}
        net = Res2Net(**SMALL, first_block='paddle')
        load_weights(net, as_arrays(written))
        assert torch.equal(net.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
