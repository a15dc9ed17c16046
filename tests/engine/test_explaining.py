"""Class activation maps, against Grad-CAM by hand; bad images do not stop the others."""

import copy
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from pytorch_grad_cam.utils.image import show_cam_on_image
from test_segmentation_tools import CONFIG as SEGMENTOR
from torch import nn

from res2net_mm.data.errors import DataError
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.explaining import Explainer, explain_images, image_fields
from res2net_mm.engine.infer import ConfiguredModel
from res2net_mm.engine.sources import find_images
from res2net_mm.evaluation.receptive_field import effective_fields

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SIDE = 6


class Model(nn.Module):
    """Three channels of the image itself as features, and a linear layer over their mean."""

    def __init__(self, head):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.forward = lambda x: (x.mean(1, keepdim=True), x * self.gain)
        self.gain = nn.Parameter(torch.tensor([1.0, 2.0, 1.0])[:, None, None])
        self.weight = torch.tensor([[1.0, -1.0, 0.0], [-2.0, 1.0, 0.5]])
        self.head = head

    def data_preprocessor(self, batch, training):
        return dict(inputs=torch.stack(batch['inputs']).float(), data_samples=None)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor'
        features = self.backbone(inputs)[-1]
        return self.head(features, self.weight)


def classify(features, weight):
    return features.mean((2, 3)) @ weight.T


def segment(features, weight):
    return torch.einsum('nchw,kc->nkhw', features, weight)


def predictor_of(model, image):
    batch = lambda path: dict(inputs=[image])  # noqa: E731
    return SimpleNamespace(model=model, classes=['cat', 'dog'], prepare=batch)


@pytest.fixture
def image():
    """(3, H, W), as loaded: BGR."""
    return torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).byte()


def overlay(image, heat):
    pixels = image.permute(1, 2, 0).numpy()[..., ::-1] / np.float32(255)
    heat = np.maximum(heat, 0)
    heat = (heat - heat.min()) / (1e-7 + (heat - heat.min()).max())
    return show_cam_on_image(pixels, heat, use_rgb=True)


@pytest.mark.parametrize(('target', 'label'), [('cat', 0), ('dog', 1), (None, None)])
def test_grad_cam_of_a_classifier_by_hand(image, target, label):
    """A linear layer over means: the weights of the channels are those of the class."""
    model = Model(classify)
    title, pixels = Explainer(predictor_of(model, image), 'gradcam', target, 0.3).explain(Path('x'))
    features = image.float().numpy() * np.array([1, 2, 1])[:, None, None]
    logits = model.weight.numpy() @ features.mean((1, 2))
    label = int(logits.argmax()) if label is None else label
    heat = np.einsum('c,chw->hw', model.weight[label].numpy(), features)
    assert title == f'gradcam, {["cat", "dog"][label]}'
    assert np.abs(pixels.astype(int) - overlay(image, heat)).max() <= 4


@pytest.mark.parametrize('target', ['cat', 'dog', None])
def test_grad_cam_of_a_segmentor_by_hand(image, target):
    """Gradients are the weights of the class at its pixels, averaged over all pixels."""
    model = Model(segment)
    explainer = Explainer(predictor_of(model, image), 'gradcam', target, 0.3)
    title, pixels = explainer.explain(Path('x'))
    features = image.float().numpy() * np.array([1, 2, 1])[:, None, None]
    labels = np.einsum('kc,chw->khw', model.weight.numpy(), features).argmax(0)
    label = int((labels == 1).sum() > SIDE**2 / 2) if target is None else int(target == 'dog')
    heat = np.einsum('c,chw->hw', model.weight[label].numpy(), features)
    assert title == f'gradcam, {(labels == label).mean():.0%} {["cat", "dog"][label]}'
    assert np.abs(pixels.astype(int) - overlay(image, heat)).max() <= 4


