"""Paddle's pickles and safetensors, and files of every format with bytes changed at random."""

import functools
import io
import json
import os
import pickle
import random
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from res2net_mm.backbones import Res2Net
from res2net_mm.weights import CheckpointError, convert_state_dict, read_checkpoint
from res2net_mm.weights.layouts import read_convention

NAMES = 'StructuredToParameterName@@'
ARRAYS = {
    'conv.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'strided': np.arange(16.0).reshape(4, 4)[::2, 1::2],
    'swapped': np.arange(3, dtype='>i4'),
    'half': np.arange(5, dtype=np.float16),
    'count': np.array(7),
    'flags': np.array([True, False]),
    'bytes': np.arange(250, 256, dtype=np.uint8),
    'complex': np.array([1 + 2j]),
    'empty': np.zeros((0, 3), np.float32),
}


class Reduced:
    """Pickles as what its reduce value says."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def placeholder():
    """Its name in a pickle is replaced by another, of the same protocol and any length."""


def named(content, name):
    module, _, function = name.rpartition('.')
    own = f'c{placeholder.__module__}\nplaceholder\n'.encode()
    assert own in content
    return content.replace(own, f'c{module}\n{function}\n'.encode())


def refused(path, **kwargs):
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(path, **kwargs)
    message = str(raised.value)
    assert message.startswith(f'checkpoint {path} ({path.stat().st_size} bytes) ')
    return message.split(' bytes) ')[1]


def assert_same(read, arrays=ARRAYS):
    assert list(read) == list(arrays)
    for key, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder('='))
        assert read[key].numpy().dtype == native.dtype, key
        assert read[key].shape == array.shape and read[key].is_contiguous(), key
        assert np.array_equal(read[key].numpy(), array), key


@pytest.mark.parametrize('protocol', [2, 3, 4])
@pytest.mark.parametrize('trust', [False, True])
def test_arrays_of_every_protocol(tmp_path, protocol, trust):
    path = tmp_path / 'net.pdparams'
    names = {key: f'{key}_0' for key in ARRAYS}
    path.write_bytes(pickle.dumps({**ARRAYS, NAMES: names}, protocol))
    read = read_checkpoint(path, trust=trust)
    assert read.pop(NAMES) == names
    assert_same(read)
    path.write_bytes(b'')  # the tensors do not lie in the file
    for tensor in read.values():
        tensor.add_(tensor)
    assert read['swapped'].tolist() == [0, 2, 4]


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_tensors_as_name_and_array(tmp_path, protocol):
    path = tmp_path / 'net.pdparams'
    pairs = {key: Reduced(tuple, ((f'{key}_0', array),)) for key, array in ARRAYS.items()}
    path.write_bytes(pickle.dumps(pairs, protocol))
    assert_same(read_checkpoint(path))
    pairs['count'] = ('count_0', np.array(7))
    path.write_bytes(pickle.dumps(pairs, protocol))
    assert_same(read_checkpoint(path))


@pytest.mark.parametrize('core', ['core', '_core'])
def test_names_of_other_numpy_versions(tmp_path, core):
    path = tmp_path / 'net.pdparams'
    content = pickle.dumps(ARRAYS, 2)
    for old in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
        content = content.replace(old, f'numpy.{core}.multiarray'.encode())
    path.write_bytes(content)
    assert_same(read_checkpoint(path))


def test_python_2(tmp_path):
    """There text is bytes, and an array's data is text."""
    path = tmp_path / 'net.pdparams'
    data = np.array([1.5, -2.5], np.float32).tobytes()
    path.write_bytes(
        b'\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
        b'(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff'
        b'J\xff\xff\xff\xffK\x00tb\x89U\x08' + data + b'tbs.'
    )
    assert read_checkpoint(path)['w'].tolist() == [1.5, -2.5]


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_code_in_pickles_of_arrays(tmp_path, protocol):
    mark = tmp_path / 'was_run'
    path = tmp_path / 'hostile.pdparams'
    path.write_bytes(
        pickle.dumps(dict(w=np.ones(2), x=Reduced(os.system, (f'touch {mark}',))), protocol)
    )
    message = refused(path)
    assert message.startswith(
        'asks for posix.system when it is read, which could run code, and was'
    )
    assert '--trust-checkpoint' in message and not mark.exists()
    read = read_checkpoint(path, trust=True)
    assert mark.exists() and read['x'] == 0 and read['w'].equal(torch.ones(2).double())


