"""Archives by themselves: damage, and what unpacks to more than it may."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_sets import NOISE, files_below, pack

from res2net_mm.data.errors import DataError
from res2net_mm.data.prepare.unpack import unpack


def refused(archive: Path, *said: str, most: int = 1 << 30) -> None:
    """One line, and nothing is left."""
    folder = archive.parent / 'work'
    with pytest.raises(DataError) as caught:
        unpack(archive, folder, ['top/'], most)
    message = str(caught.value)
    assert str(archive) in message and all(part in message for part in said), message
    assert '\n' not in message and not folder.exists()


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
    refused(file, 'is damaged, or not the published archive (')


@pytest.mark.parametrize('kind', ['zip', 'tgz', 'zip in a zip'])
def test_what_unpacks_to_more_than_it_may(tmp_path, kind):
    file, size = tmp_path / 'a', 5 << 20
    zeros = bytes(size)
    if kind == 'tgz':
        info = tarfile.TarInfo('top/1')
        info.size = len(zeros)
        file.write_bytes(gzip.compress(info.tobuf() + zeros + bytes(1024), 1))
    else:
        with zipfile.ZipFile(buffer := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as out:
            out.writestr('top/1', zeros)
        file.write_bytes(buffer.getvalue())
        if kind == 'zip in a zip':
            with zipfile.ZipFile(file, 'w') as out:
                out.writestr('top/inner.zip', buffer.getvalue())
    assert file.stat().st_size < 300_000
    refused(file, 'would unpack to more than', most=size - 1)
    unpack(file, tmp_path / 'work', ['top/'], size)
    sizes = [path.stat().st_size for path in (tmp_path / 'work').rglob('*') if path.is_file()]
    assert sizes == [size]


def test_only_what_is_wanted_is_unpacked_into_an_empty_folder(tmp_path):
    pack(tmp_path / 'a.zip', {'top/a': b'1', 'top/b/c': b'2', 'other/d': b'3'})
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/left').write_bytes(b'by an interrupted call')
    unpack(tmp_path / 'a.zip', tmp_path / 'work', ['top/'], 100)
    assert files_below(tmp_path / 'work') == {'top/a': b'1', 'top/b/c': b'2'}
