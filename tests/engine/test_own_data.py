"""A config set to one's own folder: the right classes, counts and boxes, and it trains."""

import copy
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from own_folders import (
    CLASSES,
    scenes,
    write_coco,
    write_images,
    write_labelme,
    write_masks,
    write_roboflow_yolo,
    write_voc,
)
from PIL import Image
from running import loaded

from res2net_mm.data.check.agreement import class_counts
from res2net_mm.data.check.inspection import check_data
from res2net_mm.data.errors import DataError
from res2net_mm.engine.adapting import adapt, use_data
from res2net_mm.engine.config import load_config
from res2net_mm.engine.config_checks import check_model
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.own_data import OwnData, set_classes
from res2net_mm.engine.runner import build_runner, prepare_config
from res2net_mm.registry import config_folders

DETECTOR, SEGMENTOR = 'faster_rcnn_r2n14_shapes', 'sem_fpn_r2n14_camvid'
CONFIGS = sorted(path for folder in config_folders() for path in folder.glob('*.py'))


def arguments(tmp_path, data, **given):
    names = 'data_format classes ignore_label epochs batch size resume cfg_options'.split()
    return Namespace(
        data=str(data), work_dir=str(tmp_path / 'work'), **{**dict.fromkeys(names), **given}
    )


def written(data, split):
    """Image name -> objects as (class, x, y, width, height), from the json of a split."""
    content = json.loads(Path(data.splits[split]['ann_file']).read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    found = {image['id']: (Path(image['file_name']).stem, []) for image in content['images']}
    for annotation in content['annotations']:
        label = names[annotation['category_id']]
        found[annotation['image_id']][1].append((label, *annotation['bbox']))
    return dict(found.values())


def expected(objects, less=0):
    """By definition: left, top, width, height; mmdet's VOC boxes lack the last pixel."""
    return {
        name: [(label, x1, y1, x2 - x1 - less, y2 - y1 - less) for label, x1, y1, x2, y2 in boxes]
        for name, boxes in objects.items()
    }


def assert_boxes(data, objects, less=0):
    for split, boxes in objects.items():
        found = written(data, split)
        assert found.keys() == boxes.keys()
        for name, wanted in expected(boxes, less).items():
            assert [f[0] for f in found[name]] == [w[0] for w in wanted]
            np.testing.assert_allclose(
                [f[1:] for f in found[name]], [w[1:] for w in wanted], atol=1e-9
            )
        assert data.images[split] == len(boxes)


def test_a_resumed_run_measures_on_the_images_that_it_set_aside(tmp_path):
    first, more = scenes(20), scenes(26)
    write_labelme(tmp_path / 'photos', first)
    cfg, list_of_images = loaded(DETECTOR), tmp_path / 'work/data/val.txt'
    OwnData(cfg, tmp_path / 'photos', tmp_path / 'work')
    aside = list_of_images.read_text()
    write_labelme(tmp_path / 'photos', more)
    cfg.randomness = dict(seed=5)
    first = Path(aside.split()[0])
    copy_of = first.with_name(f'{first.stem} (1){first.suffix}')
    for suffix in (first.suffix, '.json'):
        source = first.with_suffix(suffix)
        copy_of.with_suffix(suffix).write_bytes(source.read_bytes())
    for changes in (dict(resume='auto'), dict(resume=str(tmp_path / 'work/epoch_1.pth')), {}):
        given = arguments(tmp_path, tmp_path / 'photos', **changes)
        cfg = loaded(DETECTOR)
        cfg.randomness, cfg.resume = dict(seed=5), not changes
        data = use_data(cfg, given, tmp_path / ('other' if 'pth' in str(changes) else 'work'))
        assert {*list_of_images.read_text().split('\n')} == {*aside.split('\n'), str(copy_of)}
        assert data.images['val'] == 5 and data.images['train'] >= 21
        assert 'val is what the run set aside at its start' in data.lines[2]
    for file in (first, first.with_suffix('.json')):  # now of one name with those trained on
        for line in (tmp_path / 'work/data/train.txt').read_text().split('\n')[:1]:
            target = Path(line)
            copied = target.with_name(f'{target.stem} (2)').with_suffix(file.suffix)
            copied.write_bytes(target.with_suffix(file.suffix).read_bytes())
    data = use_data(cfg, arguments(tmp_path, tmp_path / 'photos', resume='auto'), tmp_path / 'work')
    trained = {*(tmp_path / 'work/data/train.txt').read_text().split('\n')}
    assert str(copied.with_suffix(first.suffix)) in trained and data.images['val'] == 5
    (tmp_path / 'photos').rename(tmp_path / 'moved')
    with pytest.raises(DataError, match='the run set aside none or all of its images'):
        use_data(cfg, arguments(tmp_path, tmp_path / 'moved', resume='auto'), tmp_path / 'work')
    use_data(loaded(DETECTOR), arguments(tmp_path, tmp_path / 'moved'), tmp_path / 'work')
    assert list_of_images.read_text() != aside


@pytest.mark.parametrize('form', ['voc', 'labelme', 'coco', 'rectangles'])
def test_boxes_of_folders_that_are_not_split(tmp_path, form):
    objects, root = scenes(20), tmp_path / 'photos'
    if form == 'voc':
        write_voc(root, objects)
    elif form == 'coco':
        write_coco(root / 'images', root / 'annotations.json', objects)
    else:
        write_labelme(root, objects, polygons=form == 'labelme')
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    data = OwnData(loaded(DETECTOR), root, tmp_path / 'work')
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before
    assert data.classes == CLASSES
    train, val = (
        [Path(line).stem for line in (tmp_path / f'work/data/{split}.txt').read_text().split()]
        for split in ('train', 'val')
    )
    assert (len(train), len(val)) == (16, 4) and {*train} | {*val} == {*objects}
    parts = {split: {n: objects[n] for n in names} for split, names in
             (('train', train), ('val', val))}  # fmt: skip
    assert_boxes(data, parts, less=1 if form == 'voc' else 0)
    assert data.lines[1] == 'classes (2): cat, dog'
    assert 'images: train 16, val 4; val is 20% set' in data.lines[2]
    assert len(data.lines) == 3


def test_boxes_of_yolo(tmp_path):
    objects = write_roboflow_yolo(tmp_path / 'export')
    objects['val'] = objects.pop('valid')
    data = OwnData(loaded(DETECTOR), tmp_path / 'export', tmp_path / 'work')
    assert_boxes(data, objects)
    assert data.classes == CLASSES and 'test 3' in data.lines[2]


def test_masks_of_labelme_are_trained_on(tmp_path):
    write_labelme(tmp_path / 'a', scenes(6))
    data = OwnData(loaded('mask_rcnn_r2n50'), tmp_path / 'a', tmp_path / 'work')
    content = json.loads(Path(data.splits['train']['ann_file']).read_text())
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        assert annotation['segmentation'] == [[x, y, x + w, y, x + w, y + h, x, y + h]]
        assert annotation['area'] == w * h
    write_voc(tmp_path / 'b', scenes(6))
    cfg = loaded('mask_rcnn_r2n50')
    OwnData(cfg, tmp_path / 'b', tmp_path / 'work').apply(cfg)
    with pytest.raises(DataError, match='no segmentation.*use a detector without masks'):
        check_data(cfg)


def test_the_parent_category_of_roboflow_is_no_class(tmp_path):
    for split in ('train', 'valid'):
        folder = tmp_path / 'export' / split
        write_coco(folder, folder / '_annotations.coco.json', scenes(4, len(split)))
        file = folder / '_annotations.coco.json'
        content = json.loads(file.read_text())
        for category in content['categories']:
            category['supercategory'] = 'pets'
        content['categories'].insert(0, dict(id=0, name='pets', supercategory='none'))
        file.write_text(json.dumps(content))
    cfg = loaded(DETECTOR)
    lines = adapt(cfg, arguments(tmp_path, tmp_path / 'export'))
    assert cfg.train_dataloader.dataset.metainfo.classes == CLASSES
    assert cfg.model.roi_head.bbox_head.num_classes == 2
    assert any("category 'pets' is the parent" in line for line in lines)
    assert [summary.images for summary in check_data(cfg)] == [4, 4, 4]


def test_names_of_categories(tmp_path):
    """The parent may be named like the only class, and names may be numbers."""
    folder = tmp_path / 'export'
    for name in ('fish', 7):
        for split in ('train', 'valid', 'test'):
            file = folder / split / '_annotations.coco.json'
            write_coco(folder / split, file, scenes(4, len(split)))
            content = json.loads(file.read_text())
            for annotation in content['annotations']:
                annotation['category_id'] = 1
            content['categories'] = [dict(id=1, name=name, supercategory='fish')]
            if name == 'fish':
                content['categories'].insert(0, dict(id=0, name='fish', supercategory='none'))
            if split == 'test':
                content['annotations'] = []
            file.write_text(json.dumps(content))
        cfg = loaded(DETECTOR)
        lines = adapt(cfg, arguments(tmp_path, folder))
        assert cfg.train_dataloader.dataset.metainfo.classes == (str(name),)
        assert 'note: test has no annotations: not used' in lines
        dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, _scope_='mmdet'))
        found = dataset.get_data_info(0)['instances']
        assert found and {instance['bbox_label'] for instance in found} == {0}
        assert [summary.images for summary in check_data(cfg)] == [4, 4, 4]


