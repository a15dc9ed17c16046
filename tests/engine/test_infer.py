"""Every image is predicted or named; nothing that is done is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from clips import write_clip
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from test_segmentation_tools import CONFIG as SEGMENTOR

from res2net_mm.data.errors import DataError
from res2net_mm.data.transforms import harden_pipeline, loader_of
from res2net_mm.engine.config import load_config
from res2net_mm.engine.drawing import write_picture
from res2net_mm.engine.errors import ToolError, run_tool
from res2net_mm.engine.infer import ConfiguredModel, predict_images
from res2net_mm.engine.sources import find_images, find_sources, frames_of

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def predictor_of(cfg, folder):
    """A predictor with random weights and no class names in its checkpoint."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.model.data_preprocessor))
    torch.save(dict(state_dict=model.state_dict()), folder / 'c.pth')
    return ConfiguredModel(cfg, str(folder / 'c.pth'), device='cpu')


@pytest.fixture(scope='module')
def detector(tiny_options, tmp_path_factory):
    cfg = load_config('faster_rcnn_r2n14_shapes.py', tiny_options)
    return predictor_of(cfg, tmp_path_factory.mktemp('detector'))


@pytest.fixture(scope='module')
def segmentor(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('segmentor')
    (folder / 'fcn.py').write_text(SEGMENTOR.replace('DATA', str(shapes)).replace('SyncBN', 'BN'))
    return predictor_of(load_config(folder / 'fcn.py'), folder)


@pytest.fixture
def photos(shapes, tmp_path):
    """A folder of which two images are good, and as many as possible are not."""
    folder = tmp_path / 'photos'
    (folder / 'folder.jpg').mkdir(parents=True)
    good = sorted((shapes / 'val').glob('*.jpg'))
    shutil.copy(good[0], folder / 'a.jpg')
    shutil.copy(good[1], folder / 'z.jpg')
    cv2.imwrite(str(folder / 'thin.png'), np.zeros((3, 2000, 3), np.uint8))
    cv2.imwrite(str(folder / 'dot.png'), np.zeros((1, 1, 3), np.uint8))
    Image.fromarray(np.zeros((9, 9), np.float32)).save(folder / 'float.tif')
    (folder / 'text.png').write_text('no image')
    (folder / 'empty.png').touch()
    (folder / 'cut.jpg').write_bytes(good[2].read_bytes()[:3000])
    (folder / 'loop.jpg').symlink_to('loop.jpg')
    (folder / 'gone.jpg').symlink_to('nowhere')
    os.mkfifo(folder / 'pipe.jpg')
    return folder


BAD = {'thin.png', 'float.tif', 'text.png', 'empty.png', 'cut.jpg', 'loop.jpg', 'gone.jpg'} | {
    'pipe.jpg',
    'folder.jpg',
}


def names_in(failures):
    lines = [line.replace(':', ' ') for line in failures]
    return {name for name in (*BAD, 'dot.png') if any(f'/{name} ' in line for line in lines)}


def records_in(out):
    return {
        Path(r['file']).name: r
        for r in json.loads((out / 'predictions.json').read_text())['images']
    }


def test_bad_images_do_not_stop_a_detector(detector, photos, tmp_path):
    out = tmp_path / 'out'
    failures = predict_images(detector, find_images(photos, out), out, 0.3)
    assert names_in(failures) == BAD and len(failures) == len(BAD)
    assert set(records_in(out)) == {'a.jpg', 'dot.png', 'z.jpg'}
    assert {f.name for f in out.iterdir()} == {'a.jpg', 'dot.jpg', 'z.jpg', 'predictions.json'}


def test_bad_images_do_not_stop_a_segmentor(segmentor, photos, tmp_path):
    out = tmp_path / 'out'
    failures = predict_images(segmentor, find_images(photos, out), out, 0.3)
    assert names_in(failures) == BAD and len(failures) == len(BAD)
    records = records_in(out)
    assert set(records) == {'a.jpg', 'dot.png', 'z.jpg'}
    assert sum(records['dot.png']['shares'].values()) == 1
    assert {f.name for f in out.glob('*.labels.png')} == {
        f'{n}.labels.png' for n in ('a', 'dot', 'z')
    }
    assert {f.name for f in out.glob('*.jpg')} == {'a.jpg', 'dot.jpg', 'z.jpg'}


def test_frames_are_predicted_as_images(detector, tmp_path):
    write_clip(tmp_path / 'clip.mp4', 3)
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for frame in frames_of('clip.mp4', tmp_path / 'clip.mp4'):
        cv2.imwrite(str(pictures / f'{frame.index}.png'), frame.pixels[..., ::-1])
    for sources, out in ((tmp_path / 'clip.mp4', 'a'), (pictures, 'b')):
        assert not predict_images(detector, find_sources(sources), tmp_path / out, 0.0)
    lines = [json.loads(line) for line in (tmp_path / 'a/clip.jsonl').read_text().splitlines()]
    images = json.loads((tmp_path / 'b/predictions.json').read_text())['images']
    assert len(lines) == 3 and len(lines[0]['instances']) > 5
    for line, image in zip(lines, images, strict=True):
        assert [line[key] for key in ('width', 'height')] == [160, 120]
        assert line['instances'] == image['instances']


class Stub:
    """A predictor that does as it is told, by the image's name."""

    classes = ['disc']

    def __init__(self, **errors):
        self.errors = errors

    def predict(self, image):
        if image.stem in self.errors:
            raise self.errors[image.stem]
        return InstanceData()

    def notes(self, image):
        return []

    def write_pictures(self, image, sample, out, threshold):
        if image.stem in self.errors.get('draw', {}):
            raise self.errors['draw'][image.stem]
        out.touch()

    def describe(self, name, sample, threshold):
        return dict(file=name)


IMAGES = [Path(f'{name}.jpg') for name in 'abc']


def test_an_interruption_keeps_what_is_done(tmp_path, capfd):
    stub = Stub(c=KeyboardInterrupt(), a=RuntimeError('CUDA'))
    with pytest.raises(SystemExit) as status:
        run_tool(lambda: predict_images(stub, IMAGES, tmp_path, 0.3))
    assert status.value.code == 130
    assert set(records_in(tmp_path)) == {'b.jpg'}
    said = capfd.readouterr().err
    assert 'holds 1 of 3 images' in said and 'image a.jpg failed: RuntimeError: CUDA' in said


def test_an_interruption_before_anything_is_done_leaves_the_last_predictions(tmp_path, capsys):
    assert not predict_images(Stub(), IMAGES, tmp_path, 0.3)
    with pytest.raises(KeyboardInterrupt):
        predict_images(Stub(a=KeyboardInterrupt()), IMAGES, tmp_path, 0.3)
    assert set(records_in(tmp_path)) == {'a.jpg', 'b.jpg', 'c.jpg'}
    assert 'holds' not in capsys.readouterr().err
    (failure,) = predict_images(Stub(a=DataError('it is damaged')), IMAGES[:1], tmp_path, 0.3)
    assert not records_in(tmp_path)


def test_a_picture_too_large_for_its_format(tmp_path):
    with pytest.raises(DataError, match='at most 65,500 px a side'):
        write_picture(tmp_path / 'a.jpg', np.zeros((1, 65_501, 3), np.uint8))
    assert not [*tmp_path.iterdir()]


def test_what_was_not_written_is_not_said_to_be(tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('res2net_mm.engine.infer.write_text', fail)
    with pytest.raises(OSError, match='No space'):
        predict_images(Stub(b=KeyboardInterrupt()), IMAGES, tmp_path, 0.3)
    assert 'holds' not in capsys.readouterr().err


def test_a_full_disk_stops_at_once_and_a_bad_picture_does_not(tmp_path):
    full = OSError('b.jpg could not be written: No space left on device')
    full.__cause__ = OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(OSError, match='b.jpg could not be written'):
        predict_images(Stub(draw=dict(b=full)), IMAGES, tmp_path, 0.3)
    assert set(records_in(tmp_path)) == {'a.jpg', 'b.jpg'}
    long = OSError(errno.ENAMETOOLONG, 'File name too long')
    (failure,) = predict_images(Stub(draw=dict(b=long)), IMAGES, tmp_path, 0.3)
    assert 'b.jpg' in failure and 'too long' in failure
    assert set(records_in(tmp_path)) == {'a.jpg', 'b.jpg', 'c.jpg'}


def test_a_defect_keeps_its_traceback(tmp_path):
    """Where nothing works it is no matter of one image."""
    with pytest.raises(AttributeError, match='defect'):
        defect = AttributeError('defect')
        predict_images(Stub(a=defect, b=defect, c=defect), IMAGES, tmp_path, 0.3)


def test_labels_above_255_are_whole(segmentor, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentor, 'classes', list(map(str, range(300))))
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.tensor([[[0, 255, 299]]])))
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((1, 3, 3), np.uint8))
    segmentor.write_pictures(tmp_path / 'a.png', sample, tmp_path / 'drawn.jpg', 0.3)
    read = cv2.imread(str(tmp_path / 'drawn.labels.png'), cv2.IMREAD_UNCHANGED)
    assert read.tolist() == [[0, 255, 299]]


