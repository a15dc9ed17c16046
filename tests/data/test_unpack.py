"""Archives by themselves: damage, names that clash, places that are taken."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_sets import NOISE, files_below, pack

from res2net_mm.data.errors import DataError
from res2net_mm.data.unpack import unpack


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
