"""Makes `python -m tools.train` work: tools import what they share from this folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
