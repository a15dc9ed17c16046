"""Small data sets that the tests of this folder write, and configs that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from PIL import Image

from res2net_mm.data.check.inspection import check_data
from res2net_mm.data.errors import DataError

DATA = os.environ.get('RES2NET_MM_DATA')
real_data = pytest.mark.skipif(not DATA, reason='RES2NET_MM_DATA, the real data, is not set')

CLASSES = ('cat', 'dog', 'horse')
WIDTH, HEIGHT = 60, 40


def write_image(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (90, 120, 60)).save(file)


def coco_box(number: int, image: int, category: int, bbox: list, **more: object) -> dict:
    area = bbox[2] * bbox[3]
    return {
        'id': number, 'image_id': image, 'category_id': category, 'bbox': bbox, 'area': area,
        'iscrowd': 0, **more,
    }  # fmt: skip


def coco_content(images: int = 3) -> dict:
    """Every class once an image; ids start at 7 and have gaps."""
    return {
        'images': [
            {'id': 10 * i, 'file_name': f'{i}.jpg', 'width': WIDTH, 'height': HEIGHT}
            for i in range(images)
        ],
        'annotations': [
            coco_box(3 * i + label, 10 * i, 7 + 5 * label, [2, 3, 10 + label, 12])
            for i in range(images)
            for label in range(len(CLASSES))
        ],
        'categories': [{'id': 7 + 5 * i, 'name': name} for i, name in enumerate(CLASSES)],
    }


def write_coco(root: Path, content: dict, split: str = 'train') -> Path:
    for image in content['images']:
        size = image['width'], image['height']
        write_image(root / split / image['file_name'], size)
    file = root / f'{split}.json'
    file.write_text(json.dumps(content))
    return file


def coco_dataset(root: Path, split: str = 'train', **more: object) -> dict:
    return {
        'type': 'CocoDataset',
        'data_root': str(root),
        'ann_file': f'{split}.json',
        'data_prefix': {'img': f'{split}/'},
        'metainfo': {'classes': CLASSES},
        'pipeline': [],
        **({} if split == 'train' else {'test_mode': True}),
        **more,
    }


def voc_object(name: str, box: tuple, difficult: str = '<difficult>0</difficult>') -> str:
    sides = zip(('ymax', 'xmin', 'ymin', 'xmax'), (box[3], box[0], box[1], box[2]), strict=True)
    corners = ''.join(f'<{side}>{value}</{side}>' for side, value in sides)
    return f'<object><bndbox>{corners}</bndbox>{difficult}<name>{name}</name></object>'


def voc_xml(*objects: str, size: str | None = None) -> str:
    if size is None:
        size = f'<size><height>{HEIGHT}</height><width>{WIDTH}</width></size>'
    return f'<annotation>{"".join(objects)}{size}</annotation>'


def voc_annotations(images: int = 3) -> dict[str, str]:
    """Every class once an image."""
    return {
        f'photo.{i}': voc_xml(*(voc_object(name, (3, 4, 20, 30)) for name in CLASSES))
        for i in range(images)
    }


def write_voc(root: Path, annotations: dict[str, str], split: str = 'train') -> Path:
    (root / 'Annotations').mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        (root / 'Annotations' / f'{name}.xml').write_text(text)
        write_image(root / 'JPEGImages' / f'{name}.jpg')
    names = root / f'{split}.txt'
    names.write_text(''.join(f'{name}\n' for name in annotations))
    return names


def voc_dataset(root: Path, split: str = 'train', **more: object) -> dict:
    return {
        'type': 'VOCDataset',
        'data_root': str(root),
        'ann_file': f'{split}.txt',
        'data_prefix': {'sub_data_root': ''},
        'metainfo': {'classes': CLASSES},
        'pipeline': [],
        **({} if split == 'train' else {'test_mode': True}),
        **more,
    }


def write_label_maps(root: Path, maps: dict[str, np.ndarray], split: str = 'train') -> None:
    (root / 'maps' / split).mkdir(parents=True)
    for name, values in maps.items():
        write_image(root / 'photos' / split / f'{name}.jpg', values.shape[1::-1])
        Image.fromarray(values).save(root / 'maps' / split / f'{name}.png')


def semantic_dataset(root: Path, split: str = 'train', **more: object) -> dict:
    return {
        'type': 'BaseSegDataset',
        'data_root': str(root),
        'data_prefix': {'img_path': f'photos/{split}', 'seg_map_path': f'maps/{split}'},
        'metainfo': {'classes': CLASSES},
        'pipeline': [],
        **more,
    }


def config(train: dict, val: dict | None = None, scope: str = 'mmdet', **more: object) -> Config:
    """A config with these datasets, ``val`` for test as well."""
    loaders = {'train_dataloader': {'dataset': train}}
    if val is not None:
        loaders |= {f'{split}_dataloader': {'dataset': val} for split in ('val', 'test')}
    return Config({'default_scope': scope, **loaders, **more})


def check_fails(cfg: Config, *said: str, where: str | Path | None = None) -> str:
    """The one-line message of the check's error, which holds all of ``said``.

    Args:
        cfg: What is checked.
        said: Parts of the message.
        where: The file or config key that the error must name.
    """
    with pytest.raises(DataError) as caught:
        check_data(cfg)
    message = str(caught.value)
    assert '\n' not in message and caught.value.what and caught.value.where
    if where is not None:
        assert caught.value.where == str(where)
    for part in said:
        assert part in message, f'{part!r} is not in: {message}'
    return message
