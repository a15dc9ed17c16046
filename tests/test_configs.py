"""Every config builds its model, and holds what it says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.registry import MODELS, init_default_scope
from running import loaded

import res2net_mm
from res2net_mm.engine.config import load_config, our_networks, pretrained
from res2net_mm.engine.config_checks import check_model
from res2net_mm.engine.config_keys import check_arguments
from res2net_mm.ops import DeformConv2d, ModulatedDeformConv2d
from res2net_mm.weights import ZOO
from res2net_mm.weights.zoo import IMAGENET_MEAN, IMAGENET_STD

CONFIGS = sorted((Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))
TIMM = {
    'faster_rcnn_rexnet100': 'rexnet_100',
    'faster_rcnn_x50': 'resnext50_32x4d',
    'faster_rcnn_s50': 'resnest50d',
    'faster_rcnn_r50_rsb': 'resnet50.a1_in1k',
}
VFNET = 'mmdet::vfnet/vfnet_res2net101-mdconv-c3-c5_fpn_ms-2x_coco.py'


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    return loaded(request.param)


@pytest.fixture
def load(tmp_path):
    """Reads a config of this package, or of mmdet as a child of it sees it."""

    def read(name):
        if '::' not in name:
            return load_config(name)
        child = tmp_path / 'child.py'
        child.write_text(f'_base_ = {name!r}')
        return load_config(child)

    return read


def build(cfg):
    """The model, without memory for its weights."""
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_key_is_read_and_parts_fit(config):
    check_arguments(config)
    check_model(config)


def test_model_builds(config):
    name = Path(config.filename).stem
    backbone = build(config).backbone
    assert config.custom_imports.imports[0] == 'res2net_mm'
    assert not config.custom_imports.allow_failed_imports
    if name in TIMM:
        assert type(backbone) is res2net_mm.TimmBackbone
        assert backbone.model_name.startswith(TIMM[name])
        assert list(backbone.out_channels) == config.model.neck.in_channels
        return
    if name == 'res2next29_cifar100':
        args = res2net_mm.backbones.VARIANTS['res2next29_6c_24w_4s'] | dict(out_indices=(2,))
        given = config.model.backbone.to_dict()
        assert given == args | dict(type='res2net_mm.Res2Net', norm_eval=False)
        return
    named = re.search(r'(?:_r2n|res2ne[tx]t?)(\d+)_', f'{name}_')
    if not named:
        assert type(backbone).__name__ in ('ResNet', 'ResNetV1c')
        return
    if 'in_channels' in (config.model.get('neck') or {}):
        channels = tuple(config.model.neck.in_channels)
        assert backbone.out_channels[-len(channels) :] == channels
    blocks = sum(len(getattr(backbone, stage)) for stage in backbone.stage_names)
    depth = int(named[1])
    assert 3 * (blocks + ('_c4_' in name) * 3) + 2 == depth
    dcn = '_dcn' in name
    assert type(backbone) is (res2net_mm.Res2NetDCN if dcn else res2net_mm.Res2Net)
    for stage in backbone.stage_names:
        kinds = {type(conv) for block in getattr(backbone, stage) for conv in block.convs}
        deformed = dcn and stage != 'layer1'
        assert kinds == {ModulatedDeformConv2d if deformed else torch.nn.Conv2d}, stage
    stem = backbone.stem if backbone.deep_stem else [backbone.conv1]
    assert not any(isinstance(module, DeformConv2d) for module in stem)


def test_pretrained_weights_fit_the_networks(config):
    """By the table of weights: depth, and the rule of the first block."""
    for part in our_networks(config):
        for init_cfg in pretrained(part):
            entry = ZOO[init_cfg.checkpoint.removeprefix('res2net://')]
            assert entry.arch.get('depth', 50) == part.depth
            assert entry.rule == part.get('first_block', 'official')


@pytest.mark.parametrize(
    ('name', 'base', 'changed'),
    [
        ('faster_rcnn_r2n50_dcn', 'faster_rcnn_r2n50.py', {'type', 'dcn'}),
        ('faster_rcnn_r2n101_dcn', 'faster_rcnn_r2n50_dcn.py', {'depth', 'init_cfg'}),
        ('faster_rcnn_r2n14_dcn_shapes', 'faster_rcnn_r2n14_shapes.py', {'type', 'dcn'}),
        ('vfnet_r2n101_dcn', VFNET, {'type', 'init_cfg'}),
        ('mask_rcnn_r2n50_dcn', 'mask_rcnn_r2n50.py', {'type', 'dcn'}),
    ],
)
def test_dcn_config_differs_in_the_backbone_alone(load, name, base, changed):
    ours, theirs = (load(path).to_dict() for path in (f'{name}.py', base))
    backbones = [cfg['model'].pop('backbone') for cfg in (ours, theirs)]
    given, before = backbones
    assert {k for k in given.keys() | before.keys() if given.get(k) != before.get(k)} == changed
    theirs['custom_imports'] = ours['custom_imports']
    assert ours == theirs
    if 'init_cfg' in given:
        assert given['init_cfg'] == dict(
            type='Pretrained', checkpoint=f'res2net://res2net{given["depth"]}_v1b_26w_4s'
        )


def test_vfnet_has_the_names_and_shapes_of_the_published_one(load):
    ours, theirs = (
        {key: value.shape for key, value in build(load(path)).state_dict().items()}
        for path in ('vfnet_r2n101_dcn.py', VFNET)
    )
    assert ours == theirs
    offsets = [key for key in ours if key.endswith('conv_offset.weight')]
    assert len(offsets) == 3 * (4 + 23 + 3) + 2  # the last convolutions of the head's branches


VARIANTS_OF = {
    'res2net50_26w_4s': 'res2net50_26w_4s',
    'res2net50_14w_8s': 'res2net50_14w_8s',
    'res2net50_26w_8s': 'res2net50_26w_8s',
    'res2net101_26w_4s': 'res2net101_26w_4s',
    'res2next50': 'res2next50_4w_4s_8c',
    'res2net50_v1b': 'res2net50_v1b_26w_4s',
    'res2net101_v1b': 'res2net101_v1b_26w_4s',
    'res2net50_vd': 'res2net50_vd_26w_4s',
}


@pytest.mark.parametrize('name', VARIANTS_OF)
def test_classifiers_take_the_published_weights(name, load):
    """Names, shapes and rule are those of ``create_classifier`` for the published variant."""
    cfg = load(f'{name}_in1k.py')
    model = build(cfg)
    ours = res2net_mm.create_classifier(VARIANTS_OF[name])
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, ours)]
    assert shapes[0] == shapes[1]
    assert model.backbone.convention == ours.backbone.convention
    assert not model.backbone.norm_eval  # it trains from random weights
    preprocessor = cfg.model.data_preprocessor
    assert tuple(preprocessor.mean) == IMAGENET_MEAN and tuple(preprocessor.std) == IMAGENET_STD
    steps = cfg.test_dataloader.dataset.pipeline
    assert (steps[1].scale, steps[1].edge, steps[2].crop_size) == (256, 'short', 224)
    assert steps[1].get('backend', 'cv2') == ('cv2' if '_vd' in name else 'pillow')


def test_front_door_is_what_it_says():
    cfg = load_config('faster_rcnn_r2n50.py')
    net = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
    classifier = 2048 * 1000 + 1000  # the published count includes it
    params = sum(p.numel() for p in net.parameters()) + classifier
    assert params / 1e6 == pytest.approx(25.72, abs=0.005)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    assert (cfg.train_cfg.max_epochs, cfg.auto_scale_lr.base_batch_size) == (12, 16)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb and preprocessor.mean == [123.675, 116.28, 103.53]


def test_learning_rate_falls_within_the_training(config):
    schedule = config.train_cfg
    length = schedule.get('max_epochs', schedule.get('max_iters'))
    last = config.param_scheduler[-1]
    ends = last.get('end', last.get('T_max', 0) + last.get('begin', 0))
    assert ends == length and last.by_epoch is ('max_epochs' in schedule)
    milestones = last.get('milestones', [])
    assert milestones == sorted(milestones) and all(0 < m < length for m in milestones)
    for warm_up in config.param_scheduler[:-1]:
        assert warm_up.begin == 0 < warm_up.end and not warm_up.by_epoch


def test_metafile_tells_of_every_config():
    models = yaml.safe_load((CONFIGS[0].parent / 'metafile.yml').read_text())['Models']
    assert [model['Name'] for model in models] == [path.stem for path in CONFIGS]
    for model, path in zip(models, CONFIGS, strict=True):
        schedule = loaded(path).train_cfg
        length = schedule.get('max_epochs', schedule.get('max_iters'))
        told = model['Metadata']
        assert told.get('Epochs', told.get('Iterations')) == length, path
        assert ('Epochs' in told) is ('max_epochs' in schedule)
        for result in model.get('Results', ()):
            publishers = ('the authors', 'the paper', 'mmdet', 'PaddleClas')
            assert result['Published By'].startswith(publishers)


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['originals'], indirect=True)
def test_configs_on_the_originals(python, stack):
    run = python('-m', 'pytest', '-q', __file__, '-k', 'not originals', env=stack)
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]
