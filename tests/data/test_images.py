"""Headers of images: what they say, and that images which would take all memory are refused."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from running import memory_for

from res2net_mm.data.convert.formats import masks2coco
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.images import (
    ORIENTATION,
    Header,
    check_pixels,
    read_header,
    value_notes,
)
from res2net_mm.data.sets.label_maps import read_map
from res2net_mm.data.transforms import LoadImageFromFile

SIDE = 30_000


def png(side):
    """Black and white, all black."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-side // 8)) * side))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )


def patched(tmp_path, suffix, at, form, step):
    """A small image whose header says that it is large."""
    path = tmp_path / f'small.{suffix}'
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    start = at(content)
    for place in (start, start + step):
        struct.pack_into(form, content, place, SIDE)
    return bytes(content)


def tiff_sides(content):
    """Length and width stand in tags of 12 bytes, one after the other."""
    place = int.from_bytes(content[4:8], 'little') + 2
    assert content[place : place + 2] == b'\x00\x01'
    return place + 8


FILES = {
    'png': lambda tmp_path: png(SIDE),
    'jpg': lambda t: patched(t, 'jpg', lambda c: c.index(b'\xff\xc0') + 5, '>H', 2),
    'bmp': lambda t: patched(t, 'bmp', lambda c: 18, '<i', 4),
    'gif': lambda t: patched(t, 'gif', lambda c: 6, '<H', 2),
    'tif': lambda t: patched(t, 'tif', tiff_sides, '<H', 12),
}


@pytest.mark.parametrize('suffix', FILES)
def test_training_loads_no_image_that_is_too_large(tmp_path, suffix):
    path = tmp_path / f'large.{suffix}'
    path.write_bytes(FILES[suffix](tmp_path))
    assert path.stat().st_size < 200_000
    with memory_for(500), pytest.raises(DataError, match='900,?000,?000 px|30000 x 30000') as error:
        LoadImageFromFile().transform({'img_path': str(path)})
    assert str(path) in str(error.value) and 'RES2NET_MM_MAX_PIXELS' in str(error.value)


def test_label_maps_and_masks(tmp_path):
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    large = tmp_path / 'masks' / '1.png'
    large.write_bytes(png(SIDE))
    small = tmp_path / 'images' / '1.png'
    Image.new('RGB', (9, 8)).save(small)
    load = LoadImageFromFile().transform
    for call in (
        lambda: read_map(str(large), False),
        lambda: load({'img_path': str(small), 'seg_map_path': str(large)}),
        lambda: masks2coco(
            small.parent, large.parent, tmp_path / 'out.json', 'instances', classes=['a']
        ),
    ):
        with memory_for(500), pytest.raises(DataError, match='RES2NET_MM_MAX_PIXELS'):
            call()


def test_large_images_of_all_kinds_are_loaded(tmp_path, monkeypatch):
    path = tmp_path / 'aerial.png'
    path.write_bytes(png(13_400))  # 180 million px, beyond what Pillow decodes
    load = LoadImageFromFile(color_type='grayscale').transform
    with memory_for(800):
        assert load({'img_path': str(path)})['img'].size == 13_400**2
    monkeypatch.setenv('RES2NET_MM_MAX_PIXELS', '100_000_000')
    with pytest.raises(DataError, match='179,560,000 px'):
        check_pixels(path, 'aerial')
    check_pixels(b'no image', 'text')
    monkeypatch.setenv('RES2NET_MM_MAX_PIXELS', '10 GB')
    with pytest.raises(DataError, match="RES2NET_MM_MAX_PIXELS: .* '10 GB'; .* number"):
        check_pixels(path, 'aerial')
    monkeypatch.delenv('RES2NET_MM_MAX_PIXELS')


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_what_a_header_says(tmp_path, suffix):
    path = tmp_path / f'photo.{suffix}'
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new('RGB', (9, 8)).save(path, exif=exif)
    turns = dict(ignored=6) if suffix == 'webp' else dict(orientation=6)  # OpenCV does not turn it
    wanted = Header((9, 8), 72, 'RGB', **turns)
    assert read_header(path) == read_header(str(path)) == read_header(path.read_bytes()) == wanted
    notes = value_notes(path)
    assert len(notes) == (suffix == 'webp') and all('EXIF tag (6)' in note for note in notes)
    if suffix != 'tif':  # which imread cannot turn
        assert cv2.imread(str(path)).shape == ((8, 9, 3) if notes else (9, 8, 3))


def test_depth_transparency_and_pages(tmp_path):
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.zeros((8, 9, 3), np.uint16))
    assert read_header(path).deep and read_header(path).mode == 'RGB'
    Image.new('RGBA', (9, 8)).save(path)
    assert read_header(path) == Header((9, 8), 72, 'RGBA', alpha=True)
    pages = [Image.new('L', (9, 8)), Image.new('L', (7, 6))]
    pages[0].save(tmp_path / 'pages.tif', save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / 'pages.tif').pages == 2


def test_no_header(tmp_path):
    (tmp_path / 'text.png').write_text('text')
    for source in (
        tmp_path / 'text.png',
        tmp_path / 'none.png',
        tmp_path,
        b'',
        b'\x89PNG\r\n\x1a\n',
    ):
        assert read_header(source) == Header()
