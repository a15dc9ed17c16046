from .download import DownloadError
from .finite import constants, not_finite, say_not_finite
from .layouts import convert_state_dict
from .loading import LoadReport, describe_partial_load, load_weights
from .reading import CheckpointError, read_checkpoint
from .saving import WrittenWeights, convert_weights
from .sources import conventions_of, locate, read_source, say_unknown_rules
from .zoo import SCHEME, ZOO, Published

__all__ = [
    'SCHEME',
    'ZOO',
    'CheckpointError',
    'DownloadError',
    'LoadReport',
    'Published',
    'WrittenWeights',
    'constants',
    'convert_state_dict',
    'convert_weights',
    'describe_partial_load',
    'load_weights',
    'locate',
    'conventions_of',
    'not_finite',
    'read_checkpoint',
    'read_source',
    'say_not_finite',
    'say_unknown_rules',
]
