"""Which operators are used, what stands in for missing ones, and in which order things may come."""

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available

from res2net_mm.ops import describe_ops, ensure_mmcv_ops
from res2net_mm.ops.mmcv_ext import OPERATORS, finder

ROOT = Path(__file__).parents[2]

import mmcv.ops  # noqa: E402


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """As in a new process, and mmcv's folder holds what a test puts into the one returned."""
    before = sys.modules.pop('mmcv._ext')
    monkeypatch.delenv('RES2NET_MM_OPS', raising=False)
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path)])
    yield tmp_path
    sys.modules['mmcv._ext'] = mmcv._ext = before


def test_missing_extension_is_stood_in_for(undecided):
    # whoever asks whether mmcv has operators
    assert importlib.util.find_spec('mmcv._ext').loader is not None and mmcv_full_available()
    assert 'mmcv._ext' not in sys.modules, 'nothing is loaded before it is asked for'
    assert 'torchvision' in describe_ops() and 'not installed' in describe_ops()
    assert '\n' not in describe_ops()
    assert mmcv._ext is sys.modules['mmcv._ext'] and mmcv._ext.nms is OPERATORS['nms']
    finders = list(sys.meta_path)
    ensure_mmcv_ops()
    assert sys.meta_path == finders


def test_working_extension_stays(undecided):
    (undecided / '_ext.py').write_text('nms = "the real one"')
    assert str(undecided) in describe_ops() and "mmcv's compiled ones" in describe_ops()
    assert mmcv._ext.nms == 'the real one'


def test_extension_already_imported_stays(undecided):
    real = sys.modules['mmcv._ext'] = types.ModuleType('mmcv._ext')
    ensure_mmcv_ops()
    assert sys.modules['mmcv._ext'] is real and "mmcv's compiled ones" in describe_ops()


BROKEN = {
    'undefined symbol': "raise ImportError('_ext.so: undefined symbol: _ZN2at5emptyE')",
    'libcudart.so.11': "raise OSError('libcudart.so.11: cannot open shared object file')",
    "No module named 'cupy_of_old'": 'import cupy_of_old',
}


@pytest.mark.parametrize('reason', BROKEN)
def test_broken_extension_is_reported_and_stood_in_for(undecided, caplog, monkeypatch, reason):
    (undecided / '_ext.py').write_text(BROKEN[reason])
    assert reason in describe_ops()
    (warning,) = [r for r in caplog.records if r.levelname == 'WARNING']
    assert 'do not load' in warning.getMessage() and reason in warning.getMessage()
    monkeypatch.setattr(sys.modules['mmcv.ops.nms'], 'ext_module', mmcv._ext)
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]])
    assert mmcv.ops.nms(boxes, torch.ones(2), 0.5)[1].tolist() == [0]
    del sys.modules['mmcv._ext']
    monkeypatch.setenv('RES2NET_MM_OPS', 'mmcv')
    with pytest.raises(ImportError, match="RES2NET_MM_OPS asks for 'mmcv'") as raised:
        ensure_mmcv_ops()
    assert reason in str(raised.value)


def test_broken_shared_library(undecided, caplog):
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    (undecided / f'_ext{suffix}').write_bytes(b'\x7fELF, but not for long')
    assert 'do not load' in describe_ops()
    assert 'do not load' in caplog.text and suffix in caplog.text


def test_choice_by_environment(undecided, monkeypatch):
    monkeypatch.setenv('RES2NET_MM_OPS', 'off')
    with pytest.raises(ModuleNotFoundError, match='mmcv._ext'):
        importlib.import_module('mmcv._ext')
    assert 'operators: none' in describe_ops()
    (undecided / '_ext.py').write_text('nms = "the real one"')
    importlib.invalidate_caches()
    monkeypatch.setenv('RES2NET_MM_OPS', 'torchvision')
    assert 'RES2NET_MM_OPS asks for it' in describe_ops()
    del sys.modules['mmcv._ext']
    for value in ('', 'mmcv', 'off'):
        monkeypatch.setenv('RES2NET_MM_OPS', value)
        ensure_mmcv_ops()
        assert "mmcv's compiled ones" in describe_ops()
    for value in ('cuda', 'MMCV', 'auto'):
        monkeypatch.setenv('RES2NET_MM_OPS', value)
        with pytest.raises(ValueError, match=f"RES2NET_MM_OPS must be .*'{value}'"):
            ensure_mmcv_ops()


