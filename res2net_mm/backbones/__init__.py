from .base import Backbone
from .bottle2neck import Bottle2neck
from .plugins import SqueezeExcitation
from .res2net import Res2Net
from .res2net_dcn import DCNV2, Res2NetDCN
from .res2net_dla import Res2NetDLA
from .res2net_stage import Res2NetStage
from .timm_backbone import TimmBackbone
from .variants import VARIANTS, create_backbone, list_backbones

__all__ = [
    'DCNV2',
    'VARIANTS',
    'Backbone',
    'Bottle2neck',
    'Res2Net',
    'Res2NetDCN',
    'Res2NetDLA',
    'Res2NetStage',
    'SqueezeExcitation',
    'TimmBackbone',
    'create_backbone',
    'list_backbones',
]
