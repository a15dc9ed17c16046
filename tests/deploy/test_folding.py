"""Optimised networks give the features of the networks that they are made of."""

import copy
from functools import partial

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS, init_default_scope
from references import randomise, relative_error
from torch import nn

import res2net_mm
from res2net_mm.deploy import optimize_for_inference
from res2net_mm.engine.config import load_config

SMALL = dict(depth=14, base_channels=16, base_width=7)
NETWORKS = {
    'v1b': dict(),
    'v1': dict(deep_stem=False, avg_down=False),
    'mmdet': dict(first_block='mmdet'),
    'paddle': dict(first_block='paddle'),
    'caffe': dict(style='caffe'),
    'grouped': dict(groups=4, base_width=3),
    'eight scales': dict(scales=8, base_width=5),
    'one scale': dict(scales=1),
    'dilated': dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True),
    'attention in the cascade': dict(
        plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.25), position='after_conv2')]
    ),
    'group norm': dict(norm_cfg=dict(type='GN', num_groups=1)),
    'standardised weights': dict(conv_cfg=dict(type='ConvWS')),
}


def image_of(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def build(kind, **arguments):
    cls = res2net_mm.Res2NetDCN if 'dcn' in arguments else res2net_mm.Res2Net
    return randomise(cls(**SMALL | NETWORKS.get(kind, {}) | arguments)).eval()


def compare(net, fast, bound, shape=(2, 3, 75, 61)):
    image = image_of(*shape)
    with torch.no_grad():
        for out, reference in zip(fast(image), net(image), strict=True):
            assert relative_error(out.float(), reference) < bound


@pytest.mark.parametrize('kind', NETWORKS)
def test_same_features(kind):
    net = build(kind)
    before = copy.deepcopy(net.state_dict())
    net.train()
    fast = optimize_for_inference(net)
    assert net.training and not fast.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.eval()
    compare(net, fast, 2e-6)
    assert any(isinstance(m, nn.BatchNorm2d) for m in fast.modules()) is (
        kind == 'standardised weights'
    )
    assert not any(p.requires_grad for p in fast.parameters())
    if kind != 'standardised weights':
        features = fast(image_of(1, 3, 64, 64))
        assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features)