def test_what_happened_to_values_is_noted(detector, tmp_path, monkeypatch):
    photos, out = tmp_path / 'photos', tmp_path / 'out'
    photos.mkdir()
    cv2.imwrite(str(photos / 'deep.png'), np.full((50, 70), 4095, np.uint16))
    cv2.imwrite(str(photos / 'plain.png'), np.full((50, 70, 3), 9, np.uint8))
    assert not predict_images(detector, find_images(photos), out, 0.3)
    records = records_in(out)
    assert 'divided by 256' in records['deep.png']['note'] and '12' in records['deep.png']['note']
    assert 'note' not in records['plain.png']
    monkeypatch.setattr(detector.loader, 'color_type', 'unchanged')
    assert not detector.notes(photos / 'deep.png'), 'the rules are those of colours'


def test_own_pictures_are_not_predicted(tmp_path):
    photos = tmp_path / 'photos'
    for name in ('a.jpg', 'deep/b.jpg', 'out/a.jpg', 'out/deep/b.jpg', 'earlier/a.jpg'):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    assert len(find_images(photos)) == 5
    predict_images(Stub(), [], photos / 'earlier', 0.3)
    found = find_images(photos, photos / 'deep' / '..' / 'out')
    assert found == [photos / 'a.jpg', photos / 'deep' / 'b.jpg']
    (photos / 'earlier' / 'predictions.json').write_text('{"by": "somebody else"}')
    assert photos / 'earlier' / 'a.jpg' in find_images(photos)
    with pytest.raises(ToolError, match='folder of the images'):
        find_images(photos, photos)


@pytest.mark.parametrize('threshold', ['1.5', '-0.1', 'nan'])
def test_thresholds_are_scores(threshold, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import infer

    argv = ['infer.py', 'c.py', 'c.pth', str(tmp_path), '--out', 'x', '--conf', threshold]
    monkeypatch.setattr(sys, 'argv', argv)
    with pytest.raises(ToolError, match='--conf'):
        infer.main()


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
    predictor = SimpleNamespace(loader=loader_of(harden_pipeline(pipeline)))
    pixels = ConfiguredModel.pixels(predictor, tmp_path / 'red.jpg')
    assert pixels.shape == shape and pixels.dtype == np.uint8
    red, _, blue = pixels[20, 20]
    assert red == blue if colours == 'grayscale' else red > 200 > blue