def test_eigen_cam_is_the_first_component_whatever_its_sign(image):
    """And it is the same for a negative of the features' deviations."""
    features = image.float().numpy() * np.array([1, 2, 1])[:, None, None]
    flat = features.reshape(3, -1).T
    flat = flat - flat.mean(0)
    heat = (flat @ np.linalg.eigh(flat.T @ flat)[1][:, -1]).reshape(SIDE, SIDE)
    heat = -heat if -heat.min() > heat.max() else heat
    explainer = Explainer(predictor_of(Model(classify), image), 'eigencam', None, 0.3)
    title, pixels = explainer.explain(Path('x'))
    assert title == 'eigencam'
    assert np.abs(pixels.astype(int) - overlay(image, heat)).max() <= 4


def test_binary_segmentor(image):
    """One channel: label 1 is where the probability is above the threshold, label 0 the rest."""
    model = Model(lambda features, weight: segment(features, weight[:1]))
    logits = image[0].float() - 2 * image[1].float()
    share = float((logits > 0).float().mean())
    for target, said in (
        (None, f'{share:.0%} dog'),
        ('dog', f'{share:.0%} dog'),
        ('cat', f'{1 - share:.0%} cat'),
    ):
        title, _ = Explainer(predictor_of(model, image), 'gradcam', target, 0.3).explain(Path('x'))
        assert title == f'gradcam, {said}'


def test_what_cannot_be_explained(image):
    predictor = predictor_of(Model(classify), image)
    with pytest.raises(ToolError, match='dgo is no class of the model; did you mean dog?'):
        Explainer(predictor, 'gradcam', 'dgo', 0.3)
    with pytest.raises(ToolError, match='Linear has no backbone'):
        Explainer(predictor_of(nn.Linear(1, 1), image), 'gradcam', None, 0.3)
    dark = predictor_of(Model(segment), torch.zeros(3, SIDE, SIDE).byte())
    with pytest.raises(DataError, match='nothing to explain: 0% dog'):
        Explainer(dark, 'gradcam', 'dog', 0.3).explain(Path('x'))
    single = predictor_of(Model(classify), torch.full((3, 1, 1), 5).byte())  # one cell: no contrast
    title, _ = Explainer(single, 'gradcam', 'cat', 0.3).explain(Path('x'))
    assert title.endswith('no map: all places alike')


def saved(cfg, folder):
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), folder / 'c.pth')
    return folder / 'c.pth'


@pytest.fixture(scope='module')
def detector(tiny_options, tmp_path_factory):
    cfg = load_config('faster_rcnn_r2n14_shapes.py', tiny_options)
    return cfg, saved(cfg, tmp_path_factory.mktemp('detector'))


@pytest.fixture
def photos(shapes, tmp_path):
    good = sorted((shapes / 'val').glob('*.jpg'))[0]
    (tmp_path / 'photos/more').mkdir(parents=True)
    for name in ('a.jpg', 'more/b.jpg'):
        (tmp_path / 'photos' / name).write_bytes(good.read_bytes())
    (tmp_path / 'photos/cut.jpg').write_bytes(good.read_bytes()[:3000])
    return tmp_path / 'photos'


@pytest.mark.parametrize('method', ['gradcam', 'eigencam'])
def test_detector(detector, photos, method, tmp_path):
    cfg, checkpoint = detector
    explainer = Explainer(ConfiguredModel(cfg, str(checkpoint), 'cpu'), method, None, 0.05)
    images = sorted(photos.rglob('*.jpg'))
    failures = explain_images({'small': explainer}, images, tmp_path / 'out')
    assert len(failures) == 1 and 'cut.jpg' in failures[0] and 'truncated' in failures[0]
    written = sorted(str(f.relative_to(tmp_path / 'out')) for f in (tmp_path / 'out').rglob('*.*'))
    assert written == [f'a.jpg.{method}.jpg', f'more/b.jpg.{method}.jpg']
    title, pixels = explainer.explain(images[0])
    assert method == 'eigencam' or 'detections' in title and 'gradcam, 0' not in title
    spread = pixels.reshape(-1, 3).std(0)
    assert spread.min() > 5, 'heat over the image, not one colour'


def test_scores_without_a_gradient(detector, photos):
    cfg, checkpoint = copy.deepcopy(detector[0]), detector[1]
    cfg.model.test_cfg.rcnn.nms.type = 'soft_nms'
    explainer = Explainer(ConfiguredModel(cfg, str(checkpoint), 'cpu'), 'gradcam', None, 0.0)
    with pytest.raises(ToolError, match='have no gradient .*--method eigencam'):
        explainer.explain(photos / 'a.jpg')


