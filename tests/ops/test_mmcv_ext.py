"""Which operators are used, what stands in for missing ones, and repairs after the fact."""

import ast
import importlib.util
import inspect
import json
import logging
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available

from res2net_mm.ops import describe_ops, ensure_mmcv_ops, mmcv_ext

ROOT = Path(__file__).parents[2]
ensure_mmcv_ops(force='torchvision')

import mmcv.ops  # noqa: E402


@pytest.fixture
def undecided(monkeypatch, tmp_path):
    """As in a new process, and mmcv's folder holds what a test puts into the one returned."""
    before = sys.modules.pop('mmcv._ext')
    monkeypatch.delenv('RES2NET_MM_OPS', raising=False)
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path)])
    mmcv_ext._say_once.cache_clear()
    yield tmp_path
    mmcv_ext._bind(before)


def test_missing_extension_is_stood_in_for(undecided, caplog):
    caplog.set_level(logging.INFO, 'res2net_mm')
    assert 'not decided' in describe_ops()
    assert ensure_mmcv_ops() == 'torchvision'
    stand_in = sys.modules['mmcv._ext']
    assert mmcv._ext is stand_in is sys.modules['mmcv.ops.nms'].ext_module
    # whoever asks whether mmcv has operators
    assert importlib.util.find_spec('mmcv._ext').loader is not None and mmcv_full_available()

    assert ensure_mmcv_ops() == 'torchvision' and sys.modules['mmcv._ext'] is stand_in
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [('INFO', describe_ops())]
    assert 'torchvision' in describe_ops() and 'not installed' in describe_ops()
    assert '\n' not in describe_ops()


def test_working_extension_stays(undecided):
    (undecided / '_ext.py').write_text('nms = "the real one"')
    assert ensure_mmcv_ops() == 'mmcv'
    assert mmcv._ext.nms == 'the real one' and str(undecided) in describe_ops()
    assert ensure_mmcv_ops('mmcv') == 'mmcv'


def test_extension_already_imported_stays(undecided):
    real = sys.modules['mmcv._ext'] = types.ModuleType('mmcv._ext')
    assert ensure_mmcv_ops() == 'mmcv' and sys.modules['mmcv._ext'] is real
    assert "mmcv's compiled ones" in describe_ops()


BROKEN = {
    'undefined symbol': "raise ImportError('_ext.so: undefined symbol: _ZN2at5emptyE')",
    'libcudart.so.11': "raise OSError('libcudart.so.11: cannot open shared object file')",
    "No module named 'cupy_of_old'": 'import cupy_of_old',
}


@pytest.mark.parametrize('reason', BROKEN)
def test_broken_extension_is_reported_and_stood_in_for(undecided, caplog, reason):
    (undecided / '_ext.py').write_text(BROKEN[reason])
    assert ensure_mmcv_ops() == 'torchvision'
    (warning,) = [r for r in caplog.records if r.levelname == 'WARNING']
    assert 'do not load' in warning.getMessage() and reason in warning.getMessage()
    assert reason in describe_ops()
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]])
    assert mmcv.ops.nms(boxes, torch.ones(2), 0.5)[1].tolist() == [0]
    with pytest.raises(ImportError, match="force asks for 'mmcv', but.*do not load") as raised:
        ensure_mmcv_ops('mmcv')
    assert reason in str(raised.value)
    assert ensure_mmcv_ops() == 'torchvision'


def test_broken_shared_library(undecided, caplog):
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    (undecided / f'_ext{suffix}').write_bytes(b'\x7fELF, but not for long')
    assert ensure_mmcv_ops() == 'torchvision'
    assert 'do not load' in caplog.text and suffix in caplog.text


def test_choice_by_argument_and_environment(undecided, monkeypatch):
    with pytest.raises(ImportError, match="force asks for 'mmcv', but.*are not installed"):
        ensure_mmcv_ops('mmcv')
    monkeypatch.setenv('RES2NET_MM_OPS', 'mmcv')
    with pytest.raises(ImportError, match="RES2NET_MM_OPS asks for 'mmcv'"):
        ensure_mmcv_ops()

    (undecided / '_ext.py').write_text('nms = "the real one"')
    importlib.invalidate_caches()
    assert ensure_mmcv_ops() == 'mmcv'
    assert ensure_mmcv_ops('torchvision') == 'torchvision'  # the argument has the last word
    module = sys.modules['mmcv.ops.nms']
    assert 'force asks for it' in describe_ops() and callable(module.ext_module.nms)
    assert ensure_mmcv_ops() == 'mmcv' and module.ext_module.nms == 'the real one'
    monkeypatch.setenv('RES2NET_MM_OPS', '')
    assert ensure_mmcv_ops() == 'mmcv'


@pytest.mark.parametrize('given', ['cuda', 'MMCV', 'auto'])
def test_other_choices_are_refused(undecided, monkeypatch, given):
    with pytest.raises(ValueError, match=f"force must be 'mmcv' or 'torchvision'.*'{given}'"):
        ensure_mmcv_ops(given)
    monkeypatch.setenv('RES2NET_MM_OPS', given)
    with pytest.raises(ValueError, match=f"RES2NET_MM_OPS must be .*'{given}'"):
        ensure_mmcv_ops()
    with pytest.raises(ValueError, match="got ''"):
        ensure_mmcv_ops('')


