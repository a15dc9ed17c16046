"""YOLO label files and masks as COCO json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from written_sets import HEIGHT, WIDTH, write_image

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.convert.formats import masks2coco, yolo2coco
from res2net_mm.data.errors import DataError


def written(file: Path) -> dict:
    return json.loads(file.read_text())


def fails(call, *args, said: tuple[str, ...], **kwargs) -> None:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for part in said:
        assert part in message, f'{part!r} is not in: {message}'


def write_yolo(root: Path, labels: dict[str, str | None], classes: str = 'cat\ndog\n') -> None:
    """Images of 60 x 40 px; None: without a label file."""
    for name, text in labels.items():
        write_image(root / 'images' / f'{name}.jpg')
        file = root / 'labels' / f'{name}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            file.write_text(text)
    (root / 'classes.txt').write_text(classes)


def test_boxes_and_polygons_by_hand(tmp_path):
    write_yolo(
        tmp_path,
        {
            'b': '1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.5 0.1 0.5 0.6\n',
            'a': '',
            'sub/c.1': None,
            'd': '0 0.05 0.5 0.2 0.1',  # from -0.05: cut at the border
        },
    )
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    content = written(tmp_path / 'out.json')
    assert content['images'] == [
        {'id': i, 'file_name': name, 'width': WIDTH, 'height': HEIGHT}
        for i, name in enumerate(('a.jpg', 'b.jpg', 'd.jpg', 'sub/c.1.jpg'), 1)
    ]
    box, polygon, cut = content['annotations']
    assert (box['image_id'], box['category_id'], box['iscrowd']) == (2, 2, 0)
    assert box['bbox'] == [15, 15, 30, 10] and box['area'] == 300
    assert 'segmentation' not in box
    assert polygon['category_id'] == 1
    assert polygon['bbox'] == pytest.approx([6, 4, 24, 20])
    assert polygon['segmentation'] == [pytest.approx([6, 4, 30, 4, 30, 24])]
    assert polygon['area'] == pytest.approx(240)  # half of the box's 480
    assert cut['bbox'] == pytest.approx([0, 18, 9, 4])
    assert (report.images, report.without_objects) == (4, 2)
    assert report.objects == {'cat': 2, 'dog': 1}
    assert not report.left_out.counts
    assert report.notes.counts == {'object that reached over the border of its image': 1}


def test_what_yolo_files_have_wrong_is_told(tmp_path):
    lines = [
        '0 0.5 0.5 0.5 0.25',
        '0 0.5 0.5 0.5 0.25',
        '0 0.5 0.5 0.5',
        '0 0.5 0.5 0.5 0.25 0.9',
        '0 0.1 0.1 0.2 0.2 0.3 0.3 0.4',
        'cat 0.5 0.5 0.5 0.25',
        '2 0.5 0.5 0.5 0.25',
        '-1 0.5 0.5 0.5 0.25',
        '0.5 0.5 0.5 0.5 0.25',
        '0 nan 0.5 0.5 0.25',
        '0 0.5 0.5 0 0.25',
        '1 0.5 0.5 -0.1 0.25',
        '0 320 200 64 64',
        '0 0.1 0.1 0.2 0.2 0.3 0.3',  # a polygon without area
    ]
    write_yolo(tmp_path, {'a': '\n'.join(lines)})
    (tmp_path / 'labels/b.txt').write_text('0 0.5 0.5 0.5 0.25')
    (tmp_path / 'labels/classes.txt').write_text('cat')
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    assert len(written(tmp_path / 'out.json')['annotations']) == 1
    assert report.left_out.counts == {
        'line that is there before': 1,
        'line that is no class with a box or polygon': 4,
        'object of class 2, of 2 from 0': 1,
        'object of class -1, of 2 from 0': 1,
        'object of class 0.5, of 2 from 0': 1,
        'box that is not finite': 1,
        'box of no size': 3,
        'object with coordinates in pixels, where YOLO has shares of the image from 0 to 1': 1,
        'label file without image': 1,
    }
    assert report.left_out.examples['box that is not finite'] == [
        f'{tmp_path}/labels/a.txt line 10'
    ]


@pytest.mark.parametrize('name', ['data.yaml', 'classes.txt'])
def test_names_in_another_encoding_are_named(tmp_path, name):
    write_yolo(tmp_path, {'a': '0 0.5 0.5 0.5 0.25'})
    (tmp_path / name).write_text('names: [cat]', encoding='utf-16')
    fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=(name, 'UTF-8'))
    (tmp_path / name).write_text('[' * 5000)
    if name == 'data.yaml':
        fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=(name, 'YAML'))


def test_yolo_boxes_written_as_corners_are_an_error(tmp_path):
    corners = ['0.1 0.2 0.3 0.4', '0.5 0.5 0.9 0.8', '0.2 0.1 0.7 0.9', '0.6 0.3 0.8 0.6',
               '0 0 0.2 0.2']  # fmt: skip
    write_yolo(tmp_path, {'a': '\n'.join(f'0 {box}' for box in corners)})
    fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=('labels', '5 boxes', 'x1 y1 x2 y2'))
    assert not (tmp_path / 'out.json').exists()
    # large objects about the middle would fit both ways
    large = [f'0 {0.4 + i / 100} 0.45 0.8 0.9' for i in range(5)]
    write_yolo(tmp_path, {'a': '\n'.join(large)})
    assert sum(yolo2coco(tmp_path, tmp_path / 'out.json').objects.values()) == 5


def test_what_is_no_file_is_left_out(tmp_path):
    write_yolo(tmp_path, {'a': '0 0.5 0.5 0.5 0.25'})
    os.mkfifo(tmp_path / 'images/pipe.jpg')
    os.symlink(tmp_path / 'images/loop.jpg', tmp_path / 'images/loop.jpg')
    (tmp_path / 'images/folder.jpg').mkdir()
    (tmp_path / 'images/._a.jpg').write_bytes(b'of macOS')
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    assert report.images == 1 and report.left_out.counts == {'image that cannot be read': 4}


@pytest.mark.parametrize(
    ('yaml', 'names'),
    [
        ('names: [cat, dog]', ['cat', 'dog']),
        ('train: images/train\nnames:\n  1: dog\n  0: cat\n', ['cat', 'dog']),
        ('names: [1, yes]', ['1', 'True']),
    ],
)
def test_class_names_of_the_yaml_come_first(tmp_path, yaml, names):
    write_yolo(tmp_path, {'a': '1 0.5 0.5 0.5 0.25'}, 'other\nnames\n')
    (tmp_path / 'data.yaml').write_text(yaml)
    yolo2coco(tmp_path, tmp_path / 'out.json')
    content = written(tmp_path / 'out.json')
    assert [category['name'] for category in content['categories']] == names
    assert content['annotations'][0]['category_id'] == 2


# each list has ten times the one before: 10**9 words, written out
LAUGHS = 'l0: &l0 x\n' + ''.join(
    f'l{i}: &l{i} [{", ".join([f"*l{i - 1}"] * 10)}]\n' for i in range(1, 10)
)
LAUGHS += 'names: [*l9]'


def test_mistakes_in_yolo_sets(tmp_path):
    out = tmp_path / 'out.json'
    fails(yolo2coco, tmp_path, out, said=(f'no folder {tmp_path}/labels', '--labels'))
    write_yolo(tmp_path, {'a': '1 0.5 0.5 0.5 0.25'})
    (tmp_path / 'classes.txt').unlink()
    fails(yolo2coco, tmp_path, out, said=('no data.yaml and no classes.txt', '--classes'))
    for text, said in (
        ('names: [a', 'is not valid YAML'),
        ('nc: 2', 'has no names of classes'),
        ('names: {1: a, 2: b}', 'numbered from 0'),
        ('names: 7', 'no list of names'),
        (LAUGHS, 'no list of names'),
        ('!!python/object/apply:os.system ["touch hacked"]', 'is not valid YAML'),
    ):
        (tmp_path / 'data.yaml').write_text(text)
        fails(yolo2coco, tmp_path, out, said=('data.yaml', said))
    (tmp_path / 'labels/a.txt').write_text('0 320 200 64 64')  # pixels
    pixels = 'no object can be used', 'coordinates in pixels'
    fails(yolo2coco, tmp_path, out, classes=['a'], said=pixels)
    (tmp_path / 'labels/a.txt').write_text('0 12 8 40 8 40 30 12 30')  # a polygon
    fails(yolo2coco, tmp_path, out, classes=['a'], said=pixels)
    fails(yolo2coco, tmp_path, out, images='photos', classes='a', said=('no folder', 'photos'))
    (tmp_path / 'photos').mkdir()
    fails(yolo2coco, tmp_path, out, images='photos', classes='a', said=('no image is in',))
    assert not out.exists() and not (tmp_path / 'hacked').exists()


def test_the_synthetic_set_there_and_back(shapes, tmp_path):
    """Boxes, and the polygons of those that are in one piece."""
    coco = written(shapes / 'annotations/instances_val.json')
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'images').symlink_to(shapes / 'val')
    boxes, areas = [], []
    for image in coco['images']:
        lines = []
        for annotation in coco['annotations']:
            if annotation['image_id'] != image['id']:
                continue
            x, y, width, height = annotation['bbox']
            values, area = [x + width / 2, y + height / 2, width, height], width * height
            if isinstance(annotation['segmentation'], list):
                values, area = annotation['segmentation'][0], annotation['area']
            shares = (value / image[('width', 'height')[i % 2]] for i, value in enumerate(values))
            lines.append(f'{annotation["category_id"] - 1} {" ".join(map(repr, shares))}\n')
            boxes.append(annotation['bbox'])
            areas.append(area)
        (tmp_path / f'labels/{Path(image["file_name"]).stem}.txt').write_text(''.join(lines))
    classes = (shapes / 'classes.txt').read_text().split()
    yolo2coco(tmp_path, tmp_path / 'out.json', classes=classes)
    found = written(tmp_path / 'out.json')['annotations']
    assert np.allclose([one['bbox'] for one in found], boxes, rtol=0, atol=1e-9)
    assert np.allclose([one['area'] for one in found], areas, rtol=0, atol=1e-6)
    kinds = ['segmentation' in one for one in found]
    assert any(kinds)
    assert [one['category_id'] for one in found] == [
        one['category_id'] for one in coco['annotations']
    ]


def save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def test_instance_masks_by_hand(tmp_path):
    """Numbers with gaps and beyond 8 bits, an object in two pieces, an image without objects."""
    values = np.zeros((3, 4), np.uint16)
    values[:, 1] = 300
    values[0, 0] = values[2, 3] = 7
    for name in ('a', 'b', 'without'):
        write_image(tmp_path / f'images/{name}.png', (4, 3))
    save(tmp_path / 'masks/a.png', values)
    save(tmp_path / 'masks/b.png', np.zeros((3, 4), np.uint8))
    report = masks2coco(
        tmp_path / 'images', tmp_path / 'masks', tmp_path / 'out.json', 'instances',
        classes=['cell'],
    )  # fmt: skip
    content = written(tmp_path / 'out.json')
    assert [image['file_name'] for image in content['images']] == ['a.png', 'b.png']
    two, column = content['annotations']
    # down the columns: 3 without, 3 with, 6 without; each digit is its character
    assert column['segmentation'] == {'size': [3, 4], 'counts': '336'}
    assert (column['bbox'], column['area']) == ([1, 0, 1, 3], 3)
    # 0 without, 1 with, 10 without, 1 with as itself less the run before the last: 0
    assert two['segmentation'] == {'size': [3, 4], 'counts': '01:0'}
    assert (two['bbox'], two['area']) == ([0, 0, 4, 3], 2)
    assert [one['category_id'] for one in content['annotations']] == [1, 1]
    assert report.left_out.counts == {'image without mask': 1}
    assert report.without_objects == 1


def test_label_maps_by_hand(tmp_path):
    values = np.array(
        [
            [1, 1, 0, 2, 9],
            [0, 0, 1, 0, 255],
            [2, 0, 0, 0, 1],
        ],
        np.uint8,
    )
    write_image(tmp_path / 'images/a.jpg', (5, 3))
    save(tmp_path / 'masks/a.png', values)
    arguments = (tmp_path / 'images', tmp_path / 'masks', tmp_path / 'out.json', 'labels')
    report = masks2coco(*arguments, classes=['cat', 'dog'])
    content = written(tmp_path / 'out.json')
    found = [(one['category_id'], one['bbox'], one['area']) for one in content['annotations']]
    # pieces hang together by corners as well; 0 is background, 255 is to be ignored
    assert found == [
        (1, [0, 0, 3, 2], 3),
        (1, [4, 2, 1, 1], 1),
        (2, [3, 0, 1, 1], 1),
        (2, [0, 2, 1, 1], 1),
    ]
    assert report.left_out.counts == {'class of value 9, of 1 to 2': 1}

    masks2coco(*arguments, classes=['dog'], first=2, ignore=(255, 9), force=True)
    content = written(tmp_path / 'out.json')
    assert [one['bbox'] for one in content['annotations']] == [[3, 0, 1, 1], [0, 2, 1, 1]]


def decoded(coco: dict) -> dict[str, list[np.ndarray]]:
    """The masks of every image, of json files in either form."""
    index = COCO()
    index.dataset = coco
    index.createIndex()
    return {
        image['file_name']: [index.annToMask(one) for one in index.imgToAnns[image['id']]]
        for image in coco['images']
    }


@pytest.mark.parametrize('kind', ['instances', 'binary'])
def test_masks_of_the_synthetic_set_there_and_back(shapes, tmp_path, kind):
    coco = written(shapes / 'annotations/instances_val.json')
    masks = decoded(coco)
    for file, objects in masks.items():
        stem = tmp_path / 'masks' / Path(file).stem
        numbers = np.zeros(objects[0].shape, np.uint8)
        for i, mask in enumerate(objects, 1):
            numbers[mask > 0] = i
            if kind == 'binary':
                save(stem / f'{i:03}.png', 255 * mask)
        if kind == 'instances':
            save(stem.with_name(f'{stem.name}.png'), numbers)
    out = tmp_path / 'out.json'
    masks2coco(shapes / 'val', tmp_path / 'masks', out, kind, classes=['thing'])
    ours = written(out)
    for key in ('bbox', 'area'):
        assert [one[key] for one in ours['annotations']] == [
            one[key] for one in coco['annotations']
        ]
    for file, objects in decoded(ours).items():
        assert len(objects) == len(masks[file])
        assert all(np.array_equal(*pair) for pair in zip(objects, masks[file], strict=True))


def test_label_maps_of_the_synthetic_set_come_back_whole_and_load(shapes, tmp_path):
    out = tmp_path / 'out.json'
    classes = (shapes / 'classes.txt').read_text().split()
    masks2coco(shapes / 'val', shapes / 'semseg/val', out, 'labels', classes=classes)
    ours = written(out)
    for image in ours['images']:
        stem = Path(image['file_name']).stem
        values = np.array(Image.open(shapes / f'semseg/val/{stem}.png'))
        again = np.zeros_like(values)
        for one in ours['annotations']:
            if one['image_id'] == image['id']:
                again += one['category_id'] * rle.decode(one['segmentation'])
        assert np.array_equal(again, values)

    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoDataset', ann_file=str(out), data_prefix={'img': f'{shapes}/val/'},
                metainfo={'classes': classes}, pipeline=pipeline, test_mode=True,
            )
        )  # fmt: skip
    masks = dataset[0]['gt_masks']
    areas = [one['area'] for one in ours['annotations'] if one['image_id'] == 1]
    assert masks.areas.tolist() == areas


def test_what_masks_have_wrong_is_told(tmp_path):
    folders = (tmp_path / 'images', tmp_path / 'masks')
    for name in ('a', 'b'):
        write_image(folders[0] / f'{name}.jpg', (4, 3))
    save(folders[1] / 'a/1.png', np.full((3, 4), 255, np.uint8))
    save(folders[1] / 'a/2.png', np.zeros((3, 4), np.uint8))
    save(folders[1] / 'a/3.png', np.full((4, 3), 255, np.uint8))
    save(folders[1] / 'a/4.png', np.full((3, 4, 4), 255, np.uint8))  # grey in four channels
    (folders[1] / 'b').mkdir()
    out = tmp_path / 'out.json'
    report = masks2coco(*folders, out, 'binary', classes=['cell'])
    assert report.left_out.counts == {
        'box of no size': 1,
        'mask of another size than its image': 1,
    }
    assert (report.images, report.without_objects, report.objects) == (2, 1, {'cell': 2})

    arguments = dict(classes=['cell'], force=True)
    save(folders[1] / 'a/5.png', np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    fails(masks2coco, *folders, out, 'binary', **arguments, said=('5.png: it is a colour image',))
    (folders[1] / 'a/5.png').write_bytes(b'no png')
    fails(masks2coco, *folders, out, 'binary', **arguments, said=('5.png cannot be read',))
    fails(masks2coco, *folders, out, 'panoptic', **arguments, said=('kind must be', "'panoptic'"))
    for kind, classes in (('instances', ['a', 'b']), ('binary', []), ('labels', [])):
        fails(masks2coco, *folders, out, kind, classes=classes, force=True, said=('classes must',))
    fails(masks2coco, folders[0], tmp_path / 'no', out, 'labels', **arguments, said=('no folder',))
    fails(masks2coco, *folders, out, 'labels', **arguments, said=('no image can be used', '2 x'))


def test_real_label_maps(real_data, tmp_path):
    folder = real_data / 'nuclei'
    images = folder / 'images/val' if (folder / 'images/val').is_dir() else folder / 'images'
    out = tmp_path / 'out.json'
    report = masks2coco(images, folder / 'semseg/val', out, 'labels', classes=['nucleus'])
    content = written(out)
    for image in content['images'][:5]:
        file = folder / 'semseg/val' / Path(image['file_name']).with_suffix('.png').name
        pixels = int((np.array(Image.open(file)) == 1).sum())
        assert pixels == sum(
            one['area'] for one in content['annotations'] if one['image_id'] == image['id']
        )
    assert report.images == 60
    assert all(math.prod(one['bbox'][2:]) >= one['area'] for one in content['annotations'])
