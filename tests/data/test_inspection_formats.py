"""The full check of data: every fault planted in VOC files and label maps is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from PIL import Image
from planting import (
    CLASSES_KEY,
    MAKERS,
    TRAIN,
    all_classes,
    error,
    file,
    found,
    half,
    make_voc,
    noise,
    options,
    turned,
    warning,
)
from written_sets import HEIGHT, WIDTH, voc_object, voc_xml

import res2net_mm  # noqa: F401  mmseg needs mmcv's operators
from res2net_mm.data.check.inspection import inspect_data


def photo(*objects: str, size: str | None = None) -> Callable[[Path, Config], None]:
    return file('Annotations/photo.1.xml', lambda f: f.write_text(voc_xml(*objects, size=size)))


VOC = {
    'swapped corners': (
        photo(voc_object('cat', (20, 4, 3, 30))), warning('swapped corners', 'photo.1.jpg'),
    ),
    'zero-size box': (
        photo(voc_object('cat', (20, 4, 20, 4))), warning('zero-size box', 'photo.1.jpg'),
    ),
    'outside': (
        photo(voc_object('cat', (70, 4, 80, 30))), warning('box outside the image', 'photo.1.jpg'),
    ),
    'beyond the border': (
        photo(voc_object('cat', (20, 4, 63, 30))), warning('box beyond the border', 'photo.1.jpg'),
    ),
    'whole image': (photo(voc_object('cat', (0, 0, WIDTH, HEIGHT))), set()),
    'NaN': (
        photo(voc_object('cat', (20, 4, 'nan', 30))), error('broken annotation', 'photo.1.xml'),
    ),
    'object twice': (
        photo(*[voc_object('cat', (3, 4, 20, 30))] * 2), warning('object twice', 'photo.1.jpg'),
    ),
    'another size': (
        photo(size='<size><width>61</width><height>40</height></size>'),
        error('image of another size', 'photo.1.jpg'),
    ),
    'width for height': (
        photo(voc_object('cat', (3, 4, 20, 30)),
              size='<size><width>40</width><height>60</height></size>'),
        warning('width and height swapped', 'photo.1.jpg'),
    ),
    'width for height, boxes too': (
        photo(voc_object('cat', (3, 4, 30, 60)),
              size='<size><width>40</width><height>60</height></size>'),
        error('image of another size', 'photo.1.jpg'),
    ),
    'no size': (photo(voc_object('cat', (3, 4, 20, 30)), size=''), set()),
    'no xml': (
        file('Annotations/photo.1.xml', Path.unlink),
        error('annotation files missing', 'photo.1.xml'),
    ),
    'a folder for an xml file': (
        file('Annotations/photo.1.xml', lambda f: (f.unlink(), f.mkdir())),
        error('annotation files missing', 'photo.1.xml'),
    ),
    'a list that is no text': (
        file('train.txt', lambda f: f.write_bytes(b'\xff\xfe\x80')),
        error('files', 'train.txt')
        | {('warning', 'image not listed', 'val', f'photo.{i}.jpg') for i in range(4)},
    ),
    'broken xml': (
        file('Annotations/photo.6.xml', half), error('broken annotation', 'photo.6.xml', 'val'),
    ),
    'image missing': (
        file('JPEGImages/photo.1.jpg', Path.unlink), error('images missing', 'photo.1.jpg'),
    ),
    'image not listed': (
        file('JPEGImages/other.jpg', noise),
        warning('image not listed', 'other.jpg'),
    ),
    'listed twice': (
        file('train.txt', lambda f: f.write_text(f.read_text() + 'photo.0\n')),
        warning('image listed twice', 'photo.0.jpg'),
    ),
    'blank': (
        file('train.txt', lambda f: f.write_text(f.read_text() + '\n \n')),
        error('blank in a list', 'train.txt'),
    ),
    'in both splits': (
        file('val.txt', lambda f: f.write_text(f.read_text() + 'photo.0\n')),
        warning('split overlap', 'photo.0.jpg', 'val'),
    ),
    'misspelt name': (
        photo(voc_object('Cats', (3, 4, 20, 30))), warning('name like a class', 'photo.1.jpg'),
    ),
    'another name': (photo(voc_object('submarine', (3, 4, 20, 30))), set()),
    'misspelt class': (
        all_classes(('cat', 'dgo', 'horse')),
        error('classes', 'train.txt') | warning('class without objects', CLASSES_KEY),
    ),
}  # fmt: skip


def saved(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


def cells(*values: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), size)


def every_map(*values: int) -> Callable[[Path, Config], None]:
    def change(root: Path, cfg: Config) -> None:
        for i in range(4):
            saved(cells(*values))(root / f'maps/train/{i}.png')

    return change


MAPS = {
    'no class': (
        file('maps/train/1.png', saved(cells(0, 1, 2, 3))),
        error('value that is no class', '1.png'),
    ),
    'ignored otherwise': (
        options(model__decode_head__ignore_index=11),
        {('error', 'value that is no class', 'train', f'{i}.png') for i in range(4)}
        | {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric ignores another': (
        options(val_evaluator={'type': 'IoUMetric', 'ignore_index': 7}),
        {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric of the test set ignores another': (
        options(test_evaluator=[{'type': 'IoUMetric', 'ignore_index': 7}]),
        {('error', 'value that is no class', 'val', f'{i}.png') for i in range(3)},
    ),
    'metric ignores the same': (options(val_evaluator={'type': 'A', 'ignore_index': 255}), set()),
    'all ignored': (
        file('maps/train/1.png', saved(cells(255))), warning('label map all ignored', '1.png'),
    ),
    'another size': (
        file('maps/val/1.png', saved(cells(0, 1, size=(WIDTH, HEIGHT)))),
        error('label map of another size', '1.png', 'val'),
    ),
    'missing': (file('maps/train/1.png', Path.unlink), error('label maps missing', '1.png')),
    'coloured': (
        file('maps/train/1.png', noise), error('coloured label map', '1.png'),
    ),
    'truncated': (file('maps/train/1.png', half), error('label map unreadable', '1.png')),
    '16 bits': (
        file('maps/train/1.png', saved(cells(0, 1).astype(np.uint16))),
        warning('label map of 16 bits', '1.png'),
    ),
    'a class without pixels': (
        every_map(0, 1), warning('class without pixels', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'a single class': (
        every_map(0, 255),
        error('a single class', TRAIN) | warning('class without pixels', CLASSES_KEY)
        | warning('class never trained', 'val_dataloader.dataset.metainfo.classes', 'val'),
    ),
    'label map without image': (
        file('maps/train/other.png', saved(cells(0, 1))),
        warning('label map without image', 'other.png'),
    ),
    'image of another format': (
        file('photos/train/other.png', noise), warning('image not listed', 'other.png'),
    ),
    'truncated image': (
        file('photos/train/1.jpg', half), error('image unreadable', '1.jpg'),
    ),
    'EXIF turns the image': (
        file('photos/train/1.jpg', turned(6, (WIDTH, HEIGHT))),
        error('label map of another size', '1.png'),
    ),
    'in both splits': (
        file('photos/val/1.jpg',
             lambda f: f.write_bytes((f.parents[1] / 'train/1.jpg').read_bytes())),
        warning('split overlap', '1.jpg', 'val'),
    ),
}  # fmt: skip


FAULTS = {'voc': VOC, 'maps': MAPS}


@pytest.mark.parametrize('form, fault', [(form, name) for form in FAULTS for name in FAULTS[form]])
def test_it_is_found_and_nothing_else(tmp_path, form, fault):
    cfg = MAKERS[form](tmp_path)
    plant, expected = FAULTS[form][fault]
    plant(tmp_path, cfg)
    findings = inspect_data(cfg, workers=1).findings
    assert found(findings) == expected
    errors = sum(severity == 'error' for severity, *_ in expected)
    assert findings.errors >= errors and (findings.verdict == 'fit to train') == (not errors)
    for finding in findings:
        # what is wrong and what to do are two sentences of a line each
        for said in (finding.what, finding.remedy):
            assert said and '\n' not in said and said[-1] not in ';.'


def test_images_of_a_folder_that_splits_share(tmp_path):
    """An image that another split lists is not left over, though that split is not looked at."""
    cfg = make_voc(tmp_path)
    assert found(inspect_data(cfg, ['train']).findings) == set()
