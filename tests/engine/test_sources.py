"""Videos frame by frame, addresses and cameras: what is read, and what is not there is said."""

from __future__ import annotations

import functools
import json
import struct
import threading
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import FPS, HEIGHT, WIDTH, picture, write_clip
from mmengine.structures import BaseDataElement
from PIL import Image

from res2net_mm import Predictor
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.images import value_notes
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.infer import predict_images
from res2net_mm.engine.sources import find_sources, frames_of, places


@pytest.fixture(scope='module')
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp('clip') / 'clip.mp4', 100)


class Finder:
    """A model that finds the square, and draws the frame as it is."""

    classes = ['square']

    def predict(self, image: Path | np.ndarray) -> BaseDataElement:
        pixels = image if isinstance(image, np.ndarray) else cv2.imread(str(image))
        if pixels is None:
            raise DataError('no image', str(image))
        rows, columns = np.nonzero(pixels[..., 0] > 160)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return BaseDataElement(metainfo=dict(box=list(map(int, box))))

    def describe(self, name: str, sample: BaseDataElement, threshold: float) -> dict:
        return dict(file=name, instances=[dict(bbox=sample.box)])

    def notes(self, image: Path) -> list[str]:
        return []

    def draw(self, pixels: np.ndarray, sample: BaseDataElement, threshold: float) -> np.ndarray:
        return pixels

    def write_pictures(self, image: Path, sample: BaseDataElement, out: Path, _: float) -> None:
        out.touch()


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_video(file: Path) -> tuple[list[float], list[np.ndarray]]:
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
    return [f.time for f in frames], [f.to_ndarray(format='rgb24') for f in frames]


def test_every_frame_has_a_line_and_a_picture(clip, tmp_path, capfd):
    assert predict_images(Finder(), find_sources(clip), tmp_path, 0.3) == []
    assert '\x1b' not in capfd.readouterr().err, 'tools spell control characters out'
    lines = lines_of(tmp_path / 'clip.jsonl')
    assert [line['frame'] for line in lines] == list(range(100))
    assert [line['time'] for line in lines] == pytest.approx([i / FPS for i in range(100)])
    for line in lines:
        x = line['frame']
        assert np.abs(np.subtract(line['instances'][0]['bbox'], [x, 40, x + 20, 60])).max() <= 1
    times, frames = read_video(tmp_path / 'clip.mp4')
    assert times == pytest.approx([i / FPS for i in range(100)])
    for index, frame in enumerate(frames):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frame.astype(int) - picture(index)).mean() < 3
    assert json.loads((tmp_path / 'predictions.json').read_text()) == dict(
        classes=['square'], images=[]
    )


@pytest.mark.parametrize(
    ('name', 'codec'), [('clip.mp4', 'libx264'), ('clip.mkv', 'libx264'), ('clip.avi', 'mpeg4'),
                        ('clip.gif', 'gif')],
)  # fmt: skip
def test_a_cut_video_gives_its_frames_and_an_error(name, codec, tmp_path):
    content = write_clip(tmp_path / name, 100, codec).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    cv2.imwrite(str(tmp_path / 'z.png'), picture(0))
    out = tmp_path / 'out'
    (failure,) = predict_images(Finder(), find_sources(tmp_path, out), out, 0.3)
    assert f'{name}: the video is damaged or cut off' in failure
    lines = lines_of(out / 'clip.jsonl')
    assert 20 < len(lines) < 90 and f'{len(lines)} frames' in failure
    assert len(read_video(out / 'clip.mp4')[0]) == len(lines)
    (record,) = json.loads((out / 'predictions.json').read_text())['images']
    assert record['file'].endswith('z.png')


@pytest.mark.parametrize(
    ('name', 'codec'), [('a.mp4', 'libx264'), ('a.mkv', 'libx264'), ('a.avi', 'mpeg4'),
                        ('a.wmv', 'wmv2')],
)  # fmt: skip
def test_slow_videos_are_whole(name, codec, tmp_path):
    """The last frame is shown for three seconds."""
    with av.open(str(tmp_path / name), 'w') as container:
        stream = container.add_stream(codec, rate=Fraction(1, 3))
        stream.pix_fmt, stream.width, stream.height = 'yuv420p', WIDTH, HEIGHT
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(picture(index), 'rgb24')
            container.mux(stream.encode(frame.reformat(format='yuv420p')))
        container.mux(stream.encode())
    frames = list(frames_of(name, tmp_path / name))
    assert [frame.time for frame in frames] == pytest.approx([0, 3, 6, 9])


