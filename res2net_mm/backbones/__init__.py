from .bottle2neck import Bottle2neck
from .res2net import Res2Net
from .variants import create_backbone, list_backbones

__all__ = ['Bottle2neck', 'Res2Net', 'create_backbone', 'list_backbones']
