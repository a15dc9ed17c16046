from .reading import CheckpointError, read_checkpoint

__all__ = ['CheckpointError', 'read_checkpoint']
