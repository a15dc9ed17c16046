"""Batches of training on a page."""

import base64
import io
import re

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from res2net_mm.engine.browse import write_batches
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError

CONFIG = 'faster_rcnn_r2n14_shapes.py'


def pictures(text):
    return [
        np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'data:image/jpeg;base64,([^"]*)"', text)
    ]


def test_boxes_and_padding_are_those_of_the_training(tiny_options, shapes, tmp_path):
    changes = {'model.data_preprocessor.pad_size_divisor': 64, 'train_dataloader.num_workers': 0,
               'train_dataloader.persistent_workers': False}  # fmt: skip
    cfg = load_config(CONFIG, {**tiny_options, **changes})
    flip = cfg.train_dataloader.dataset.pipeline[3]
    assert flip.type == 'RandomFlip'
    pages = []
    for prob in (0.0, 1.0):
        flip.prob = prob
        pages.append(write_batches(cfg, tmp_path / str(prob), 5).read_text())
    (plain, *_), (flipped, *_) = map(pictures, pages)
    assert len(pictures(pages[0])) == 5 and plain.shape == (128, 128, 3)  # 96 + padding
    # the image is left of the padding, so flipping keeps it within 96 px
    difference = np.abs(plain[:96, :96].astype(int) - flipped[:96, :96][:, ::-1])
    assert difference.mean() < 4 < np.abs(plain[:96, :96].astype(int) - flipped[:96, :96]).mean()
    pink = (plain[..., 0] > 180) & (plain[..., 1] < 100)  # a third of the padding
    assert 0.2 < pink[100:].mean() < 0.5 and 0.2 < pink[:, 100:].mean() < 0.5
    assert pink[:92, :92].mean() < 0.01
    names = [re.findall('class="picture.*?</svg>', page)[0] for page in pages]
    for text in names:
        assert re.search('>(disc|square|triangle|star)<', text)
    rect = r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"/>'
    boxes = [np.array(re.findall(rect, text), float) for text in names]
    assert boxes[0].shape == boxes[1].shape and len(boxes[0])
    assert np.allclose(96 - boxes[0][:, 0] - boxes[0][:, 2], boxes[1][:, 0], atol=0.11)
    # inside their boxes, shapes are as in the file: the de-normalised colour is right
    name = re.search(r'\): ([^<]+)<', pages[0])[1]
    file = Image.open(shapes / 'train' / name)
    stored = np.array(file.convert('RGB').resize((96, 96)))
    assert np.abs(plain[:96, :96].astype(int) - stored).mean() < 6


def test_mistakes_are_one_line(tiny_options, tmp_path):
    cfg = load_config(CONFIG, tiny_options)
    with pytest.raises(ValueError, match='--limit must be a positive integer'):
        write_batches(cfg, tmp_path, 0)
    with pytest.raises(ToolError, match='no model'):
        write_batches(Config(dict(train_dataloader=dict())), tmp_path, 1)
