"""Running tools in forks of a process that has imported what they need: seconds less a run."""

import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
IMPORTS = (
    'res2net_mm.engine.evaluate',
    'res2net_mm.engine.infer',
    'mmdet.datasets.transforms',
    'mmdet.evaluation',
    'mmdet.models',
    'mmdet.visualization',
    'yapf.yapflib.yapf_api',
)


class Forks:
    """A process that forks on request; one tool at a time, each in a process group of its own."""

    def __init__(self, server: subprocess.Popen) -> None:
        self.server = server

    def start(self, tool: str, arguments: list[str], log: Path, errors: Path | None = None) -> int:
        """Starts a tool whose output goes to one file or two; its process id."""
        request = [tool, arguments, str(log), str(errors or log)]
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """Waits for the tool; its status, which is negative after a signal."""
        return int(self.server.stdout.readline())

    def call(self, tool: str, arguments: list[str], log: Path, errors: Path | None = None) -> int:
        self.start(tool, arguments, log, errors)
        return self.wait()


@contextmanager
def forks(env: dict[str, str]) -> Iterator[Forks]:
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, env=env, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield Forks(server)
        server.stdin.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what is printed on import is no answer
    for name in IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(*json.loads(line))
        print(pid, file=answers, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(tool: str, arguments: list[str], *outputs: str) -> None:
    os.setsid()
    sys.path.insert(0, str(REPO / 'tools'))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, file in enumerate(outputs, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    sys.argv = [tool, *arguments]
    runpy.run_path(str(REPO / 'tools' / f'{tool}.py'), run_name='__main__')
    sys.exit()


if __name__ == '__main__':
    _serve()
