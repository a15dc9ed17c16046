"""Bad checkpoints in all formats: one clear error each, an untouched network, nothing executed.

``python -m pytest tests/weights/test_fuzz.py -s`` ends with the counts.
"""

import functools
import io
import itertools
import json
import os
import pickle
import random
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import other_layouts
import pytest
import torch
from filled_files import Call, bits, filled
from safetensors.torch import save, save_file

from res2net_mm.weights import load_weights

NET = dict(depth=14, scales=2, base_width=6, base_channels=8, stem_channels=8, first_block='paddle')
BASE = dict(filled(**NET).state_dict())  # what good files hold, and no network
ZERO = {key: torch.tensor(0) for key in BASE if 'tracked' in key}
KEY = 'layer2.0.bn1.weight'
BAD, CLEAR, PARTLY, EXECUTED = 'bad files', 'clear errors', 'partly loaded', 'executed'
EXACT = 'loaded exactly'


def base_of(kind):
    """The weights that a good file of a format has; Paddle counts no batches."""
    return {k: v for k, v in BASE.items() if kind != 'pdparams' or 'tracked' not in k}


PADDLE = dict(zip(base_of('pdparams'), other_layouts.paddle(BASE), strict=False))


def write_paddle(state, path, protocol=2):
    """Weights as ``paddle.save`` writes them, anything else as it is."""
    if type(state) is dict:
        state = other_layouts.as_arrays({PADDLE.get(k, k): v for k, v in state.items()})
        state['StructuredToParameterName@@'] = {}
    path.write_bytes(pickle.dumps(state, protocol=protocol))


legacy = functools.partial(torch.save, _use_new_zipfile_serialization=False)
TORCH = {'pth': torch.save, 'legacy.pth': legacy}
PICKLES = {**TORCH, 'pdparams': write_paddle}
WRITERS = {**PICKLES, 'safetensors': save_file}
every_format = pytest.mark.parametrize('kind', WRITERS)
every_pickle = pytest.mark.parametrize('kind', PICKLES)
both_of_torch = pytest.mark.parametrize('kind', TORCH)
every_suffix = pytest.mark.parametrize('suffix', ['pth', 'pdparams', 'safetensors'])


class Fuzz:
    """Loads files into one network and counts what comes of it."""

    def __init__(self, folder):
        self.folder, self.ran = folder, folder / 'ran'
        self.net = filled(seed=1, **NET)
        self.start = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.before = bits(self.start)
        self.counts = defaultdict(Counter)
        self.failures = []

    def write(self, kind, state):
        path = self.folder / f'bad.{kind}'
        WRITERS[kind](state, path)
        return path

    def load(self, path):
        """The error, the bits of the network, whether code ran; then the network is reset."""
        error = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                load_weights(self.net, path)
        except Exception as raised:
            error = raised
        after = bits(self.net)
        if after != self.before:
            self.net.load_state_dict(self.start)
        ran = self.ran.exists()
        self.ran.unlink(missing_ok=True)
        return error, after, ran

    def bad(self, what, path, case='', came=None):
        """A file that has to be refused."""
        error, after, ran = came or self.load(path)
        text = str(error)
        clear = isinstance(error, (ValueError, FileNotFoundError)) and path.name in text
        clear = clear and text.isprintable() and len(text) < 3000
        outcome = {BAD: True, CLEAR: clear, PARTLY: after != self.before, EXECUTED: ran}
        self.counts[what].update({key: int(count) for key, count in outcome.items()})
        if not clear or outcome[PARTLY] or ran:
            self.failures.append((what, str(case)[:200], type(error).__name__, text[:300], ran))

    def good(self, what, path, expected):
        """A file that is loaded exactly, as nothing can show what is wrong with it."""
        error, after, ran = self.load(path)
        exact = error is None and after == bits({**self.start, **expected}) and not ran
        self.counts[what][EXACT] += exact
        if not exact:
            self.failures.append((what, path.name, repr(error)[:300], ran))

    def code(self, what, path, read, case):
        """A file that must not be read as pickle does: that runs its code, which is tried."""
        self.bad(what, path, case)
        with path.open('rb') as file:
            read(file)
        assert self.ran.exists(), f'{case} is harmless, and the test in vain'
        self.ran.unlink()

    def check(self):
        failures, self.failures = self.failures, []
        assert not failures, '\n'.join(map(str, [len(failures), *failures[:20]]))


