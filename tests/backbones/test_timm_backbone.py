"""Networks of timm: features, freezing and weights as timm has them, and in our configs."""

import copy
import sys

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from references import randomise, relative_error
from torch import nn

from res2net_mm import TimmBackbone
from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_model
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.report import preprocessing_warnings
from res2net_mm.engine.runner import prepare_config

SMALL = 'resnet10t'
# network, arguments -> levels by default, and the parts up to a frozen level
NETWORKS = {
    'resnet10t': ({}, (1, 2, 3, 4), {0: 'conv1 bn1', 2: 'conv1 bn1 layer1 layer2'}),
    'rexnet_100': (
        {},
        (1, 2, 3, 4),
        {0: 'stem features_0', 1: 'stem features_0 features_1 features_2'},
    ),
    'convnext_atto': ({}, (0, 1, 2, 3), {0: 'stem_0 stem_1 stages_0'}),
    'efficientnet_lite0': ({}, (1, 2, 3, 4), {1: 'conv_stem bn1 blocks.0 blocks.1'}),
    'swin_tiny_patch4_window7_224': (
        dict(img_size=64, window_size=2, embed_dim=16, num_heads=(1, 2, 2, 2)),
        (0, 1, 2, 3),
        {0: 'patch_embed layers_0'},
    ),
}


@pytest.fixture
def saved(tmp_path):
    """Writes weights of a whole network of timm, and returns the network and the file."""

    def save(name, **args):
        net = randomise(timm.create_model(name, **args)).eval()
        path = tmp_path / f'{name}.pth'
        torch.save(net.state_dict(), path)
        return net, dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **args)

    return save


