"""What infer draws on: the image as the pipeline loads it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from res2net_mm.data.transforms import harden_pipeline, loader_of
from res2net_mm.engine.infer import ConfiguredModel


class Canvas:
    def add_datasample(self, name: str, pixels: np.ndarray, *args: object, **options: str) -> None:
        self.pixels = pixels
        Image.fromarray(pixels).save(options['out_file'])


class Sample(dict):
    def cpu(self) -> Sample:
        return self


@pytest.mark.parametrize(
    'colours, shape',
    [('color', (60, 40, 3)), ('color_ignore_orientation', (40, 60, 3)),
     ('grayscale', (60, 40, 3)), ('unchanged', (40, 60, 3))],
)  # fmt: skip
def test_pictures_are_drawn_on_what_the_pipeline_loads(tmp_path, colours, shape):
    exif = Image.Exif()
    exif[0x0112] = 6  # turns its 60 x 40 px
    Image.new('RGB', (60, 40), (250, 10, 10)).save(tmp_path / 'red.jpg', exif=exif)
    pipeline = [{'type': 'LoadImageFromFile', 'color_type': colours}]
    canvas = Canvas()
    predictor = SimpleNamespace(visualizer=canvas, loader=loader_of(harden_pipeline(pipeline)))
    ConfiguredModel.draw(predictor, tmp_path / 'red.jpg', Sample(), tmp_path / 'drawn.jpg', 0.3)
    assert canvas.pixels.shape == shape and canvas.pixels.dtype == np.uint8
    red, _, blue = canvas.pixels[20, 20]
    assert red == blue if colours == 'grayscale' else red > 200 > blue
    assert Image.open(tmp_path / 'drawn.jpg').size == shape[1::-1]
