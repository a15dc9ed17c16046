"""What runs on a CUDA GPU: operators against the CPU, training steps, and the tools."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.ops import RoIAlign, nms, sigmoid_focal_loss
from references import randomise, relative_error
from test_segmentation_tools import CONFIG as SEGMENTOR

import res2net_mm
from res2net_mm.deploy import optimize_for_inference
from res2net_mm.ops import DeformConv2d, ModulatedDeformConv2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU here'),
]

ROOT = Path(__file__).parents[1]
DETECTOR = 'faster_rcnn_r2n14_dcn_shapes.py'
TYPES = {'float32': torch.float32, 'half': torch.float16, 'autocast': None}
CLOSE = {'float32': 1e-5, 'half': 1e-2, 'autocast': 1e-2}
SMALL = dict(depth=14, base_channels=16, stem_channels=16, base_width=8)


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products are float32: by default cuDNN rounds inputs to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_both(layer, image, kind):
    """Output and gradients of a layer on the CPU in float32, and on the GPU in a type."""
    reference = image.clone().requires_grad_()
    expected = layer(reference)
    slope = torch.rand(expected.shape, generator=torch.Generator().manual_seed(2))
    parameters = dict(layer.named_parameters())
    wanted = torch.autograd.grad(expected, [reference, *parameters.values()], slope)

    dtype = TYPES[kind] or torch.float32
    layer = layer.to('cuda', dtype)
    moved = image.to('cuda', dtype).requires_grad_()
    with torch.autocast('cuda', torch.float16, enabled=TYPES[kind] is None):
        out = layer(moved)
    assert out.is_cuda
    grads = torch.autograd.grad(out, [moved, *layer.parameters()], slope.to(out))
    return [out, *grads], [expected, *wanted]


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize('way', ['torch', 'torchvision'])
@pytest.mark.parametrize('layer', [DeformConv2d, ModulatedDeformConv2d])
def test_deformable_convolution(monkeypatch, layer, way, kind):
    monkeypatch.setenv('RES2NET_MM_DEFORM_CONV', way)
    torch.manual_seed(0)
    layer = layer(8, 6, 3, padding=1, deform_groups=2)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.02)
    torch.nn.init.uniform_(layer.conv_offset.bias, 0.2, 0.8)  # off the kinks of interpolation
    found, expected = on_both(layer, torch.rand(2, 8, 20, 24), kind)
    for mine, other in zip(found, expected, strict=True):
        assert relative_error(mine.float().cpu(), other) < 10 * CLOSE[kind]


@pytest.mark.parametrize('kind', TYPES)
def test_backbone(kind):
    net = randomise(res2net_mm.Res2Net(**SMALL)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(image)
        dtype = TYPES[kind] or torch.float32
        with torch.autocast('cuda', torch.float16, enabled=TYPES[kind] is None):
            levels = net.to('cuda', dtype)(image.to('cuda', dtype))
    for level, other in zip(levels, expected, strict=True):
        assert relative_error(level.float().cpu(), other) < 5 * CLOSE[kind]


def test_operators_of_mmcv():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 4, 20, 24, generator=generator)
    corners = torch.rand(50, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(50, 2, generator=generator)], 1)
    scores = torch.rand(50, generator=generator)
    rois = torch.cat([torch.arange(50.0)[:, None] % 2, boxes], 1)
    logits = torch.randn(50, 4, generator=generator)
    target = torch.arange(50) % 5

    def everything(device):
        x, z = features.to(device).requires_grad_(), logits.to(device).requires_grad_()
        pooled = RoIAlign((7, 7), 0.25, 0)(x, rois.to(device))
        loss = sigmoid_focal_loss(z, target.to(device))
        kept = nms(boxes.to(device), scores.to(device), 0.5)[1]
        grads = torch.autograd.grad(pooled.square().sum() + loss, (x, z))
        return [tensor.cpu() for tensor in (pooled, loss, kept, *grads)]

    for found, expected in zip(everything('cuda'), everything('cpu'), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_folded_network():
    net = randomise(res2net_mm.Res2Net(**SMALL)).eval().cuda()
    image = torch.rand(2, 3, 64, 64, device='cuda')
    with torch.no_grad():
        expected = net(image)
        levels = optimize_for_inference(net)(image)
    for level, other in zip(levels, expected, strict=True):
        assert relative_error(level, other) < 1e-4


@pytest.fixture(scope='module')
def tool():
    """Runs a tool and gives what it printed."""

    def run(name, *arguments):
        command = [sys.executable, f'tools/{name}.py', *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope='module')
def trained(tool, tmp_path_factory, tiny_arguments):
    """Folder of a detector after three epochs."""
    folder = tmp_path_factory.mktemp('detector')
    tool('train', DETECTOR, '--work-dir', folder, *tiny_arguments)
    return folder


def test_detector_trains(trained):
    state = torch.load(trained / 'epoch_3.pth', map_location='cpu', weights_only=False)
    assert all(value.isfinite().all() for value in state['state_dict'].values())
    offsets = {k: v for k, v in state['state_dict'].items() if k.endswith('conv_offset.weight')}
    assert offsets and all(value.any() for value in offsets.values())


def test_detector_trains_in_mixed_precision(tool, tmp_path, tiny_arguments):
    tool('train', DETECTOR, '--work-dir', tmp_path, '--amp', *tiny_arguments)
    state = torch.load(tmp_path / 'epoch_3.pth', map_location='cpu', weights_only=False)
    assert all(value.isfinite().all() for value in state['state_dict'].values())


@pytest.mark.parametrize('amp', [(), ('--amp',)], ids=['float32', 'amp'])
def test_segmentor_trains(tool, tmp_path, shapes, amp):
    config = tmp_path / 'fcn.py'
    config.write_text(SEGMENTOR.replace('DATA', str(shapes)))
    tool('train', config, '--work-dir', tmp_path / 'w', *amp)
    printed = tool('test', config, tmp_path / 'w' / 'iter_4.pth', '--work-dir', tmp_path / 't')
    assert 'mIoU' in printed


@pytest.mark.parametrize(
    'options', [('--fast',), ('--fast', '--compile')], ids=['fast', 'compiled']
)
def test_fast_test_gives_the_same_boxes(tool, tmp_path, trained, tiny_arguments, options):
    found = []
    for name, chosen in (('plain', ()), ('fast', options)):
        out = tmp_path / f'{name}.json'
        arguments = '--work-dir', tmp_path, '--out', out, *chosen, *tiny_arguments
        tool('test', DETECTOR, trained / 'epoch_3.pth', *arguments)
        results = json.loads(out.read_text())
        results = results if isinstance(results, list) else results['annotations']
        found.append(sorted(result['score'] for result in results)[-20:])
    assert found[0] and found[0] == pytest.approx(found[1], abs=0.02)


def test_resumed_run_goes_on(tool, tmp_path, trained, tiny_arguments):
    options = *tiny_arguments, 'train_cfg.max_epochs=4'
    work_dir = tmp_path / 'w'
    checkpoint = trained / 'epoch_3.pth'
    tool('train', DETECTOR, '--work-dir', work_dir, '--resume', checkpoint, *options)
    assert [path.name for path in work_dir.glob('epoch_*.pth')] == ['epoch_4.pth']
    state = torch.load(work_dir / 'epoch_4.pth', map_location='cpu', weights_only=False)
    assert state['meta']['epoch'] == 4
