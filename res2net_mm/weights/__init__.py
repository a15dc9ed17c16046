from .published import SCHEME, load_published
from .reading import CheckpointError, read_checkpoint

__all__ = ['SCHEME', 'CheckpointError', 'load_published', 'read_checkpoint']