def test_without_mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ModuleNotFoundError, match='mmcv'):
        ensure_mmcv_ops()


def test_operators_without_a_stand_in_say_so_when_called():
    for call in (
        lambda: mmcv.ops.carafe(torch.zeros(1, 4, 2, 2), torch.zeros(1, 9, 4, 4), 3, 1, 2),
        lambda: mmcv._ext.carafe_forward(),
    ):
        with pytest.raises(NotImplementedError, match="'carafe_forward'.*install mmcv built with"):
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
            if getattr(owner, 'id', None) != 'ext_module' or name not in vars(mmcv._ext):
                continue
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue  # in code for another framework
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(vars(mmcv._ext)[name]).bind(*node.args, **keywords)
            seen.add(name)
    offered = {name for name in vars(mmcv._ext) if not name.startswith('_') and name != 'reason'}
    assert offered - seen <= {'nms_match'} and len(seen) > 20


def test_half_imported_packages_are_reported(undecided, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'mmdet.no_such.child', types.ModuleType('mmdet.no_such.child'))
    ensure_mmcv_ops()
    assert 'mmdet.no_such was imported before res2net_mm' in caplog.text
    assert "'import res2net_mm' first" in caplog.text


ORDER = """
import importlib, json, sys, types, warnings
warnings.simplefilter('ignore')
try:
    importlib.import_module(sys.argv[1])
except ImportError as error:
    assert 'mmcv._ext' in str(error)
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
unbound = [n for n in modules if '.' in n and not hasattr(modules[n.rpartition('.')[0]],
                                                         n.rpartition('.')[2])]
real = mmcv.ops
names = [
    ('mmcv.cnn.bricks.transformer', 'MultiScaleDeformableAttention'),
    ('mmdet.structures.mask.structures', 'roi_align'),
    ('mmdet.apis.inference', 'RoIPool'),
    ('mmdet.models.layers.bbox_nms', 'batched_nms'),
    ('mmdet.models.detectors.dino', 'MultiScaleDeformableAttention'),
    ('mmseg.models.decode_heads.psa_head', 'PSAMask'),
    ('mmseg.models.decode_heads.point_head', 'point_sample'),
    ('mmseg.models.decode_heads.san_head', 'point_sample'),
]
wrong = [pair for pair in names if getattr(modules[pair[0]], pair[1]) is not getattr(real, pair[1])]
for package in (mmdet, mmseg):  # under another name
    if package.models.losses.focal_loss._sigmoid_focal_loss is not real.sigmoid_focal_loss:
        wrong.append(package.__name__)
lanes = modules.get('mmdet.models.dense_heads.clr_head.clr_head')  # in the onedl stack alone
if lanes and lanes.nms is not real.line_nms:
    wrong.append('lanes')
if not callable(mmseg.models.decode_heads.san_head.get_uncertain_point_coords_with_randomness):
    wrong.append('san_head')
for name in ('MaskFormerHead', 'Mask2FormerHead'):
    ours, theirs = (getattr(p, name) for p in (mmseg.models.decode_heads, mmdet.models.dense_heads))
    if not issubclass(ours, theirs):
        wrong.append(name)
registered = {
    f'{package.__name__}.{kind}': sorted(getattr(package, kind).module_dict)
    for package in (mmdet.registry, mmseg.registry, mmengine.registry)
    for kind in ('MODELS', 'TASK_UTILS', 'DATASETS', 'TRANSFORMS', 'METRICS')
}
print(json.dumps([stubs, unbound, wrong, registered]))
"""
REGISTERED = [  # from modules all over the packages
    ('mmdet.registry.MODELS', 'SingleRoIExtractor'),
    ('mmdet.registry.MODELS', 'DINO'),
    ('mmdet.registry.TRANSFORMS', 'PackDetInputs'),
    ('mmdet.registry.METRICS', 'CocoMetric'),
    ('mmseg.registry.MODELS', 'EncoderDecoder'),
    ('mmengine.registry.MODELS', 'DCNv2'),
]


@pytest.fixture(scope='module')
def registries():
    return []


@pytest.mark.parametrize('first', ['mmdet.apis', 'mmseg.apis', 'mmseg.models', 'mmdet.models'])
def test_import_order(registries, first):
    """Whatever came first, everything ends up as if res2net_mm had.

    The last one fails before, as all of them do on the original stack, and is tried again.
    """
    done = subprocess.run(
        [sys.executable, '-c', ORDER, first], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'start again' not in done.stderr
    stubs, unbound, wrong, registered = json.loads(done.stdout.splitlines()[-1])
    assert stubs == unbound == wrong == []
    assert not [pair for pair in REGISTERED if pair[1] not in registered[pair[0]]]
    registries.append(registered)
    assert registered == registries[0]
