"""Whether everything that is made is on the device of the input, without such a device.

FakeTensorMode, which has no public name, runs operators on shapes, types and devices; mixing two
devices is an error in it.
"""

from contextlib import contextmanager

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch._subclasses import FakeTensorMode

from res2net_mm.backbones import VARIANTS
from res2net_mm.engine.config import load_config
from res2net_mm.ops import ModulatedDeformConv2d, deform_conv2d
from res2net_mm.registry import MODELS as OURS

CUDA = 'cuda'
LARGE = ('_6s', '_8s', '101', '200')  # the same with more blocks or groups


@pytest.fixture
def fake():
    """Within it tensors are shapes on a device that need not be there."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        try:
            torch.rand(1, device=CUDA).uniform_()
        except RuntimeError as error:
            if 'CUDA driver' not in str(error):
                raise
            pytest.skip(f'torch {torch.__version__} asks for a CUDA device: {error}')
        yield mode


@contextmanager
def float16(wanted):
    """Autocast of CUDA, which ``torch.autocast`` leaves off without a GPU."""
    torch.set_autocast_enabled(CUDA, wanted)
    torch.set_autocast_dtype(CUDA, torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(CUDA, False)
        torch.clear_autocast_cache()


def devices(tensors):
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize('half', [False, True], ids=['float32', 'float16'])
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * any(part in name for part in LARGE))
        for name in VARIANTS
    ],
)
def test_backbones(fake, name, half):
    arguments = dict(VARIANTS[name])  # built without initial values, which mmengine compares
    with torch.device(CUDA):
        net = OURS.get(arguments.pop('type', 'Res2Net'))(**arguments, norm_eval=False)
    image = torch.rand(2, 3, 64, 64, device=CUDA)
    with float16(half):
        levels = net(image)
    assert devices([*net.parameters(), *net.buffers(), *levels]) == {CUDA}
    widths = [level.shape[1] for level in levels]
    assert widths == list(net.out_channels)
    if half and '_dcn' not in name:
        assert {level.dtype for level in levels} == {torch.float16}


@pytest.mark.parametrize('half', [False, True], ids=['float32', 'float16'])
@pytest.mark.parametrize('way', ['auto', 'torchvision'])
def test_deformable_convolution(fake, monkeypatch, way, half):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    with torch.device(CUDA):
        layer = ModulatedDeformConv2d(8, 6, 3, padding=1)
    x = torch.rand(2, 8, 12, 10, device=CUDA, requires_grad=True)
    with float16(half):
        out = layer(x)
    assert out.device.type == CUDA and out.shape == (2, 6, 12, 10)
    offset, weight = (torch.rand(s, device=CUDA) for s in ((2, 18, 12, 10), (6, 8, 3, 3)))
    assert deform_conv2d(x, offset, weight, padding=1).device.type == CUDA


@pytest.mark.parametrize('half', [False, True], ids=['float32', 'float16'])
def test_parts_of_faster_rcnn(fake, half):
    """Backbone, neck, heads, RoIAlign and boxes; what chooses boxes by their values cannot run."""
    init_default_scope('mmdet')
    cfg = load_config('faster_rcnn_r2n14_dcn_shapes.py').model
    cfg.backbone.norm_eval = False
    with torch.device(CUDA):
        model = MODELS.build(cfg)
    image = torch.rand(2, 3, 64, 96, device=CUDA)
    rois = torch.rand(7, 5, device=CUDA)
    with float16(half):
        levels = model.extract_feat(image)
        scores, deltas = model.rpn_head(levels)
        extractor = model.roi_head.bbox_roi_extractor
        pooled = [
            layer(level, rois)
            for layer, level in zip(extractor.roi_layers, levels[:-1], strict=True)
        ]
        classes, boxes = model.roi_head.bbox_head(sum(pooled))
    sizes = [level.shape[2:] for level in scores]
    priors = model.rpn_head.prior_generator.grid_priors(sizes, device=image.device)
    found = [*levels, *scores, *deltas, *pooled, classes, boxes, *priors]
    assert devices(found) == {CUDA}
    decoded = model.rpn_head.bbox_coder.decode(
        priors[0], deltas[0][0].permute(1, 2, 0).reshape(-1, 4), max_shape=(64, 96)
    )
    assert devices([decoded]) == {CUDA}
    assert levels[0].dtype == classes.dtype == (torch.float16 if half else torch.float32)
