"""Published sets: wrong names, damaged and hostile archives, full disks, wrong counts."""

from __future__ import annotations

import errno
import io
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from archive_sets import (
    COCO_ARCHIVES,
    COCO_NUMBERS,
    VOC_NUMBERS,
    clean_environment,
    fails,
    files_below,
    pack,
    shrunk,
    voc_archives,
    without_checksums,
)
from weights.file_server import FileServer

from res2net_mm.data.prepare import sets as prepare
from res2net_mm.data.prepare.archives import COCO, VOC, DataSet
from res2net_mm.data.prepare.sets import prepare_data
from res2net_mm.weights import DownloadError
from res2net_mm.weights.download import fetch


@pytest.fixture
def server(tmp_path, monkeypatch):
    clean_environment(monkeypatch)
    folder = tmp_path / 'served'
    folder.mkdir()
    with FileServer(folder) as running:
        yield running


@pytest.fixture
def coco(server) -> DataSet:
    return shrunk(COCO, server.folder, COCO_ARCHIVES, COCO_NUMBERS, server)


@pytest.fixture
def voc(server) -> DataSet:
    return shrunk(VOC, server.folder, voc_archives(), VOC_NUMBERS, server)


def test_a_damaged_annotation_of_the_benchmark_is_named(server, tmp_path):
    archives = voc_archives()
    archives['benchmark.tgz']['benchmark_RELEASE/dataset/cls/d.mat'] = b'no mat file' * 99
    small = shrunk(VOC, server.folder, archives, VOC_NUMBERS, server)
    fails('cls/d.mat: it is no annotation of SBD', dataset=small, root=tmp_path, parts=('aug',))


def test_cityscapes_says_where_to_get_its_archives(tmp_path):
    fails(
        'leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip',
        'https://www.cityscapes-dataset.com/downloads/',
        f'python tools/prepare_data.py cityscapes --root {tmp_path} --from FOLDER',
        dataset='cityscapes',
        root=tmp_path,
    )
    assert not list(tmp_path.iterdir())


def test_wrong_names_and_missing_archives(coco, server, tmp_path):
    fails("'Cityscape'", 'did you mean cityscapes?', dataset='Cityscape')
    fails("no part 'panoptics'", 'mean panoptic?', dataset='coco', parts=['val', 'panoptics'])
    fails(f'--from {tmp_path / "none"}: there is no', dataset=coco, source=tmp_path / 'none')
    (server.folder / 'val2017.zip').unlink()
    (server.folder / 'train2017.zip').unlink()
    fails(
        f'--from {server.folder}: it has no train2017.zip and no val2017.zip',
        dataset=coco,
        root=tmp_path / 'data',
        source=server.folder,
    )
    assert not (tmp_path / 'data').exists()


def test_a_wrong_checksum(coco, server, tmp_path):
    (server.folder / 'val2017.zip').write_bytes(b'something else')
    fails(
        'its md5 should begin with',
        error=DownloadError,
        dataset=coco,
        root=tmp_path,
        parts=('val',),
    )
    fails(
        f'{server.folder}/val2017.zip: it is damaged',
        'md5',
        server.address('val2017.zip'),
        dataset=coco,
        root=tmp_path,
        parts=('val',),
        source=server.folder,
    )
    assert not (tmp_path / 'coco/val2017').exists()


@pytest.mark.parametrize('damage', ['cut', 'bytes', 'no archive', 'encrypted'])
def test_a_damaged_zip_without_checksum(coco, server, tmp_path, damage):
    file = server.folder / 'train2017.zip'
    content = bytearray(file.read_bytes())
    if damage == 'cut':
        content = content[:-100]
    elif damage == 'bytes':
        content[100_000:100_010] = bytes(10)
    elif damage == 'encrypted':
        with zipfile.ZipFile(file) as opened:
            start = opened.start_dir
        for at in (6, start + content[start:].index(b'PK\1\2') + 8):
            content[at] |= 1
        at = content.rindex(b'PK\1\2')
        content[at + 8] |= 1
    else:
        content = b'<html>not found</html>'
    file.write_bytes(content)
    fails(
        f'{file}: it is damaged',
        dataset=without_checksums(coco),
        root=tmp_path,
        parts=('train',),
        source=server.folder,
    )
    assert not files_below(tmp_path / 'coco') or list(files_below(tmp_path / 'coco')) == [
        '.prepare/lock'
    ]


