"""--fast predicts and measures what the model itself does."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from references import randomise

import res2net_mm  # noqa: F401  (before anything imports mmdet)
from res2net_mm.data import make_shapes
from res2net_mm.engine.arguments import add_shared
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import fast_options, run_test
from res2net_mm.engine.infer import ConfiguredModel
from res2net_mm.engine.runner import prepare_config

CLASSES = ('disc', 'square', 'triangle', 'star')
SMALL = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.backbone.base_width': 4,
    'model.neck.in_channels': [32, 64, 128, 256],
}
HEADS = {
    'model.neck.out_channels': 16,
    'model.rpn_head.in_channels': 16,
    'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.roi_head.bbox_head.num_classes': len(CLASSES),
    'model.test_cfg.rpn.nms_pre': 200,
    'model.test_cfg.rpn.max_per_img': 100,
    'model.test_cfg.rcnn.score_thr': 0.1,
}
KINDS = {
    'box': ('faster_rcnn_r2n14_shapes.py', SMALL | HEADS),
    'mask': (
        'mask_rcnn_r2n14_nuclei.py',
        SMALL
        | HEADS
        | {
            'model.roi_head.mask_roi_extractor.out_channels': 16,
            'model.roi_head.mask_head.in_channels': 16,
            'model.roi_head.mask_head.conv_out_channels': 16,
            'model.roi_head.mask_head.num_classes': len(CLASSES),
        },
    ),
    'resnet': (
        'faster_rcnn_r50.py',
        HEADS | {'model.backbone.depth': 18, 'model.neck.in_channels': [64, 128, 256, 512]},
    ),
    'labels': (
        'sem_fpn_r2n14_camvid.py',
        SMALL
        | {
            'model.neck.out_channels': 16,
            'model.decode_head.in_channels': [16] * 4,
            'model.decode_head.channels': 16,
            'model.decode_head.num_classes': 5,
            'model.data_preprocessor.size': (128, 128),
        },
    ),
}


@HOOKS.register_module(force=True)
class ChangeWeightsHook(Hook):
    """Sets weights when a test begins, as averaging hooks do."""

    def before_test_epoch(self, runner):
        runner.model.backbone.layer1[0].norm1.weight.data *= 2  # is no more once it is folded


def config_of(kind: str, data: Path):
    name, options = KINDS[kind]
    cfg = load_config(name, options)
    dataset = cfg.test_dataloader.dataset
    dataset.data_root = f'{data}/'
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.persistent_workers = False
    if kind == 'labels':
        dataset.metainfo = dict(classes=('background', *CLASSES))
        dataset.img_suffix = '.jpg'
        dataset.data_prefix = dict(img_path='val', seg_map_path='semseg/val')
        cfg.test_evaluator.ignore_index = 255
        return cfg
    dataset.metainfo = dict(classes=CLASSES)
    dataset.ann_file = 'annotations/instances_val.json'
    dataset.data_prefix = dict(img='val/')
    dataset.pipeline[1].scale = (96, 96)
    cfg.test_evaluator.ann_file = f'{data}/annotations/instances_val.json'
    return cfg


def write_checkpoint(cfg, path: Path) -> Path:
    """Random weights, of which the model is as sure of some classes as a trained one."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)  # for the biases, which stay
    model = randomise(MODELS.build(cfg.model)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            gain = 0.1 if name.endswith('fc_reg') else 3
            values = torch.randn(module.weight.shape, generator=generator)
            module.weight.data.copy_(values * gain / module.in_features**0.5)
        elif name.endswith('rpn_reg'):
            module.weight.data *= 0.1
        elif isinstance(module, torch.nn.BatchNorm2d):  # the statistics of an image
            module.train()
            module.momentum = 1.0
    blobs = torch.rand((2, 3, 16, 16), generator=generator) * 4 - 2
    with torch.no_grad():
        model.backbone(torch.nn.functional.interpolate(blobs, scale_factor=8))
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)
    return path


def make_truth(results: list, path: Path) -> None:
    """Objects where the detector sees some, moved by a few pixels: AP is neither 0 nor 1."""
    content = json.loads(path.read_text())
    content['annotations'] = [
        {
            **{key: r[key] for key in ('image_id', 'category_id', 'segmentation') if key in r},
            'id': number,
            'bbox': [r['bbox'][0] + number % 7, *r['bbox'][1:]],
            'area': r['bbox'][2] * r['bbox'][3],
            'iscrowd': 0,
        }
        for number, r in enumerate(results[::3], 1)
    ]
    path.write_text(json.dumps(content))


def measure(kind: str, folder: Path) -> None:
    """Writes the figures and predictions without --fast and with each type of it."""
    make_shapes(folder / 'set', train=1, val=4)
    cfg = config_of(kind, folder / 'set')
    cfg.custom_hooks = [dict(type='EMAHook'), dict(type='ChangeWeightsHook')]
    checkpoint = write_checkpoint(cfg, folder / 'random.pth')

    def run(name, dtype=None):
        ready = prepare_config(cfg, work_dir=str(folder / name))
        out = None if kind == 'labels' else str(folder / f'{name}.json')
        return run_test(ready, str(checkpoint), out=out, fast=dtype and dict(dtype=dtype))[0]

    if kind != 'labels':
        run('first')
        results = folder / ('first.segm.json' if kind == 'mask' else 'first.json')
        make_truth(json.loads(results.read_text()), Path(cfg.test_evaluator.ann_file))
    types = dict(plain=None, float32=torch.float32, bfloat16=torch.bfloat16)
    found = {name: run(name, dtype) for name, dtype in types.items()}
    (folder / 'figures.json').write_text(json.dumps(found))


