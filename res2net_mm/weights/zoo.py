"""The table of published weights, one entry per file.

Accuracies are the ones that each source reports. The hexadecimal digits at the end of most file
names are the first digits of the file's sha256.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..backbones import VARIANTS

SCHEME = 'res2net://'
# the normalisation of all published weights: RGB, 0 to 255
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NON_COMMERCIAL = 'CC BY-NC-SA 4.0 (non-commercial)'


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file."""

    url: str
    layout: str  # how its tensors are named, see convert_state_dict
    variant: str  # the network, a name of list_backbones()
    licence: str
    source: str  # who published it
    accuracy: dict[str, float] = field(default_factory=dict)  # in %, as the source reports it
    first_block: str | None = None  # the rule that it needs, if it differs from the variant's

    @property
    def filename(self) -> str:
        """Name of the file, without folders."""
        return PurePosixPath(self.url).name

    @property
    def sha256(self) -> str | None:
        """The first digits of the file's sha256; None if its source publishes none."""
        found = re.search(r'-([0-9a-f]{8})\.pth$', self.filename)
        return found[1] if found else None

    @property
    def second_url(self) -> str | None:
        """Address of timm's copy of the weights, on the Hugging Face hub or at HF_ENDPOINT."""
        if self.layout != 'official' or self.variant not in _OFFICIAL:
            return None
        hub = os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')
        name = _TIMM_NAMES.get(self.variant, self.variant)
        return f'{hub}/timm/{name}.in1k/resolve/main/model.safetensors'

    @property
    def rule(self) -> str:
        """The first-block rule that the weights need."""
        return self.first_block or VARIANTS[self.variant].get('first_block', 'official')

    @property
    def arch(self) -> dict[str, Any]:
        """Arguments of the backbone that the weights need, including ``type``."""
        args = {'type': 'Res2Net', **VARIANTS[self.variant]}
        return args if args['type'] == 'Res2NetDLA' else dict(args, first_block=self.rule)


_OFFICIAL = {
    'res2net50_48w_2s': ('res2net50_48w_2s-afed724a', 77.32),
    'res2net50_26w_4s': ('res2net50_26w_4s-06e79181', 77.99),
    'res2net50_14w_8s': ('res2net50_14w_8s-6527dddc', 78.14),
    'res2net50_26w_6s': ('res2net50_26w_6s-19041792', 78.58),
    'res2net50_26w_8s': ('res2net50_26w_8s-2c7c9f12', 79.20),
    'res2net101_26w_4s': ('res2net101_26w_4s-02a759a1', 79.19),
    'res2next50_4w_4s_8c': ('res2next50_4s-6ef7e7bf', 78.24),
    'res2net_dla60': ('res2net_dla60_4s-d88db7f9', 78.47),
    'res2next_dla60': ('res2next_dla60_4s-d327927b', 78.45),
    'res2net50_v1b_26w_4s': ('res2net50_v1b_26w_4s-3cf99910', 80.27),
    'res2net101_v1b_26w_4s': ('res2net101_v1b_26w_4s-0812c246', 81.23),
}
# timm's names of these, where they differ
_TIMM_NAMES = {
    'res2next50_4w_4s_8c': 'res2next50',
    'res2net_dla60': 'dla60_res2net',
    'res2next_dla60': 'dla60_res2next',
    'res2net50_v1b_26w_4s': 'res2net50d',
    'res2net101_v1b_26w_4s': 'res2net101d',
}
_MMPRETRAIN = {
    'res2net50_14w_8s': ('res2net50-w14-s8_3rdparty_8xb32_in1k_20210927-bc967bf1', 78.14),
    'res2net50_26w_8s': ('res2net50-w26-s8_3rdparty_8xb32_in1k_20210927-f547a94b', 79.20),
    'res2net101_26w_4s': ('res2net101-w26-s4_3rdparty_8xb32_in1k_20210927-870b6c36', 79.19),
}
_PADDLE = {
    'res2net50_vd_26w_4s': ('res2net50_vd_26w_4s', 'Res2Net50_vd_26w_4s', 79.8),
    'res2net50_vd_26w_4s_ssld': ('res2net50_vd_26w_4s', 'Res2Net50_vd_26w_4s_ssld', 83.1),
    'res2net101_vd_26w_4s': ('res2net101_vd_26w_4s', 'Res2Net101_vd_26w_4s', 80.6),
    'res2net101_vd_26w_4s_ssld': ('res2net101_vd_26w_4s', 'Res2Net101_vd_26w_4s_ssld', 83.9),
    'res2net200_vd_26w_4s': ('res2net200_vd_26w_4s', 'Res2Net200_vd_26w_4s', 81.2),
    'res2net200_vd_26w_4s_ssld': ('res2net200_vd_26w_4s', 'Res2Net200_vd_26w_4s_ssld', 85.1),
    'res2net50_14w_8s_paddle': ('res2net50_14w_8s', 'Res2Net50_14w_8s', 79.5),
    'res2net50_26w_4s_paddle': ('res2net50_26w_4s', 'Res2Net50_26w_4s', 79.3),
}
_DETECTORS = {
    'faster_rcnn_r2_101_fpn_2x_coco': ('175f1da6', dict(box=43.0)),
    'mask_rcnn_r2_101_fpn_2x_coco': ('17f061e8', dict(box=43.6, mask=38.7)),
    'cascade_rcnn_r2_101_fpn_20e_coco': ('f4b7b7db', dict(box=45.7)),
    'cascade_mask_rcnn_r2_101_fpn_20e_coco': ('8a7b41e1', dict(box=46.4, mask=40.0)),
    'htc_r2_101_fpn_20e_coco': ('3a8d2112', dict(box=47.5, mask=41.6)),
}

