"""The table of published weights, held against its sources' figures and the built networks."""

import functools

import pytest
import torch
from mmengine.runner.checkpoint import get_external_models
from references import empty
from torch import nn

from res2net_mm import list_backbones
from res2net_mm.backbones import VARIANTS
from res2net_mm.registry import MODELS
from res2net_mm.weights import ZOO
from res2net_mm.weights.architecture import architecture_of

AUTHORS = 'https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/'
MMPRETRAIN = 'https://download.openmmlab.com/mmclassification/v0/res2net/'
MMDET = 'https://download.openmmlab.com/mmdetection/v2.0/res2net/'
THIRD_PARTY = 'https://download.openmmlab.com/pretrain/third_party/'
PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/'

# What each source says: the file and its digits, depth, base_width, scales, groups, kind of stem
# and shortcut, and the accuracy in %
OFFICIAL = {
    'res2net50_48w_2s': ('res2net50_48w_2s', 'afed724a', 50, 48, 2, 1, 'v1', 77.32),
    'res2net50_26w_4s': ('res2net50_26w_4s', '06e79181', 50, 26, 4, 1, 'v1', 77.99),
    'res2net50_14w_8s': ('res2net50_14w_8s', '6527dddc', 50, 14, 8, 1, 'v1', 78.14),
    'res2net50_26w_6s': ('res2net50_26w_6s', '19041792', 50, 26, 6, 1, 'v1', 78.58),
    'res2net50_26w_8s': ('res2net50_26w_8s', '2c7c9f12', 50, 26, 8, 1, 'v1', 79.20),
    'res2net101_26w_4s': ('res2net101_26w_4s', '02a759a1', 101, 26, 4, 1, 'v1', 79.19),
    'res2next50_4w_4s_8c': ('res2next50_4s', '6ef7e7bf', 50, 4, 4, 8, 'v1', 78.24),
    'res2net_dla60': ('res2net_dla60_4s', 'd88db7f9', 60, 28, 4, 1, 'dla', 78.47),
    'res2next_dla60': ('res2next_dla60_4s', 'd327927b', 60, 4, 4, 8, 'dla', 78.45),
    'res2net50_v1b_26w_4s': ('res2net50_v1b_26w_4s', '3cf99910', 50, 26, 4, 1, 'v1b', 80.27),
    'res2net101_v1b_26w_4s': ('res2net101_v1b_26w_4s', '0812c246', 101, 26, 4, 1, 'v1b', 81.23),
}
CONVERTED = {
    'res2net50_14w_8s_mmpretrain': ('res2net50-w14-s8', 'bc967bf1', 50, 14, 8, 1, 'v1', 78.14),
    'res2net50_26w_8s_mmpretrain': ('res2net50-w26-s8', 'f547a94b', 50, 26, 8, 1, 'v1', 79.20),
    'res2net101_26w_4s_mmpretrain': ('res2net101-w26-s4', '870b6c36', 101, 26, 4, 1, 'v1', 79.19),
}
PADDLES = {
    'res2net50_vd_26w_4s': ('Res2Net50_vd_26w_4s', 50, 26, 4, 'v1b', 79.8),
    'res2net50_vd_26w_4s_ssld': ('Res2Net50_vd_26w_4s_ssld', 50, 26, 4, 'v1b', 83.1),
    'res2net101_vd_26w_4s': ('Res2Net101_vd_26w_4s', 101, 26, 4, 'v1b', 80.6),
    'res2net101_vd_26w_4s_ssld': ('Res2Net101_vd_26w_4s_ssld', 101, 26, 4, 'v1b', 83.9),
    'res2net200_vd_26w_4s': ('Res2Net200_vd_26w_4s', 200, 26, 4, 'v1b', 81.2),
    'res2net200_vd_26w_4s_ssld': ('Res2Net200_vd_26w_4s_ssld', 200, 26, 4, 'v1b', 85.1),
    'res2net50_14w_8s_paddle': ('Res2Net50_14w_8s', 50, 14, 8, 'v1', 79.5),
    'res2net50_26w_4s_paddle': ('Res2Net50_26w_4s', 50, 26, 4, 'v1', 79.3),
}
DETECTORS = {
    'faster_rcnn_r2_101_fpn_2x_coco': ('175f1da6', {'COCO box AP': 43.0}),
    'mask_rcnn_r2_101_fpn_2x_coco': ('17f061e8', {'COCO box AP': 43.6, 'COCO mask AP': 38.7}),
    'cascade_rcnn_r2_101_fpn_20e_coco': ('f4b7b7db', {'COCO box AP': 45.7}),
    'cascade_mask_rcnn_r2_101_fpn_20e_coco': (
        '8a7b41e1',
        {'COCO box AP': 46.4, 'COCO mask AP': 40.0},
    ),
    'htc_r2_101_fpn_20e_coco': ('3a8d2112', {'COCO box AP': 47.5, 'COCO mask AP': 41.6}),
}

