"""Tries the methods of mmdet over the stand-in for mmcv's operators.

Takes one config from each folder of the installed mmdet, builds its model from random weights and
runs a training step and a prediction on two small images::

    RES2NET_MM_OPS=torchvision python tests/ops/method_trial.py [FOLDER ...]

prints the rows of the table in docs/operators.md.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'operators.md'
SECONDS = 600  # for one method
SIZES = {  # of images, where 128 pixels are too few
    'dino': 256,  # for its 900 queries
    'ssd': 300,  # for its last levels
}

NO_METHODS = {'_base_', 'common', 'dsdl'}
PRETRAIN = 'needs mmpretrain'
TEXTS = 'needs texts and a language model'
VIDEO = 'works on videos'
SKIPPED = {
    'bytetrack': VIDEO,
    'clrnet': 'finds lanes; needs code that mmdet does not have',
    'convnext': PRETRAIN,
    'deepsort': VIDEO,
    'glip': TEXTS,
    'grounding_dino': TEXTS,
    'mask2former_vis': VIDEO,
    'masktrack_rcnn': VIDEO,
    'misc': 'needs Detectron2',
    'mm_grounding_dino': TEXTS,
    'ocsort': VIDEO,
    'qdtrack': VIDEO,
    'reid': 'compares crops of people',
    'sort': VIDEO,
    'strongsort': VIDEO,
    'timm_example': PRETRAIN,
    'v3det': 'its 13,204 classes take minutes a step',
}
# where the config with the shallowest backbone does not show the method, or not all of it
CHOSEN = {
    'cascade_rpn': ['cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco'],
    'dcn': ['faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco', 'faster-rcnn_r50_fpn_dpool_1x_coco'],
    'dcnv2': ['faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco', 'faster-rcnn_r50_fpn_mdpool_1x_coco'],
    'guided_anchoring': ['ga-retinanet_r50-caffe_fpn_1x_coco'],
    'hrnet': ['faster-rcnn_hrnetv2p-w18-1x_coco'],
    'nas_fcos': ['nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco'],
    'rtmdet': ['rtmdet_tiny_8xb32-300e_coco'],
    'v3det': ['faster_rcnn_r50_fpn_8x4_sample1e-3_mstrain_v3det_2x'],
}


def folders() -> list[str]:
    """Folders of mmdet's configs that hold methods."""
    return sorted(f.name for f in configs().iterdir() if f.is_dir() and f.name not in NO_METHODS)


def configs() -> Path:
    """Where the installed mmdet has its configs."""
    import mmdet

    return Path(mmdet.__file__).parent / '.mim' / 'configs'


def smallest(folder: str) -> Path:
    """The config of a folder whose name has the fewest layers, then the fewest letters."""

    def size(path: Path) -> tuple:
        layers = re.findall(r'(?<![a-z0-9])(?:r|s|x|hourglass|res2net-|hrnetv2p-w)(\d+)', path.stem)
        return min(map(int, layers), default=50), len(path.stem), path.stem

    found = [p for p in (configs() / folder).glob('*.py') if not p.stem.endswith(('_base', '_tta'))]
    larger = [p for p in found if not p.stem.startswith('ssd')]  # which needs larger images
    return min(larger or found, key=size)


