from .download import DownloadError
from .layouts import convert_state_dict
from .loading import LoadReport, describe_partial_load, load_weights
from .reading import CheckpointError, read_checkpoint
from .saving import WrittenWeights, convert_weights
from .sources import locate, marks_of, read_source, say_unknown_rules
from .zoo import SCHEME, ZOO, Published

__all__ = [
    'SCHEME',
    'ZOO',
    'CheckpointError',
    'DownloadError',
    'LoadReport',
    'Published',
    'WrittenWeights',
    'convert_state_dict',
    'convert_weights',
    'describe_partial_load',
    'load_weights',
    'locate',
    'marks_of',
    'read_checkpoint',
    'read_source',
    'say_unknown_rules',
]