# Parameters in millions and multiply-adds in billions, 224x224, with a classifier of 1000 classes
SIZES = {
    'res2net50_48w_2s': (25.29, 4.183),
    'res2net50_26w_4s': (25.70, 4.280),
    'res2net50_14w_8s': (25.06, 4.206),
    'res2net50_26w_6s': (37.05, 6.326),
    'res2net50_26w_8s': (48.40, 8.372),
    'res2net101_26w_4s': (45.21, 8.104),
    'res2next50_4w_4s_8c': (24.67, 4.200),
    'res2net50_v1b_26w_4s': (25.72, 4.522),
    'res2net101_v1b_26w_4s': (45.23, 8.345),
    'res2net200_vd_26w_4s': (76.21, 15.77),
    'res2net_dla60': (20.85, 4.147),
    'res2next_dla60': (17.03, 3.485),
}


def facts():
    """Name -> address, digits, architecture, layout, rule, accuracies, of all sources."""
    top1 = 'ImageNet top-1'
    r101 = (101, 26, 4, 1, 'v1b')
    table = {}
    for name, (file, sha, *arch, accuracy) in OFFICIAL.items():
        url = f'{AUTHORS}{file}-{sha}.pth'
        table[name] = url, sha, tuple(arch), 'official', 'official', {top1: accuracy}
    for name, (file, sha, *arch, accuracy) in CONVERTED.items():
        url = f'{MMPRETRAIN}{file}_3rdparty_8xb32_in1k_20210927-{sha}.pth'
        table[name] = url, sha, tuple(arch), 'mmpretrain', 'official', {top1: accuracy}
    for name, (file, depth, width, scales, kind, accuracy) in PADDLES.items():
        arch = depth, width, scales, 1, kind
        url = f'{PADDLE}{file}_pretrained.pdparams'
        table[name] = url, None, arch, 'paddle', 'paddle', {top1: accuracy}
    for name, (sha, accuracies) in DETECTORS.items():
        table[name] = f'{MMDET}{name}-{sha}.pth', sha, r101, 'mmdet', 'mmdet', accuracies
    url = f'{THIRD_PARTY}res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth'
    table['res2net101_v1d_26w_4s'] = url, 'f0a600f9', r101, 'mmdet', 'official', {}
    return table


FACTS = facts()


def test_every_published_file_has_its_entry_and_no_other():
    assert list(ZOO) and set(ZOO) == set(FACTS) and len(FACTS) == 28
    for kind in ('url', 'filename'):  # files are recognised by their names
        assert len({getattr(entry, kind) for entry in ZOO.values()}) == len(ZOO)


@functools.cache
def built(variant, rule):
    """What the weights of an entry's network show, and its rule."""
    args = next(e.arch for e in ZOO.values() if (e.variant, e.rule) == (variant, rule))
    net = empty(args)
    return architecture_of(net.state_dict()), net.first_block


@pytest.mark.parametrize('name', FACTS)
def test_entry_says_what_its_source_does(name):
    entry = ZOO[name]
    url, sha256, arch, layout, rule, accuracies = FACTS[name]
    assert entry.url == url and url.startswith('https://')
    assert entry.sha256 == sha256
    if entry.filename.endswith('.pth'):
        assert entry.filename[-12:] == f'{sha256}.pth'
    assert (entry.layout, entry.accuracy) == (layout, accuracies)
    assert entry.variant in list_backbones()
    found, first_block = built(entry.variant, entry.rule)
    depth, width, scales, groups, kind = arch
    assert (found['base_width'], found['scales'], found['groups']) == (width, scales, groups)
    if kind == 'dla':
        assert found['type'] == 'Res2NetDLA' and depth == 60
    else:
        assert (found['type'], found['depth']) == ('Res2Net', depth)
        assert found['deep_stem'] == found['avg_down'] == (kind == 'v1b')
        assert first_block == rule
    assert entry.rule == rule