@pytest.mark.parametrize(
    'value, reason',
    [
        (Reduced(eval, ('data', {'data': np.ones(2)})), 'asks for builtins.eval when'),
        (Reduced(getattr, (np.ones(2), 'tofile')), 'asks for builtins.getattr when'),
        (Reduced(functools.partial, (os.system, 'ls')), 'asks for functools.partial when'),
        (Reduced(bytearray, (3 * 10**9,)), 'asks for builtins.bytearray when'),
        (torch.ones(2), 'asks for torch.storage._load_from_bytes when'),
        (np.random.RandomState(0), 'asks for '),
        (np.array([None]), "holds numpy data of type 'O8'; only numbers"),
        (np.array(['a']), "holds numpy data of type 'U1'; only numbers"),
        (np.zeros(2, [('a', 'f4')]), "holds numpy data of type 'V4'; only numbers"),
        (np.zeros(2, 'm8[s]'), 'holds numpy data of type .m8'),
        (Reduced(np.dtype, ('f8',), (3, '<', None, None, None, -1, -1, 63)), 'a numpy type'),
        (
            Reduced(np.ndarray, (0,), (1, (10**12,), np.dtype('f8'), False, b'12345678')),
            'shape .1000000000000,. and type float64 has 8 bytes',
        ),
        (
            Reduced(np.ndarray, (0,), (1, (0, 2**62, 2**62), np.dtype('f8'), False, b'')),
            'damaged or no checkpoint: ',
        ),
    ],
)
def test_what_is_no_array(tmp_path, value, reason):
    path = tmp_path / 'other.pdparams'
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({'w': np.ones(2), 'x': value}, protocol))
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path)


@pytest.mark.parametrize('value', [dict(m=np.ones(2)), (1, 2), 'text', None, np.float32(2)])
def test_what_is_no_array_is_no_weight(tmp_path, value):
    """Such values run no code, so they are read; renaming refuses them."""
    path = tmp_path / 'other.pdparams'
    state = {'conv1._conv.weight': np.ones((4, 3, 7, 7)), 'bb_0_0.conv0._conv.weight': value}
    path.write_bytes(pickle.dumps(state, 2))
    with pytest.raises(CheckpointError, match=f'must be a tensor, but is {type(value).__name__}'):
        convert_state_dict(read_checkpoint(path))


def test_other_pickles(tmp_path):
    path = tmp_path / 'other.pdparams'
    path.write_bytes(pickle.dumps([np.ones(2)]))
    assert refused(path) == 'holds an object of type list; a dict with weights is needed'
    path.write_bytes(pickle.dumps({'w': np.ones(2), 'epoch': 3}))
    assert read_checkpoint(path)['epoch'] == read_checkpoint(path, trust=True)['epoch'] == 3

    class Persistent(pickle.Pickler):
        def persistent_id(self, value):
            return 'elsewhere' if isinstance(value, np.ndarray) else None

    with path.open('wb') as file:
        Persistent(file, 4).dump({'w': np.ones(2)})
    assert 'persistent' in refused(path)
    # names are not believed to be names
    path.write_bytes(pickle.dumps({'x': Reduced(placeholder, ())}, 3))
    path.write_bytes(named(path.read_bytes(), 'a\x1b[2J' + 'b' * 1000 + '.c'))
    assert refused(path).startswith('asks for a?[2Jbb') and len(refused(path)) < 400


def test_safetensors(tmp_path):
    path = tmp_path / 'net.safetensors'
    net = Res2Net(50, base_width=14, scales=8, first_block='paddle', num_stages=1, out_indices=(0,),
                  strides=(1,), dilations=(1,))  # fmt: skip
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    state |= dict(half=torch.rand(3).bfloat16(), scalar=torch.tensor(3), empty=torch.zeros(0, 2))
    mark = {'': dict(first_block='paddle', style='pytorch')}
    path.write_bytes(save(state, dict(format='pt', res2net_mm=json.dumps(mark))))
    read = read_checkpoint(path)
    assert read['meta'] == dict(res2net_mm=mark) and read_convention(read) == mark['']
    assert read['state_dict'].keys() == state.keys()
    for key, value in state.items():
        assert read['state_dict'][key].equal(value) and read['state_dict'][key].dtype == value.dtype
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    assert read['state_dict']['layer1.0.conv1.weight'].equal(net.layer1[0].conv1.weight)
    for metadata in (None, dict(format='pt')):
        path.write_bytes(save(dict(w=torch.ones(2)), metadata))
        assert read_checkpoint(path, trust=True)['meta'] == {}
    path.write_bytes(save(dict(w=torch.ones(2)), dict(res2net_mm='{first_block')))
    assert 'is damaged or no checkpoint: JSONDecodeError' in refused(path)
    header = dict(w=dict(dtype='F32', shape=[10**12], data_offsets=[0, 4 * 10**12]))
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(8))
    assert refused(path).startswith('is damaged or no checkpoint: SafetensorError')


