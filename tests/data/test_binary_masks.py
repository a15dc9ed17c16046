"""Masks as pictures: what counts as the object, and what is no mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine import Config
from PIL import Image

import res2net_mm  # noqa: F401  mmseg needs mmcv's operators
from res2net_mm.data.check.inspection import check_data, inspect_data
from res2net_mm.data.check.survey import format_summary
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.label_maps import read_binary_mask
from res2net_mm.data.transforms import LoadMaskAnnotations, harden_pipeline

SHAPE = (6, 8)


def values(*given: int, dtype: type = np.uint8) -> np.ndarray:
    return np.resize(np.array(given, dtype), SHAPE)


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, -1)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (128, 0, 0)
ONES = values(0, 1)
MASKS = {
    'ones': (ONES, ONES),
    'no object': (values(0), values(0)),
    'only object': (values(1), values(1)),
    'black and white': (values(0, 255), ONES),
    'grey': (values(0, 64, 127, 128, 129, 255), values(0, 0, 0, 0, 1, 1)),
    'one bit': (Image.fromarray(values(0, 255)).convert('1'), ONES),
    'grey in colours': (rgb(values(0, 255)), ONES),
    'opaque': (np.dstack([rgb(values(0, 255)), values(255)]), ONES),
    'palette of two': (palette(ONES, BLACK, RED), ONES),
    'palette of one': (palette(values(0), WHITE, RED), values(0)),
    'palette of greys': (palette(values(0, 2), BLACK, RED, WHITE), ONES),
}
NO_MASKS = {
    'label map': (values(0, 1, 2, 7), 'largest value is 7'),
    'half grey': (values(0, 128), 'largest value is 128'),
    'ignored': (values(0, 1, 255), '1 and 255'),
    'coloured': (np.dstack([values(0, 255), values(0), values(0)]), 'coloured'),
    'transparent': (np.dstack([rgb(values(0, 255)), values(0, 255)]), 'transparent'),
    'palette of colours': (palette(values(0, 1, 2), BLACK, RED, WHITE), 'coloured'),
    'palette with white first': (palette(ONES, WHITE, BLACK), '0 brighter than 1'),
    '16 bits': (values(0, 65535, dtype=np.uint16), 'mode is I;16'),
    'floats': (values(0, 1, dtype=np.float32), 'mode is F'),
}


def save(picture: np.ndarray | Image.Image, file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file)
    return str(file)


@pytest.mark.parametrize('name', MASKS)
def test_masks(name, tmp_path):
    picture, expected = MASKS[name]
    found = read_binary_mask(save(picture, tmp_path / 'mask.png'))
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_compressed_masks(tmp_path):
    """A JPEG has all kinds of grey near its edges."""
    truth = np.zeros((40, 40), np.uint8)
    truth[8:24, 8:32] = 255
    found = read_binary_mask(save(truth, tmp_path / 'mask.jpg'))
    np.testing.assert_array_equal(found, truth // 255)


@pytest.mark.parametrize('name', NO_MASKS)
def test_what_is_no_mask_is_named(name, tmp_path):
    picture, message = NO_MASKS[name]
    suffix = '.tif' if name == 'floats' else '.png'
    file = save(picture, tmp_path / f'mask{suffix}')
    with pytest.raises(DataError, match=f'{message}.*0 and 1, or in grey') as error:
        read_binary_mask(file)
    assert error.value.where == file


def test_step_of_a_pipeline(tmp_path):
    file = save(values(0, 255), tmp_path / 'mask.png')
    results = dict(img_path='a.jpg', seg_map_path=file, ori_shape=SHAPE, seg_fields=[])
    found = LoadMaskAnnotations().transform(dict(results))
    np.testing.assert_array_equal(found['gt_seg_map'], ONES)
    assert found['seg_fields'] == ['gt_seg_map']
    with pytest.raises(DataError, match='8 x 6 px, but its image a.jpg 6 x 8 px'):
        LoadMaskAnnotations().transform(dict(results, ori_shape=SHAPE[::-1], seg_fields=[]))
    (tmp_path / 'mask.png').write_bytes((tmp_path / 'mask.png').read_bytes()[:50])
    with pytest.raises(DataError, match='cannot be read'):
        LoadMaskAnnotations().transform(dict(results, seg_fields=[]))
    (step,) = harden_pipeline([dict(type='res2net_mm.LoadMaskAnnotations')])
    assert step == dict(type='res2net_mm.LoadMaskAnnotations')


@pytest.fixture
def config(tmp_path) -> Config:
    """Three images to train on and two to measure on, with masks of 0 and 255."""
    loaders = {}
    for split, count in (('train', 3), ('val', 2)):
        for i in range(count):
            photo = np.random.default_rng(10 * count + i).integers(0, 256, (*SHAPE, 3), np.uint8)
            save(photo, tmp_path / f'photos/{split}/{i}.png')
            save(values(0, 255), tmp_path / f'masks/{split}/{i}.png')
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path=f'photos/{split}', seg_map_path=f'masks/{split}'),
            img_suffix='.png',
            metainfo=dict(classes=('background', 'object')),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='res2net_mm.LoadMaskAnnotations')],
        )
        loaders[f'{split}_dataloader'] = dict(dataset=dataset)
    head = dict(num_classes=2, out_channels=1, ignore_index=255)
    return Config(dict(default_scope='mmseg', model=dict(decode_head=head), **loaders))


def test_data_check(config, tmp_path):
    summaries = check_data(config)
    assert format_summary(summaries).splitlines()[0] == 'train: 3 images with label maps, 2 classes'
    assert inspect_data(config, ['train', 'val']).findings.verdict == 'fit to train'
    plain = Config(config.to_dict())
    for split in ('train', 'val'):
        plain[f'{split}_dataloader'].dataset.pipeline[1].type = 'LoadAnnotations'
    with pytest.raises(DataError, match="only class 'background'"):  # 255 is ignored
        check_data(plain)
    save(values(0, 9), tmp_path / 'masks/val/1.png')
    with pytest.raises(DataError, match='val/1.png: its largest value is 9'):
        check_data(config)


def test_pictures_without_partner_are_named(config, tmp_path):
    (tmp_path / 'masks/train/2.png').rename(tmp_path / 'masks/train/two.png')
    with pytest.raises(DataError, match='masks/train/2.png: it is missing .1 of the 3'):
        check_data(config)
    found = inspect_data(config, ['train', 'val']).findings
    kinds = {(finding.kind, Path(finding.file).name) for finding in found}
    assert kinds == {('label maps missing', '2.png'), ('label map without image', 'two.png')}


def test_masks_without_object_cannot_be_trained_on(config, tmp_path):
    for i in range(3):
        save(values(0), tmp_path / f'masks/train/{i}.png')
    with pytest.raises(DataError, match="only class 'background'"):
        check_data(config)
