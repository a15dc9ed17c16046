"""The look at data for semantic segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from PIL import Image
from written_sets import (
    CLASSES,
    DATA,
    check_fails,
    config,
    real_data,
    semantic_dataset,
    write_label_maps,
)

import res2net_mm  # noqa: F401  mmseg needs mmcv's operators
from res2net_mm.data.check.inspection import SAMPLE, check_data
from res2net_mm.data.check.survey import format_summary
from res2net_mm.data.sets.label_maps import map_reader, read_map
from res2net_mm.data.sets.nodes import find_nodes

TRAIN = 'train_dataloader.dataset'


def model(classes: int = 3, ignore: int = 255, auxiliary_ignore: int | None = None) -> dict:
    auxiliary = {'num_classes': classes, 'ignore_index': auxiliary_ignore or ignore}
    return {
        'decode_head': {'num_classes': classes, 'ignore_index': ignore},
        'auxiliary_head': [
            auxiliary,
            {'type': 'STDCHead', 'num_classes': 2, 'ignore_index': auxiliary_ignore or ignore},
        ],
    }


def semantic(train: dict, val: dict | None = None, **more: object) -> Config:
    return config(train, val, scope='mmseg', **{'model': model(), **more})


def label_map(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), (6, 8))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    write_label_maps(tmp_path, {f'a.jpg{i}': label_map(0, 1, 2, 255) for i in range(4)})
    write_label_maps(tmp_path, {'b': label_map(0, 1)}, 'val')
    return tmp_path


def test_a_set_without_mistakes(maps):
    from mmseg.datasets import BaseSegDataset

    val = semantic_dataset(maps, 'val', type=BaseSegDataset)
    summaries = check_data(semantic(semantic_dataset(maps), val))
    assert format_summary(summaries) == (
        'train: 4 images with label maps, 3 classes\n'
        'val: 1 image with label maps, 3 classes\n'
        'test: the same as val'
    )
    (summary,) = check_data(semantic(semantic_dataset(maps, type='mmseg.BaseSegDataset')))
    assert summary.images == 4


def test_files_by_list_and_below_folders(maps):
    (maps / 'list.txt').write_text('a.jpg1\na.jpg3\n')
    (summary,) = check_data(semantic(semantic_dataset(maps, ann_file='list.txt')))
    assert summary.images == 2
    for part in ('photos', 'maps'):
        (maps / part / 'train').rename(maps / part / 'deep')
        (maps / part / 'train').mkdir()
        (maps / part / 'deep').rename(maps / part / 'train' / 'deep')
    (summary,) = check_data(semantic(semantic_dataset(maps)))
    assert summary.images == 4
    (maps / 'list.txt').write_bytes(b'a.jpg1\xff')
    cfg = semantic(semantic_dataset(maps, ann_file='list.txt'))
    check_fails(cfg, 'UTF-8', where=maps / 'list.txt')
    gone = semantic_dataset(maps, ann_file='gone.txt')
    check_fails(semantic(gone), 'gone.txt', where=f'{TRAIN}.ann_file')


def test_files_missing(maps):
    check_fails(
        semantic(semantic_dataset(maps, img_suffix='.tif')),
        "img_suffix='.tif'",
        '4 .jpg',
        f'{TRAIN}.img_suffix=',
        where=maps / 'photos/train',
    )
    check_fails(
        semantic(semantic_dataset(maps, seg_map_suffix='_labels.png')),
        'all 4 label maps',
        where=maps / 'maps/train/a.jpg0_labels.png',
    )
    (maps / 'maps/train/a.jpg2.png').unlink()
    file = maps / 'maps/train/a.jpg2.png'
    check_fails(semantic(semantic_dataset(maps)), '1 of the 4 label maps', where=file)
    prefix = {'img_path': 'photos/train', 'seg_map_path': 'gone'}
    check_fails(
        semantic(semantic_dataset(maps, data_prefix=prefix)),
        str(maps / 'gone'),
        where=f'{TRAIN}.data_prefix.seg_map_path',
    )
    (maps / 'list.txt').write_text('a.jpg1\nb\n')
    check_fails(semantic(semantic_dataset(maps, ann_file='list.txt')), 'b.png')


def test_classes_and_heads(maps):
    check_fails(
        semantic(semantic_dataset(maps), model=model(19)),
        'model.decode_head.num_classes=19, model.auxiliary_head.0.num_classes=19',
        'has 3 classes',
        '--cfg-options model.decode_head.num_classes=3 model.auxiliary_head.0.num_classes=3',
    )
    key = f'{TRAIN}.metainfo.classes'
    check_fails(semantic(semantic_dataset(maps, metainfo={})), 'not set', where=key)
    dataset = semantic_dataset(
        maps, type='CityscapesDataset', metainfo={'classes': ('road', 'trian')}
    )
    check_fails(semantic(dataset), "CityscapesDataset has no class 'trian'", 'train')


def test_a_value_that_is_no_class(maps):
    Image.fromarray(label_map(0, 1, 2, 3)).save(maps / 'maps/train/a.jpg1.png')
    message = check_fails(
        semantic(semantic_dataset(maps)),
        'the value 3 (25.0% of it)',
        '3 classes are 0 to 2',
        'model.decode_head.ignore_index=255',
        where=maps / 'maps/train/a.jpg1.png',
    )
    assert 'auxiliary_head.1' in message
    check_fails(semantic(semantic_dataset(maps), model=model(3, 3)), 'the value 255')
    # that is what would have come of it
    with pytest.raises(IndexError, match='out of bounds'):
        torch.nn.functional.cross_entropy(
            torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 3]]]), ignore_index=255
        )


def test_heads_that_ignore_different_values(maps):
    cfg = semantic(semantic_dataset(maps), model=model(3, 255, 3))
    check_fails(cfg, 'holds the value 255', 'model.auxiliary_head.0.ignore_index=3')


def test_metrics_that_ignore_another_value_than_the_heads(maps):
    val = semantic_dataset(maps, 'val')
    metric = {'type': 'mmseg.IoUMetric', 'ignore_index': 7}
    cfg = semantic(semantic_dataset(maps), val, val_evaluator=metric)
    check_data(cfg)  # the maps hold neither value
    Image.fromarray(label_map(0, 1, 255)).save(maps / 'maps/val/b.png')
    check_fails(
        cfg,
        'the value 255',
        'model.decode_head.ignore_index=255',
        'val_evaluator.ignore_index=7',
        '; set all of these to 255',
        where=maps / 'maps/val/b.png',
    )
    cfg.val_evaluator = [{'type': 'Other'}, {**metric, 'ignore_index': 255}]
    check_data(cfg)
    cfg.test_evaluator = {**metric, 'ignore_index': 0}
    check_fails(cfg, 'test_evaluator.ignore_index=0')


def test_maps_of_0_and_255(tmp_path):
    """The objects are 255, which is ignored: training would see background alone."""
    write_label_maps(tmp_path, {str(i): label_map(0, 255) for i in range(2 * SAMPLE)})
    check_fails(
        semantic(semantic_dataset(tmp_path)),
        f'the 32 label maps hold only class {CLASSES[0]!r}',
        'values 0 to 2',
        where=TRAIN,
    )
    # a class that the sample lacks is looked for in the others
    Image.fromarray(label_map(0, 1)).save(tmp_path / 'maps/train/9.png')
    assert check_data(semantic(semantic_dataset(tmp_path)))[0].images == 2 * SAMPLE


def test_maps_that_are_pictures(maps):
    Image.new('RGB', (8, 6)).save(maps / 'maps/train/a.jpg0.png')
    file = maps / 'maps/train/a.jpg0.png'
    check_fails(semantic(semantic_dataset(maps)), '(6, 8, 3)', 'coloured', where=file)
    content = (maps / 'maps/train/a.jpg1.png').read_bytes()
    file.write_bytes(content[: len(content) // 2])
    check_fails(semantic(semantic_dataset(maps)), 'cannot be read', where=file)


def test_a_palette_does_not_matter(maps):
    image = Image.fromarray(label_map(0, 1, 2))
    image.putpalette([9, 200, 31] * 256)
    image.save(maps / 'maps/train/a.jpg0.png')
    assert Image.open(maps / 'maps/train/a.jpg0.png').mode == 'P'
    assert check_data(semantic(semantic_dataset(maps)))[0].images == 4


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_values_are_read_as_mmseg_loads_them(tmp_path, reduce_zero_label):
    from mmseg.datasets.transforms import LoadAnnotations

    values = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    values[:9] = 255
    file = tmp_path / 'map.png'
    Image.fromarray(values).save(file)
    results = {
        'seg_map_path': str(file), 'reduce_zero_label': reduce_zero_label, 'seg_fields': [],
    }  # fmt: skip
    loaded = LoadAnnotations()(results)['gt_seg_map']
    np.testing.assert_array_equal(read_map(str(file), reduce_zero_label), loaded)


def test_defaults_of_the_dataset_type(tmp_path):
    """ADE20K's type reduces the zero label by default, and its images end in ``.jpg``."""
    write_label_maps(tmp_path, {'a': label_map(0, 1, 150)})
    dataset = semantic_dataset(tmp_path, type='ADE20KDataset', metainfo={})
    (summary,) = check_data(semantic(dataset, model=model(150)))
    assert len(summary.classes) == 150
    dataset['reduce_zero_label'] = False
    check_fails(semantic(dataset, model=model(150)), 'the value 150')


