import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from res2net_mm.weights import CheckpointError, read_checkpoint


class Call:
    """Pickles as a call, which reading it would make."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def save_pickle(path, pickled):
    """A file as torch.save writes it, with a pickle that torch.save would not write."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', pickled)
        archive.writestr('a/byteorder', 'little')
        archive.writestr('a/data/0', np.arange(8, dtype=np.float32).tobytes())
        archive.writestr('a/version', '3\n')


def refusal(path):
    """The one-line message with which a file is refused."""
    with pytest.raises(CheckpointError) as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert message.startswith(f'checkpoint {path} ({path.stat().st_size} bytes) ')
    assert '\n' not in message
    return message


def test_what_mmengine_writes_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    array = np.arange(4, dtype='>i8')
    saved = dict(
        state_dict=OrderedDict(weight=torch.arange(3.0), count=torch.tensor(7)),
        message_hub=dict(
            log_scalars=OrderedDict(loss=history, same=history),
            runtime_info=dict(last=np.float64(0.5), flag=np.bool_(True)),
        ),
        meta=dict(seed=3, dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)])),
        arrays=[array, (array, np.zeros((0, 2))), np.asfortranarray(np.ones((2, 3)))],
        dtype=np.dtype('f4'),
        args=Namespace(lr=0.1, model='res2net50'),  # of timm's training
    )
    saved['state_dict']._metadata = OrderedDict({'': dict(version=2)})
    path = tmp_path / 'epoch_1.pth'
    torch.save(saved, path)
    read = read_checkpoint(path)
    state = read['state_dict']
    assert state['weight'].equal(torch.arange(3.0)) and state['count'] == 7
    assert type(state) is OrderedDict and state._metadata == {'': dict(version=2)}
    loss = read['message_hub']['log_scalars']['loss']
    assert type(loss) is HistoryBuffer and loss is read['message_hub']['log_scalars']['same']
    assert vars(loss).keys() == vars(HistoryBuffer()).keys() and loss.max_length == 1000000
    assert loss.mean() == loss.statistics('mean') == 1.5 and read['args'] == saved['args']
    loss.update(6)
    assert [part.tolist() for part in loss.data] == [[1, 2, 6], [1, 1, 1]]
    info = read['message_hub']['runtime_info']
    assert type(info['last']) is np.float64 and info == dict(last=0.5, flag=True)
    assert read['meta'] == saved['meta'] and read['dtype'] == np.dtype('f4')
    first, (second, empty), fortran = read['arrays']
    assert type(first) is np.ndarray and first.tolist() == [0, 1, 2, 3] and second is first
    assert empty.shape == (0, 2) and fortran.tolist() == [[1] * 3] * 2


@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_of_all_kinds(tmp_path, zipped):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    small = torch.arange(100).to(torch.int8).repeat(200)  # a few views have more numbers than bytes
    saved = dict(
        whole=whole,
        view=whole[:, 1:, ::2].transpose(0, 2),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 5),
        hollow=torch.zeros(5, 0),
        **{f'small{i}': small[i:] for i in range(4)},
        half=torch.rand(5).bfloat16(),
        expanded=torch.ones(1).expand(4, 4),
        parameter=torch.nn.Parameter(torch.rand(3)),
        size=torch.Size([2048, 2048, 7, 7]),
    )
    path = tmp_path / 'tensors.pth'
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert read['size'] == saved.pop('size')
    for key, value in saved.items():
        assert read[key].equal(value) and read[key].dtype == value.dtype, key
    assert read['whole'].untyped_storage().data_ptr() == read['view'].untyped_storage().data_ptr()


@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    mark = tmp_path / 'was_run'
    path = tmp_path / 'hostile.pth'
    saved = dict(state_dict={}, meta=Call(os.system, (f'touch {mark}',)))
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'asks for (posix|os)\.system.*--trust-checkpoint'):
        read_checkpoint(path)
    assert not mark.exists()
    read_checkpoint(path, trust=True)
    assert mark.exists(), 'the file was no threat, and the test none either'