def test_a_broken_file_leaves_the_others(tmp_path):
    write_voc(tmp_path / 'a', scenes(8))
    (tmp_path / 'a/annotations/photo_003.xml').write_text('<annotation>')
    data = OwnData(loaded(DETECTOR), tmp_path / 'a', tmp_path / 'work')
    assert sum(data.images.values()) == 7
    assert any('annotation file that cannot be used' in line for line in data.lines)


def masks(root, values, ending='.png'):
    for split in ('train', 'val'):
        write_images(root / f'images/{split}', scenes(4, len(split)))
        write_masks(root / f'masks/{split}', scenes(4, len(split)), ending, values)


def test_masks_that_fit_stay_where_they_are(tmp_path):
    masks(tmp_path / 'a', (0, 1, 2))
    cfg = loaded('sem_fpn_r2n50_ade20k')
    with pytest.raises(
        DataError, match='values 0, 1, 2, which nothing names; name them.*--classes'
    ):
        adapt(cfg, arguments(tmp_path, tmp_path / 'a'))
    adapt(cfg, arguments(tmp_path, tmp_path / 'a', classes=['ground', *CLASSES]))
    dataset = cfg.val_dataloader.dataset
    assert dataset.type == 'BaseSegDataset' and dataset.metainfo.classes == ('ground', *CLASSES)
    assert dataset.data_prefix.seg_map_path == str(tmp_path / 'a/masks/val')
    assert cfg.model.decode_head.num_classes == 3
    assert not any('reduce_zero_label' in step for step in dataset.pipeline)
    assert not (tmp_path / 'work/data/maps').exists()
    check_model(cfg)
    assert [summary.images for summary in check_data(cfg)] == [4, 4, 4]


