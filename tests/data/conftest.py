"""Fixtures that several tests of data share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine import Config
from planting import SHAPES, coco_config
from written_sets import coco_content, voc_annotations, write_coco, write_voc


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder with a COCO set: 3 images to train on, 2 to measure on."""
    write_coco(tmp_path, coco_content())
    write_coco(tmp_path, coco_content(2), 'val')
    return tmp_path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder with a VOC set: 3 images to train on, 2 to measure on."""
    write_voc(tmp_path, voc_annotations())
    write_voc(tmp_path, voc_annotations(2), 'val')
    return tmp_path


@pytest.fixture(scope='module')
def shapes_config(shapes: Path) -> Config:
    """The synthetic set of tests/conftest.py."""
    return coco_config(shapes, '{}/', SHAPES)


@pytest.fixture
def faulty(tmp_path: Path, shapes: Path) -> Config:
    """A copy of the synthetic set's json in which one box of the last training image is broken."""
    file = shapes / 'annotations/instances_train.json'
    content = json.loads(file.read_text())
    box = next(a for a in content['annotations'] if a['image_id'] == content['images'][-1]['id'])
    box['bbox'] = [40, 50, 0, 60]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    cfg = coco_config(shapes, '{}/', SHAPES)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'train.json')
    return cfg
