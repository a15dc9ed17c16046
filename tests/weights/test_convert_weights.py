"""tools/convert_weights.py as a user calls it, and weights under other projects' names."""

import hashlib
import json
import os
import resource
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import other_layouts
import pytest
import torch
from filled_files import SMALL, Call, bits, filled, write_paddle
from mmengine.logging import MMLogger
from safetensors import safe_open

from res2net_mm import Res2NetDLA, create_backbone
from res2net_mm.backbones import VARIANTS
from res2net_mm.weights import ZOO, convert_weights, load_weights

REPO = Path(__file__).resolve().parents[2]
SUFFIXES = ('.safetensors', '.pth')
R14 = 'res2net14_v1b_26w_4s'
# the tool builds each variant, and these are enough to choose from
FEW = (R14, 'res2net50_v1b_26w_4s', 'res2next_dla60', 'se_res2net50_26w_4s')


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
    """Networks of the published names, but with few channels."""
    narrow = dict(base_width=8, base_channels=16)
    for name in (R14, 'se_res2net50_26w_4s'):
        small = dict(VARIANTS[name], **narrow, depth=14, stem_channels=16)
        monkeypatch.setitem(VARIANTS, name, small)
    small = dict(VARIANTS['res2next_dla60'], **narrow, groups=1)
    monkeypatch.setitem(VARIANTS, 'res2next_dla60', small)


@pytest.fixture
def run(monkeypatch):
    """The tool in this process, which spares the seconds that a new one takes to start."""
    MMLogger.get_current_instance()  # keeps the stderr that it finds at first
    monkeypatch.setattr('logging.shutdown', lambda: None)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['convert_weights.py', *map(str, args)])
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPO / 'tools' / 'convert_weights.py'), run_name='__main__')
        return subprocess.CompletedProcess(args, end.value.code, out.getvalue(), err.getvalue())

    few = {name: VARIANTS[name] for name in FEW} | {R14: SMALL}
    with patch.dict(VARIANTS, few, clear=True):  # and puts them back in their order
        yield run


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'new' / 'folder'


def error_of(run):
    """The one line that a mistake ends with."""
    assert run.returncode == 1, run.stderr[-2000:]
    assert run.stderr.startswith('error: ') and run.stderr.count('\n') == 1, run.stderr[-2000:]
    assert run.stdout == ''
    return run.stderr


def written(run, out):
    """The one file that a run wrote; its name holds the beginning of its sha256."""
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = out.parent.iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'{out.stem}-{digest[:8]}{out.suffix}'
    assert f'written, and verified by loading: {path}\n' in run.stdout
    return path


LAYOUTS = {  # the rule, what is said of the layout and left out, the writer, more arguments
    'ours': ('official', 'mmdet', '', lambda state: state),
    'another rule': ('mmdet', 'mmdet', '', lambda state: dict(state_dict=state)),
    'unmarked': ('mmdet', 'mmdet', '', dict, '--first-block', 'mmdet'),
    'official': ('official', 'official', 'fc.weight, fc.bias', other_layouts.official),
    'mmpretrain': (
        'official',
        'mmpretrain',
        'head.fc.weight, head.fc.bias',
        lambda state: dict(state_dict=other_layouts.mmpretrain(state)),
    ),
    'paddle': ('paddle', 'paddle', 'out.weight, out.bias', None),
}


@pytest.mark.parametrize(
    'layout, suffix', [('ours', '.pth'), *zip(LAYOUTS, cycle(SUFFIXES), strict=False)]
)
def test_every_layout(tmp_path, out, run, layout, suffix):
    rule, name, classifier, writer, *arguments = LAYOUTS[layout]
    net = filled(**SMALL, first_block=rule)
    source = tmp_path / 'in.any'
    if layout == 'paddle':
        write_paddle(net.state_dict(), source)
    else:
        torch.save(writer(net.state_dict()), source)
    out = out / f'weights{suffix}'
    ended = run(source, out, *arguments)
    path = written(ended, out)
    first, second, *rest = ended.stdout.splitlines()
    variant = R14 if rule == 'official' else 'no published variant'
    assert first.startswith(f'{variant}: Res2Net, ') and first.endswith(f"first_block='{rule}'")
    assert 'scales=4, groups=1, base_channels=16, base_width=8' in first and 'depth=14' in first
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert second == f'from layout {name}: 162 tensors, {millions:.2f} M parameters'
    left = [f'left out, classifier: {classifier}'] if classifier else []
    if layout == 'paddle':
        left += ["left out, names in Paddle's program: StructuredToParameterName@@"]
    assert rest[:-1] == left

    loaded = create_backbone(R14, pretrained=str(path), first_block=rule)
    expected = bits(net)
    if layout == 'paddle':
        zero = torch.tensor(0).numpy().tobytes()
        expected = {k: zero if 'tracked' in k else v for k, v in expected.items()}
    assert bits(loaded) == expected
    report = load_weights(loaded, path)
    assert (report.layout, report.first_block, report.dropped) == ('mmdet', rule, {})
    other = 'paddle' if rule != 'paddle' else 'official'
    with pytest.raises(ValueError, match=f"{path.name} needs first_block='{rule}'"):
        create_backbone(R14, pretrained=str(path), first_block=other)
    marks = {'': dict(first_block=rule, style='pytorch')}
    if suffix == '.pth':
        saved = torch.load(path, weights_only=True)
        assert saved['meta'] == dict(res2net_mm=marks, source='in.any', layout=name)
        assert saved['state_dict']._metadata['']['res2net_mm'] == marks['']
    else:
        with safe_open(path, 'pt') as file:
            meta = file.metadata()
        assert json.loads(meta.pop('res2net_mm')) == marks
        assert meta == dict(format='pt', source='in.any', layout=name)
    line = error_of(run(path, out, '--first-block', other))
    assert f"{path} is known to need first_block='{rule}', but first_block is '{other}'" in line


