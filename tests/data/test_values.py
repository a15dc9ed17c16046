"""What reading does to an image's values, against the values that are read."""

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.images import value_notes
from res2net_mm.data.transforms import LoadImageFromFile

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), np.uint16)
ALPHA = np.dstack([COLOURS, np.full((9, 7), 128, np.uint8)])


@pytest.mark.parametrize(
    'name, pixels, by, rounded',
    [
        ('a.png', DEEP, 256, np.floor),
        ('a.png', DEEP[..., 0], 256, np.floor),
        ('a.tif', DEEP[..., 0], 256, np.floor),
        ('a.tif', DEEP, 257, np.round),
    ],
)
def test_sixteen_bits(name, pixels, by, rounded, tmp_path):
    full, dark = tmp_path / name, tmp_path / f'dark_{name}'
    cv2.imwrite(str(full), pixels)
    cv2.imwrite(str(dark), pixels >> 4)  # 12 bits
    colours = np.broadcast_to(pixels.reshape(9, 7, -1), (9, 7, 3))
    assert (mmcv.imread(str(full)) == rounded(colours / by)).all()
    assert (mmcv.imread(str(dark)) == rounded((colours >> 4) / by)).all()
    assert value_notes(full) == [f'16-bit values were divided by {by}']
    divided, why = value_notes(dark)
    assert divided == value_notes(full)[0] and '12 of 16 bits' in why and 'by 16 first' in why


def test_plain_images_have_no_note(tmp_path):
    for name, pixels in {'a.png': COLOURS, 'b.jpg': COLOURS, 'c.png': COLOURS[..., 0]}.items():
        cv2.imwrite(str(tmp_path / name), pixels)
        assert value_notes(tmp_path / name) == []


@pytest.mark.parametrize(
    'name, image, word',
    [
        ('a.png', Image.fromarray(ALPHA), 'alpha channel was dropped'),
        ('a.webp', Image.fromarray(ALPHA), 'alpha channel was dropped'),
        ('a.tif', Image.fromarray(ALPHA), 'multiplied'),
        ('a.png', Image.fromarray(COLOURS).quantize(8), 'palette'),
        ('a.bmp', Image.fromarray(COLOURS).quantize(8), 'palette'),
        ('a.jpg', Image.fromarray(COLOURS).convert('CMYK'), 'CMYK'),
    ],
)
def test_notes(name, image, word, tmp_path):
    image.save(tmp_path / name)
    (note,) = value_notes(tmp_path / name)
    assert word in note
    read = mmcv.imread(str(tmp_path / name), channel_order='rgb').astype(int)
    if name == 'a.png' and word != 'palette':
        assert (read == COLOURS).all()
    if word == 'multiplied':
        assert np.abs(read - COLOURS * (128 / 255)).max() < 1
    if word == 'palette':
        assert (read == np.array(image.convert('RGB'))).all()


def test_pages(tmp_path):
    pages = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
    assert value_notes(tmp_path / 'a.tif') == ['only the first of 2 pages was read']
    assert (mmcv.imread(str(tmp_path / 'a.tif'), channel_order='rgb') == COLOURS).all()


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_values_that_are_no_colours_are_named(kind, tmp_path):
    Image.fromarray(COLOURS[..., 0].astype(kind)).save(tmp_path / 'a.tif')
    with pytest.raises(DataError, match='a.tif: .* 8 bits'):
        LoadImageFromFile().transform(dict(img_path=str(tmp_path / 'a.tif')))