@pytest.mark.parametrize(
    'content', [b'', b'hello', b'#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nclip.mp4\n',
                b"ffconcat version 1.0\nfile 'clip.mp4'\n"],
)  # fmt: skip
def test_what_is_no_video(content, clip, tmp_path):
    """Above all lists that name other files."""
    (tmp_path / 'clip.mp4').write_bytes(clip.read_bytes())
    (tmp_path / 'a.mp4').write_bytes(content)
    out = tmp_path / 'out'
    (failure,) = predict_images(Finder(), find_sources(tmp_path / 'a.mp4'), out, 0.3)
    assert 'a.mp4: no video that can be read' in failure and 'Errno' not in failure
    assert [file.name for file in out.iterdir()] == ['predictions.json']


def test_gif(tmp_path):
    """Frames have the times of the file, also if these differ; odd sizes stay as they are."""
    frames = [Image.fromarray(picture(i, 71, 65)) for i in range(4)]
    waits = [100, 300, 50, 200]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:], duration=waits)
    out = tmp_path / 'out'
    assert predict_images(Finder(), find_sources(tmp_path / 'a.gif'), out, 0.3) == []
    times = [0, 0.1, 0.4, 0.45]
    assert [line['time'] for line in lines_of(out / 'a.jsonl')] == pytest.approx(times)
    shown, pictures = read_video(out / 'a.mp4')
    assert shown == pytest.approx(times) and {p.shape for p in pictures} == {(65, 71, 3)}
    with av.open(str(out / 'a.mp4')) as container:  # the last frame is shown as long as it was
        assert container.duration / av.time_base == pytest.approx(sum(waits) / 1000, abs=1e-3)


def test_turned_videos_are_seen_upright(clip, tmp_path):
    """A phone stores frames lying, and how to turn them: here by 90 degrees clockwise."""
    content = bytearray(clip.read_bytes())
    start = content.index(b'tkhd') + 44  # the matrix of a track header of version 0
    one = 1 << 16
    content[start : start + 36] = struct.pack(
        '>9i', 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30
    )
    (tmp_path / 'turned.mp4').write_bytes(content)
    pixels = next(frames_of('turned.mp4', tmp_path / 'turned.mp4')).pixels
    assert np.abs(pixels.astype(int) - np.rot90(picture(0), -1)).mean() < 3


@pytest.fixture
def server(tmp_path):
    """The address of a folder on the web, which a test may fill."""
    folder = tmp_path / 'web'
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{web.server_port}', folder
        web.shutdown()


def test_addresses(server, clip, tmp_path, monkeypatch):
    address, folder = server
    (folder / 'more').mkdir()
    for name in ('a-0123abcd.png', 'more/a-0123abcd.png', 'large.png'):
        cv2.imwrite(str(folder / name), picture(7))
    (folder / 'bad.png').write_text('no image')
    (folder / 'clip.mp4').write_bytes(clip.read_bytes())
    names = ['a-0123abcd.png?size=1', 'more/a-0123abcd.png', 'gone.png', 'bad.png', 'clip.mp4']
    sources = [f'{address}/{name}' for name in names]
    out = tmp_path / 'out'
    failures = predict_images(Finder(), find_sources(sources), out, 0.3)
    gone, bad = sorted(failures, key=lambda line: 'bad' in line)
    assert gone.startswith(sources[2]) and '404' in gone and bad.startswith(f'{sources[3]}: no')
    records = json.loads((out / 'predictions.json').read_text())['images']
    assert [record['file'] for record in records] == sources[:2]
    assert records[0]['instances'][0]['bbox'] == [7, 40, 27, 60]
    assert len(lines_of(out / 'clip.jsonl')) == 100
    assert len(list(out.glob('a-0123abcd*.jpg'))) == 2
    monkeypatch.setattr('res2net_mm.engine.sources._LARGEST', 100)
    (failure,) = predict_images(Finder(), [f'{address}/large.png'], out, 0.3)
    assert 'larger than the 100 bytes' in failure


def test_addresses_do_not_come_from_mirrors(server, tmp_path, monkeypatch):
    """These would have another file of the name ``download.png``. Schemes may be capitals."""
    address, folder = server
    (tmp_path / 'mirror').mkdir()
    cv2.imwrite(str(tmp_path / 'mirror/download.png'), picture(3))
    cv2.imwrite(str(folder / 'a.png'), picture(7))
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(tmp_path / 'mirror'))
    source = address.replace('http', 'HTTP') + '/a.png'
    assert not predict_images(Finder(), find_sources(source), tmp_path / 'out', 0.3)
    (record,) = json.loads((tmp_path / 'out/predictions.json').read_text())['images']
    assert record['file'] == source and record['instances'][0]['bbox'][0] == 7


