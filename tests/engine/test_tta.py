"""--tta against merging by hand, what it is not for, and --conf."""

import copy
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from test_segmentation_tools import CONFIG as SEGMENTOR

from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.infer import ConfiguredModel
from res2net_mm.engine.runner import prepare_config
from res2net_mm.engine.tta import use_tta

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SCALES = (1.0, 0.75, 1.25)


def saved(cfg, folder):
    """A checkpoint with random weights, whose predictions differ from place to place."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model))
    if hasattr(model, 'roi_head'):
        model.roi_head.bbox_head.fc_cls.weight.data *= 10
    else:
        for _ in range(30):  # statistics of the norm layers
            model.train()(torch.randn(4, 3, 64, 64), mode='tensor')
    torch.save(dict(state_dict=model.state_dict()), folder / 'c.pth')
    return str(folder / 'c.pth')


def sample_of(cfg, checkpoint, folder, monkeypatch, **options):
    """The data samples that the evaluator gets of one image."""
    from mmengine.evaluator import Evaluator

    seen = []
    monkeypatch.setattr(
        Evaluator, 'process', lambda self, data_samples, data_batch: seen.extend(data_samples)
    )
    monkeypatch.setattr(Evaluator, 'evaluate', lambda self, size: {})
    cfg.test_dataloader.dataset.indices = 1
    cfg.test_dataloader.num_workers, cfg.test_dataloader.batch_size = 0, 1
    cfg.test_dataloader.persistent_workers = False
    run_test(prepare_config(cfg, work_dir=str(folder)), checkpoint, **options)
    (sample,) = seen
    return sample


def views(cfg, checkpoint, file):
    """What the model predicts for an image in all sizes, as it is and mirrored."""
    from mmcv import imread

    pixels = imread(str(file), channel_order='rgb')
    (step,) = [s for s in cfg.test_dataloader.dataset.pipeline if s['type'] == 'Resize']
    side = step['scale'][0]
    for scale in SCALES:
        step['scale'] = (round(side * scale),) * 2
        model = ConfiguredModel(cfg, checkpoint, 'cpu')
        for flip in (False, True):
            given = np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels
            yield flip, pixels.shape[1], model.predict(given)
    step['scale'] = (side, side)


@pytest.fixture(scope='module')
def detector(tiny_options, tmp_path_factory):
    options = tiny_options | {'model.test_cfg.rcnn.score_thr': 0.01}
    cfg = load_config('faster_rcnn_r2n14_shapes.py', options)
    return cfg, saved(cfg, tmp_path_factory.mktemp('detector'))


def test_boxes_are_merged_as_by_hand(detector, shapes, tmp_path, monkeypatch):
    cfg, checkpoint = copy.deepcopy(detector)
    boxes, scores, labels = [], [], []
    file = sorted((shapes / 'val').glob('*.jpg'))[0]
    for flip, width, sample in views(cfg, checkpoint, file):
        found = sample.pred_instances
        box = found.bboxes.clone()
        if flip:
            box[:, [0, 2]] = width - box[:, [2, 0]]
        boxes.append(box), scores.append(found.scores), labels.append(found.labels)
    boxes, scores, labels = map(torch.cat, (boxes, scores, labels))
    merged, kept = batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))
    found = sample_of(cfg, checkpoint, tmp_path, monkeypatch, tta=True).pred_instances
    assert 10 < len(found.scores) == min(len(kept), 100) < len(scores)
    torch.testing.assert_close(found.scores, merged[:100, 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bboxes, merged[:100, :4], rtol=1e-3, atol=1e-2)
    assert (found.labels == labels[kept][:100]).float().mean() > 0.95


def test_classes_in_another_order_are_mapped(detector, tmp_path, monkeypatch):
    cfg, checkpoint = copy.deepcopy(detector)
    plain = sample_of(cfg, checkpoint, tmp_path, monkeypatch, tta=True).pred_instances.labels
    names, cfg.checkpoint_classes = cfg.test_dataloader.dataset.metainfo.classes[::-1], 'names'
    content = torch.load(checkpoint) | dict(meta=dict(dataset_meta=dict(classes=names)))
    torch.save(content, tmp_path / 'turned.pth')
    found = sample_of(cfg, str(tmp_path / 'turned.pth'), tmp_path, monkeypatch, tta=True)
    assert found.pred_instances.labels.tolist() == (len(names) - 1 - plain).tolist()
    assert len(plain)


@pytest.fixture
def segmentor(shapes, tmp_path):
    text = SEGMENTOR.replace('DATA', str(shapes)).replace('SyncBN', 'BN')
    (tmp_path / 'fcn.py').write_text(text)
    return load_config(tmp_path / 'fcn.py')


def test_label_maps_are_merged_as_by_hand(segmentor, shapes, tmp_path, monkeypatch):
    checkpoint = saved(segmentor, tmp_path)
    with pytest.raises(ToolError, match='no CocoMetric'):
        run_test(copy.deepcopy(segmentor), checkpoint, out=str(tmp_path / 'results.json'))
    file = sorted((shapes / 'val').glob('*.jpg'))[0]
    shares = []
    for flip, _, sample in views(segmentor, checkpoint, file):
        share = sample.seg_logits.data.softmax(0)
        shares.append(share.flip(2) if flip else share)
    expected = torch.stack(shares).mean(0).argmax(0)
    one = shares[0].argmax(0)
    found = sample_of(segmentor, checkpoint, tmp_path, monkeypatch, tta=True)
    labels = found.pred_sem_seg.data.squeeze()
    assert labels.shape == expected.shape == found.gt_sem_seg.data.squeeze().shape
    assert (labels == expected).float().mean() > 0.999 > (one == expected).float().mean()


@pytest.mark.parametrize(
    'name', ['mask_rcnn_r2n50.py', 'panoptic_fpn_r2n50.py', 'unet_r2n50_duts.py',
             'res2net50_v1b_in1k.py', 'td_hm_r2n50_coco_256x192.py'],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused(name):
    cfg = load_config(name)
    own = dict(tta_model=dict(type='SegTTAModel'), tta_pipeline=[dict(type='TestTimeAug')])
    for more in ({}, own):
        cfg.update(more)
        with pytest.raises(ToolError, match='--tta merges .* but not what this'):
            use_tta(cfg)


def test_a_folder_of_that_name_says_nothing_of_masks(detector):
    cfg = copy.deepcopy(detector[0])
    cfg.test_evaluator = dict(cfg.test_evaluator, ann_file='/data/segmentation/val.json')
    assert use_tta(cfg).merging['type'].__name__ == 'DetTTAModel'
    cfg.test_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(ToolError, match='--tta merges'):
        use_tta(cfg)


def test_exported_files_are_refused(detector):
    with pytest.raises(ToolError, match='--tta is for checkpoints'):
        run_test(copy.deepcopy(detector[0]), 'x.onnx', tta=True)


def test_a_config_may_say_how(detector):
    cfg = copy.deepcopy(detector[0])
    cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=7))
    cfg.tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[])]
    assert use_tta(cfg).merging == cfg.tta_model
    kinds = [step['type'] for step in cfg.test_dataloader.dataset.pipeline]
    assert kinds == ['res2net_mm.LoadImageFromFile', 'TestTimeAug']
    cfg = load_config('mask_rcnn_r2n50.py', {'tta_model.type': 'MyMaskTTAModel'})
    assert use_tta(cfg).merging == dict(type='MyMaskTTAModel')
    cfg = copy.deepcopy(detector[0])
    cfg.tta_pipeline = [dict(type='TestTimeAug', transforms=[])]
    assert use_tta(cfg).merging['tta_cfg']['max_per_img'] == 100
    assert [step['type'] for step in cfg.test_dataloader.dataset.pipeline] == ['TestTimeAug']


def test_pipelines_that_pad_or_do_not_resize():
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_id',))
    for steps, count in (([dict(type='Resize', scale=64), dict(type='Pad', size=(64, 64))], 1),
                         ([], 3)):  # fmt: skip
        dataset = dict(type='CocoDataset', pipeline=[load, *steps, pack])
        cfg = Config(dict(model=dict(type='FasterRCNN'), test_evaluator=[], default_scope='mmdet',
                          test_dataloader=dict(dataset=dataset)))  # fmt: skip
        use_tta(cfg)
        first, augment = cfg.test_dataloader.dataset.pipeline
        sizes, flips, *rest = augment['transforms']
        assert first['type'] == 'LoadImageFromFile' and len(sizes) == count and len(flips) == 2
        assert rest[-1][0]['meta_keys'] == ('img_id', 'flip', 'flip_direction')


def test_conf_leaves_out_what_is_less_sure(detector, tmp_path, monkeypatch):
    cfg, checkpoint = copy.deepcopy(detector)
    scores = sample_of(cfg, checkpoint, tmp_path, monkeypatch).pred_instances.scores
    least = scores.median().item()
    found = sample_of(cfg, checkpoint, tmp_path, monkeypatch, conf=least).pred_instances
    assert 0 < len(found) < len(scores)
    assert found.scores.tolist() == scores[scores >= least].tolist()


def test_conf_is_for_detectors(segmentor, tmp_path):
    with pytest.raises(ToolError, match='--conf is for detectors, and this EncoderDecoder'):
        run_test(segmentor, 'c.pth', conf=0.3)
    with pytest.raises(ToolError, match='from 0 to 1, but is 3'):
        run_test(segmentor, 'c.pth', conf=3)


def test_results_are_whole(detector, tmp_path):
    with pytest.raises(ToolError, match='--out needs all objects'):
        run_test(copy.deepcopy(detector[0]), 'c.pth', conf=0.3, out=str(tmp_path / 'r.json'))


def test_figures_say_how_they_were_made(detector, tmp_path, monkeypatch, capsys):
    from mmengine.evaluator import Evaluator

    monkeypatch.setattr(Evaluator, 'process', lambda self, data_samples, data_batch: None)
    monkeypatch.setattr(Evaluator, 'evaluate', lambda self, size: {'coco/bbox_mAP': 0.5})
    monkeypatch.setattr('res2net_mm.data.check.inspection.check_data', lambda *args, **kwargs: [])
    cfg = copy.deepcopy(detector[0])
    cfg.test_dataloader.dataset.indices = 1
    cfg.dump(tmp_path / 'c.py')
    args = [str(tmp_path / 'c.py'), detector[1], '--work-dir', str(tmp_path), '--device', 'cpu']
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setattr(sys, 'argv', ['test.py', *args, '--tta', '--conf', '0.2'])
    runpy.run_path(str(TOOLS / 'test.py'))['main']()
    *_, merged, cut = capsys.readouterr().out.splitlines()
    assert merged.startswith('with --tta: ') and cut.startswith('objects from a score of 0.2 on')


def test_device_of_the_tool(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['test.py', 'c.py', 'c.pth', '--device', 'tpu'])
    with pytest.raises(ValueError, match='--device must be cuda, cuda:N or cpu'):
        runpy.run_path(str(TOOLS / 'test.py'))['main']()