def test_a_detector_that_says_nothing(tmp_path, out, run):
    """Half precision stays what it is."""
    net = filled(**SMALL)
    state = {f'backbone.{key}': value for key, value in net.half().state_dict().items()}
    state |= {'neck.weight': torch.ones(1), 'rpn_head.bias': torch.ones(1)}
    torch.save(dict(state_dict=state, meta={}, optimizer={}), tmp_path / 'epoch_24.pth')
    out = out / 'detector.safetensors'
    ended = run(tmp_path / 'epoch_24.pth', out)
    path = written(ended, out)
    assert f'{R14}: Res2Net, ' in ended.stdout and "first_block='not known'" in ended.stdout
    around = 'left out, rest of the model around the backbone: neck.weight, rpn_head.bias\n'
    assert around in ended.stdout and 'its first-block rule is not known, and' in ended.stdout
    loaded = filled(seed=1, **SMALL)
    assert 'does not say its first-block rule' in load_weights(loaded, path).note
    assert bits(loaded) == bits(net.float())
    with safe_open(path, 'pt') as file:
        assert file.get_tensor('stem.0.weight').dtype == torch.float16
        assert json.loads(file.metadata()['res2net_mm']) == {}


@pytest.mark.parametrize('name', ['res2next_dla60', 'se_res2net50_26w_4s'])
def test_other_networks(tmp_path, out, run, name):
    net = create_backbone(name)
    torch.save(dict(net.state_dict()), tmp_path / 'in.pth')
    out = out / 'other.safetensors'
    ended = run(tmp_path / 'in.pth', out)
    path = written(ended, out)
    assert ended.stdout.startswith(f'{name}: Res2Net')
    assert ('rule is not known' in ended.stdout) == ('dla' not in name), 'DLA has no such rule'
    assert ('first_block' in ended.stdout) == ('dla' not in name)
    loaded = create_backbone(name, pretrained=str(path))
    assert bits(loaded) == bits(net)


@pytest.mark.usefixtures('run')
def test_the_same_weights_give_the_same_file(tmp_path):
    torch.save(filled(**SMALL).state_dict(), tmp_path / 'in.pth')
    for suffix in SUFFIXES:
        out = tmp_path / f'same{suffix}'
        paths = {convert_weights(tmp_path / 'in.pth', out).path for _ in range(3)}
        assert len(paths) == 1 == len(list(tmp_path.glob(f'same*{suffix}')))


def test_published_weights(cache, tmp_path, out, run, monkeypatch):
    net = filled(**SMALL, first_block='paddle')
    url = 'https://weights.invalid/small.pdparams'
    entry = replace(ZOO['res2net50_vd_26w_4s'], url=url, licence='for tests only')
    monkeypatch.setitem(ZOO, 'small', entry)
    write_paddle(net.state_dict(), tmp_path / entry.filename)
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(tmp_path))
    ended = run('res2net://small', out / 'small.pth')
    path = written(ended, out / 'small.pth')
    assert "first_block='paddle'\n" in ended.stdout
    assert 'licence of these weights: for tests only\n' in ended.stdout
    assert load_weights(net, path).first_block == 'paddle'


def test_networks_of_no_variant(tmp_path, out, run):
    three = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    nets = [filled(**SMALL, **three), filled(**SMALL, groups=2, scales=3, deep_stem=False)]
    nets += [filled(**SMALL, scales=1), filled(Res2NetDLA, base_channels=16, base_width=9)]
    for number, net in enumerate(nets):
        state = {f'model.net.{key}': value for key, value in net.state_dict().items()}
        torch.save(state, tmp_path / 'in.pth')
        path = out / str(number) / 'net.pth'
        ended = run(tmp_path / 'in.pth', path, '--prefix', 'model.net.')
        path = written(ended, path)
        assert ended.stdout.startswith('no published variant: Res2Net')
        before = bits(net)
        for value in net.state_dict().values():
            value.zero_()
        load_weights(net, path)
        assert bits(net) == before