@pytest.mark.parametrize('version', ['DCN', 'DCNv2'])
@pytest.mark.parametrize('groups', [1, 7])
def test_deformable_networks(version, groups):
    net = build('v1b', dcn=dict(type=version, deform_groups=groups))
    fast = optimize_for_inference(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    compare(net, fast, 2e-5)


@pytest.mark.parametrize(('dtype', 'bound'), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_half_precision(dtype, bound):
    net = build('v1b')
    fast = optimize_for_inference(net, dtype)
    assert all(out.dtype == dtype for out in fast(image_of(1, 3, 64, 64)))
    compare(net, fast, bound)


@pytest.mark.parametrize(
    ('dtype', 'bound'), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)]
)
def test_detector(dtype, bound):
    """Backbone and neck are fast; heads stay float32, since boxes lose pixels in half precision."""
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    init_default_scope('mmdet')
    model = randomise(MODELS.build(cfg.model))
    model.eval()
    fast = optimize_for_inference(model, dtype)
    norms = [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms and fast.backbone.layer1[0].conv1.weight.dtype == dtype
    image = image_of(1, 3, 96, 128)
    with torch.no_grad():
        for out, reference in zip(fast.extract_feat(image), model.extract_feat(image), strict=True):
            assert out.dtype == torch.float32 and relative_error(out, reference) < bound
        scores, boxes = fast.rpn_head(fast.extract_feat(image))
        assert {level.dtype for level in (*scores, *boxes)} == {torch.float32}


def test_convolutions_elsewhere():
    """ConvModule folds where its norm comes right after the convolution, and only there."""
    after = ConvModule(3, 5, 3, norm_cfg=dict(type='BN'))
    before = ConvModule(3, 5, 3, norm_cfg=dict(type='BN'), order=('norm', 'act', 'conv'))
    between = ConvModule(3, 5, 3, norm_cfg=dict(type='BN'), order=('conv', 'act', 'norm'))
    model = randomise(nn.ModuleList([after, before, between])).eval()
    fast = optimize_for_inference(model)
    counts = [sum(isinstance(m, nn.BatchNorm2d) for m in part.modules()) for part in fast]
    assert counts == [0, 1, 1]
    image = image_of(1, 3, 16, 16)
    for ours, theirs in zip(fast, model, strict=True):
        assert relative_error(ours(image), theirs(image)) < 1e-6


@pytest.mark.parametrize(
    'pool',
    [
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, divisor_override=4),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        type('Doubled', (nn.AvgPool2d,), dict(forward=lambda self, x: 2 * x[:, :, ::2, ::2]))(3),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_pools_of_others_stay_as_they_are(pool):
    net = build('v1b')
    net.layer2[0].pool = pool
    fast = optimize_for_inference(net)
    assert type(fast.layer2[0].pool) is type(pool)
    compare(net, fast, 1e-5, (2, 3, 65, 65))


def test_hooks_on_pools_and_stem():
    for name in ('maxpool', 'stem', 'layer2.0.pool'):
        net, fresh = build('v1b'), build('v1b')
        for one in (net, fresh):
            one.get_submodule(name).register_forward_hook(lambda module, args, out: out - 1)
        compare(fresh, optimize_for_inference(net), 1e-5)


def test_a_stem_of_another():
    net = build('v1b')
    net.stem = type(
        'Stem', (nn.Module,), dict(forward=lambda self, x: x[:, :1].repeat(1, 16, 1, 1))
    )()
    fast = optimize_for_inference(net)
    compare(net, fast, 1e-5)


def test_a_block_in_two_places():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build('v1b')
            self.again = nn.Sequential(*self.net.layer2)

        def forward(self, x):
            return self.net(x)[0], self.again(self.net(x)[0])

    net = Twice().eval()
    compare(net, optimize_for_inference(net), 1e-5)


def test_weights_that_a_type_cannot_hold_are_an_error():
    net = build('v1b')
    net.layer1[0].conv3.weight.data[0, 0] = 1e6
    optimize_for_inference(net, torch.bfloat16)
    with pytest.raises(ValueError, match=r'in dtype torch.float16 layer1.0.conv3.weight has'):
        optimize_for_inference(net, torch.float16)


def test_a_convolution_with_several_norms():
    """As in heads that share convolutions over levels, each with norms of its own."""
    levels = nn.ModuleList(ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN')) for _ in '123')
    for level in levels:
        level.conv = levels[0].conv
    model = randomise(levels).eval()
    fast = optimize_for_inference(model)
    image = image_of(1, 4, 16, 16)
    for ours, theirs in zip(fast, model, strict=True):
        assert relative_error(ours(image), theirs(image)) < 1e-6


def test_blocks_with_hooks_keep_their_outputs():
    net, kept = build('v1b', depth=26), {}
    for name in ('layer1.0', 'layer2.1'):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: kept.update({name: out})
        )
    image = image_of(1, 3, 64, 64)
    with torch.no_grad():
        net(image)
        wanted = {name: out.clone() for name, out in kept.items()}
        optimize_for_inference(net)(image)
    for name, out in wanted.items():
        assert relative_error(kept[name], out) < 2e-6, name


def test_half_precision_needs_a_backbone():
    teacher = nn.ModuleDict(dict(student=nn.ModuleDict(dict(backbone=nn.Conv2d(3, 4, 3)))))
    with pytest.raises(ValueError, match='ModuleDict has it in .student'):
        optimize_for_inference(teacher, torch.bfloat16)


def test_weights_are_channels_last():
    fast = optimize_for_inference(build('v1b'))
    weights = [m.weight for m in fast.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) > 20 and any(w.shape[2] == 3 for w in weights)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_full_network():
    net = randomise(res2net_mm.create_backbone('res2net50_v1b_26w_4s')).eval()
    compare(net, optimize_for_inference(net), 5e-6, (1, 3, 256, 260))


def test_compiling(monkeypatch):
    """Backbone and neck are given to the compiler with the mode, casts included."""
    graphs = []

    def backend(graph, inputs, **options):
        graphs.append(options)
        return graph

    monkeypatch.setattr(torch._dynamo.config, 'cache_size_limit', 64)
    monkeypatch.setattr(torch, 'compile', partial(compile_with, torch.compile, backend))
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    init_default_scope('mmdet')
    detector = randomise(MODELS.build(cfg.model)).eval()
    image = image_of(1, 3, 64, 96)
    fast = optimize_for_inference(detector, torch.bfloat16, compile='reduce-overhead')
    with torch.no_grad():
        levels = fast.neck(fast.backbone(image))
        references = optimize_for_inference(detector, torch.bfloat16)
        references = references.neck(references.backbone(image))
    assert len(graphs) >= 2 and {options['mode'] for options in graphs} == {'reduce-overhead'}
    for level, reference in zip(levels, references, strict=True):
        assert level.dtype == torch.float32 and relative_error(level, reference) < 3e-2


def compile_with(compiler, backend, function, *, mode, dynamic, **options):
    assert dynamic is False
    return compiler(function, backend=partial(backend, mode=mode), dynamic=False, **options)


@pytest.mark.slow
def test_compiling_with_inductor():
    net = build('v1b')
    compare(net, optimize_for_inference(net, compile='default'), 1e-5)


def test_errors():
    with pytest.raises(ValueError, match='dtype must be one of torch.float32, .*torch.int8'):
        optimize_for_inference(nn.Identity(), torch.int8)
    with pytest.raises(ValueError, match="compile must be one of 'default', .*'graphs'"):
        optimize_for_inference(nn.Identity(), compile='graphs')