def test_no_detection_is_a_line(detector, photos, tmp_path):
    cfg, checkpoint = detector
    explainer = Explainer(ConfiguredModel(cfg, str(checkpoint), 'cpu'), 'gradcam', 'star', 0.999)
    failures = explain_images({'small': explainer}, [photos / 'a.jpg'], tmp_path / 'out')
    assert failures == [f'image {photos}/a.jpg: there is nothing to explain: 0 detections star']


def test_places_of_maps(photos, monkeypatch):
    """Beside the image, as they replace nothing; below a folder that was given."""
    monkeypatch.setattr('res2net_mm.engine.explaining.draw_sheet', lambda rows, out: out.touch())
    explainer = SimpleNamespace(method='gradcam', explain=lambda file: ('', None))
    for image, out, given in (('a.jpg', '.', ()), ('more/b.jpg', 'out', [photos])):
        assert not explain_images({'': explainer}, [photos / image], photos / out, given)
        assert (photos / out / f'{image}.gradcam.jpg').exists()
    with pytest.raises(ToolError, match='would replace the image'):
        explain_images({'': explainer}, [photos / 'a.jpg', photos / 'a.jpg.gradcam.jpg'], photos)
    with pytest.raises(ToolError, match='0 is no image, folder or pattern'):
        find_images(Path('0'))


def test_fields_on_images(detector, photos):
    """Against the network itself on the normalised image."""
    cfg, checkpoint = detector
    predictor = ConfiguredModel(cfg, str(checkpoint), 'cpu')
    fields = image_fields(predictor, [photos / 'a.jpg'], 65)
    assert list(fields) == ['C2', 'C3', 'C4', 'C5'] and fields['C5'].shape == (65, 65)
    pixels = predictor.prepare(photos / 'a.jpg')['inputs'][0].float()[None].flip(1)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std)
    )
    inputs = nn.functional.interpolate(
        (pixels - mean) / std, (65, 65), mode='bilinear', antialias=True
    )
    for field, expected in zip(
        fields.values(), effective_fields(predictor.model.backbone, [inputs]), strict=True
    ):
        torch.testing.assert_close(field, expected, rtol=1e-3, atol=1e-6)


def explain(monkeypatch, *args):
    """Runs the tool in this process, and returns its status."""
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.setattr(sys, 'argv', ['explain.py', *map(str, args)])
    return runpy.run_path(str(TOOLS / 'explain.py'))['main']()


def test_tool_compares_two_models(
    detector, shapes, photos, tiny_arguments, tmp_path, monkeypatch, capfd
):
    """A detector beside a segmentor, as a user calls it."""
    text = SEGMENTOR.replace('DATA', str(shapes)).replace('SyncBN', 'BN')
    (tmp_path / 'fcn.py').write_text(text)
    second = saved(load_config(tmp_path / 'fcn.py'), tmp_path)
    out = tmp_path / 'out'
    status = explain(
        monkeypatch, 'faster_rcnn_r2n14_shapes.py', detector[1], photos, '--out', out, '--compare',
        tmp_path / 'fcn.py', second, '--threshold', '0.05', *tiny_arguments,
    )  # fmt: skip
    said = capfd.readouterr()
    assert status == 1 and '2 of 3 images' in said.out and 'cut.jpg' in said.err
    height, width = cv2.imread(str(out / 'a.jpg.gradcam.jpg')).shape[:2]
    assert width > 1.8 * height, 'two maps side by side'


def test_tool_prints_fields(tmp_path, monkeypatch, capsys):
    assert not explain(monkeypatch, '--erf', 'res2net14_v1b_26w_4s', 'resnet50', '--side', '65',
                       '--samples', '1', '--out', tmp_path)  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        [name, f'C{i}'] for name in ('res2net14_v1b_26w_4s', 'resnet50') for i in range(2, 6)
    ]
    assert all(0 < int(row[2]) <= 65 for row in rows[1:])
    assert cv2.imread(str(tmp_path / 'fields.png')) is not None