def test_a_tar_that_ends_too_early(voc, server, tmp_path):
    file = server.folder / 'VOCtrainval_11-May-2012.tar'
    file.write_bytes(file.read_bytes()[:700])
    dataset = without_checksums(voc)
    # cut between members it is no damage that a tar tells, but the count does
    fails(
        'VOCtrainval_11-May-2012.tar',
        dataset=dataset,
        root=tmp_path,
        parts=('voc2012',),
        source=server.folder,
    )


def hostile(kind: str, file: Path) -> None:
    if file.suffix == '.zip':
        with zipfile.ZipFile(file, 'w') as out:
            out.writestr('val2017/3.jpg', b'three')
            if kind == 'symlink':
                info = zipfile.ZipInfo('val2017/link')
                info.external_attr = 0o120777 << 16
                out.writestr(info, '/etc/passwd')
            else:
                name = {'up': 'val2017/../../../up.jpg', 'absolute': '/tmp/up.jpg'}.get(kind)
                out.writestr(name or 'val2017\\..\\up.jpg', b'out')
        return
    with tarfile.open(file, 'w') as out:
        info = tarfile.TarInfo('VOCdevkit/VOC2007/JPEGImages/1.jpg')
        out.addfile(info, io.BytesIO())
        info = tarfile.TarInfo('VOCdevkit/VOC2007/JPEGImages/2.jpg')
        if kind == 'up':
            info.name = 'VOCdevkit/VOC2007/../../../../up.jpg'
        elif kind == 'absolute':
            info.name = '/tmp/up.jpg'
        elif kind == 'device':
            info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
        elif kind == 'pipe':
            info.type = tarfile.FIFOTYPE
        else:
            info.type = tarfile.SYMTYPE if kind == 'symlink' else tarfile.LNKTYPE
            info.linkname = '../../../../etc/passwd'
        out.addfile(info)


@pytest.mark.parametrize('kind', ['up', 'absolute', 'backslash', 'symlink'])
def test_hostile_zips_are_refused(coco, server, tmp_path, kind):
    hostile(kind, server.folder / 'val2017.zip')
    root = tmp_path / 'a/b'
    fails(
        'link' if kind == 'symlink' else 'outside',
        dataset=without_checksums(coco),
        root=root,
        parts=('val',),
        source=server.folder,
    )
    assert list(files_below(tmp_path / 'a')) == ['b/coco/.prepare/lock']
    assert not list(tmp_path.rglob('up.jpg'))


@pytest.mark.parametrize('kind', ['up', 'absolute', 'symlink', 'hard link', 'device', 'pipe'])
def test_hostile_tars_are_refused(voc, server, tmp_path, kind):
    hostile(kind, server.folder / 'VOCtrainval_06-Nov-2007.tar')
    root = tmp_path / 'a/b'
    fails(
        'outside' if kind in ('up', 'absolute') else 'link or a device',
        dataset=without_checksums(voc),
        root=root,
        parts=('voc2007',),
        source=server.folder,
    )
    assert list(files_below(tmp_path / 'a')) == ['b/VOCdevkit/.prepare/lock']
    assert not list(tmp_path.rglob('up.jpg'))


def test_an_archive_of_something_else(coco, server, tmp_path):
    pack(server.folder / 'val2017.zip', {'photos/3.jpg': b'three'})
    fails(
        'has nothing below val2017/',
        dataset=without_checksums(coco),
        root=tmp_path,
        parts=('val',),
        source=server.folder,
    )


def test_wrong_counts(coco, server, tmp_path):
    pack(server.folder / 'train2017.zip', {'train2017/1.jpg': b'one'})
    fewer = without_checksums(coco)
    arguments = dict(dataset=fewer, root=tmp_path, parts=('train',), source=server.folder)
    fails(
        f'{tmp_path}/coco/train2017: it has 1 *.jpg, but 2 are expected',
        f'remove train2017.zip from {server.folder}',
        **arguments,
    )
    pack(server.folder / 'train2017.zip', COCO_ARCHIVES['train2017.zip'])
    prepare_data(**arguments)  # the whole archive is taken then

    (tmp_path / 'coco/train2017/._1.jpg').write_bytes(b'a Mac was here')
    prepare_data(**arguments)
    (tmp_path / 'coco/train2017/mine.jpg').write_bytes(b'mine')
    fails('train2017: it has 3 *.jpg, but 2 are expected; remove', **arguments)