@pytest.fixture(scope='module')
def fuzz(tmp_path_factory):
    fuzz = Fuzz(tmp_path_factory.mktemp('fuzz'))
    yield fuzz
    total = Counter({BAD: 0, CLEAR: 0, PARTLY: 0, EXECUTED: 0})
    print()
    for what, counts in fuzz.counts.items():
        print(f'{what}: ' + ', '.join(f'{count} {key}' for key, count in counts.items()))
        total.update(counts if BAD in counts else {})
    print('fuzz: ' + ', '.join(f'{total[key]} {key}' for key in (BAD, CLEAR, PARTLY, EXECUTED)))


@every_format
def test_truncated(fuzz, kind):
    """From a whole file, which is good, and large enough to be cut by the thousand bytes."""
    path = fuzz.write(kind, base_of(kind))
    fuzz.good(f'whole {kind}', path, {**ZERO, **base_of(kind)})
    size = path.stat().st_size
    assert size > 300_000
    for length in sorted({size - 1, *range(0, 64, 3), *range(1000, size, 4000)}, reverse=True):
        os.truncate(path, length)
        fuzz.bad(f'truncated {kind}', path, length)
    fuzz.check()


@every_format
def test_flipped_bits(fuzz, kind):
    """Zip archives have checksums; elsewhere a changed number is not seen, and is all there is."""
    path, what = fuzz.write(kind, base_of(kind)), f'flipped bit {kind}'
    content, rng, whole = path.read_bytes(), random.Random(0), bits({**ZERO, **base_of(kind)})
    ends = [*range(4000), *range(len(content) - 4000, len(content))]  # where names and sizes are
    for place in [*rng.sample(ends, 30), *rng.sample(range(len(content)), 10)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        error, after, ran = came = fuzz.load(path)
        differ = sum(after[key] != whole[key] for key in whole)
        if error is None and not ran and differ <= (kind != 'pth'):
            fuzz.counts[what]['loaded but for one tensor' if differ else EXACT] += 1
        else:
            fuzz.bad(what, path, (place, differ), came)
    fuzz.check()


@every_format
def test_wrong_shapes(fuzz, kind):
    for number, (key, value) in enumerate([*base_of(kind).items()][::2]):
        one = value.flatten()[:1]
        others = [one[:0], one[0], one.repeat(value.numel() + 1), one.view(1, 1, 1, 1, 1)]
        others = [
            v.clone() for v in (*others, value[None], value.flatten()) if v.shape != value.shape
        ]
        state = {**base_of(kind), key: others[number % len(others)]}
        fuzz.bad(f'wrong shape {kind}', fuzz.write(kind, state), key)
    fuzz.check()


@every_format
def test_missing_tensors(fuzz, kind):
    """Batch counters may be missing, as old files and Paddle's lack them, and are zero then."""
    for key in list(base_of(kind))[::2]:
        path = fuzz.write(kind, {k: v for k, v in base_of(kind).items() if k != key})
        if key.endswith('num_batches_tracked'):
            fuzz.good(f'missing counter {kind}', path, {**BASE, key: torch.tensor(0)})
        else:
            fuzz.bad(f'missing {kind}', path, key)
    fuzz.check()


@every_format
def test_swapped_tensors(fuzz, kind):
    """Seen where shape, type or a negative variance shows it; else loaded as the file has it."""
    sample = random.Random(0).sample(list(base_of(kind)), 10)
    kinds = {key: (v.shape, v.dtype, key.endswith('running_var')) for key, v in BASE.items()}
    for a, b in itertools.combinations(sample, 2):
        swapped = {**base_of(kind), a: BASE[b], b: BASE[a]}
        path = fuzz.write(kind, swapped)
        if kinds[a] == kinds[b]:
            fuzz.good(f'unseen swap {kind}', path, {**ZERO, **swapped})
        else:
            fuzz.bad(f'swapped {kind}', path, (a, b))
    fuzz.check()
    assert fuzz.counts[f'swapped {kind}'][BAD] > fuzz.counts[f'unseen swap {kind}'].total() > 0


@every_format
def test_extra_tensors(fuzz, kind):
    many = '1' * 5000
    names = f"""x . layer1.0.extra.weight layer4.1.conv1.weight layer5.0.conv1.weight Grüße.weight
        layer10000000.0.conv1.weight layer{many}.0.conv1.weight layer1.{many}.bn1.bias
        layer0.0.bn1.bias stem.9.weight conv1.0.weight bn1.bias backbone.x backbone.stem.0.weight
        level2.tree1.conv1.weight conv1_1._conv.bias bb_0_0.conv0._conv.bias
        bb_4_0.conv0._conv.weight stem.0.conv_offset.weight layer1.0.conv_offset.weight"""
    for name in [*names.split(), '', ' ', 'layer1.0.bn1.bias\n', 'layer1.0.\x1b[31m.weight']:
        path = fuzz.write(kind, {**base_of(kind), name: torch.ones(2)})
        fuzz.bad(f'extra {kind}', path, name)
    fuzz.check()


@every_format
def test_wrong_numbers(fuzz, kind):
    state = base_of(kind)
    floats = [key for key, value in state.items() if value.is_floating_point()]
    sample = random.Random(1).sample(floats, 6)
    cases = [(key, number) for key in sample for number in map(float, ('nan', 'inf', '-inf'))]
    cases += [(key, -1e-3) for key in floats if key.endswith('running_var')]
    for key, number in cases:
        wrong = state[key].clone()
        wrong.view(-1)[-1] = number
        what = 'negative variance' if number == -1e-3 else 'not finite'
        fuzz.bad(f'{what} {kind}', fuzz.write(kind, {**state, key: wrong}), (key, number))
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64):
        for key in sample[:3]:
            path = fuzz.write(kind, {**state, key: state[key].to(dtype)})
            fuzz.bad(f'wrong type {kind}', path, (key, dtype))
    for key in [key for key in state if 'tracked' in key][:5]:
        fuzz.bad(f'wrong type {kind}', fuzz.write(kind, {**state, key: state[key].float()}), key)
    fuzz.check()


