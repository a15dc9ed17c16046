"""Small files that ask for much memory are refused before it is taken."""

import json
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from filled_files import Call
from mmengine.logging import HistoryBuffer
from running import memory_for

from res2net_mm.weights import CheckpointError, convert_weights, read_checkpoint
from res2net_mm.weights.reading import read_pickle

MUCH = 1 << 30


class Same:
    """Pickles as an array of its own with the bytes of another."""

    def __init__(self, array):
        self.array = array
        self.bytes = _BYTES.setdefault(id(array), array.tobytes())

    def __reduce__(self):
        rebuild, args, state = self.array.__reduce__()
        return rebuild, args, (*state[:-1], self.bytes)


_BYTES = {}


def refusal(path, function=read_checkpoint, *args):
    with memory_for(500), pytest.raises(CheckpointError) as raised:
        function(path, *args)
    assert '\n' not in str(raised.value) and str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'call, reason',
    [
        (Call(bytearray, MUCH), 'bytearray of 1,073,741,824 bytes'),
        (
            Call(torch._tensor._rebuild_from_type_v2, bytearray, bytearray, (MUCH,), None),
            'bytearray of 1,073,741,824 bytes',
        ),
        (
            Call(
                torch._utils._rebuild_device_tensor_from_cpu_tensor,
                torch.ones(1, dtype=torch.int8).expand(MUCH), torch.float32, 'cpu', False,
            ),
            'asks for torch._utils._rebuild_device_tensor',
        ),
    ],
    ids=['bytearray', 'bytearray_inside', 'laid_out'],
)  # fmt: skip
def test_calls(tmp_path, call, reason, zipped):
    path = tmp_path / 'small.pth'
    torch.save(
        dict(state_dict=dict(w=torch.ones(2)), x=call),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert path.stat().st_size < 2000
    assert reason in refusal(path)


@pytest.mark.parametrize('module, name', [('torch', 'storage.UntypedStorage'), ('torch', 'Tensor')])
def test_empty_memory_by_any_name(tmp_path, module, name):
    path = tmp_path / 'small.pth'
    named = b''.join(b'\x8c' + bytes([len(part)]) + part.encode() for part in (module, name))
    size = struct.pack('<i', MUCH)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x04}\x8c\x01x' + named + b'\x93J' + size + b'\x85Rs.')
        archive.writestr('a/version', '3\n')
    assert '1,073,741,824 bytes, which no weights need' in refusal(path)


def test_tensors_that_repeat_a_value(tmp_path):
    path = tmp_path / 'small.pth'
    for state in (
        dict(w=torch.ones(1).expand(MUCH)),
        {f'w{i}': torch.ones(1 << 18)[None].expand(64, -1) for i in range(16)},
        {'w': torch.empty(MUCH, device='meta')},
    ):
        torch.save(dict(state_dict=state), path)
        assert 'tensors of' in refusal(path)
        assert 'tensors of' in refusal(path, convert_weights, tmp_path / 'out.pth')
    indices = torch.zeros(2, 1, dtype=torch.int64).expand(2, MUCH)
    sparse = (torch.sparse_coo, (indices, torch.ones(1).expand(MUCH), torch.Size([5, 5])))
    torch.save(dict(state_dict=dict(w=Call(torch._utils._rebuild_sparse_tensor, sparse))), path)
    assert 'sparse' in refusal(path)
    shared = torch.arange(3.0)
    torch.save(dict(a=shared.expand(1000, 3), b=[shared.expand(2, 3)] * 9), path)
    assert read_checkpoint(path)['a'].sum() == 3000


def test_arrays_and_histories_of_the_same_bytes(tmp_path):
    path = tmp_path / 'same.pdparams'
    array = np.zeros(10**5)
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({str(i): array[:] for i in range(3)}, protocol))
        assert len(read_checkpoint(path)) == 3
        same = {str(i): Same(array) for i in range(5000)}
        path.write_bytes(pickle.dumps(same, protocol))
        assert 'over and over' in refusal(path)
        with memory_for(500), pytest.raises(CheckpointError, match='over and over'):
            read_pickle(path.open('rb'))
    history = HistoryBuffer([1.0] * 10**5, [1] * 10**5)
    copies = []
    for _ in range(3000):
        copies.append(HistoryBuffer())
        vars(copies[-1]).update(vars(history))
    torch.save(dict(w=torch.ones(2), copies=copies), path)
    assert 'over and over' in refusal(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', [OrderedDict, set, Counter, bytearray])
def test_copies_over_and_over(tmp_path, kind, zipped):
    path = tmp_path / 'copies.pth'
    values = bytes(10**6) if kind is bytearray else {i: i for i in range(20_000)}
    copies = [Call(kind, values) for _ in range(5000)]
    save = dict(_use_new_zipfile_serialization=zipped)
    torch.save(dict(w=torch.ones(2), values=values, copies=copies), path, **save)
    assert 'over and over' in refusal(path)
    torch.save(dict(w=torch.ones(2), values=values, copies=copies[:3]), path, **save)
    assert len(read_checkpoint(path)['copies'][2]) == len(values)


def test_weights_without_values(tmp_path):
    path = tmp_path / 'meta.pth'
    torch.save(dict(state_dict=dict(w=torch.empty(2, device='meta'))), path)
    assert "'meta'" in refusal(path)
    assert read_checkpoint(path, 'meta')['state_dict']['w'].shape == (2,)


@pytest.mark.parametrize('length', ['right', 'beyond', 'short'])
def test_files_of_holes(tmp_path, length):
    values = MUCH // 4 if length == 'right' else 10
    tensor = dict(dtype='F32', shape=[values], data_offsets=[0, 4 * values])
    header = json.dumps(dict(w=tensor)).encode()
    path = tmp_path / 'holes.safetensors'
    with path.open('wb') as file:
        file.write(struct.pack('<Q', MUCH if length == 'beyond' else len(header)) + header)
        file.truncate(8 + len(header) + MUCH)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip('the file system has no holes')
    assert 'holes' in refusal(path)


def test_a_safetensors_file_takes_its_size_once(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / 'large.safetensors'
    save_file(dict(w=torch.arange(25 << 20, dtype=torch.float32)), path)
    with memory_for(250):  # it has 100, and is mapped
        read = read_checkpoint(path)['state_dict']['w']
    path.write_bytes(b'')  # nothing is read from it later
    assert read[-1] == (25 << 20) - 1