def test_a_download_stays_until_its_files_are_counted(coco, server, tmp_path):
    pack(server.folder / 'train2017.zip', {'train2017/1.jpg': b'one'})
    arguments = dict(dataset=without_checksums(coco), root=tmp_path, parts=('train',))
    fails(f'remove train2017.zip from {tmp_path}/coco/.prepare', **arguments)
    (kept,) = (tmp_path / 'coco/.prepare').rglob('train2017.zip')
    fails('has 1 *.jpg', **arguments)
    assert len(server.asked) == 1
    kept.unlink()
    pack(server.folder / 'train2017.zip', COCO_ARCHIVES['train2017.zip'])
    prepare_data(**arguments)
    assert not (tmp_path / 'coco/.prepare').exists()


def test_checksums_that_make_no_sense(server):
    url = server.address('file.zip')
    for wrong in (dict(md5='12'), dict(md5='x' * 32), dict(md5='a' * 32, sha256='a' * 64)):
        with pytest.raises(DownloadError, match='md5'):
            fetch(url, **wrong)
    assert not server.asked


def test_a_disk_that_is_too_small(coco, server, tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(0, 0, free)

    monkeypatch.setattr(shutil, 'disk_usage', disk_usage)
    sizes = [part.archives[0].size for part in coco.parts.values()][:3]
    needed = 3 * 10_000 + max(sizes)  # what is unpacked, and the largest download
    free = needed - 1
    message = fails('too small', str(tmp_path), dataset=coco, root=tmp_path / 'data')
    assert 'GB are needed' in message and 'GB are free' in message
    assert asked == [tmp_path] and not server.asked and not (tmp_path / 'data').exists()
    free = needed
    prepare_data(coco, tmp_path / 'data')

    free = 29_999  # no archive is written where they are in a folder
    fails('too small', dataset=coco, root=tmp_path / 'more', source=server.folder)
    free = 30_000
    prepare_data(coco, tmp_path / 'more', source=server.folder)
    free = 30_000 + sum(sizes) - 1
    fails('too small', dataset=coco, root=tmp_path / 'keep', keep_archives=True)
    free = 0  # nothing is to be done
    prepare_data(coco, tmp_path / 'more')


def test_room_that_an_interrupted_call_took_is_not_asked_for_again(coco, server, tmp_path):
    work = tmp_path / 'coco/.prepare'
    (work / 'val2017.zip.files/val2017').mkdir(parents=True)
    (work / 'val2017.zip.files/val2017/3.jpg').write_bytes(bytes(4_000))
    (work / 'val2017.zip.part').write_bytes(bytes(300))
    (work / 'other.zip').write_bytes(bytes(50_000))
    archive = coco.parts['val'].archives[0]
    usage = namedtuple('usage', 'total used free')
    with pytest.MonkeyPatch.context() as patch:
        free = 10_000 + archive.size - 4_300
        patch.setattr(shutil, 'disk_usage', lambda path: usage(0, 0, free - 1))
        fails('too small', dataset=coco, root=tmp_path, parts=('val',))
        patch.setattr(shutil, 'disk_usage', lambda path: usage(0, 0, free))
        prepare_data(coco, tmp_path, parts=('val',))


def test_one_process_at_a_time(coco, tmp_path):
    work = tmp_path / 'coco/.prepare'
    work.mkdir(parents=True)
    with prepare.FileLock(work / 'lock'):
        fails('another process is preparing', dataset=coco, root=tmp_path)


@pytest.mark.parametrize('function', ['copyfileobj', 'move'])
def test_a_disk_that_becomes_full(coco, server, tmp_path, monkeypatch, function):
    (tmp_path / 'coco/annotations').mkdir(parents=True)
    real, calls = getattr(shutil, function), []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return real(*args)

    arguments = dict(dataset=coco, root=tmp_path, parts=('annotations',), source=server.folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, function, full)
        fails(f'{tmp_path}/coco', 'No space left', 'make room there and call again', **arguments)
    again, real_copy = [], shutil.copyfileobj
    monkeypatch.setattr(shutil, 'copyfileobj', lambda *args: again.append(1) or real_copy(*args))
    prepare_data(**arguments)
    assert files_below(tmp_path / 'coco') == COCO_ARCHIVES['annotations_trainval2017.zip']
    assert len(again) == (4 if function == 'copyfileobj' else 0)  # of 6


def test_places_that_are_taken(coco, server, tmp_path):
    (tmp_path / 'file').touch()
    arguments = dict(dataset=coco, parts=('val',), source=server.folder)
    fails(f'{tmp_path}/file/coco', 'Not a directory', '--root', root=tmp_path / 'file', **arguments)
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/val2017').touch()
    fails('coco/val2017', 'Not a directory', 'correct that', root=tmp_path, **arguments)