def files(state):
    """The same state dict in every format."""
    legacy, zipped = io.BytesIO(), io.BytesIO()
    torch.save(state, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    arrays = {key: value.numpy() for key, value in state.items()}
    pairs = {key: Reduced(tuple, ((key, array),)) for key, array in arrays.items()}
    return {
        'zip': zipped.getvalue(),
        'legacy': legacy.getvalue(),
        **{f'paddle {protocol}': pickle.dumps(arrays, protocol) for protocol in (2, 3, 4)},
        'paddle pairs': pickle.dumps(pairs, 2),
        'safetensors': save(state, dict(res2net_mm='{"": {"first_block": "mmdet"}}')),
    }


FORMATS = list(files({}))


@pytest.mark.parametrize('name', FORMATS)
def test_content_tells_the_format(tmp_path, monkeypatch, name):
    load = torch.load

    def by_content(file, **options):  # torch 2.13 and later look at the name, if they get one
        assert not isinstance(file, (str, os.PathLike))
        return load(file, **options)

    monkeypatch.setattr(torch, 'load', by_content)
    state = dict(w=torch.arange(3.0), n=torch.tensor(2))
    for suffix in ('.pth', '.pdparams', '.PDPARAMS', '.safetensors', ''):
        path = tmp_path / f'net{suffix}'
        path.write_bytes(files(state)[name])
        read = read_checkpoint(path)
        read = read['state_dict'] if name == 'safetensors' else read
        assert read.keys() == state.keys() and all(read[key].equal(state[key]) for key in state)


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize(
    'map_location, device',
    [
        ('meta', 'meta'),
        (torch.device('meta'), 'meta'),
        ({'cuda:0': 'meta'}, 'cpu'),
        (lambda storage, location: storage, 'cpu'),
        (None, 'cpu'),
    ],
)
def test_devices(tmp_path, name, map_location, device):
    """Paddle's files and safetensors are read on the CPU."""
    path = tmp_path / 'net'
    path.write_bytes(files(dict(w=torch.ones(3)))[name])
    read = read_checkpoint(path, map_location)
    tensor = read['state_dict' if name == 'safetensors' else 'w']
    tensor = tensor['w'] if name == 'safetensors' else tensor
    device = device if name in ('zip', 'legacy') else 'cpu'
    assert tensor.device.type == device and tensor.shape == (3,)
    assert device == 'meta' or tensor.sum() == 3


def damaged_copies(content, rng):
    """Cut off, one byte changed, several bytes changed, spliced, and noise behind the beginning."""
    for length in rng.choices(range(len(content)), k=50):
        yield content[:length]
    for position in rng.choices(range(len(content)), k=150):
        copy = bytearray(content)
        copy[position] ^= rng.randrange(1, 256)
        yield bytes(copy)
    for _ in range(50):
        copy = bytearray(content)
        for _ in range(rng.randrange(2, 12)):
            copy[rng.randrange(len(copy))] = rng.choice([0, 40, 46, 127, 128, 255])
        yield bytes(copy)
    for _ in range(40):
        start, stop, to = (rng.randrange(len(content)) for _ in range(3))
        yield content[:to] + content[start:stop] + content[to:]
    for _ in range(40):
        yield content[: rng.choice([0, 2, 4, 10, 16])] + rng.randbytes(rng.randrange(1, 400))


def packed(pickled):
    """An archive of torch with this pickle and a checksum that fits."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        archive.writestr('a/data.pkl', pickled)
        for key, length in enumerate((24, 8, 6)):
            archive.writestr(f'a/data/{key}', bytes(length))
        archive.writestr('a/version', '3\n')
    return content.getvalue()


@pytest.mark.parametrize('name', [*FORMATS, 'pickle in a zip'])
def test_damage_of_any_kind(tmp_path, name):
    torch.manual_seed(0)
    state = dict(w=torch.rand(2, 3, 1, 1), n=torch.tensor(2), h=torch.rand(3).half())
    content = files(state).get(name)
    path = tmp_path / 'net'
    if content is None:
        content = zipfile.ZipFile(io.BytesIO(files(state)['zip'])).read('archive/data.pkl')
        path.write_bytes(packed(content))
        assert read_checkpoint(path)['w'].shape == (2, 3, 1, 1)
    read, slowest = 0, 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for copy in damaged_copies(content, random.Random(name)):
            path.write_bytes(copy if name in FORMATS else packed(copy))
            start = time.perf_counter()
            try:
                assert isinstance(read_checkpoint(path), dict)
                read += 1
                assert len(copy) >= len(content), 'a file that was cut off'
            except CheckpointError as error:
                assert str(error).startswith(f'checkpoint {path} ') and '\n' not in str(error)
            slowest = max(slowest, time.perf_counter() - start)
    assert not caught and slowest < 2
    assert read < 200  # changed values and names cannot be told; the rest is


def test_paddle_weights_reach_the_renaming(tmp_path):
    """The program's names are left in for it to drop, by a rule of its own."""
    arrays = {'conv1._conv.weight': np.ones((64, 3, 7, 7), np.float32)}
    for name, value in dict(weight=1, bias=2, _mean=3, _variance=4).items():
        arrays[f'conv1._batch_norm.{name}'] = np.full(64, value, np.float32)
    names = {key: 'conv2d_0.w_0' for key in arrays}
    path = tmp_path / 'net.pdparams'
    path.write_bytes(pickle.dumps({**arrays, NAMES: names}, 2))
    state, layout = convert_state_dict(read_checkpoint(path))
    assert layout == 'paddle' and NAMES not in state
    assert state['bn1.running_var'].equal(torch.full((64,), 4.0))