@pytest.mark.parametrize(
    ('kind', 'stack'),
    [('box', 'default')]
    + [
        pytest.param(kind, 'default', marks=pytest.mark.slow)
        for kind in ('resnet', 'mask', 'labels')
    ]
    + [pytest.param(kind, 'originals', marks=pytest.mark.slow) for kind in ('mask', 'labels')],
    indirect=['stack'],
)
def test_measuring_fast(kind, stack, python, tmp_path):
    run = python(__file__, kind, tmp_path, env=stack)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((tmp_path / 'figures.json').read_text())
    plain, scale = found['plain'], 1
    if kind == 'labels':
        scale = 100  # mmseg's are in per cent
        assert plain['mIoU'] > 2
        figures = set(plain)
    else:
        figures = {key for key in plain if 'mAP' in key and not np.isnan(plain[key])}
        assert 0.1 < plain['coco/bbox_mAP'] < 0.9
        assert 'coco/segm_mAP' in figures or kind != 'mask'
        compare_results(tmp_path, 'plain', 'float32')
    assert {key: found['float32'][key] for key in figures} == pytest.approx(
        {key: plain[key] for key in figures}, abs=1e-3 * scale
    )
    assert found['bfloat16'] != plain, 'bfloat16 rounds'


def compare_results(folder: Path, *names: str) -> None:
    """Each detection is there once in both, whatever the order of those that are equally sure."""
    plain, fast = (json.loads((folder / f'{name}.json').read_text()) for name in names)
    assert len(plain) == len(fast) > 40
    # boxes in pixels to 1e-2, scores to 1e-3; another image or class is at 1 or more
    a, b = (
        np.array(
            [
                [*np.divide(r['bbox'], 10), r['score'], r['image_id'], r['category_id']]
                for r in results
            ]
        )
        for results in (plain, fast)
    )
    distances = np.abs(a[:, None] - b).max(-1)
    nearest = distances.argmin(1)
    assert len({*nearest}) == len(a)
    assert 0 < distances.min(1).max() < 1e-3, 'another order of sums, and no more'


@pytest.mark.parametrize('kind', ['mask', 'labels'])
def test_predicting_fast(kind, shapes, tmp_path):
    cfg = config_of(kind, shapes)
    checkpoint = write_checkpoint(cfg, tmp_path / 'random.pth')
    plain = ConfiguredModel(cfg, checkpoint, 'cpu')
    image = sorted((shapes / 'val').glob('*.jpg'))[0]
    reference = plain.predict(image)
    for dtype in (torch.float32, torch.bfloat16):
        fast = ConfiguredModel(cfg, checkpoint, 'cpu', fast=dict(dtype=dtype))
        assert not [m for m in fast.model.backbone.modules() if 'BatchNorm' in type(m).__name__]
        assert fast.model.backbone.layer1[0].conv1.weight.dtype == dtype
        sample = fast.predict(image)
        if dtype == torch.bfloat16:
            continue
        if kind == 'labels':
            assert torch.unique(reference.pred_sem_seg.data).numel() > 1
            same = sample.pred_sem_seg.data == reference.pred_sem_seg.data
            assert same.float().mean() > 0.9999
            continue
        ours, theirs = sample.pred_instances, reference.pred_instances
        assert len(ours) == len(theirs) > 10
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=0, atol=1e-2)
        masks = [np.asarray(found.masks) for found in (ours, theirs)]
        assert (masks[0] == masks[1]).mean() > 0.9999


@pytest.mark.slow
def test_options(shapes, python, tiny_arguments, tmp_path):
    """The tools take --fast with and without a type, and no other type."""
    cfg = config_of('box', shapes)
    checkpoint = write_checkpoint(cfg, tmp_path / 'random.pth')
    options = ['--cfg-options', *(f'{k}={v}'.replace(' ', '') for k, v in KINDS['box'][1].items())]
    options += [a for a in tiny_arguments if a.startswith('test_')]
    config = f'configs/{KINDS["box"][0]}'
    where = ('--work-dir', tmp_path / 'w')
    env = dict(OMP_NUM_THREADS='1', PATH='/usr/bin:/bin')
    run = python('tools/test.py', config, checkpoint, '--fast', *where, *options, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    assert 'AP50' in run.stdout
    images = sorted((shapes / 'val').glob('*.jpg'))[0]
    out = ('--out', tmp_path / 'o', '--fast', 'bfloat16')
    run = python('tools/infer.py', config, checkpoint, images, *out, *options, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads((tmp_path / 'o' / 'predictions.json').read_text())['images'][0]['instances']
    run = python('tools/test.py', config, checkpoint, '--fast', 'int8', env=env)
    assert run.returncode == 2 and 'invalid choice' in run.stderr and 'float16' in run.stderr


def test_options_of_the_tools():
    parser = argparse.ArgumentParser()
    add_shared(parser, '--fast', '--compile')

    def options(*words):
        return fast_options(parser.parse_args(words))

    assert options() is None
    assert options('--fast') == dict(dtype=torch.float32, compile=None)
    both = options('--fast', 'bfloat16', '--compile', 'reduce-overhead')
    assert both == dict(dtype=torch.bfloat16, compile='reduce-overhead')
    assert options('--compile', '--fast') == dict(dtype=torch.float32, compile='default')
    with pytest.raises(ToolError, match='--compile is a part of --fast'):
        options('--compile')


if __name__ == '__main__':
    measure(sys.argv[1], Path(sys.argv[2]))
