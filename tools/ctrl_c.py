"""Imported first by every tool: Ctrl-C ends it without a traceback while it is still importing."""

import signal
import sys
from pathlib import Path

_main = getattr(sys.modules['__main__'], '__file__', None)
# not if a test or a notebook imports a tool, nor if the process was started to ignore Ctrl-C
if _main and Path(_main).resolve().parent == Path(__file__).resolve().parent:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