@every_pickle
def test_what_is_no_tensor(fuzz, kind):
    state, array = base_of(kind), np.ones(BASE[KEY].shape, np.float32)
    values = [None, True, 3, 0.5, 'text', b'bytes', [1.0], (1.0,), {}, {'a': 1.0}, ('a', 'b')]
    values += [array.astype(code) for code in ('<U3', object, 'M8[s]', [('a', 'f4')])]
    for value in values:
        fuzz.bad(f'no tensor {kind}', fuzz.write(kind, {**state, KEY: value}), repr(value))
    for name in (None, 5, 0.5, (1, 2), b'bytes', True, (), ('a', ('b',))):
        path = fuzz.write(kind, {**state, name: state[KEY]})
        fuzz.bad(f'no name {kind}', path, repr(name))
    wholes = [[], [state], (state,), {}, dict(state_dict={}), dict(state_dict=[1]), None, 7, 'x']
    for whole in wholes:
        fuzz.bad(f'no state dict {kind}', fuzz.write(kind, whole), repr(whole)[:40])
    fuzz.check()


@both_of_torch
def test_strange_tensors(fuzz, kind):
    value = BASE[KEY]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # prototypes
        strange = [value.to_sparse(), torch.diag(value).to_sparse_csr(), value.to('meta')]
        strange += [torch.nested.nested_tensor([value]), torch.complex(value, value)]
        strange += [torch.quantize_per_tensor(value, 1, 0, torch.qint8), value.double() * 1e300]
        strange += [(value * float('nan')).to(torch.float8_e4m3fn)]
        paths = (fuzz.write(kind, {**BASE, KEY: tensor}) for tensor in strange)
        for number, path in enumerate(paths):
            fuzz.bad(f'strange tensor {kind}', path, number)
    fuzz.check()


def threats(ran):
    """Objects that make the file ``ran`` when they are read without care."""
    opening = f'open({str(ran)!r}, "w").close()'
    yield Call(os.system, f'touch {ran}')
    yield Call(eval, opening)
    yield Call(exec, opening)
    yield Call(subprocess.getoutput, f'touch {ran}')
    yield Call(open, str(ran), 'w')
    yield Call(Path.touch, ran)
    yield Call(torch.save, 1, str(ran))


@every_pickle
def test_code(fuzz, kind):
    """Anywhere in the file, in any protocol of pickle."""
    for number, threat in enumerate(threats(fuzz.ran)):
        state = base_of(kind)
        attribute = OrderedDict(state)
        attribute._metadata = {'': threat}
        contents = [{**state, KEY: threat}, {**state, 'meta': [(1, {'a': threat})]}, attribute]
        contents += [dict(state_dict=state, hook=threat), [threat], threat]
        contents += [{**state, KEY: Call(np.array, [threat], object)}]
        for place, content in enumerate(contents):
            path = fuzz.folder / f'bad.{kind}'
            options = dict(protocol=(number + place) % 6) if kind == 'pdparams' else {}
            PICKLES[kind](content, path, **options)
            read = pickle.load if options else functools.partial(torch.load, weights_only=False)
            fuzz.code(f'code {kind}', path, read, (number, place))
    fuzz.check()


