"""Archives by themselves: damage, names that clash, places that are taken."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_sets import NOISE, files_below, pack
from running import memory_for

from res2net_mm.data.errors import DataError
from res2net_mm.data.prepare.unpack import unpack


def unpacked(archive: Path) -> None:
    unpack(archive, archive.parent / 'work/stage', archive.parent / 'out', (('top/', ''),))


def refused(archive: Path, *said: str) -> None:
    """One line, and nothing is left."""
    with pytest.raises(DataError) as caught:
        unpacked(archive)
    message = str(caught.value)
    assert str(archive) in message and all(part in message for part in said), message
    assert '\n' not in message
    assert not files_below(archive.parent / 'work') and not (archive.parent / 'out').exists()


@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz', zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_kind_of_damage_names_the_archive(tmp_path, kind):
    file = tmp_path / 'archive'
    if isinstance(kind, str):
        with tarfile.open(file, f'w:{kind}') as out:
            info = tarfile.TarInfo('top/1.jpg')
            info.size = len(NOISE)
            out.addfile(info, io.BytesIO(NOISE))
    else:
        with zipfile.ZipFile(file, 'w', kind) as out:
            out.writestr('top/1.jpg', NOISE)
    content = bytearray(file.read_bytes())
    content[100_000:100_010] = bytes(10)
    file.write_bytes(content)
    refused(file, 'is damaged (')


@pytest.mark.parametrize('names', [('top/a', 'top/a/b'), ('top/a/b', 'top/a')])
def test_a_file_and_a_folder_of_one_name(tmp_path, names):
    pack(tmp_path / 'a.zip', dict.fromkeys(names, b'abc'))
    refused(tmp_path / 'a.zip', 'a file and a folder of one name', 'stage/a)')


def test_no_name_of_a_member_is_special(tmp_path):
    members = {'top/a': b'1', 'top/.part': b'2', 'top/stage.part': b'3'}
    pack(tmp_path / 'a.zip', members)
    unpacked(tmp_path / 'a.zip')
    assert files_below(tmp_path / 'out') == {name[4:]: members[name] for name in members}
    assert not any((tmp_path / 'work').iterdir())


def test_a_folder_where_a_file_is_to_come(tmp_path):
    pack(tmp_path / 'a.zip', {'top/a': b'abc', 'top/b': b'abc'})
    (tmp_path / 'out/a').mkdir(parents=True)
    with pytest.raises(DataError, match=r'Is a directory: .*out/a\); correct that and call again'):
        unpacked(tmp_path / 'a.zip')
    assert not any((tmp_path / 'out/a').iterdir())
    (tmp_path / 'out/a').rmdir()
    unpacked(tmp_path / 'a.zip')
    assert files_below(tmp_path / 'out') == {'a': b'abc', 'b': b'abc'}


@pytest.mark.parametrize('kind', ['zip', 'gz', 'sparse'])
def test_what_unpacks_to_more_than_it_may(tmp_path, kind):
    file, zeros = tmp_path / 'a', bytes(50 << 20)
    if kind == 'zip':
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as out:
            out.writestr('top/1', zeros)
    else:
        info = tarfile.TarInfo('top/1')
        info.size = len(zeros)
        if kind == 'sparse':  # one piece, at the end
            info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        if kind == 'sparse':
            header[386:410] = f'{(50 << 20) - 512:011o}\0{512:011o}\0'.encode()
            header[483:495] = f'{50 << 20:011o}\0'.encode()
            header[148:156] = b' ' * 8
            header[148:156] = f'{sum(header):06o}\0 '.encode()
            zeros = bytes(512)
        content = bytes(header) + zeros + bytes(1024)
        file.write_bytes(gzip.compress(content, 1))
    assert file.stat().st_size < 300_000
    work, out = tmp_path / 'work/stage', tmp_path / 'out'
    with pytest.raises(DataError, match='would unpack to more than 0.1 GB'):
        unpack(file, work, out, (('top/', ''),), most=49 << 20)
    assert not files_below(tmp_path / 'work') and not out.exists()
    assert unpack(file, work, out, (('top/', ''),), most=50 << 20) == 1
    assert (out / '1').stat().st_size == 50 << 20


@pytest.mark.parametrize('kind', [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_takes_all_memory(tmp_path, kind):
    info = tarfile.TarInfo('long')
    info.type, info.size = kind, 1 << 29
    with gzip.open(tmp_path / 'a.tgz', 'wb', 1) as out:
        out.write(info.tobuf())
        for _ in range(1 << 9):
            out.write(bytes(1 << 20))
    with memory_for(200):
        refused(tmp_path / 'a.tgz', 'is damaged')
