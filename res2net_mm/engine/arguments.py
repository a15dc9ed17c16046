"""The command line that the tools share."""

from __future__ import annotations

import argparse
from typing import Any

from mmengine.config import DictAction


class ConfigOptions(DictAction):
    """mmengine's action for ``KEY=VALUE``; text without ``=`` is a usage error."""

    def __call__(
        self, parser: argparse.ArgumentParser, space: Any, values: list[str], *args: Any
    ) -> None:
        for value in values:
            if '=' not in value:
                raise argparse.ArgumentError(self, f'must be KEY=VALUE, but got {value!r}')
        super().__call__(parser, space, values, *args)


_SHARED = {
    'config': dict(help='config file, or the name of one of this package'),
    'checkpoint': dict(help='weights of the whole model'),
    '--launcher': dict(choices=['none', 'pytorch', 'slurm', 'mpi'], default='none'),
    '--trust-checkpoint': dict(
        action='store_true', help='read the checkpoint with pickle, which runs any code in it'
    ),
    '--cfg-options': dict(
        nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config'
    ),
}


def tool_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples, line breaks kept."""
    return argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_shared(parser: argparse.ArgumentParser, *names: str, **changes: str) -> None:
    """Adds arguments that several tools have.

    Args:
        parser: The tool's.
        names: Of ``config``, ``checkpoint``, ``--launcher``, ``--trust-checkpoint`` and
            ``--cfg-options``.
        changes: What differs in this tool, such as ``help``.
    """
    for name in names:
        parser.add_argument(name, **{**_SHARED[name], **changes})
