"""Published weights give the features of the code that they were published with.

Each network of another project gets random weights and statistics, which are written to a file as
that project does, and loaded into ours.
"""

import pickle

import pytest
import timm
import torch
from references import paddle_levels, project_levels, randomise, relative_error
from weights import other_layouts

from res2net_mm import Res2Net, Res2NetDCN, create_backbone
from res2net_mm.weights import load_weights

SHAPES = (1, 3, 75, 61), (2, 3, 64, 33)
# timm's name, ours
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


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """As fast for images this small, and several times as fast where others share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(ours, theirs, shapes=SHAPES):
    """All levels are equal, in double precision, and in single precision for the first shape."""
    ours.eval()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        ours.to(dtype)
        for seed, shape in enumerate(shapes[:1] if dtype is torch.float32 else shapes):
            image = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
            with torch.inference_mode():
                levels, references = ours(image), theirs(image)
            assert len(levels) == len(references) == 4
            for out, reference in zip(levels, references, strict=True):
                assert out.shape == reference.shape and out.dtype == dtype
                assert relative_error(out, reference) < tolerance, (shape, dtype)


def load(net, path):
    """Loads a file that is not kept: they are large."""
    try:
        report = load_weights(net, path)
    finally:
        path.unlink()
    assert set(report.matched) == set(net.state_dict())
    assert report.missing == report.unexpected == []
    return report


@pytest.mark.parametrize('name', TIMM)
def test_official_rule_equals_timm(tmp_path, name):
    theirs = randomise(timm.create_model(name)).eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    ours = create_backbone(TIMM[name])
    report = load(ours, tmp_path / 'timm.pth')
    assert (report.layout, report.first_block) == ('official', 'official')
    assert report.dropped == {'classifier': ['fc.weight', 'fc.bias']}
    dla = name.startswith('dla')
    indices = (2, 3, 4, 5) if dla else (1, 2, 3, 4)

    def levels(image):
        return theirs.to(image).forward_intermediates(
            image, indices=indices, intermediates_only=True
        )

    # timm's DLA does not run at other sizes than multiples of 32
    check(ours, levels, ((1, 3, 64, 96), (2, 3, 32, 64)) if dla else SHAPES)


@pytest.mark.parametrize(
    'args',
    [
        dict(depth=50),
        dict(depth=101),
        dict(depth=50, scales=6, base_width=20, frozen_stages=1, norm_eval=False),
        dict(depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    ],
    ids=str,
)
def test_mmdet_rule_equals_mmdet(tmp_path, args):
    from mmdet.models.backbones import Res2Net as BuiltIn

    theirs = randomise(BuiltIn(**args))
    theirs.eval()  # which returns None
    state = other_layouts.detector(theirs.state_dict())
    torch.save(dict(meta={}, state_dict=state), tmp_path / 'detector.pth')
    ours = Res2Net(first_block='mmdet', **args)
    report = load(ours, tmp_path / 'detector.pth')
    assert (report.layout, report.first_block) == ('mmdet', None)
    check(ours, lambda image: theirs.to(image)(image))


def test_rules_differ_where_no_weight_shows_it():
    """The same names and shapes, other features from the first level on."""
    nets = [Res2Net(depth=14, first_block=rule) for rule in ('official', 'mmdet', 'paddle')]
    state = {k: v for k, v in randomise(nets[0]).state_dict().items()}
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    levels = []
    for net in nets:
        net.load_state_dict(state)
        with torch.inference_mode():
            levels.append(net.eval()(image))
    for i, out in enumerate(levels):
        for other in levels[:i]:
            assert all(relative_error(a, b) > 1e-2 for a, b in zip(out, other, strict=True))


@pytest.mark.parametrize(
    'variant', ['res2net50_vd_26w_4s', 'res2net101_vd_26w_4s', 'res2net50_14w_8s']
)
def test_paddle_rule_equals_its_description(tmp_path, variant):
    source = randomise(create_backbone(variant))
    weights = other_layouts.paddle(source.state_dict())
    with (tmp_path / 'net.pdparams').open('wb') as file:
        pickle.dump(other_layouts.as_arrays(weights), file, protocol=2)
    ours = create_backbone(variant, first_block='paddle')
    report = load(ours, tmp_path / 'net.pdparams')
    assert (report.layout, report.first_block) == ('paddle', 'paddle')
    check(ours, lambda image: paddle_levels(weights, image))


SMALL = dict(depth=26, base_width=13, base_channels=16, stem_channels=16)
CAFFE = dict(SMALL, style='caffe')
MASKRCNN = dict(CAFFE, deep_stem=False, avg_down=False, norm_cfg=dict(type='BN', eps=1e-30))


@pytest.mark.parametrize(
    ('project', 'kind', 'args', 'layout'),
    [
        ('detectron2', Res2Net, dict(CAFFE, first_block='mmdet'), 'detectron2'),
        ('detectron2', Res2NetDCN, dict(CAFFE, first_block='mmdet'), 'detectron2'),
        ('maskrcnn', Res2Net, MASKRCNN, 'maskrcnn'),
        ('fork', Res2Net, SMALL, 'official'),
    ],
    ids=['detectron2', 'detectron2-dcn', 'maskrcnn', 'mmdetection fork'],
)
def test_other_projects_of_the_authors(tmp_path, project, kind, args, layout):
    """Their detectors' files in networks with the arguments that their blocks come to."""
    net = randomise(kind(**args))
    for name, value in net.named_parameters():
        if name.endswith('conv_offset.bias'):  # CenterNet2 has none
            value.data.zero_()
    weights = getattr(other_layouts, project)(net.state_dict())
    torch.save(dict(model=weights, iteration=1), tmp_path / 'model_final.pth')
    ours = randomise(kind(**args), seed=1)
    report = load(ours, tmp_path / 'model_final.pth')
    assert (report.layout, report.first_block, report.note) == (layout, net.first_block, '')
    check(ours, lambda image: project_levels(weights, image, project))
    other = kind(**args | dict(first_block='paddle'))
    with pytest.raises(ValueError, match=f"first_block='{net.first_block}'"):
        load_weights(other, weights)
    if 'norm_cfg' in args:
        with_epsilon = kind(**args | dict(norm_cfg=dict(type='BN')))
        assert 'eps=1e-30) gives its exact features' in str(load_weights(with_epsilon, weights))