BAD = {  # what is wrong -> change of the weights, more arguments, the message
    'a tensor of another shape': (
        lambda state: {**state, 'layer1.0.convs.1.weight': torch.ones(7, 8, 3, 3)},
        'in.pth holds no network that this package builds: ',
    ),
    'a number': (
        lambda state: {**state, 'layer1.0.bn1.bias': torch.full((32,), float('nan'))},
        'in.pth: layer1.0.bn1.bias has values that are NaN or infinite',
    ),
    'no layout': (lambda state: {'encoder.weight': torch.ones(1)}, 'in.pth: no layout of Res2Net'),
    'an unknown name': (lambda state: {**state, 'x': torch.ones(1)}, 'have no rule: x;'),
    'no dict': (lambda state: list(state), ' list; '),
    'no rule of this name': (
        other_layouts.official,
        "in.pth is known to need first_block='official', but first_block is 'mmdet': leave it out",
        '--first-block',
        'mmdet',
    ),
    'no such prefix': (lambda state: state, "begins with 'backbone.'", '--prefix', 'backbone.'),
}


@pytest.mark.parametrize('what, suffix', [*zip(BAD, cycle(SUFFIXES), strict=False)])
def test_bad_weights_leave_nothing(tmp_path, out, run, what, suffix):
    change, message, *arguments = BAD[what]
    torch.save(change(dict(filled(**SMALL).state_dict())), tmp_path / 'in.pth')
    line = error_of(run(tmp_path / 'in.pth', out / f'out{suffix}', *arguments))
    assert message in line and '.partial' not in line
    assert not out.exists() or not list(out.iterdir())


def test_bad_paths_leave_nothing(tmp_path, out, run):
    good = tmp_path / 'in.pth'
    torch.save(filled(**SMALL).state_dict(), good)
    assert f'OUT must end in .safetensors or .pth, but is {out}/x.pt\n' in error_of(
        run(good, out / 'x.pt')
    )
    assert 'none.pth does not exist' in error_of(run(tmp_path / 'none.pth', out / 'x.pth'))
    assert 'is a folder' in error_of(run(tmp_path, out / 'x.pth'))
    assert 'did you mean res2net50_26w_4s' in error_of(
        run('res2net://res2net50_26w4s', out / 'x.pth')
    )
    for folder, suffix in ((good, '.pth'), (Path('/dev/null'), '.safetensors')):
        assert str(folder) in error_of(run(good, folder / f'x{suffix}'))
    (tmp_path / 'cut.pth').write_bytes(good.read_bytes()[:-1000])
    assert 'cut.pth' in error_of(run(tmp_path / 'cut.pth', out / 'x.pth'))
    ended = run(good, out / 'x.pth', '--first-block', 'oficial')
    assert ended.returncode == 2 and 'choose from' in ended.stderr
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cut.pth', 'in.pth']


def test_code_is_run_only_on_request(tmp_path, out, run):
    source, ran = tmp_path / 'in.pth', tmp_path / 'ran'
    torch.save(
        dict(state_dict=filled(**SMALL).state_dict(), hook=Call(os.system, f'touch {ran}')), source
    )
    line = error_of(run(source, out / 'x.pth'))
    assert 'system' in line and '--trust-checkpoint' in line
    assert not ran.exists() and not out.exists()
    written(run(source, out / 'x.pth', '--trust-checkpoint'), out / 'x.pth')
    assert ran.exists()


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_full_disk_and_interruption_leave_nothing(tmp_path, out, run, monkeypatch, suffix):
    source, out = tmp_path / 'in.pth', out / f'x{suffix}'
    torch.save(filled(**SMALL).state_dict(), source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        line = error_of(run(source, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(out.with_suffix('')) in line and 'could not be written: File too large' in line
    assert not list(out.parent.iterdir())

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', interrupted)
        assert run(source, out).returncode == 130
    assert not list(out.parent.iterdir())
    path = written(run(source, out), out)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask, 'others may read it as any file'


def test_licence_travels_with_the_file(tmp_path, out, run, monkeypatch):
    net = filled(**SMALL)
    name = 'res2net50_v1b_26w_4s'
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    monkeypatch.setitem(ZOO, name, replace(ZOO[name], url='https://example.org/net.pth'))
    for suffix in SUFFIXES:
        target = out / suffix[1:] / f'x{suffix}'
        path = written(run(tmp_path / 'net.pth', target), target)
        assert load_weights(filled(**SMALL), path).licence == ZOO[name].licence