@real_data
@pytest.mark.parametrize(
    'folder, photos, maps, ignore, images',
    [
        ('camvid', 'img_dir/{}', 'ann_dir/{}', 11, (40, 12)),
        ('nuclei', 'images/{}', 'semseg/{}', 255, (160, 60)),
    ],
)
def test_real_sets(folder, photos, maps, ignore, images):
    names = ('background', 'nucleus')
    if folder == 'camvid':
        names = tuple(Path(DATA, folder, 'classes.txt').read_text().split()[:-1])
    train, val = (
        {
            'type': 'BaseSegDataset',
            'data_root': str(Path(DATA, folder)),
            'data_prefix': {'img_path': photos.format(s), 'seg_map_path': maps.format(s)},
            'img_suffix': '.png',
            'metainfo': {'classes': names},
        }
        for s in ('train', 'val')
    )
    summaries = check_data(semantic(train, val, model=model(len(names), ignore)))
    assert tuple(summary.images for summary in summaries) == (*images, images[1])
    if folder == 'camvid':
        check_fails(semantic(train, model=model(11)), 'the value 11', '11 classes are 0 to 10')


def test_chosen_classes_are_labelled_as_mmseg_does(tmp_path):
    """Values 13 and 11 of Cityscapes are car and person, whatever the order of those chosen."""
    write_label_maps(tmp_path, {'a': label_map(13, 13, 11, 0), 'b': label_map(0)})
    classes = ('car', 'person')
    dataset = semantic_dataset(
        tmp_path,
        type='CityscapesDataset',
        metainfo={'classes': classes},
        img_suffix='.jpg',
        seg_map_suffix='.png',
    )
    (node,) = find_nodes(dataset, TRAIN, 'mmseg')
    labels = map_reader(node)(str(next(tmp_path.rglob('a.png'))))
    assert np.array_equal(labels, label_map(0, 0, 1, 255))
    check_data(semantic(dataset, model=model(2)))
    for file in tmp_path.rglob('a.png'):
        Image.fromarray(label_map(0, 1)).save(file)
    check_fails(semantic(dataset, model=model(2)), 'hold only class none', 'train')
