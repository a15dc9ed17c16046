import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.append(str(TOOLS))  # last: it has names such as `test` and `train`


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', TOOLS / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(monkeypatch):
    """Contenders are measured in this process."""
    from benchmark import coco, measure, networks, operators

    def measured(contenders, prepare, *args, settings, profiled=(), **options):
        rows = []
        for name, keeps in contenders.items():
            call = prepare(name, *args)
            times = [measure.seconds(call) for _ in range(settings.rounds)]
            rows.append(dict(name=name, times=times, memory_mib=1.0, note='kept' * keeps))
        return rows, {name: dict(x=1.0) for name in profiled} or None

    for module in (coco, networks, operators):
        monkeypatch.setattr(module, 'measure', measured)