@pytest.mark.parametrize('name', FACTS)
def test_licences(name):
    """The authors' weights, and what was trained from them, are not for commerce."""
    licence, source = ZOO[name].licence, ZOO[name].source
    if name in PADDLES:
        assert (licence, source) == ('Apache-2.0', 'PaddleClas')
        return
    assert 'CC BY-NC-SA 4.0 (non-commercial)' in licence
    assert licence.startswith('Apache-2.0') == (name in DETECTORS)
    assert ('the authors' in source) == (name not in DETECTORS)


def test_mmengines_name_is_the_file_of_the_entry():
    entry = ZOO['res2net101_v1d_26w_4s']
    assert get_external_models()['res2net101_v1d_26w_4s'].endswith(f'third_party/{entry.filename}')


@pytest.mark.parametrize('variant', list_backbones())
def test_architecture_is_told_from_names_and_shapes(variant):
    args = {'type': 'Res2Net', **VARIANTS[variant]}
    dla = args['type'] == 'Res2NetDLA'
    found = architecture_of(empty(args).state_dict())
    told = {'type', 'scales', 'groups', 'base_width', 'base_channels', 'in_channels'}
    told |= set() if dla else {'depth', 'num_stages', 'deep_stem', 'avg_down', 'stem_channels'}
    told |= {'first_block'} if args.get('first_block') == 'grouped' else set()
    told |= set() if dla or args.get('deep_stem', True) else {'stem_stride'}
    defaults = MODELS.get(args['type']).arguments()
    layer = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    dcn = dict(dcn=layer, stage_with_dcn=(False, True, True, True))
    expected = {key: defaults[key] for key in told - {'type'}}
    expected |= {} if dla else {'stem_channels': 64}  # None: as base_channels
    expected |= dcn if args['type'] == 'Res2NetDCN' else {}
    assert found == expected | {key: args[key] for key in told & set(args)}
    # and they build the same network
    lists = {k: args[k] for k in ('strides', 'dilations', 'out_indices') if k in args}
    again = empty(found | lists).state_dict()
    assert {k: v.shape for k, v in empty(args).state_dict().items() if '.se.' not in k} == {
        k: v.shape for k, v in again.items()
    }


def test_part_of_a_state_dict_tells_what_it_can():
    state = empty(dict(depth=50, base_width=14, scales=8)).state_dict()
    some = ('layer1.0.', 'layer1.1.', 'layer2.0.')
    assert architecture_of({k: v for k, v in state.items() if k.startswith(some)}) == dict(
        type='Res2Net',
        depth=(2, 1),  # no depth begins like this
        num_stages=2,
        scales=8,
        groups=1,
        base_width=14,
        base_channels=64,
        deep_stem=False,
        avg_down=True,
    )
    assert architecture_of({}) == dict(type='Res2Net', deep_stem=False, avg_down=False)


@pytest.mark.parametrize('variant', SIZES)
def test_sizes(variant):
    """Counted by hand: two a number of a batch norm, and no bias of the classifier."""
    net = empty(VARIANTS[variant])
    added = []

    def count(module, inputs, out):
        if isinstance(module, nn.Conv2d):
            added.append(out.numel() * module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            added.append(out.numel() * 2)

    for module in net.modules():
        module.register_forward_hook(count)
    net(torch.empty(1, 3, 224, 224, device='meta'))
    classifier = 1000 * net.out_channels[-1]
    numbers = sum(p.numel() for p in net.parameters()) + classifier + 1000
    params, macs = SIZES[variant]
    assert numbers / 1e6 == pytest.approx(params, abs=0.0056)
    assert (sum(added) + classifier) / 1e9 == pytest.approx(macs, abs=0.005)
