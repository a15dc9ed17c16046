"""Every config builds its model, and holds what it says."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import res2net_mm
from res2net_mm.engine.config import load_config, walk_dicts
from res2net_mm.ops import DeformConv2d, ModulatedDeformConv2d

CONFIGS = sorted((Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
VFNET = 'mmdet::vfnet/vfnet_res2net101-mdconv-c3-c5_fpn_ms-2x_coco.py'


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    return load_config(request.param)


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


def test_model_builds(config):
    backbone = build(config).backbone
    channels = tuple(config.model.neck.in_channels)
    assert backbone.out_channels[-len(channels) :] == channels
    assert config.custom_imports == dict(imports=['res2net_mm'], allow_failed_imports=False)
    dcn = '_dcn' in Path(config.filename).stem
    assert type(backbone) is (res2net_mm.Res2NetDCN if dcn else res2net_mm.Res2Net)
    for stage in backbone.stage_names:
        kinds = {type(conv) for block in getattr(backbone, stage) for conv in block.convs}
        deformed = dcn and stage != 'layer1'
        assert kinds == {ModulatedDeformConv2d if deformed else torch.nn.Conv2d}, stage
    assert not any(isinstance(module, DeformConv2d) for module in backbone.stem)


@pytest.mark.parametrize(
    ('name', 'base', 'changed'),
    [
        ('faster_rcnn_r2n50_dcn', 'faster_rcnn_r2n50.py', {'type', 'dcn'}),
        ('faster_rcnn_r2n101_dcn', 'faster_rcnn_r2n50_dcn.py', {'depth', 'init_cfg'}),
        ('faster_rcnn_r2n14_dcn_shapes', 'faster_rcnn_r2n14_shapes.py', {'type', 'dcn'}),
        ('vfnet_r2n101_dcn', VFNET, {'type', 'init_cfg'}),
        ('mask_rcnn_r2n50_dcn', MASK_RCNN, None),
    ],
)
def test_dcn_config_differs_in_the_backbone_alone(load, name, base, changed):
    ours, theirs = (load(path).to_dict() for path in (f'{name}.py', base))
    backbones = [cfg['model'].pop('backbone') for cfg in (ours, theirs)]
    if changed is None:
        changed, backbones[1] = set(), load_config('faster_rcnn_r2n50_dcn.py').model.backbone
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


def test_splits_and_heads_agree(config):
    counts = {
        d['num_classes']
        for d in walk_dicts(config.model.get('roi_head') or config.model)
        if 'num_classes' in d
    }
    classes = config.train_dataloader.dataset.get('metainfo', {}).get('classes')
    default = 20 if config.filename.endswith('_voc.py') else 80
    assert counts == {len(classes) if classes else default}
    for split in ('val', 'test'):
        assert config[f'{split}_dataloader'].dataset.get('metainfo', {}).get('classes') == classes


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


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['originals'], indirect=True)
def test_configs_on_the_originals(python, stack):
    run = python('-m', 'pytest', '-q', __file__, '-k', 'not originals', env=stack)
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]
