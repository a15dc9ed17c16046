from .errors import DataError
from .synthetic.shapes import make_shapes

__all__ = ['DataError', 'make_shapes']