def test_getattr_reaches_no_further_than_histories(tmp_path):
    path = tmp_path / 'reach.pth'
    torch.save(dict(x=Call(Namespace, (), {'a': Call(os.getcwd, ())})), path)
    assert 'asks for posix.getcwd when it is read' in refusal(path)
    # an allowed class, a method that writes
    torch.save(dict(x=Call(getattr, (np.ndarray, 'tofile'))), path)
    assert 'asks for builtins.getattr when it is read' in refusal(path)
    # what the process allowed for its own files is not allowed here, and stays as it was
    with torch.serialization.safe_globals([getattr, os.getcwd]):
        before = torch.serialization.get_safe_globals()
        assert 'asks for builtins.getattr when it is read' in refusal(path)
        torch.save(dict(x=Call(os.getcwd, ())), path)
        assert 'asks for posix.getcwd when it is read' in refusal(path)
        assert set(torch.serialization.get_safe_globals()) == set(before)


def test_nothing_changes_in_the_process(tmp_path, monkeypatch):
    """Another thread that loads a file meanwhile sees torch's settings as they are."""
    path = tmp_path / 'run.pth'
    torch.save(dict(w=torch.ones(2), x=HistoryBuffer([2.0], [1]), y=np.arange(3)), path)
    for name in ('add_safe_globals', 'clear_safe_globals', 'safe_globals'):
        monkeypatch.delattr(torch.serialization, name)
    assert read_checkpoint(path)['x'].mean() == 2


def test_a_state_may_not_change_functions_and_classes(tmp_path):
    path = tmp_path / 'state.pth'
    for target in (b'ctorch._utils\n_rebuild_tensor_v2\n', b'ccollections\nOrderedDict\n'):
        save_pickle(path, b'\x80\x02}' + target + b'}X\x01\0\0\0aK\x01sbX\x01\0\0\0bs.')
        assert 'asks for a change of a class or function' in refusal(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'a')


def test_histories_change_nothing_outside_of_themselves(tmp_path):
    path = tmp_path / 'history.pth'
    state = dict(vars(HistoryBuffer([2.0], [1])), statistics_methods=dict(mean='evil'), update='no')
    torch.save(dict(x=Call(HistoryBuffer, ([1], [1]), state)), path)
    assert read_checkpoint(path)['x'].mean() == 2
    methods = Call(getattr, (HistoryBuffer, '_statistics_methods'), None, None, iter([('mean', 1)]))
    torch.save(dict(x=methods), path)
    refusal(path)
    assert HistoryBuffer([1.0], [1]).statistics('mean') == 1
    assert set(HistoryBuffer._statistics_methods) == {'min', 'max', 'mean', 'current'}


F8 = ('f8', False, True)
HARM = {
    'objects': (np.array([None, 'a']), "numpy data of type 'O8'; only numbers"),
    'object': (Call(np.dtype, ('O',)), "numpy data of type 'O'; only numbers"),
    'texts': (np.array(['a']), "numpy data of type 'U1'; only numbers"),
    'records': (np.zeros(2, [('a', 'f4')]), "numpy data of type 'V4'; only numbers"),
    'flags': (
        Call(np.dtype, F8, (3, '<', None, None, None, -1, -1, 63)),
        'a numpy type float64 is not as numpy writes it',
    ),
    'parts': (
        Call(np.dtype, F8, (3, '<', (np.dtype('f8'), (9,)), None, None, -1, -1, 0)),
        'a numpy type float64 is not as numpy writes it',
    ),
    'too large': (
        Call(np.ndarray, (0,), (1, (10**12,), np.dtype('f8'), False, b'12345678')),
        r'an array of shape \(1000000000000,\) and type float64 has 8 bytes of data',
    ),
    'negative': (
        Call(np.ndarray, (0,), (1, (-1, -1), np.dtype('f8'), False, b'12345678')),
        r'an array of shape \(-1, -1\) and type float64 has 8 bytes of data',
    ),
    # torch would share an array's memory, which a pickle can then have freed
    'shared': (
        Call(
            torch._utils._rebuild_device_tensor_from_numpy,
            (np.ones(3), torch.float64, 'cpu', False),
        ),
        'asks for torch._utils._rebuild_device_tensor_from_numpy',
    ),
}