@pytest.mark.parametrize(
    ('values', 'ending', 'given'),
    [
        ((0, 255, 255), '.png', dict(classes=['ground', 'pet'])),
        ((0, 255, 255), '_mask.jpg', dict(classes=['ground', 'pet'])),
        ((7, 0, 1), '.png', dict(classes=['cat', 'dog'], ignore_label=7)),
    ],
)
def test_masks_are_written_as_label_maps(tmp_path, values, ending, given):
    masks(tmp_path / 'a', values, ending)
    cfg = loaded(SEGMENTOR)
    adapt(cfg, arguments(tmp_path, tmp_path / 'a', **given))
    dataset = cfg.train_dataloader.dataset
    for name, boxes in scenes(4, 5).items():
        place = Path(dataset.data_prefix.seg_map_path, f'{name}{dataset.seg_map_suffix}')
        values = np.array(Image.open(place))
        wanted = np.full(values.shape, 255 if 'ignore_label' in given else 0)
        for label, x1, y1, x2, y2 in boxes:
            wanted[y1:y2, x1:x2] = CLASSES.index(label) if 'ignore_label' in given else 1
        assert (values == wanted).mean() > 0.999 if 'jpg' in ending else (values == wanted).all()
    assert [summary.images for summary in check_data(cfg)] == [4, 4, 4]


def test_channels_of_some_masks(tmp_path):
    """Grey in three channels, or with an opaque one, is read whichever file is first."""
    masks(tmp_path / 'a', (0, 1, 1))
    files = sorted((tmp_path / 'a/masks/val').iterdir())
    for file, mode in zip(files[1:], ('RGB', 'LA'), strict=False):
        with Image.open(file) as image:
            image.load()
        image.convert(mode).save(file)
    cfg = loaded(SEGMENTOR)
    adapt(cfg, arguments(tmp_path, tmp_path / 'a', classes=['ground', 'pet']))
    assert [summary.images for summary in check_data(cfg)] == [4, 4, 4]
    dataset = cfg.val_dataloader.dataset
    for file in files:
        with Image.open(file) as image:
            wanted = np.array(image.convert('L'))
        written_map = Path(dataset.data_prefix.seg_map_path, file.name)
        assert (np.array(Image.open(written_map)) == wanted).all() and wanted.any()


