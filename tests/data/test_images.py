"""Headers of images: too many pixels are refused, sizes are compared with the pipeline."""

from __future__ import annotations

import struct
import zlib

import cv2
import mmcv.transforms
import numpy as np
import pytest
from PIL import Image
from running import memory_for

from res2net_mm.data.convert.formats import masks2coco
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.images import check_pixels, resize_faults
from res2net_mm.data.sets.label_maps import count_values
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
        lambda: count_values(str(large), False),
        lambda: load({'img_path': str(small), 'seg_map_path': str(large)}),
        lambda: masks2coco(
            small.parent, large.parent, tmp_path / 'out.json', 'instances', classes=['a']
        ),
    ):
        with memory_for(500), pytest.raises(DataError, match='RES2NET_MM_MAX_PIXELS'):
            call()


def test_large_images_of_all_kinds_are_loaded(tmp_path, monkeypatch):
    path = tmp_path / 'aerial.png'
    path.write_bytes(png(14_000))  # 196 million px, beyond what Pillow decodes
    load = LoadImageFromFile(color_type='grayscale').transform
    with memory_for(800):
        assert load({'img_path': str(path)})['img'].size == 14_000**2
    monkeypatch.setenv('RES2NET_MM_MAX_PIXELS', '100_000_000')
    with pytest.raises(DataError, match='196,?000,?000|14000 x 14000'):
        check_pixels(path, 'aerial')
    check_pixels(b'no image', 'text')
    monkeypatch.setenv('RES2NET_MM_MAX_PIXELS', '10 GB')
    with pytest.raises(DataError, match="RES2NET_MM_MAX_PIXELS: .*must be .* '10 GB'"):
        check_pixels(path, 'aerial')
    monkeypatch.delenv('RES2NET_MM_MAX_PIXELS')


SIZES = [(2000, 3), (3, 2000), (2000, 40), (1, 1), (1334, 1), (1333, 1), (60, 40)]


@pytest.mark.parametrize('scale', [(96, 96), (1333, 800), (64, 32), 96])
@pytest.mark.parametrize('keep_ratio', [True, False])
def test_the_sizes_that_fail_are_those_that_mmcv_fails_at(scale, keep_ratio):
    step = {'type': 'Resize', 'scale': scale, 'keep_ratio': keep_ratio}
    failing = set()
    for width, height in SIZES:
        resize = mmcv.transforms.Resize(scale=scale, keep_ratio=keep_ratio)
        try:
            resize({'img': np.zeros((height, width, 3), np.uint8)})
        except cv2.error:
            failing.add((width, height))
    found = resize_faults([{'type': 'LoadImageFromFile'}, step], SIZES)
    assert found.keys() == failing
    if scale in ((96, 96), 96):
        assert failing == ({*SIZES[:2], *SIZES[4:6]} if keep_ratio else set())


@pytest.mark.parametrize(
    'step, fails',
    [
        ({'type': 'mmdet.Resize', 'scale': (200, 200), 'keep_ratio': True}, True),  # 0.3 px
        ({'type': 'Resize', 'scale': (400, 400), 'keep_ratio': True}, False),  # 0.6 px
        ({'type': 'Resize', 'scale': (200, 200)}, False),
        ({'type': 'RandomResize', 'scale': [(400, 400), (200, 300)], 'keep_ratio': True}, True),
        ({'type': 'RandomResize', 'scale': (400, 400), 'keep_ratio': True}, False),
        (
            {'type': 'RandomResize', 'scale': (400, 400), 'ratio_range': (0.5, 2),
             'keep_ratio': True}, True,
        ),
        (
            {'type': 'RandomChoiceResize', 'scales': [(400, 400), (200, 200)],
             'keep_ratio': True}, True,
        ),
        (
            {'type': 'RandomChoiceResize', 'scales': [200], 'resize_type': 'ResizeShortestEdge',
             'keep_ratio': True}, False,
        ),
        (
            {'type': 'RandomChoice', 'transforms': [
                [{'type': 'Resize', 'scale': (400, 400), 'keep_ratio': True}],
                [{'type': 'Resize', 'scale': (200, 200), 'keep_ratio': True}]]}, True,
        ),
    ],
)  # fmt: skip
def test_the_smallest_scale_counts(step, fails):
    assert bool(resize_faults([step], [(2000, 3)])) is fails
    # of what is cut out before, the size is not known
    assert not resize_faults([{'type': 'RandomCrop', 'crop_size': (3, 3)}, step], [(2000, 3)])
