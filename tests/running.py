"""What tests run the tools with."""

import sys
from pathlib import Path

ORIGINALS = Path(sys.prefix, 'openmmlab')


def as_arguments(options: dict) -> list[str]:
    """The options as a user types them."""
    return ['--cfg-options'] + [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
