import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from res2net_mm.files import check_writable, remove_partial, write_text, writing


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / 'x.json'
    write_text(path, 'old\r\n')
    for error in (KeyboardInterrupt(), ValueError('no')):
        with pytest.raises(type(error)), writing(path) as partial:
            assert partial.suffix == '.json'
            partial.write_text('half')
            assert path.read_bytes() == b'old\r\n'
            raise error
        assert path.read_bytes() == b'old\r\n' and os.listdir(tmp_path) == ['x.json']


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / 'x.bin'

    def write(digit):
        for _ in range(20):
            with writing(path) as partial:
                partial.write_bytes(bytes([digit]) * 100_000)
            content = path.read_bytes()
            assert len(content) == 100_000 and len(set(content)) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert os.listdir(tmp_path) == ['x.bin']


def test_a_link_stays_one(tmp_path):
    (tmp_path / 'there').mkdir()
    link = tmp_path / 'link.txt'
    link.symlink_to(tmp_path / 'there' / 'x.txt')
    write_text(link, 'new')
    assert link.is_symlink() and (tmp_path / 'there' / 'x.txt').read_text() == 'new'


def test_errors_of_writing_name_the_file_and_others_their_own(tmp_path):
    path = tmp_path / 'x.json'
    with pytest.raises(OSError, match='x.json could not be written: No space left'), writing(path):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(OSError, match='x.json could not be written: No such file'), writing(path):
        pass  # a writer that fails in silence
    with pytest.raises(OSError, match='nowhere.*x.txt could not be written: No such file'):
        write_text(tmp_path / 'nowhere' / 'x.txt', 'x')
    with pytest.raises(FileNotFoundError, match='other'), writing(path):
        (tmp_path / 'other').read_text()
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize('zipped', [True, False])
def test_a_disk_that_fills_up_in_torch_names_the_file(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    with pytest.raises(OSError, match='x.pth could not be written'), writing(path):
        with open('/dev/full', 'wb', buffering=0) as full:
            torch.save(torch.ones(1000), full, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RuntimeError, match='of another kind'), writing(path):
        raise RuntimeError('of another kind')
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in ('epoch_1.pth', '.bashrc', '.notes.partial'):
        (tmp_path / name).touch()
    child = os.fork()
    if not child:
        with writing(tmp_path / 'epoch_2.pth') as partial:
            partial.touch()
            os._exit(0)
    os.waitpid(child, 0)  # not of any other test
    assert len(os.listdir(tmp_path)) == 4
    remove_partial(tmp_path, '.json')
    assert len(os.listdir(tmp_path)) == 4
    remove_partial(tmp_path, '.pth')
    assert sorted(os.listdir(tmp_path)) == ['.bashrc', '.notes.partial', 'epoch_1.pth']


@pytest.mark.parametrize(
    ('target', 'folder', 'part'),
    [
        ('there', False, 'no regular file'),
        ('there/file', True, 'Not a directory'),
        ('there/file/x/y.json', False, 'Not a directory'),
        ('there/file/x', True, 'Not a directory'),
        ('there/pipe', False, 'no regular file'),
    ],
)
def test_what_cannot_be_written_is_named_before_the_work(tmp_path, target, folder, part):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'file').write_text('mine')
    os.mkfifo(tmp_path / 'there' / 'pipe')
    with pytest.raises(OSError, match=f'--out .*{target} cannot be written: .*{part}'):
        check_writable(tmp_path / target, '--out', folder)
    assert (tmp_path / 'there' / 'file').read_text() == 'mine'


def test_a_full_disk_is_found_before_the_work(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target, folder in (('new/x.json', False), ('new', True), ('x.json', False)):
        check_writable(tmp_path / target, '--out', folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(OSError, match=f'--out .*{target} cannot be written: File too'):
                check_writable(tmp_path / target, '--out', folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['图' * 80 + '.jpg', 'я' * 124 + '.png', 'a' * 251 + '.pth'])
def test_long_names_can_be_written(tmp_path, name):
    write_text(tmp_path / name, 'whole')
    assert os.listdir(tmp_path) == [name]