@pytest.mark.parametrize('value, reason', HARM.values(), ids=HARM)
def test_values_that_would_harm(tmp_path, value, reason):
    path = tmp_path / 'harm.pth'
    for zipped in (True, False):
        torch.save(dict(x=value), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('which', ['storage', 'sizes', 'both'])
def test_declared_sizes_are_not_believed(tmp_path, zipped, which):
    path = tmp_path / 'large.pth'
    torch.save(dict(w=torch.arange(8.0)), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    if zipped:
        with zipfile.ZipFile(path) as archive:
            content = archive.read('large/data.pkl')
    small, large = b'K\x08', b'\x8a\x06' + (10**12).to_bytes(6, 'little')
    storage, _, sizes = content.partition(small)
    assert sizes.count(small) == 1
    if which in ('sizes', 'both'):
        sizes = sizes.replace(small, large)
    content = storage + (small if which == 'sizes' else large) + sizes
    save_pickle(path, content) if zipped else path.write_bytes(content)
    with pytest.raises(CheckpointError, match='damaged.*(size|alloc)'):
        read_checkpoint(path)
    content = content.replace(large, small)
    save_pickle(path, content) if zipped else path.write_bytes(content)
    assert read_checkpoint(path)['w'].tolist() == list(range(8)), 'the pickle was wrong anyway'


@pytest.mark.parametrize('zipped', [True, False])
def test_damaged_files(tmp_path, zipped):
    path = tmp_path / 'whole.pth'
    torch.save(
        dict(state_dict=dict(w=torch.rand(64, 64))), path, _use_new_zipfile_serialization=zipped
    )
    content = path.read_bytes()
    broken = tmp_path / 'broken.pth'
    rng = random.Random(0)
    for length in [1, 10, *(rng.randrange(2, len(content)) for _ in range(30))]:
        broken.write_bytes(content[:length])
        assert ' is damaged or no checkpoint: ' in refusal(broken)
    if zipped:
        assert 'a zip archive without its end, maybe cut off' in refusal(broken)


def test_what_is_no_checkpoint(tmp_path, recwarn):
    path = tmp_path / 'other.pth'
    path.write_bytes(b'')
    assert refusal(path).endswith('(0 bytes) is empty')
    path.write_text('this is a text file, which somebody renamed')
    assert "is damaged or no checkpoint: it begins with b'this is a text file" in refusal(path)
    path.write_text('<!DOCTYPE html>\n<title>Seite nicht gefunden: ' + 'ä' * 100, encoding='utf-8')
    assert "is damaged or no checkpoint: it begins with b'<!DOCTYPE html>" in refusal(path)
    with path.open('wb') as file:
        np.savez(file, a=np.ones(2))
    assert 'is damaged or no checkpoint: ' in refusal(path)
    torch.save([1, 2], path)
    assert 'holds an object of type list; a dict with weights is needed' in refusal(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('other/constants.pkl', b'')
    assert 'TorchScript' in refusal(path)
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        read_checkpoint(path, trust=True)  # torch warns of the program
    assert not recwarn.list


class Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_program_behind_a_second_table_of_contents(tmp_path, monkeypatch):
    """torch reads the table at the offset that the end names, zipfile the one before the end."""
    program, path = tmp_path / 'program.pt', tmp_path / 'weights.pth'
    torch.jit.script(Doubling()).save(str(program))
    seen, shown = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(program) as source:
        with zipfile.ZipFile(seen, 'w') as first, zipfile.ZipFile(shown, 'w') as second:
            for name in source.namelist():
                first.writestr(name, source.read(name))
                second.writestr(name.replace('constants', 'constantz'), b'\x80\x02}.')
    seen, shown = seen.getvalue(), shown.getvalue()
    size, offset = struct.unpack('<2L', seen[-10:-2])
    table = bytearray(shown[-22 - size : -22])
    shift = size + offset - (len(shown) - 22)
    place = 0
    while place < size:  # zipfile adds the distance between the tables to each offset
        lengths = struct.unpack_from('<3H', table, place + 28)
        (start,) = struct.unpack_from('<L', table, place + 42)
        struct.pack_into('<L', table, place + 42, (start + shift) % 2**32)
        place += 46 + sum(lengths)
    path.write_bytes(seen[:-22] + shown[: -22 - size] + table + seen[-22:])
    with open(path, 'rb') as file:  # the file is a program to torch
        assert isinstance(torch.jit.load(file), torch.jit.ScriptModule)
    monkeypatch.setattr(torch.jit, 'load', lambda *args, **kwargs: pytest.fail('it was run'))
    assert 'TorchScript' in refusal(path)


@pytest.mark.parametrize('prefix', [b'', b'PKx'])
def test_a_tar_archive_is_not_unpacked(tmp_path, prefix):
    """A member of it may be a link to any file."""
    victim, path = tmp_path / 'victim', tmp_path / 'old.pth'
    victim.touch(mode=0o600)
    begin = io.BytesIO()
    torch.save({}, begin, _use_new_zipfile_serialization=False)
    name = prefix or begin.getvalue()[:19] + b'\x80\x02}.' * 3  # as torch's old files begin
    blocks = []
    for member, link in ((name, ''), (b'storages', str(victim))):
        info = tarfile.TarInfo('x')
        info.type, info.linkname, info.mode = tarfile.LNKTYPE if link else b'0', link, 0o666
        header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        header[: len(member)] = member
        header[148:156] = b' ' * 8
        header[148:156] = b'%06o\0 ' % sum(header)
        blocks.append(bytes(header))
    end = io.BytesIO()
    zipfile.ZipFile(end, 'w').close()
    path.write_bytes(b''.join(blocks) + bytes(10240) + (end.getvalue() if prefix else b''))
    assert tarfile.is_tarfile(path)
    assert 'is a tar archive' in refusal(path)
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_small_file_takes_neither_time_nor_memory(tmp_path):
    nested = [1]
    for _ in range(40):
        nested = [nested, nested]
    torch.save(dict(a=nested), tmp_path / 'nested.pth')
    assert len(read_checkpoint(tmp_path / 'nested.pth')['a']) == 2
    save_pickle(tmp_path / 'bytes.pth', pickle.dumps({'a': Call(bytes, (1 << 40,))}, 2))
    assert 'no_bytes' in refusal(tmp_path / 'bytes.pth')
    with zipfile.ZipFile(tmp_path / 'zeros.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickle.dumps({}, 2))
        archive.writestr('a/data/0', bytes(1 << 20))
    assert 'is damaged' in refusal(tmp_path / 'zeros.pth')


def test_archives_without_checksums(tmp_path):
    path = tmp_path / 'net.pth'
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(w=torch.arange(3.0)), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)['w'].tolist() == [0, 1, 2]


def test_wrong_paths(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='nothing.pth does not exist'):
        read_checkpoint(tmp_path / 'nothing.pth')
    with pytest.raises(CheckpointError, match='is a folder or device; give the .pth file'):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match='/dev/null is a folder or device'):
        read_checkpoint('/dev/null')
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(dict(a=1), tmp_path / 'home.pth')
    assert read_checkpoint('~/home.pth') == dict(a=1)
    with pytest.raises(FileNotFoundError, match=f'{tmp_path}/other.pth does not exist'):
        read_checkpoint('~/other.pth')