def test_a_value_of_few_masks(tmp_path):
    """255 is the second class, or counts as nothing: one of many masks shows that it is unclear."""
    objects = {f'{i}': [('cat', 0, 0, 9, 9)] for i in range(130)}
    write_images(tmp_path / 'a/images/train', objects)
    write_masks(tmp_path / 'a/masks/train', objects, values=(0, 255, 1))
    write_masks(tmp_path / 'a/masks/train', {'77': [('dog', 0, 0, 9, 9)]}, values=(0, 255, 1))
    given = loaded(SEGMENTOR), tmp_path / 'a', tmp_path / 'w'
    with pytest.raises(DataError, match='some masks hold 1, and others 255.*--ignore-label 255'):
        OwnData(*given, classes=['ground', 'defect'])
    data = OwnData(*given, classes=['ground', 'defect'], ignored=255)
    assert not (tmp_path / 'w/data/maps').exists() and len(data.lines) == 3


def test_one_channel_leaves_no_pixel_out(tmp_path):
    masks(tmp_path / 'a', (0, 1, 255))
    given = arguments(tmp_path, tmp_path / 'a', classes=['ground', 'defect'], ignore_label=255)
    with pytest.raises(ToolError, match='--ignore-label: .* one channel'):
        adapt(loaded('unet_r2n14_nuclei'), given)


def test_mixing_gets_the_number_of_classes():
    cfg = Config(dict(model=dict(head=dict(num_classes=9)), data_preprocessor=dict(num_classes=9)))
    set_classes(cfg, 3)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3


def test_values_without_a_name(tmp_path):
    masks(tmp_path / 'a', (0, 1, 9))
    with pytest.raises(DataError, match='hold the value 9, but 2 classes .*--ignore-label 9'):
        adapt(loaded(SEGMENTOR), arguments(tmp_path, tmp_path / 'a', classes=['a', 'b']))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_head_gets_the_classes(path):
    cfg = loaded(path)
    if cfg.model.get('panoptic_fusion_head'):
        return
    if cfg.get('default_scope') == 'mmpose':
        with pytest.raises(ToolError, match='no num_classes to set'):
            set_classes(cfg, 3)
        return
    set_classes(cfg, 3)
    assert {count for _, count in class_counts(cfg.model, 'model')} == {3}
    text = repr(cfg.model)
    for known in (80, 150, 19, 21, 20, 11, 4):  # of the data sets that our configs have
        assert f"'num_classes': {known}," not in text.replace('}', ','), known


def test_bccd_gives_what_its_own_config_gives(real_data, tmp_path):
    """The same boxes of the same images, and no other difference that could change a weight."""
    by_hand, cfg = loaded('faster_rcnn_r2n14_bccd'), loaded('faster_rcnn_r2n14_voc')
    given = dict(classes=['RBC', 'WBC', 'Platelets'], epochs=by_hand.train_cfg.max_epochs)
    adapt(cfg, arguments(tmp_path, real_data / 'bccd', **given))
    for split in ('train', 'val', 'test'):
        ours, theirs = (boxes_of(c[f'{split}_dataloader'].dataset) for c in (cfg, by_hand))
        assert ours == theirs and len(ours) > 50
    assert cfg.train_cfg.max_epochs == by_hand.train_cfg.max_epochs
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=cfg.train_dataloader.batch_size)
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'default_hooks'):
        assert cfg[key] == by_hand[key]


def boxes_of(dataset):
    """Image -> the labels, boxes and flags of its objects, as the built data set gives them."""
    built = DATASETS.build(ConfigDict({**dataset, '_scope_': 'mmdet'}, pipeline=[]))
    found = {}
    for image in map(built.get_data_info, range(len(built))):
        objects = [(o['bbox_label'], o['bbox'], o['ignore_flag']) for o in image['instances']]
        objects = [o for o in objects if o[1][2] > o[1][0] and o[1][3] > o[1][1]]  # not empty
        found[Path(image['img_path']).name] = objects
    return found


def tiny(tiny_options):
    return {key: value for key, value in tiny_options.items() if key.startswith('model.')}


def train(cfg, work_dir):
    cfg = prepare_config(cfg, work_dir=str(work_dir))
    check_data(cfg)
    runner = build_runner(cfg)
    runner.train()
    return runner