def trials(folder: str) -> Iterator[tuple[str, str]]:
    """Names of the configs tried in a folder, each with what became of it."""
    for config in CHOSEN.get(folder) or [smallest(folder).stem]:
        if folder in SKIPPED:
            yield config, f'skipped: {SKIPPED[folder]}'
            continue
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(2, 1)  # what models print
            signal.alarm(SECONDS)
            outcome = _outcome(configs() / folder / f'{config}.py', SIZES.get(folder, 128))
            os.write(writing, outcome.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield config, said or f'failed: ended with status {status}'


def _outcome(config: Path, size: int) -> str:
    try:
        _step_and_predict(config, size)
    except NotImplementedError as error:
        operator = re.search("operator '(.+?)'", str(error))
        return f'refused: {operator[1] if operator else error}'
    except Exception as error:  # whatever else goes wrong is what the table shows
        traceback.print_exc()
        return f'failed: {type(error).__name__}: {error}'.split('\n')[0][:200]
    return 'passed'


def _step_and_predict(config: Path, size: int) -> None:
    import torch
    from mmdet.registry import MODELS
    from mmengine import Config, MessageHub
    from mmengine.model import PretrainedInit, revert_sync_batchnorm
    from mmengine.registry import init_default_scope

    torch.manual_seed(0)
    os.chdir(configs().parent)  # configs of teachers are named from here
    # mmcv's SyncBN asks for a group when it is built
    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    init_default_scope('mmdet')
    PretrainedInit.__call__ = lambda self, module: None
    for name, value in dict(iter=0, epoch=0, max_iters=10, max_epochs=1).items():
        MessageHub.get_current_instance().update_info(name, value)  # as a Runner does
    cfg = Config.fromfile(config)
    _without_files(cfg.model)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    data = _inputs(cfg, size)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    losses = model(**model.data_preprocessor(data['train'], True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite(), losses
    loss.backward()
    optimizer.step()

    model.eval()
    with torch.no_grad():
        predicted = model.test_step(data['test'])
    assert len(predicted) == 1


def _without_files(cfg: Any) -> None:
    """Takes out what loads weights, and what pads images to the size of training."""
    if isinstance(cfg, dict):
        for key in ('init_cfg', 'pretrained', 'teacher_ckpt', 'batch_augments'):
            if isinstance(cfg.get(key), str) or 'checkpoint' in (cfg.get(key) or ()):
                cfg[key] = None
        if 'batch_augments' in cfg:
            cfg['batch_augments'] = None
        for value in cfg.values():
            _without_files(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            _without_files(value)


def _numbers(cfg: Any, name: str) -> list[int]:
    """All values of an argument in a config."""
    if isinstance(cfg, dict):
        own = [cfg[name]] if isinstance(cfg.get(name), int) else []
        return own + [n for value in cfg.values() for n in _numbers(value, name)]
    if isinstance(cfg, list | tuple):
        return [n for value in cfg for n in _numbers(value, name)]
    return []


def _inputs(cfg: Any, size: int) -> dict[str, Any]:
    """What loaders of this config would give: two images with boxes, masks and label maps; one."""
    import torch

    model = cfg.model.get('detector', cfg.model)
    names = _numbers(model, 'num_classes') + _numbers(model, 'num_things_classes')
    classes = min(names, default=1)
    map_scale = 8 if 'semantic_head' in model.get('roi_head', {}) else 1
    samples = [_sample(size, min(classes, 3), map_scale, seed) for seed in (0, 1)]
    has_masks = re.search("'with_mask': True|LoadPanopticAnnotations", str(cfg))
    for sample in samples:
        if model.get('rpn_head'):
            del sample.proposals
        if not has_masks:
            del sample.gt_instances.masks, sample.ignored_instances.masks
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in samples]
    train = dict(inputs=images, data_samples=samples)
    test = dict(inputs=images[:1], data_samples=samples[:1])
    if 'detector' not in cfg.model:
        return dict(train=train, test=test)
    branches = ('sup', 'unsup_teacher', 'unsup_student')  # of half-supervised training
    train = dict(
        inputs={branch: images for branch in branches},
        data_samples={branch: [s.clone() for s in samples] for branch in branches},
    )
    return dict(train=train, test=test)


def _sample(size: int, classes: int, map_scale: int, seed: int) -> Any:
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    def instances(boxes: torch.Tensor, **more: Any) -> InstanceData:
        masks = np.zeros((len(boxes), size, size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.arange(len(boxes)) % classes
        masks = BitmapMasks(masks, size, size)
        return InstanceData(bboxes=boxes, labels=labels, masks=masks, **more)

    unit = size / 16
    boxes = torch.tensor([[1, 2, 7, 7], [8, 1, 14, 9], [2, 9, 10, 15], [11, 11, 15, 15.0]])
    boxes = (boxes + 0.3 * seed) * unit
    sample = DetDataSample(
        gt_instances=instances(boxes[:3]), ignored_instances=instances(boxes[3:])
    )
    sample.proposals = InstanceData(
        bboxes=torch.cat([boxes + d * unit for d in (-0.5, 0, 0.4)]).clamp(0, size),
        scores=torch.linspace(0.9, 0.1, 12),
    )
    label_map = torch.zeros(1, size // map_scale, size // map_scale, dtype=torch.uint8)
    label_map[:, : size // 2 // map_scale] = 1
    sample.gt_sem_seg = PixelData(sem_seg=label_map)
    sample.set_metainfo(
        dict(
            img_id=seed,
            img_path=f'{seed}.jpg',
            img_shape=(size, size),
            ori_shape=(size, size),
            batch_input_shape=(size, size),
            pad_shape=(size, size),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=[0, size, 0, size],
            homography_matrix=np.eye(3, dtype=np.float32),
        )
    )
    return sample


def rows(texts: str) -> list[str]:
    """The rows of the table in a text."""
    return re.findall(r'^\| \S+ \| `\S+` \| .+ \|$', texts, re.MULTILINE)


def main() -> None:
    import mmdet.models  # noqa: F401

    import res2net_mm  # noqa: F401

    for folder in sys.argv[1:] or folders():
        for config, outcome in trials(folder):
            print(f'| {folder} | `{config}` | {outcome} |', flush=True)


if __name__ == '__main__':
    main()