def test_a_bad_address_does_not_stop_the_others(server, tmp_path):
    address, folder = server
    cv2.imwrite(str(folder / 'a.png'), picture(7))
    bad = ['http://[::1/x.jpg', f'{address}/%00.jpg']
    out = tmp_path / 'out'
    failures = predict_images(Finder(), find_sources([*bad, f'{address}/a.png']), out, 0.3)
    assert [line.partition(': ')[0] for line in failures] == bad
    assert len(json.loads((out / 'predictions.json').read_text())['images']) == 1


class Camera:
    """The first one shows three pictures, and there is no other."""

    def __init__(self, number: int) -> None:
        self.number, self.shown = number, 0

    def isOpened(self) -> bool:  # noqa: N802
        return self.number == 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.shown += 1
        return self.shown <= 3, picture(self.shown)

    def release(self) -> None:
        self.number = None


def test_cameras(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    first, second = predict_images(Finder(), find_sources(['0', '7']), tmp_path, 0.3)
    assert 'camera 0 gives no more pictures' in first and 'camera 7 cannot be opened' in second
    lines = lines_of(tmp_path / 'camera0.jsonl')
    assert [line['instances'][0]['bbox'][0] for line in lines] == [1, 2, 3]
    assert len(read_video(tmp_path / 'camera0.mp4')[0]) == 3
    assert not (tmp_path / 'camera7.jsonl').exists()


def test_ctrl_c_ends_a_camera_with_whole_files(tmp_path, monkeypatch):
    def interrupt(self: Camera) -> tuple[bool, np.ndarray]:
        self.shown += 1
        if self.shown > 3:
            raise KeyboardInterrupt
        return True, picture(self.shown)

    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    monkeypatch.setattr(Camera, 'read', interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_images(Finder(), ['0'], tmp_path, 0.3)
    assert len(lines_of(tmp_path / 'camera0.jsonl')) == 3
    assert len(read_video(tmp_path / 'camera0.mp4')[0]) == 3


def test_patterns_lists_and_places(tmp_path):
    for name in ('a.jpg', 'a.png', 'b/a.jpg', 'b/c[1].jpg', 'b/notes.txt', 'd.mp4'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([tmp_path / 'a.jpg', f'{tmp_path}/**/*', tmp_path / 'b/c[1].jpg'])
    names = ['a.jpg', 'a.png', 'b/a.jpg', 'b/c[1].jpg', 'd.mp4']
    assert found == [tmp_path / name for name in names]
    out = tmp_path / 'out'
    targets = [str(target.relative_to(out)) for target in places(found, out).values()]
    assert targets == ['a.jpg', 'a.png.jpg', 'b/a.jpg', 'b/c[1].jpg', 'd.mp4']
    with pytest.raises(FileNotFoundError, match='nothing'):
        find_sources(f'{tmp_path}/nothing*')


def test_links_are_followed_once_and_hidden_files_are_not_taken(tmp_path):
    for name in ('in/a.jpg', 'in/._a.jpg', 'in/.trash/b.jpg', 'other/c.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'in/day2').symlink_to('../other')
    (tmp_path / 'other/back').symlink_to('../in')
    (tmp_path / 'in/up').symlink_to('..')
    (tmp_path / 'in/real').mkdir()
    (tmp_path / 'in/real/d.jpg').touch()
    (tmp_path / 'in/again').symlink_to('real')
    found = [str(file.relative_to(tmp_path / 'in')) for file in find_sources(tmp_path / 'in')]
    assert found == ['a.jpg', 'day2/c.jpg', 'real/d.jpg']


def test_a_picture_keeps_the_name_of_its_own_file(tmp_path):
    sources, out = (
        [tmp_path / name for name in ('x.bmp', 'x.jpg', 'y.avi', 'y.mp4')],
        tmp_path / 'o',
    )
    names = {source.name: target.name for source, target in places(sources, out).items()}
    assert list(names.items()) == [
        ('x.bmp', 'x.bmp.jpg'), ('x.jpg', 'x.jpg'), ('y.avi', 'y.avi.mp4'), ('y.mp4', 'y.mp4')
    ]  # fmt: skip


def test_photos_that_are_not_read_are_named(tmp_path, monkeypatch):
    for name in ('a.jpg', 'b.JFIF', 'c.HEIC', 'd.avif', 'e.txt'):
        (tmp_path / name).touch()
    said = []
    monkeypatch.setattr('res2net_mm.engine.sources.warn', said.append)
    assert [file.name for file in find_sources(tmp_path)] == ['a.jpg', 'b.JFIF']
    assert said == ['2 photos are not read: c.HEIC, d.avif; save them as .jpg']


def test_places_are_below_the_given_folder(tmp_path):
    (tmp_path / 'in/deep').mkdir(parents=True)
    (tmp_path / 'in/deep/a.png').touch()
    given, out = [tmp_path / 'in'], tmp_path / 'out'
    found = find_sources(given, out)
    assert list(places(found, out, given).values()) == [out / 'deep/a.jpg']


@pytest.mark.parametrize('source', ['photos/*.png', 'photos/a.png', 'photos/**/*.png'])
def test_own_files_are_not_replaced(source, tmp_path, monkeypatch):
    """The picture for a.png would replace a.jpg. Those of an earlier run may be replaced."""
    monkeypatch.chdir(tmp_path)
    out = Path('photos')
    (out / 'more').mkdir(parents=True)
    for name in ('a.jpg', 'a.png', 'more/b.png'):
        (out / name).touch()
    with pytest.raises(ToolError, match='--out photos is the folder of the images; give another'):
        places(find_sources(source, out), out)
    (out / 'predictions.json').write_text('{\n "classes": [')
    assert places(find_sources(source, out), out)[out / 'a.png'] == out / 'a.jpg'


def test_patterns_leave_out_pictures_of_earlier_runs(tmp_path):
    for name in ('a.jpg', 'more/b.jpg', 'out/a.jpg', 'out/more/b.jpg', 'earlier/more/b.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'earlier/predictions.json').write_text('{\n "classes": [')
    found = find_sources(f'{tmp_path}/**/*.jpg', tmp_path / 'out')
    assert found == [tmp_path / 'a.jpg', tmp_path / 'more/b.jpg']
    assert len(find_sources(f'{tmp_path}/earlier/*/*.jpg')) == 1, 'where it is named'


class Model(Finder):
    def predict(self, image: Path | np.ndarray) -> dict:
        x = super().predict(image).box[0]
        return dict(boxes=np.full((1, 4), x))


@pytest.fixture
def predictor(monkeypatch) -> Predictor:
    monkeypatch.setattr(Predictor, '__init__', lambda self: setattr(self, '_model', Model()))
    monkeypatch.setattr('res2net_mm.engine.predictor._arrays', lambda found: found)
    return Predictor()


def test_predictor_takes_all_of_them(predictor, clip, server, tmp_path, monkeypatch):
    address, folder = server
    for name, x in (('a.png', 3), ('b.png', 5)):
        cv2.imwrite(str(folder / name), picture(x))
    (folder / 'c.png').write_text('no image')
    with pytest.raises(DataError, match='nothing.png does not exist'):
        predictor(folder / 'nothing.png')
    one = predictor(str(folder / 'a.png'))
    assert set(one) == {'boxes'} and one['boxes'][0, 0] == 3, 'an image as before'
    assert predictor(f'{address}/b.png')['boxes'][0, 0] == 5
    with pytest.raises(DataError, match=f'^{address}/c.png: no image'):
        predictor(f'{address}/c.png')
    assert [p['boxes'][0, 0] for p in predictor([folder / 'b.png', picture(9)])] == [5, 9]
    for source in (folder, f'{folder}/*.png'):
        first, second, third = predictor(source)
        assert first['boxes'][0, 0] == 3 and second['file'] == str(folder / 'b.png')
        assert 'no image' in third['error'] and third['file'].endswith('c.png')
    frames = list(predictor(clip))
    assert [found['frame'] for found in frames] == list(range(100))
    assert frames[50]['time'] == pytest.approx(2) and frames[50]['boxes'][0, 0] == 50
    monkeypatch.setattr(cv2, 'VideoCapture', Camera)
    assert len([found for found in predictor(0) if 'boxes' in found]) == 3


def test_predictor_says_what_reading_changed(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / 'b.png'), np.full((64, 64, 3), 4095, np.uint16))
    predictor._model.notes, predictor._model.predict = value_notes, lambda image: dict(boxes=[])
    with pytest.warns(UserWarning, match='16-bit values were divided by 256'):
        assert predictor(tmp_path / 'b.png') == dict(boxes=[])

    def fail(image):
        raise DataError('it is empty', str(image))

    (tmp_path / 'a.tif').touch()  # which value_notes cannot decode
    predictor._model.predict = fail
    with pytest.raises(DataError, match='a.tif: it is empty'):
        predictor(tmp_path / 'a.tif')


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """The pixels of all frames are 830 MB."""
    import resource

    file = write_clip(tmp_path / 'long.mp4', 300, width=1280, height=720)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert predict_images(Finder(), [file], tmp_path / 'out', 0.3) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