def test_a_detector_trains_and_its_config_alone_does_the_same(tmp_path, tiny_options):
    write_voc(tmp_path / 'a', scenes(10))
    cfg = load_config(DETECTOR, tiny(tiny_options))
    adapt(cfg, arguments(tmp_path, tmp_path / 'a', epochs=1, batch=4, size=(64, 64)))
    first = train(cfg, tmp_path / 'work')
    again = load_config(tmp_path / f'work/{DETECTOR}.py')
    second = train(again, tmp_path / 'again')
    weights = [runner.model.state_dict() for runner in (first, second)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    assert first.epoch == 1 and first.iter == 2
    with pytest.raises(ToolError, match='holds a run: go on with it by --resume'):
        adapt(loaded(DETECTOR), arguments(tmp_path, tmp_path / 'a'))


def test_a_segmentor_trains(tmp_path):
    masks(tmp_path / 'a', (0, 255, 255))
    cfg = load_config(SEGMENTOR, {'model.backbone.base_channels': 8, 'model.backbone.base_width': 4,
                                  'model.backbone.stem_channels': 8,
                                  'model.neck.in_channels': [32, 64, 128, 256]})  # fmt: skip
    given = dict(classes=['ground', 'pet'], epochs=1, batch=2, size=(64, 64))
    adapt(cfg, arguments(tmp_path, tmp_path / 'a', **given))
    runner = train(cfg, tmp_path / 'work')
    assert runner.iter == 2 and runner.message_hub.get_scalar('val/mIoU').current() > 0


def test_panoptic_and_classes_by_folder(tmp_path):
    write_voc(tmp_path / 'a', scenes(6))
    with pytest.raises(ToolError, match='--data: this config trains on panoptic maps'):
        adapt(loaded('panoptic_fpn_r2n50'), arguments(tmp_path, tmp_path / 'a'))
    for name in CLASSES:
        write_images(tmp_path / 'c' / name, {f'{name}{i}': [] for i in range(5)})
    loader = dict(dataset=dict(type='ImageNet', data_root='x', pipeline=[]), batch_size=2)
    path = tmp_path / 'classifier.py'
    path.write_text(repr(''))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=1000)),
            train_dataloader=loader,
            val_dataloader=copy.deepcopy(loader),
            val_evaluator=dict(type='Accuracy', topk=(1, 5)),
            train_cfg=dict(by_epoch=True, max_epochs=100),
        ),
        filename=str(path),
    )
    lines = adapt(cfg, arguments(tmp_path, tmp_path / 'c'))
    assert 'data: class folders' in lines[0] and cfg.model.head.num_classes == 2
    assert cfg.val_evaluator.topk == (1,)
    file = Path(cfg.train_dataloader.dataset.ann_file)
    for line in file.read_text().splitlines():
        name, label = line.split()
        assert (tmp_path / 'c' / name).is_file() and CLASSES[int(label)] == name.split('/')[0]
    train, val, _ = check_data(cfg)
    assert (train.whole, train.unchecked) == (True, []) and train.images + val.images > 2


def test_a_misspelt_class_of_voc(tmp_path):
    write_voc(tmp_path / 'a', scenes(8))
    given = loaded(DETECTOR), tmp_path / 'a', tmp_path / 'work'
    with pytest.raises(DataError, match="no object of class 'dogs'; did you mean dog"):
        OwnData(*given, classes=['cat', 'dogs'])
    data = OwnData(*given, classes=['cat', 'fog'])  # like it, but a class that others may have
    assert 'note: 1 x class without objects: fog; did you mean dog?' in data.lines
    data = OwnData(*given, classes=['cat', 'dog', 'zebra'])
    assert data.classes == ('cat', 'dog', 'zebra')
    assert 'note: 1 x class without objects: zebra' in data.lines


@pytest.mark.parametrize('form', ['yolo', 'coco'])
@pytest.mark.parametrize('asked', [('dog', 'cat'), ('dog',)])
def test_classes_choose_and_order(tmp_path, form, asked):
    """Label 0 is the first that is asked for; boxes keep the names of the data."""
    if form == 'yolo':
        write_roboflow_yolo(tmp_path / 'set')
    else:
        for split in ('train', 'valid'):
            images = tmp_path / 'set' / split
            write_coco(images, images / '_annotations.coco.json', scenes(5, len(split)))
    every = OwnData(loaded(DETECTOR), tmp_path / 'set', tmp_path / 'every')
    cfg = loaded(DETECTOR)
    data = OwnData(cfg, tmp_path / 'set', tmp_path / 'work', classes=asked)
    assert (every.classes, data.classes) == (tuple(CLASSES), asked)
    assert written(data, 'train') == written(every, 'train')  # the names of all boxes
    data.apply(cfg)
    counts = check_data(cfg, ('train',))[0].per_class
    truth = [label for boxes in written(every, 'train').values() for label, *_ in boxes]
    assert list(counts.items()) == [(name, truth.count(name)) for name in asked]
