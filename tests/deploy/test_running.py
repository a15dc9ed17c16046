"""Exported files in their runtimes: the same predictions as PyTorch's, in pixels of any image."""

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import SMALL, build
from mmcv.image import imresize, rescale_size
from PIL import Image

from res2net_mm import Predictor
from res2net_mm.deploy import export, running
from res2net_mm.deploy.running import ExportedModel, ModelFileError
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import run_test
from res2net_mm.engine.runner import prepare_config


@pytest.fixture(scope='module')
def photo(shapes):
    """An image that is neither of the file's size nor square."""
    image = Image.open(sorted((shapes / 'val').glob('*.jpg'))[0]).convert('RGB')
    return np.asarray(image.crop((0, 0, image.width, image.height * 2 // 3)))


def equal(a, b):
    assert a.keys() == b.keys() and len(a['scores']) > 3
    np.testing.assert_array_equal(a['labels'], b['labels'])
    np.testing.assert_allclose(a['scores'], b['scores'], atol=1e-4)
    np.testing.assert_allclose(a['boxes'], b['boxes'], atol=2e-2)


@pytest.mark.parametrize('suffix', running.SUFFIXES)
def test_predictors_agree(config, files, photo, suffix):
    exported = Predictor(files[suffix])
    # padded as the file pads
    padded = config.copy()
    padded.model = dict(config.model)
    padded.model.data_preprocessor = dict(config.model.data_preprocessor, pad_size_divisor=128)
    checkpoint = Predictor(padded, files['.pth'], device='cpu')
    assert exported.classes == checkpoint.classes == list(config.classes)
    equal(exported(photo), checkpoint(photo))
    found = exported(photo)
    height, width = photo.shape[:2]
    assert found['boxes'].min() >= 0 and (found['boxes'] <= [width, height] * 2).all()


def test_predictor_takes_files_images_and_lists(config, files, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    for arguments in ((files['.xml'],), (config, files['.pth'])):
        model = Predictor(*arguments)
        given = [photo, Image.fromarray(photo), tmp_path / 'photo.png', str(tmp_path / 'photo.png')]
        found = model(given)
        assert isinstance(found, list)
        for one in found[1:]:
            equal(found[0], one)
        with pytest.raises(ValueError, match='image must be'):
            model(photo.astype(np.float32))


def test_larger_images_are_made_smaller_and_that_is_said(files, tmp_path):
    model = ExportedModel(files['.onnx'])
    model.metadata['input']['height'] //= 2  # as for a landscape file
    tall = np.zeros((200, 100, 3), np.uint8)
    with pytest.warns(UserWarning, match='tiny.onnx is for smaller images .* --dynamic'):
        model.predict(tall)


def test_metrics_are_those_of_the_checkpoint(config, files, tmp_path):
    expected, _ = run_test(prepare_config(config, work_dir=str(tmp_path)), str(files['.pth']))
    found, classes = run_test(prepare_config(config, work_dir=str(tmp_path)), str(files['.onnx']))
    assert classes == list(config.classes)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4, nan_ok=True), name


def test_a_config_that_does_not_fit(config, files, tmp_path):
    other = load_config('mask_rcnn_r2n14_nuclei.py')
    with pytest.raises(ToolError, match='from tiny, has task detection, .* has instance'):
        run_test(prepare_config(other, work_dir=str(tmp_path)), str(files['.onnx']))
    renamed = config.copy()
    renamed.test_dataloader = dict(config.test_dataloader)
    dataset = dict(config.test_dataloader.dataset, metainfo=dict(classes=('disc', 'cat')))
    renamed.test_dataloader.dataset = dataset
    with pytest.raises(ToolError, match="only the data set has 'cat'"):
        run_test(prepare_config(renamed, work_dir=str(tmp_path)), str(files['.onnx']))
    stricter = copy.deepcopy(config)
    stricter.model.test_cfg.rcnn.score_thr += 0.3
    with pytest.raises(ToolError, match='has score_thr .*, but the config has'):
        run_test(prepare_config(stricter, work_dir=str(tmp_path)), str(files['.onnx']))
    with pytest.raises(ToolError, match='--fast'):
        cfg = prepare_config(config, work_dir=str(tmp_path))
        run_test(cfg, str(files['.onnx']), fast={})


@pytest.mark.parametrize('suffix', running.SUFFIXES)
def test_files_that_cannot_be_run(files, suffix, tmp_path, monkeypatch):
    copies = [shutil.copy(f, tmp_path) for f in files[suffix].parent.glob('tiny.[xbo]*')]
    path = tmp_path / files[suffix].name
    content = path.read_bytes()
    for length in (0, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match='damaged') as error:
            ExportedModel(path)
        assert '\n' not in str(error.value)
    path.write_bytes(
        content.replace(b'"format": 1', b'"format": 9').replace(
            b'&quot;format&quot;: 1', b'&quot;format&quot;: 9'
        )
    )
    with pytest.raises(ModelFileError, match='format 9'):
        ExportedModel(path)
    for old, new in ((b'"task"', b'"tusk"'), (b'&quot;task&quot;', b'&quot;tusk&quot;')):
        content, before = content.replace(old, new), content
        path.write_bytes(content)
        if content != before:
            with pytest.raises(ModelFileError, match='damaged metadata: task is missing'):
                ExportedModel(path)
        content = before
    path.write_bytes(content.replace(b'res2net_mm', b'something_'))
    with pytest.raises(ModelFileError, match='no metadata'):
        ExportedModel(path)
    assert copies
    with pytest.raises(FileNotFoundError, match='does not exist'):
        ExportedModel(tmp_path / f'none{suffix}')
    with pytest.raises(ModelFileError, match='must end in'):
        ExportedModel(files['.pth'])
    monkeypatch.setattr(running, 'openvino_core', running.openvino_core.__wrapped__)
    monkeypatch.setitem(sys.modules, 'openvino' if suffix == '.xml' else 'onnxruntime', None)
    with pytest.raises(ImportError, match='pip install'):
        ExportedModel(files[suffix])


def test_weights_that_are_cut_or_missing(files, tmp_path):
    for suffix in ('.xml', '.bin'):
        shutil.copy(files['.xml'].with_suffix(suffix), tmp_path)
    weights = tmp_path / 'tiny.bin'
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match='damaged'):
        ExportedModel(tmp_path / 'tiny.xml')
    weights.unlink()
    with pytest.raises(ModelFileError, match='tiny.bin is missing'):
        ExportedModel(tmp_path / 'tiny.xml')


def test_sizes_are_those_of_the_pipelines():
    random = np.random.default_rng(0)
    for scale in ((1333, 800), (128, 128), (2048, 512)):
        for height, width in random.integers(20, 3000, (50, 2)).tolist():
            rule = dict(scale=list(scale), keep_ratio=True)
            expected = rescale_size((width, height), scale)
            assert running._size_by_rule(rule, height, width) == expected[::-1]
    assert running._size_by_rule(dict(scale=[40, 30], keep_ratio=False), 7, 9) == (30, 40)
    assert running._size_by_rule(None, 7, 9) == (7, 9)


@pytest.mark.parametrize('size', [(90, 200), (50, 31)])
def test_pixels_without_opencv(photo, size, monkeypatch):
    expected = imresize(photo, size[::-1])
    np.testing.assert_array_equal(running._resize(photo, *size), expected)
    monkeypatch.setitem(sys.modules, 'cv2', None)
    given = running._resize(photo, *size)
    assert given.shape == expected.shape and given.dtype == np.uint8
    assert np.abs(given.astype(int) - expected).max() <= 1


def test_masks_are_pasted_as_by_mmdet():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 28, 28, generator=generator)
    corners = torch.rand(20, 2, 2, generator=generator).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor([90, 60, 90, 60])
    boxes[0] = torch.tensor([5, 5, 5, 40])  # without an area
    expected = torch.zeros(20, 60, 90)
    for i in range(20):  # as mmdet does on the CPU
        pasted, place = _do_paste_mask(masks[i, None, None], boxes[i, None], 60, 90)
        expected[(i, *place)] = pasted[0]
    given = running._paste(masks.numpy(), boxes.numpy(), (60, 90), 0.5)
    margin = (expected - 0.5).abs() > 1e-4
    np.testing.assert_array_equal(given[margin], (expected >= 0.5).numpy()[margin])


PROGRAM = """
import json, sys
import numpy as np
from PIL import Image
from running import ExportedModel

model = ExportedModel(sys.argv[1])
found = model.predict(np.asarray(Image.open(sys.argv[2]).convert('RGB')))
print(json.dumps({name: value.tolist() for name, value in found.items()}))
"""


def test_without_pytorch(files, photo, tmp_path):
    """A copy of ``running.py``, where only numpy, Pillow and onnxruntime can be imported."""
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    shutil.copy(running.__file__, tmp_path)
    for name in ('numpy', 'PIL', 'onnxruntime'):
        package = Path(importlib.util.find_spec(name).origin).parent
        libraries = package.with_name({'PIL': 'pillow'}.get(name, name) + '.libs')
        for folder in filter(Path.exists, (package, libraries)):
            (tmp_path / folder.name).symlink_to(folder)
    command = [sys.executable, '-S', '-c', PROGRAM, files['.onnx'], 'photo.png']
    done = subprocess.run(
        [*map(str, command)],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = {name: np.array(value) for name, value in json.loads(done.stdout).items()}
    expected = ExportedModel(files['.onnx']).predict(photo)
    assert len(found['boxes']) == len(expected['boxes']) > 3
    # resized by Pillow: pixels differ from OpenCV's by one grey level at most
    np.testing.assert_allclose(found['scores'][:3], expected['scores'][:3], atol=0.05)
    np.testing.assert_allclose(found['boxes'][:3], expected['boxes'][:3], atol=2)


def test_an_image_that_fails_changes_nothing_for_the_next(tmp_path):
    """OpenVINO's compiled model is left half changed."""
    net = build(dict(SMALL, deep_stem=True, avg_down=True))
    model = ExportedModel(export(net, tmp_path / 'net.xml').path)
    image = np.random.default_rng(0).integers(0, 256, (75, 61, 3), np.uint8)
    before = model.run(image)
    with pytest.raises(ValueError, match='net.xml does not run on 3 x 5 px: '):
        model.run(image[:5, :3])
    after = model.run(image)
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


def test_threads_may_share_a_file(files, photo):
    model = ExportedModel(files['.xml'])
    expected = model.predict(photo)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(model.predict, [photo] * 8):
            np.testing.assert_array_equal(found['boxes'], expected['boxes'])


def test_weights_of_another_file_and_links(tmp_path):
    for seed, name in enumerate(('a', 'b')):
        torch.manual_seed(seed)
        export(build(SMALL), tmp_path / f'{name}.xml')
    (tmp_path / 'link.xml').symlink_to(tmp_path / 'a.xml')
    image = np.zeros((64, 64, 3), np.uint8)
    assert ExportedModel(tmp_path / 'link.xml').run(image)['c2'].shape == (1, 32, 16, 16)
    net = build(SMALL)
    for parameter in net.parameters():
        parameter.data += 0.01
    export(net, tmp_path / 'b.xml')
    shutil.copy(tmp_path / 'b.bin', tmp_path / 'a.bin')
    with pytest.raises(ModelFileError, match='a.bin has the weights of another file'):
        ExportedModel(tmp_path / 'a.xml')


@pytest.mark.parametrize('suffix', running.SUFFIXES)
def test_an_image_larger_than_a_fixed_size(files, suffix):
    model = ExportedModel(files[suffix])
    with pytest.raises(ValueError, match='takes at most 128 x 128 px, and got 200 x 100 px'):
        model.run(np.zeros((100, 200, 3), np.uint8))


def test_settings_of_the_config_are_those_of_the_file(config, files, tmp_path):
    other = copy.deepcopy(config)
    other.model.test_cfg.rpn.nms_pre = 5
    with pytest.raises(ToolError, match='has test_cfg.rpn.nms_pre 200, but the config has 5'):
        run_test(prepare_config(other, work_dir=str(tmp_path)), str(files['.onnx']))


def test_images_of_16_bits_and_errors_in_a_folder(files, photo, tmp_path):
    model = Predictor(files['.xml'])
    with pytest.raises(ValueError, match='must have 8 bits, but its mode is I;16'):
        model(Image.fromarray(np.zeros((9, 9), np.uint16)))
    with pytest.raises(ValueError, match='image must be'):
        model(np.zeros((0, 9, 3), np.uint8))
    with pytest.raises(ToolError, match='fast is for checkpoints'):
        Predictor(files['.xml'], fast={})
    for name in 'abc':
        Image.fromarray(photo).save(tmp_path / f'{name}.png')
    compute, calls = model._model._compute, []

    def fail(image):
        calls.append(image)
        if len(calls) == 2:
            raise RuntimeError('no memory')
        return compute(image)

    model._model._compute = fail
    found = [*model(tmp_path)]
    assert ['error' in one for one in found] == [False, True, False]
    assert 'b.png' in found[1]['error'] and 'no memory' in found[1]['error']