def test_operators_without_a_stand_in_say_so_when_called():
    x, mask = torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2)
    calls = {
        'masked_im2col_forward': lambda: mmcv.ops.masked_conv2d(
            x, mask, torch.ones(1, 1, 1, 1), torch.zeros(1)
        ),
        'deform_roi_pool_forward': lambda: mmcv.ops.deform_roi_pool(
            x, torch.zeros(1, 5), None, (2, 2)
        ),
        'bezier_align_forward': lambda: mmcv._ext.bezier_align_forward(),
    }
    for name, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"'{name}'.*install mmcv built with"):
            call()
    assert not hasattr(mmcv._ext, '__wrapped__') and not hasattr(mmcv._ext, '_private')


def test_versions_are_strings():
    assert torch.__version__ and 'torchvision' in mmcv.ops.get_compiler_version()
    assert isinstance(mmcv.ops.get_compiling_cuda_version(), str)


def test_signatures_fit_every_call_of_mmcv():
    """All that mmcv's Python code passes is accepted, under the names it uses."""
    seen = set()
    for path in Path(mmcv.ops.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, name = node.func.value, node.func.attr
            if getattr(owner, 'id', None) != 'ext_module' or name not in OPERATORS:
                continue
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue  # in code for another framework
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(OPERATORS[name]).bind(*node.args, **keywords)
            assert len(getattr(OPERATORS[name], 'tensors', node.args)) == len(node.args), name
            seen.add(name)
    assert set(OPERATORS) - seen <= {'nms_match'} and len(seen) > 15


ORDER = """
import importlib, json, sys, warnings
warnings.simplefilter('ignore')
for name in sys.argv[1].split(','):
    importlib.import_module(name)
    assert name == 'res2net_mm' or 'res2net_mm' not in sys.modules
import res2net_mm
import mmcv.ops, mmdet.apis, mmdet.models, mmseg.apis, mmseg.models
import mmdet.registry, mmseg.registry, mmengine.registry

def is_stub(value):
    value = vars(value).get('__init__') if isinstance(value, type) else value
    constants = getattr(getattr(value, '__code__', None), 'co_consts', ())
    return any('requires mmcv to be compiled' in str(text) for text in constants)

packages = ('mmcv', 'mmdet', 'mmseg')
modules = {n: m for n, m in sys.modules.items() if n.partition('.')[0] in packages}
stubs = [f'{n}.{k}' for n, m in modules.items() for k, v in vars(m).items() if is_stub(v)]
registered = {
    f'{package.__name__}.{kind}': sorted(getattr(package, kind).module_dict)
    for package in (mmdet.registry, mmseg.registry, mmengine.registry)
    for kind in ('MODELS', 'TASK_UTILS', 'DATASETS', 'TRANSFORMS', 'METRICS')
}
import torch
boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
kept = len(mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), 0.5)[1])
print(json.dumps([stubs, kept, registered]))
"""
FIRST = [
    'res2net_mm',
    'mmcv.ops',
    'mmcv.ops.nms',
    'mmdet.apis',
    'mmdet.models',
    'mmdet.engine.hooks.utils',
    'mmseg.apis',
    'mmseg.models',
    'mmengine.runner,mmdet.models.dense_heads',
    'mmseg.models.decode_heads,mmdet.apis',
]
SLOW_ORDERS = {*FIRST} - {'mmdet.apis'}


@pytest.fixture(scope='module')
def registries():
    return {}


@pytest.mark.parametrize(
    'first', [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW_ORDERS)) for f in FIRST]
)
def test_import_order(registries, stack, first):
    """Whatever comes first, everything ends up the same, with nothing repaired."""
    done = subprocess.run(
        [sys.executable, '-c', ORDER, first], cwd=ROOT, env=stack, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stubs, kept, registered = json.loads(done.stdout.splitlines()[-1])
    assert stubs == [] and kept == 2
    assert 'DINO' in registered['mmdet.registry.MODELS']
    assert 'EncoderDecoder' in registered['mmseg.registry.MODELS']
    assert registries.setdefault(stack['PYTHONPATH'], registered) == registered


def test_a_start_without_mmcv_costs_nothing():
    """Registering loads no module that Python has not loaded by itself."""
    code = (
        'import os, sys; before = set(sys.modules)\n'
        f'exec(compile(open({finder.__file__!r}).read(), "finder", "exec"))\n'
        'print(set(sys.modules) - before, sys.meta_path[0].finds)'
    )
    done = subprocess.run([sys.executable, '-S', '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['set()', 'mmcv._ext'], done.stderr


@pytest.mark.slow
def test_a_package_imported_too_early_without_the_finder_is_named():
    """As where Python did not start with the finder: mmseg.models then holds None for operators."""
    code = (
        'import sys; sys.meta_path = [f for f in sys.meta_path if not hasattr(f, "finds")]\n'
        'import mmseg.models, res2net_mm'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'import res2net_mm first' in done.stderr, done.stderr[-2000:]
