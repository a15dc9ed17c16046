"""The contact sheet."""

from __future__ import annotations

from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image
from planting import SHAPES, coco_config, maps_config, told
from written_sets import (
    HEIGHT,
    WIDTH,
    coco_content,
    coco_dataset,
    config,
    write_coco,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import inspect_data
from res2net_mm.data.check.report import draw_inspection, format_inspection
from res2net_mm.data.findings import Finding


def test_the_sheet_shows_images_with_findings_first_and_marked(tmp_path, faulty, shapes):
    inspection = inspect_data(faulty)
    assert told(inspection) == [('warning', 'train', 'zero-size box', '000016.jpg')]
    sheet = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    assert sheet.shape == (4 * 284, 6 * 330, 3)
    tiles = sheet.reshape(4, 284, 6, 330, 3).swapaxes(1, 2).reshape(24, 284, 330, 3)
    edges = [tile[[0, -1]].reshape(-1, 3).tolist() for tile in tiles]
    assert all(pixel == [0, 150, 255] for pixel in edges[0])  # orange: a warning
    assert all(pixel == [0, 0, 0] for edge in edges[1:] for pixel in edge)
    # the image is the faulty one, and the cross of its box of no size is where the box is
    image = cv2.imread(str(shapes / 'train/000016.jpg'))
    shown = cv2.resize(image, (240, 240), interpolation=cv2.INTER_AREA)
    tile = tiles[0][5:245, 5:245]
    same = (np.abs(tile.astype(int) - shown) == 0).all(2).mean()
    others = [(tile == t[5:245, 5:245]).all(2).mean() for t in tiles[1:]]
    assert same > 0.3 > 3 * max(others)
    x, y = (round(side * 240 / 256) for side in (40, 50))
    assert tile[y, x].tolist() == [40, 40, 230]
    assert (tiles[1:, 5:245, 5:245] == [40, 40, 230]).all(-1).sum() == 0
    written = cv2.imread(str(tmp_path / 'sheet.jpg'))
    assert np.abs(written.astype(int) - sheet).mean() < 8


def test_an_error_is_marked_red_and_masks_are_drawn(tmp_path, shapes):
    inspection = inspect_data(coco_config(shapes, '{}/', SHAPES))
    file = inspection.sets[1].used[3].file
    inspection.findings.append(Finding('error', 'some kind', 'val', file, 'it', 'do'))
    sheet = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    assert sheet[0, 0].tolist() == [40, 40, 230] and sheet[0, 400].tolist() == [0, 0, 0]
    # within the largest object, half of each pixel is the colour of its class
    image = inspection.sets[1].used[3]
    plain = cv2.resize(cv2.imread(file), (240, 240), interpolation=cv2.INTER_AREA)
    semantic = cv2.imread(file.replace('/val/', '/semseg/val/').replace('.jpg', '.png'), 0)
    masks = cv2.resize(semantic, (240, 240), interpolation=cv2.INTER_NEAREST)
    tile = sheet[5:245, 5:245].astype(int)
    assert image.objects and (masks > 0).any()
    added = tile[masks > 0] - plain[masks > 0] // 2
    colours = {tuple(colour) for colour in np.unique(added, axis=0).tolist()}
    usual = [c for c in colours if (added == c).all(1).mean() > 0.1]
    classes = set(np.unique(masks).tolist()) - {0}
    assert 1 <= len(usual) <= len(classes)
    untouched = (tile[masks == 0] == plain[masks == 0]).all(1).mean()
    assert untouched > 0.7


def test_the_sheet_shows_images_as_the_pipeline_loads_them(tmp_path: Path):
    """Left half red, right half blue, and a tag that turns it."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = pixels[:, WIDTH // 2 :, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # clockwise: the left half comes to be the upper one
    write_coco(tmp_path, coco_content(1))
    Image.fromarray(pixels).save(tmp_path / 'train/0.jpg', exif=exif, quality=95)
    sheets = {}
    for colours in ('color', 'color_ignore_orientation'):
        pipeline = [{'type': 'LoadImageFromFile', 'color_type': colours}]
        cfg = config(coco_dataset(tmp_path, pipeline=pipeline))
        inspection = inspect_data(cfg)
        turned = [f.kind for f in inspection.findings.copy() if f.severity == 'error']
        assert turned == (['image turned by EXIF'] if colours == 'color' else [])
        sheets[colours] = draw_inspection(inspection, tmp_path / 'sheet.jpg')
    flat = mmcv.bgr2rgb(sheets['color_ignore_orientation'])
    assert flat[100, 150, 0] > 200 > flat[100, 150, 2] and flat[100, 300, 2] > 200
    upright = mmcv.bgr2rgb(sheets['color'])
    assert upright[100, 140, 0] > 200 and upright[220, 140, 2] > 200


def test_shares_of_the_classes_in_label_maps(shapes):
    names = ('background', *SHAPES)
    inspection = inspect_data(maps_config(shapes, '{}', 'semseg/{}', names, 255, '.jpg'))
    pixels = [np.array(Image.open(f)) for f in (shapes / 'semseg/train').glob('*.png')]
    shares = np.bincount(np.stack(pixels).ravel(), minlength=5) / np.stack(pixels).size
    rows = [row.split() for row in format_inspection(inspection).splitlines()]
    for name, share in zip(names, shares, strict=True):
        assert next(row for row in rows if row[:1] == [name])[1] == f'{share:.2%}'
