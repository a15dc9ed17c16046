"""Label i of a checkpoint and of the data is the same class, or it is mapped, or the run stops."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import InstanceData, PixelData
from test_segmentation_tools import CONFIG as SEGMENTOR

from res2net_mm.backbones.base import CONVENTION
from res2net_mm.engine import classes
from res2net_mm.engine.classes import SameClassesHook, label_order, prediction_meta
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.runner import build_runner, prepare_config

SHAPES = ('disc', 'square', 'triangle', 'star')
REVERSED = SHAPES[::-1]


@ROOT_MODELS.register_module()
class SeesAll(BaseModel):
    """Predicts the ground truth, with labels of its own.

    Args:
        own: The classes in the order of its labels.
        data: Those of the data set.
    """

    def __init__(self, own, data, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.labels = torch.tensor([own.index(name) for name in data])

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for sample in data_samples:
            if 'gt_instances' in sample:
                truth = sample.gt_instances
                sample.pred_instances = InstanceData(
                    bboxes=truth.bboxes.tensor,
                    labels=self.labels[truth.labels],
                    scores=torch.ones(len(truth)),
                )
            else:
                truth = sample.gt_sem_seg.data
                sample.pred_sem_seg = PixelData(data=self.labels[truth])
        return data_samples


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(classes, 'warn', lines.append)
    return lines


@pytest.mark.parametrize(
    'names, data, order',
    [
        (SHAPES, SHAPES, [0, 1, 2, 3]),
        (SHAPES, REVERSED, [3, 2, 1, 0]),
        (('b', 'c', 'a'), ('a', 'b', 'c'), [1, 2, 0]),
        (('Traffic Light', 'car'), ('car', 'traffic_light'), [1, 0]),
        (('Cat', 'cat'), ('cat', 'Cat'), [1, 0]),
        (('a', 'b'), ('a', 'c'), None),
        (('a', 'b'), ('a', 'b', 'c'), None),
        (('a', 'a'), ('a', 'b'), None),
    ],
)
def test_label_order(names, data, order):
    assert label_order(names, data) == order


def write_checkpoint(path, names, mark=True):
    meta = {'dataset_meta': dict(classes=names)} if names else {}
    torch.save(
        dict(
            state_dict={'weight': torch.ones(1)},
            meta={**meta, **({CONVENTION: {}} if mark else {})},
        ),
        path,
    )
    return str(path)


@pytest.fixture
def detector(tiny_options, shapes, tmp_path):
    """Config of a set whose file has its categories in another order than the checkpoint."""
    content = json.loads((shapes / 'annotations' / 'instances_val.json').read_text())
    content['categories'].reverse()
    file = tmp_path / 'reversed.json'
    file.write_text(json.dumps(content))
    cfg = load_config('configs/faster_rcnn_r2n14_shapes.py', tiny_options)
    cfg.model = dict(type='mmengine.SeesAll', own=SHAPES, data=REVERSED)
    cfg.test_dataloader.dataset.update(ann_file=str(file), metainfo=dict(classes=REVERSED))
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_evaluator.ann_file = str(file)
    return cfg


@pytest.fixture
def segmentor(shapes, tmp_path):
    (tmp_path / 'fcn.py').write_text(SEGMENTOR.replace('DATA', str(shapes)))
    cfg = load_config(tmp_path / 'fcn.py')
    data = cfg.test_dataloader.dataset.metainfo.classes
    cfg.model = dict(type='mmengine.SeesAll', own=data[::-1], data=data)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (256, 256)
    return cfg


def measure(cfg, checkpoint, tmp_path, **options):
    cfg.merge_from_dict(options)
    return run_test(prepare_config(cfg, work_dir=str(tmp_path / 'w')), checkpoint)[0]


def test_detections_are_mapped_by_name(detector, said, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'c.pth', SHAPES)
    metrics = measure(detector, checkpoint, tmp_path)
    (value,) = [v for k, v in metrics.items() if k.endswith('bbox_mAP')]
    assert value == 1
    assert len(said) == 1 and 'mapped by name' in said[0]


def test_labels_are_swapped_only_if_that_is_asked_for(detector, said, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'c.pth', SHAPES)
    metrics = measure(detector, checkpoint, tmp_path, checkpoint_classes='data')
    (value,) = [v for k, v in metrics.items() if k.endswith('bbox_mAP')]
    assert value < 0.1 and not said


def test_label_maps_are_mapped_by_name(segmentor, said, tmp_path):
    names = tuple(segmentor.test_dataloader.dataset.metainfo.classes[::-1])
    checkpoint = write_checkpoint(tmp_path / 'c.pth', names)
    assert measure(segmentor, checkpoint, tmp_path)['mIoU'] == 100
    assert 'mapped by name' in said[0]


def test_panoptic_maps_keep_instances_and_void():
    sample = DetDataSample(
        pred_panoptic_seg=PixelData(sem_seg=torch.tensor([[[0, 1001, 2002, 3]]], dtype=torch.int32))
    )
    classes._map_labels([2, 0, 1], None, None, [sample])  # 3 classes: 3 is void
    assert sample.pred_panoptic_seg.sem_seg.tolist() == [[[2, 1000, 2001, 3]]]


def test_logits_follow_the_labels():
    sample = DetDataSample(seg_logits=PixelData(data=torch.eye(3)[:, None]))
    classes._map_labels([2, 0, 1], None, None, [sample])
    assert sample.seg_logits.data.argmax(0).tolist() == [[2, 0, 1]]


def use(names, split, *, data=SHAPES, mark=True, dataset='CocoDataset', **config):
    """What the hook says of a checkpoint with ``names`` on data of these classes."""
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=data)))
    loaders = {f'{split}_dataloader': dict(dataset=dict(type=dataset))}
    cfg = Config(dict(default_scope='mmdet', **loaders, **config))
    model = torch.nn.Identity()
    runner = SimpleNamespace(cfg=cfg, model=model, **{f'{split}_dataloader': loader})
    meta = dict(dataset_meta=dict(classes=names)) if names else {}
    checkpoint = dict(meta={**meta, **({CONVENTION: {}} if mark else {})})
    SameClassesHook(split).after_load_checkpoint(runner, checkpoint)
    return model._forward_hooks


@pytest.mark.parametrize(
    'split, config',
    [('test', {}), ('val', {}), ('train', dict(resume=True))],
)
@pytest.mark.parametrize('names', [('disc', 'square', 'triangle', 'sun'), SHAPES[:3]])
def test_other_classes_stop(split, config, names, said):
    with pytest.raises(ToolError, match="only the data set has 'star'.*checkpoint_classes"):
        use(names, split, **config)
    assert not use(names, split, **config, checkpoint_classes='data') and not said


@pytest.mark.parametrize('config', [dict(resume=True), {}])
def test_training_never_starts_with_swapped_classes(config):
    with pytest.raises(ToolError, match='another order'):
        use(REVERSED, 'train', **config)
    use(REVERSED, 'train', **config, checkpoint_classes=SHAPES)


def test_fine_tuning_on_other_classes_goes_on(said):
    use(('cat', 'dog', 'cow', 'hen'), 'train')
    assert len(said) == 1 and "'cat'" in said[0]
    use(('cat', 'dog'), 'train')  # its head does not fit anyway
    use(None, 'train')
    assert len(said) == 1


def test_equal_classes_are_silent(said):
    for split in ('train', 'val', 'test'):
        assert not use(SHAPES, split)
        assert not use(list(SHAPES), split, resume=True)
    assert not said


@pytest.mark.parametrize(
    'model', [dict(type='RPN'), dict(type='GLIP', language_model=dict()), dict(text_encoder={})]
)
def test_models_whose_labels_are_free_are_not_compared(model, said):
    assert not use(('cat', 'dog'), 'test', model=model) and not said


def test_classes_of_joined_sets():
    first, second = (dict(classes=SHAPES, palette=palette) for palette in ('a', 'b'))
    assert classes.class_names(SimpleNamespace(metainfo=[first, second])) == SHAPES
    assert classes.class_names(SimpleNamespace(metainfo=[first, dict(classes=('a',))])) == ()


def test_nameless_checkpoint_is_said_once(said):
    assert not use(None, 'test')
    assert len(said) == 1 and 'not compared' in said[0] and 'disc, square' in said[0]


def test_names_that_differ_in_case_are_the_same(said):
    assert not use(('Disc', 'square', 'triangle', 'star'), 'test') and not said


def test_names_of_another_programs_coco_checkpoint_may_mislead(said):
    """mmdet takes labels from the order of the file's categories, whatever the names' order."""
    with pytest.raises(ToolError, match='checkpoint_classes=names.*checkpoint_classes=data'):
        use(REVERSED, 'test', mark=False)
    assert use(REVERSED, 'test', mark=False, checkpoint_classes='names')
    assert not use(REVERSED, 'test', mark=False, checkpoint_classes='data')
    assert use(REVERSED, 'test', mark=False, dataset='VOCDataset'), 'whose labels are the names'


def test_the_runner_compares_before_it_trains(tiny_options, tmp_path):
    cfg = load_config('configs/faster_rcnn_r2n14_shapes.py', tiny_options)
    cfg.model = dict(type='mmengine.SeesAll', own=SHAPES, data=SHAPES)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.load_from = write_checkpoint(tmp_path / 'c.pth', REVERSED)
    runner = build_runner(prepare_config(cfg, work_dir=str(tmp_path / 'w')))
    with pytest.raises(ToolError, match='another order'):
        runner.train()


def config_of(model, dataset=None, scope='mmdet', **config):
    config['test_dataloader'] = None if dataset is None else dict(dataset=dataset)
    return Config(dict(default_scope=scope, model=model, **config))


HEAD = dict(bbox_head=dict(num_classes=2))
COCO = dict(type='CocoDataset')
NAMED = dict(type='CocoDataset', metainfo=dict(classes=('a', 'b')))


@pytest.mark.parametrize(
    'meta, dataset, expected',
    [
        (dict(dataset_meta=dict(classes=('x', 'y'))), NAMED, ('x', 'y')),
        (dict(dataset_meta=dict(CLASSES=['x', 'y'])), None, ('x', 'y')),
        (dict(CLASSES=('x', 'y')), COCO, ('x', 'y')),
        (None, NAMED, ('a', 'b')),
        (dict(dataset_meta={}), NAMED, ('a', 'b')),
        (dict(CLASSES=('x', 'y', 'z')), NAMED, ('a', 'b')),
        (None, COCO, ('0', '1')),  # its 80 are not the model's 2
        (None, None, ('0', '1')),
    ],
)
def test_names_of_predictions(meta, dataset, expected, said):
    found = prediction_meta(config_of(HEAD, dataset), meta)
    assert found['classes'] == expected and len(found['palette']) == 2
    assert bool(said) == (meta is None or dataset is NAMED)


def test_names_of_the_type_of_the_data_set(said):
    """They are in mmdet's registry, not in mmengine's."""
    found = prediction_meta(config_of(dict(bbox_head=dict(num_classes=80)), COCO), None)
    assert found['classes'][:2] == ('person', 'bicycle')
    assert tuple(found['palette'][0]) == (220, 20, 60)
    head = dict(decode_head=dict(num_classes=19))
    cfg = config_of(head, dict(type='CityscapesDataset'), scope='mmseg')
    assert prediction_meta(cfg, None)['classes'][0] == 'road'


def test_names_in_a_file_and_one_name(tmp_path, said):
    (tmp_path / 'classes.txt').write_text('a\nb\n')
    listed = dict(COCO, metainfo=dict(classes=str(tmp_path / 'classes.txt')))
    assert prediction_meta(config_of(HEAD, listed), None)['classes'] == ('a', 'b')
    one = config_of(dict(bbox_head=dict(num_classes=1)))
    assert prediction_meta(one, dict(CLASSES='nucleus'))['classes'] == ('nucleus',)


def test_a_panoptic_model_has_things_and_stuff(said):
    names = tuple(map(str, range(5)))
    fusion = dict(num_things_classes=2, num_stuff_classes=3)
    model = dict(roi_head=dict(bbox_head=dict(num_classes=2)), panoptic_fusion_head=fusion)
    meta = dict(dataset_meta=dict(classes=names))
    assert prediction_meta(config_of(model), meta)['classes'] == names and not said


def test_checkpoint_classes_is_checked():
    with pytest.raises(ToolError, match='checkpoint_classes'):
        prediction_meta(config_of(HEAD, NAMED, checkpoint_classes='dat'), None)


def test_names_for_an_export_without_data(said):
    cfg = config_of(HEAD)
    assert prediction_meta(cfg, None)['classes'] == ('0', '1')
    assert prediction_meta(cfg, dict(CLASSES=('x', 'y')))['classes'] == ('x', 'y')
    assert len(said) == 1 and 'numbers' in said[0]