@pytest.mark.parametrize('name', NETWORKS)
def test_features_are_those_of_the_whole_network(saved, name):
    """Taken on timm's other way, without features_only, from weights that timm loads."""
    args, indices, _ = NETWORKS[name]
    theirs, loading = saved(name, **args)
    ours = TimmBackbone(name, **loading).eval()
    assert ours.out_indices == indices
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        levels = ours(image)
        found = theirs.forward_intermediates(image, indices=indices, intermediates_only=True)
    assert ours.out_channels == tuple(level.shape[1] for level in levels)
    assert ours.out_strides == tuple(64 // level.shape[2] for level in levels) == (4, 8, 16, 32)
    for level, reference in zip(levels, found, strict=True):
        assert relative_error(level, reference) < 1e-6


def test_levels_that_are_asked_for():
    net = TimmBackbone(SMALL, out_indices=[0, 3], in_channels=4).eval()
    assert (net.out_indices, net.out_strides) == ((0, 3), (2, 16))
    shapes = [tuple(level.shape[1:]) for level in net(torch.rand(1, 4, 64, 32))]
    assert shapes == [(net.out_channels[0], 32, 16), (net.out_channels[1], 4, 2)]
    dilated = TimmBackbone(SMALL, output_stride=8)
    assert dilated.out_strides == (4, 8, 8, 8)
    assert dilated(torch.rand(1, 3, 64, 64))[-1].shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ('name', 'frozen', 'parts'),
    [(name, level, parts) for name, (*_, all_) in NETWORKS.items() for level, parts in all_.items()]
    + [(SMALL, -1, '')],
)
def test_frozen_levels_stay_as_they_are(name, frozen, parts):
    args = NETWORKS[name][0]
    net = TimmBackbone(name, frozen_stages=frozen, **args)
    assert net.train() is net and net.eval() is net
    net.train()
    before = copy.deepcopy(net.timm_model.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(out.square().mean() for out in net(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = net.timm_model.state_dict()
    kept = {key for key, value in after.items() if value.equal(before[key])}
    frozen_keys = {key for key in before if key.startswith(tuple(f'{p}.' for p in parts.split()))}
    assert frozen_keys <= kept
    trained = {key for key, p in net.timm_model.named_parameters() if p.requires_grad}
    assert trained == {key for key, _ in net.timm_model.named_parameters()} - frozen_keys
    statistics = {key for key in before if key.endswith('running_mean')} - frozen_keys
    assert not statistics & kept


def test_frozen_network_whose_mode_returns_nothing():
    net = TimmBackbone('efficientvit_m0', frozen_stages=0).train()
    frozen = net.timm_model.stages_0
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_levels_beside_each_other_cannot_be_frozen():
    with pytest.raises(
        ValueError, match='frozen_stages must be -1 for hrnet_w18_small: its levels'
    ):
        TimmBackbone('hrnet_w18_small', frozen_stages=2)


def test_norm_eval_keeps_statistics():
    net = TimmBackbone(SMALL, norm_eval=True).train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert net.timm_model.conv1.training
    assert all(norm.training for norm in TimmBackbone(SMALL).train().modules())


def test_lost_activations_are_refused():
    """torch's conversion replaces norms of timm that contain the activation."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    with pytest.raises(ValueError, match='removed the activations inside rexnet_100'):
        convert(TimmBackbone('rexnet_100')).train()
    convert(TimmBackbone('resnet10t')).train()
    timm.layers.convert_sync_batchnorm(TimmBackbone('rexnet_100')).train()


def test_weights_fit_or_are_refused(saved, tmp_path):
    theirs, loading = saved(SMALL)
    net = TimmBackbone(SMALL, **loading)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.init_weights()  # as a Runner does: timm's weights stay
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())

    other = {f'backbone.{key}': value for key, value in theirs.state_dict().items()}
    torch.save(other, tmp_path / 'resnet10t.pth')
    with pytest.raises(ValueError, match="timm cannot build model_name='resnet10t' as asked: Err"):
        TimmBackbone(SMALL, **loading)
    _, loading = saved(SMALL, num_classes=7)
    with pytest.raises(ValueError, match='size mismatch for fc.weight'):
        TimmBackbone(SMALL, **loading | dict(num_classes=1000))
    TimmBackbone(SMALL, **loading)
    with torch.device('meta'):  # nothing is read
        TimmBackbone(SMALL, pretrained=True, pretrained_cfg_overlay=dict(file='nowhere.pth'))

    torch.save(dict(state_dict=before), tmp_path / 'ours.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth'))
    again = TimmBackbone(SMALL, init_cfg=init_cfg)
    again.init_weights()
    assert all(value.equal(before[key]) for key, value in again.state_dict().items())
    init_cfg['checkpoint'] = str(tmp_path / 'resnet10t.pth')  # timm's names
    with pytest.raises(ValueError, match=r'timm_model\.; .* pretrained_cfg_overlay=dict\(file='):
        TimmBackbone(SMALL, init_cfg=init_cfg).init_weights()


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (dict(model_name='resnet10'), "list_models.*'resnet10'; did you mean resnet10t"),
        (dict(model_name='resnet10t.nothing'), 'nothing'),
        (dict(depth=50), "unexpected keyword argument 'depth'"),
        (dict(out_indices=(2, 1)), r'out_indices must be ascending .* \(2, 1\)'),
        (dict(out_indices=3), 'out_indices must be ascending .* 3'),
        (dict(out_indices=(1, 9)), 'timm cannot build'),
        (dict(out_indices=(1, 2), frozen_stages=3), 'frozen_stages must be one of -1, 0, 1, 2,'),
        (dict(pretrained=True, init_cfg=dict(type='Kaiming')), 'pretrained and init_cfg exclude'),
        (dict(pretrained='net.pth'), r"not 'net.pth'; .* pretrained_cfg_overlay=dict\(file="),
    ],
)
def test_wrong_values_are_named(args, words):
    with pytest.raises(ValueError, match=words) as caught:
        TimmBackbone(**dict(dict(model_name=SMALL), **args))
    assert '\n' not in str(caught.value)


def test_timm_is_needed_only_here(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match=r"TimmBackbone needs timm: pip install 'res2net_mm\[tim"):
        TimmBackbone(SMALL)


OPTIONS = {
    'model.backbone._delete_': True,
    'model.backbone.type': 'res2net_mm.TimmBackbone',
    'model.backbone.model_name': 'rexnet_100',
}


@pytest.mark.parametrize(
    'config', ['faster_rcnn_r2n14_bccd.py', 'mask_rcnn_r50.py', 'gfl_r2n50.py']
)
def test_under_any_config(config):
    wrong = r'neck.in_channels is \[.*\], but the backbone gives \[38, 61, 128, 185\] \(out_in.*'
    with pytest.raises(ToolError, match=wrong + r'set model.neck.in_channels=\[38,61,128,185\]'):
        check_model(load_config(config, dict(OPTIONS)))
    fitting = {**OPTIONS, 'model.neck.in_channels': [38, 61, 128, 185]}
    cfg = load_config(config, {**fitting, 'model.backbone.drop_path_rate': 0.1})
    assert 'depth' not in cfg.model.backbone
    check_model(cfg)
    with torch.device('meta'):
        net = MODELS.build(cfg.model.backbone)
    assert isinstance(net, TimmBackbone)
    with pytest.raises((ToolError, ValueError), match='drop_path_rat'):
        check_model(load_config(config, {**fitting, 'model.backbone.drop_path_rat': 0.1}))


def test_runs_that_need_no_weights_of_timm():
    cfg = load_config('faster_rcnn_x50.py')
    assert prepare_config(cfg).model.backbone.pretrained is True
    scratch = prepare_config(cfg, from_scratch=True).model.backbone
    assert not scratch.pretrained
    assert (scratch.frozen_stages, scratch.norm_eval) == (-1, False)


def test_preprocessing_that_timms_weights_do_not_fit():
    cfg = load_config('faster_rcnn_x50.py')
    assert preprocessing_warnings(cfg) == []
    cfg.model.backbone.model_name = 'convnext_tiny.in12k_ft_in1k'
    assert preprocessing_warnings(cfg) == []
    cfg.model.backbone.model_name = 'inception_resnet_v2.tf_in1k'
    lines = preprocessing_warnings(cfg)
    assert len(lines) == 2 and 'timm/inception_resnet_v2.tf_in1k was trained with' in lines[0]
    cfg.model.backbone.pretrained = False
    assert preprocessing_warnings(cfg) == []


def test_config_without_delete_says_which_argument_is_left():
    cfg = Config(dict(model=dict(backbone=dict(type='res2net_mm.TimmBackbone', depth=50))))
    cfg.model.backbone.model_name = SMALL
    with pytest.raises((ToolError, ValueError), match="unexpected keyword argument 'depth'"):
        check_model(cfg)
