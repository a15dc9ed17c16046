"""Imported first by every tool: Ctrl-C ends it without a traceback while it is still importing, and
--help does not wait for imports that only the work needs."""

import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from pathlib import Path

_main = getattr(sys.modules['__main__'], '__file__', None)
# not if a test or a notebook imports a tool
_is_tool = bool(_main) and Path(_main).resolve().parent == Path(__file__).resolve().parent
# once the package is there, nothing is saved
_helps = _is_tool and 'res2net_mm' not in sys.modules
_helps = _helps and not {'-h', '--help'}.isdisjoint(sys.argv)
# a process that was started to ignore Ctrl-C goes on doing so
if _is_tool and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# empty packages, whose modules can be imported: what they import themselves loads torch
for _name in ('res2net_mm', 'res2net_mm.data') if _helps else ():
    if _spec := find_spec(_name):
        sys.modules[_name] = module_from_spec(_spec)


def run_tool(main: Callable[[], int | None]) -> None:
    """Runs a tool as :func:`res2net_mm.engine.errors.run_tool` does; for --help, its parser."""
    if _helps:
        sys.exit(main())
    from res2net_mm.engine.errors import run_tool

    run_tool(main)
