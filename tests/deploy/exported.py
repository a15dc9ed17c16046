"""Small networks to export, and exported files in their runtimes."""

import json
from functools import cache

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ALL
from mmengine.registry import init_default_scope
from references import randomise
from torch import nn

from res2net_mm.engine.config import load_config
from res2net_mm.registry import MODELS

SMALL = dict(depth=14, base_channels=8, stem_channels=8, base_width=4)


def build(args):
    """A backbone with random weights, and offsets of pixels that depend on the image."""
    args = dict(args)
    return moved(randomise(MODELS.get(args.pop('type', 'Res2Net'))(**args)))


def moved(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, module in net.named_modules():
        if name.endswith('.conv_offset'):
            fan_in = module.weight[0].numel()
            weight = torch.randn(module.weight.shape, generator=generator) / fan_in**0.5
            module.weight.data.copy_(weight)
            module.bias.data.copy_(3 * torch.randn(module.bias.shape, generator=generator))
    return net


def spread(model, seed=0):
    """Random weights of a detector that give scores and boxes far apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in moved(randomise(model)).named_modules():
        last = name.rpartition('.')[2]
        if isinstance(module, nn.Linear):
            values = torch.randn(module.weight.shape, generator=generator)
            scale = {'fc_cls': 0.5, 'fc_reg': 0.05}.get(last, 1.0)
            module.weight.data.copy_(values * scale * (2 / module.weight.shape[1]) ** 0.5)
        elif isinstance(module, nn.Conv2d) and last.endswith('_cls') and last != 'rpn_cls':
            module.bias.data.fill_(-2)
        elif isinstance(module, nn.Conv2d) and last.endswith(('_reg', '_reg_refine')):
            module.weight.data *= 0.1
    return model.eval()


@cache
def detector(mask=False):
    """A small Faster or Mask R-CNN."""
    name = 'mask_rcnn_r2n14_nuclei' if mask else 'faster_rcnn_r2n14_shapes'
    cfg = load_config(f'configs/{name}.py')
    cfg.merge_from_dict(
        {
            'model.backbone': SMALL,
            'model.neck.in_channels': [32, 64, 128, 256],
            'model.neck.out_channels': 16,
            'model.rpn_head.in_channels': 16,
            'model.rpn_head.feat_channels': 16,
            'model.roi_head.bbox_roi_extractor.out_channels': 16,
            'model.roi_head.bbox_head.in_channels': 16,
            'model.roi_head.bbox_head.fc_out_channels': 32,
        }
    )
    if mask:
        cfg.model.roi_head.mask_roi_extractor.out_channels = 16
        cfg.model.roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return spread(ALL.build(cfg.model))


@cache
def segmentor(**changed):
    """A small Semantic FPN."""
    cfg = load_config('configs/sem_fpn_r2n14_camvid.py')
    cfg.model.backbone.update(SMALL)
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
    cfg.model.decode_head.update(in_channels=[16] * 4, channels=16, **changed)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomise(ALL.build(Config(cfg.model.to_dict()))).eval()
    last = model.decode_head.conv_seg
    last.bias.data.zero_()
    image = torch.from_numpy(picture(64, 96)).permute(2, 0, 1)[None].float()
    with torch.no_grad():  # every class wins somewhere
        meta = dict(img_shape=(64, 96))
        last.bias.data -= model.encode_decode((image - 120) / 58, [meta]).mean((0, 2, 3))
    return model


def picture(height, width, seed=3):
    """uint8 (height, width, 3) of blocks and noise."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    pixels = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    return (pixels + random.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)


def run_file(path, image):
    """Outputs by name of a file in stock onnxruntime or OpenVINO."""
    if path.suffix == '.onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {'image': image}), strict=True))
    import openvino

    precise = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino.Core().compile_model(path, 'CPU', precise)
    return {port.get_any_name(): value.copy() for port, value in compiled(image).items()}


def metadata(path):
    """The JSON text in a file."""
    if path.suffix == '.onnx':
        import onnx

        (prop,) = onnx.load(path).metadata_props
        assert prop.key == 'res2net_mm'
        return json.loads(prop.value)
    import openvino

    return json.loads(openvino.Core().read_model(path).get_rt_info(['res2net_mm']).value)
