"""Builds from every registry, trains a step and predicts; run in a fresh process on each stack.

    python tests/smoke_stack.py SHAPES_FOLDER WORK_DIR

Only ``custom_imports`` of the config imports the package.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

shapes, work_dir = sys.argv[1:]
assert 'res2net_mm' not in sys.modules
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
cfg = Config.fromfile(CONFIGS / 'faster_rcnn_r2n14_shapes.py')  # custom_imports
assert 'res2net_mm' in sys.modules

import mmcv  # noqa: E402
import mmdet  # noqa: E402
import mmengine  # noqa: E402
import mmengine.registry  # noqa: E402
import mmseg  # noqa: E402

versions = ' '.join(m.__version__ for m in (mmengine, mmcv, mmdet, mmseg))
print('versions:', versions, Path(mmengine.__file__).parents[1])

from mmdet.apis import DetInferencer, inference_detector, init_detector  # noqa: E402
from mmdet.models.backbones import Res2Net as BuiltIn  # noqa: E402
from mmdet.registry import MODELS as DET_MODELS  # noqa: E402
from mmseg.apis import inference_model, init_model  # noqa: E402
from mmseg.registry import MODELS as SEG_MODELS  # noqa: E402

import res2net_mm  # noqa: E402

backbone = dict(type='res2net_mm.Res2Net', depth=14)
for registry in (mmengine.registry.MODELS, DET_MODELS, SEG_MODELS):
    assert type(registry.build(dict(backbone))) is res2net_mm.Res2Net, registry
# mmdet's own network of that name is unchanged
assert DET_MODELS.get('Res2Net') is DET_MODELS.get('mmdet.Res2Net') is BuiltIn
assert 'Res2Net' not in SEG_MODELS.module_dict

image = np.zeros((96, 128, 3), np.uint8)
for split in ('train', 'val', 'test'):
    cfg[f'{split}_dataloader'].dataset.data_root = f'{shapes}/'
for split in ('val', 'test'):
    cfg[f'{split}_evaluator'].ann_file = f'{shapes}/annotations/instances_val.json'
cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
cfg.val_dataloader.num_workers = cfg.test_dataloader.num_workers = 0
cfg.train_cfg.update(max_epochs=1, val_interval=1)

# mmengine's own Runner, as a user's script would call it
from mmengine.runner import Runner  # noqa: E402

cfg.work_dir = work_dir
cfg.train_dataloader.dataset.indices = 4  # one step
runner = Runner.from_cfg(cfg)
before = {k: v.clone() for k, v in runner.model.state_dict().items()}
runner.train()
after = runner.model.state_dict()
assert any(not after[k].equal(v) for k, v in before.items() if k.startswith('backbone.layer4'))

weights = f'{work_dir}/weights.pth'  # mmengine 0.10.7 cannot read the rest of a checkpoint
torch.save(
    dict(state_dict=after, meta=dict(dataset_meta=dict(classes=('a', 'b', 'c', 'd')))), weights
)
detector = init_detector(cfg, weights, palette='random', device='cpu')
result = inference_detector(detector, image)
assert result.pred_instances.bboxes.shape[-1] == 4
inferencer = DetInferencer(
    model=str(CONFIGS / 'faster_rcnn_r2n14_shapes.py'), weights=weights, device='cpu'
)
assert len(inferencer(image, no_save_vis=True)['predictions']) == 1

segmentor = init_model(
    Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['res2net_mm'], allow_failed_imports=False),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor'),
                backbone=backbone,
                decode_head=dict(
                    type='FCNHead', in_channels=2048, in_index=3, channels=8, num_classes=5
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            test_pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
        )
    ),
    device='cpu',
)
assert inference_model(segmentor, image).pred_sem_seg.data.shape[-2:] == (96, 128)
print('smoke: ok')