ZOO: dict[str, Published] = {}
for _variant, (_file, _top1) in _OFFICIAL.items():
    ZOO[_variant] = Published(
        url=f'https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/{_file}.pth',
        layout='official',
        variant=_variant,
        licence=NON_COMMERCIAL,
        source='the authors, github.com/Res2Net/Res2Net-PretrainedModels',
        accuracy={'ImageNet top-1': _top1},
    )
for _variant, (_file, _top1) in _MMPRETRAIN.items():
    ZOO[f'{_variant}_mmpretrain'] = Published(
        url=f'https://download.openmmlab.com/mmclassification/v0/res2net/{_file}.pth',
        layout='mmpretrain',
        variant=_variant,
        licence=NON_COMMERCIAL,
        source="mmpretrain, converted from the authors' weights",
        accuracy={'ImageNet top-1': _top1},
    )
ZOO['res2net101_v1d_26w_4s'] = Published(
    url='https://download.openmmlab.com/pretrain/third_party/'
    'res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth',
    layout='mmdet',
    variant='res2net101_v1b_26w_4s',
    licence=NON_COMMERCIAL,
    source="open-mmlab://res2net101_v1d_26w_4s, the authors' weights (mmdet applies its own rule)",
)
for _name, (_variant, _file, _top1) in _PADDLE.items():
    ZOO[_name] = Published(
        url='https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/'
        f'{_file}_pretrained.pdparams',
        layout='paddle',
        variant=_variant,
        licence='Apache-2.0',
        source='PaddleClas',
        accuracy={'ImageNet top-1': _top1},
        first_block='paddle',
    )
for _name, (_sha256, _accuracy) in _DETECTORS.items():
    ZOO[_name] = Published(
        url=f'https://download.openmmlab.com/mmdetection/v2.0/res2net/{_name}-{_sha256}.pth',
        layout='mmdet',
        variant='res2net101_v1b_26w_4s',
        licence=f'Apache-2.0, trained from {NON_COMMERCIAL} weights',
        source='mmdet, a whole detector',
        accuracy={f'COCO {measure} AP': value for measure, value in _accuracy.items()},
        first_block='mmdet',
    )