@every_suffix
def test_code_by_hand(fuzz, suffix):
    """Instructions that Python's own pickler does not write."""
    path, command = fuzz.folder / f'bad.{suffix}', f'touch {fuzz.ran}'
    codes = [f"(S'{command}'\nios\nsystem\n.", f"(cos\nsystem\nS'{command}'\no."]
    codes += [f"cposix\nsystem\n(S'{command}'\ntR.", f"}}S''\ncos\nsystem\n(S'{command}'\ntRs."]
    for code, start in itertools.product(codes, (b'', b'\x80\x02', b'\x80\x04')):
        path.write_bytes(start + code.encode())
        fuzz.code(f'code by hand {suffix}', path, pickle.load, (code, start))
    fuzz.check()


@every_suffix
def test_what_is_no_checkpoint(fuzz, suffix):
    path, what, rng = fuzz.folder / f'none.{suffix}', f'no checkpoint {suffix}', random.Random(0)
    fuzz.bad(what, path, 'not there')
    path.mkdir()
    fuzz.bad(what, path, 'a folder')
    path.rmdir()
    contents = [b'', b'\n', b'text\n' * 1000, b'\xef\xbb\xbftext', b'{}', b'[]', b'\0' * 1000]
    contents += [b'<!DOCTYPE html><html><body>404 Not Found</body></html>']
    contents += [b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n']
    contents += [rng.randbytes(length) for length in (1, 2, 7, 8, 9, 100, 10_000, 300_000)]
    starts = (b'PK\3\4', b'\x80\2', b'\x80\4}', b'\x1f\x8b', b'\5\0\0\0\0\0\0\0{"')
    contents += [start + rng.randbytes(1000) for start in starts]
    for names in (['readme.txt'], ['a/data.pkl'], ['archive/data.pkl', 'archive/version'], []):
        with zipfile.ZipFile(buffer := io.BytesIO(), 'w') as archive:
            for name in names:
                archive.writestr(name, 'text')
        contents.append(buffer.getvalue())
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())
    contents.append(buffer.getvalue())
    program = torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1))
    torch.jit.save(program, buffer := io.BytesIO())
    for content in [*contents, buffer.getvalue()]:
        path.write_bytes(content)
        fuzz.bad(what, path, content[:20])
    path.unlink()
    fuzz.check()


def test_safetensors_headers(fuzz):
    content, path, what = save(BASE), fuzz.folder / 'bad.safetensors', 'header safetensors'
    length = struct.unpack('<Q', content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, last = header[KEY]['data_offsets']
    ranges = ([last, first], [0, 1 << 60], [first], [-4, 4], [first + 4, last + 4], 'all', None)
    wrong = dict(data_offsets=ranges, dtype=('F99', 'F64', None))
    wrong |= dict(shape=([7], -1, [-1, last - first], [2**62, 4], ['x'], None))
    entries = [{**header[KEY], key: value} for key, values in wrong.items() for value in values]
    headers = [{**header, KEY: entry} for entry in [*entries, None, 3, [], {}]]
    marks = [dict(res2net_mm=mark) for mark in ('{', '{"": 5}', '{"": {"first_block": 5}}')]
    marks += [dict(res2net_mm='{"": {"first_block": "x"}}'), 5, [1], dict(a=5), dict(a={})]
    headers += [{**header, '__metadata__': mark} for mark in marks]
    texts = [json.dumps(header) for header in headers]
    texts += [json.dumps(header)[:-1], 'x' * length, '[]', '{}', '', '{"a":' * 5000]
    for text in texts:
        path.write_bytes(struct.pack('<Q', len(text)) + text.encode() + data)
        fuzz.bad(what, path, text[-60:])
    for size in (0, 1, length - 1, length + 1, len(content), 2**40, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack('<Q', size) + content[8:])
        fuzz.bad(what, path, size)
    fuzz.check()


@both_of_torch
def test_marks_and_wrappers(fuzz, kind):
    for mark in (5, [1], 'text', {1: 2}, {None: 'x'}, *({'style': v} for v in (5, [1], 'caffe'))):
        state = OrderedDict(BASE)
        state._metadata = {'': dict(res2net_mm=mark)}
        for content in (state, dict(state_dict=BASE, meta=dict(res2net_mm={'': mark}))):
            fuzz.bad(f'mark {kind}', fuzz.write(kind, content), repr(mark))
    loop = {}
    loop['state_dict'] = loop
    fuzz.bad(f'wrapped in itself {kind}', fuzz.write(kind, loop))
    for other in (5, [1], 'text', None, {'': 5}, {'': None}, {5: {}}, dict(res2net_mm=5)):
        state = OrderedDict(BASE)
        state._metadata = other
        path = fuzz.write(kind, dict(state_dict=state, meta=other))
        fuzz.good(f"others' metadata {kind}", path, BASE)
    fuzz.check()
