"""Published sets: fetched, unpacked and laid out, on tiny archives of their layouts."""

from __future__ import annotations

import errno
import io
import re
import runpy
import shutil
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from archive_sets import (
    COCO_ARCHIVES,
    COCO_NUMBERS,
    EXPECTED_COCO,
    NOISE,
    VALUES,
    VOC_NUMBERS,
    clean_environment,
    fails,
    files_below,
    pack,
    png,
    shrunk,
    voc_archives,
    without_checksums,
)
from PIL import Image
from weights.file_server import FileServer

from res2net_mm.data.prepare import sets as prepare
from res2net_mm.data.prepare.archives import ADE20K, CITYSCAPES, COCO, DATA_SETS, VOC, DataSet
from res2net_mm.data.prepare.sets import prepare_data
from res2net_mm.weights import DownloadError


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


def news(prepared) -> list[bool]:
    """Which rows of the table are new."""
    return [new for _, _, new in prepared.rows]


def test_coco_is_laid_out_as_the_configs_read_it(coco, server, tmp_path):
    result = prepare_data(coco, tmp_path / 'data')
    assert files_below(tmp_path / 'data/coco') == EXPECTED_COCO
    home = str(tmp_path / 'data/coco')
    assert result.rows == [
        (f'{home}/train2017/*.jpg', 2, True),
        (f'{home}/val2017/*.jpg', 1, True),
        (f'{home}/annotations/instances_train2017.json', 1, True),
        (f'{home}/annotations/instances_val2017.json', 1, True),
    ]
    lines = str(result).splitlines()
    assert re.fullmatch(rf'{re.escape(home)}/train2017/\*\.jpg +2  new', lines[1])
    assert lines[-1] == f'licence: {COCO.licence}'

    asked = len(server.asked)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    again = prepare_data(coco, tmp_path / 'data')
    assert news(again) == [False] * 4
    assert len(server.asked) == asked
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_a_part_that_is_there_is_not_fetched(coco, server, tmp_path):
    for name in ('train2017/1.jpg', 'train2017/2.jpg'):
        path = tmp_path / 'coco' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'my own')
    result = prepare_data(coco, tmp_path, parts=('train', 'val'))
    assert news(result) == [False, True]
    assert not server.ranges('train2017.zip')
    assert (tmp_path / 'coco/train2017/1.jpg').read_bytes() == b'my own'


def test_zips_inside_the_panoptic_zip_and_maps_of_stuff(coco, tmp_path):
    prepare_data(coco, tmp_path, parts=('panoptic', 'stuff'))
    assert files_below(tmp_path / 'coco') == {
        'annotations/panoptic_train2017.json': b'{}',
        'annotations/panoptic_val2017.json': b'{}',
        'annotations/panoptic_train2017/1.png': b'p1',
        'annotations/panoptic_train2017/2.png': b'p2',
        'annotations/panoptic_val2017/3.png': b'p3',
        'stuffthingmaps/train2017/1.png': b's1',
        'stuffthingmaps/train2017/2.png': b's2',
        'stuffthingmaps/val2017/3.png': b's3',
    }


def test_archives_of_a_folder_are_used_and_stay(coco, server, tmp_path):
    before = files_below(server.folder)
    prepare_data(coco, tmp_path / 'data', source=server.folder)
    assert files_below(tmp_path / 'data/coco') == EXPECTED_COCO
    assert files_below(server.folder) == before
    assert not server.asked


def test_a_mirror_is_asked_first(coco, server, tmp_path, monkeypatch):
    mirror = tmp_path / 'mirror'
    mirror.mkdir()
    shutil.move(server.folder / 'val2017.zip', mirror)
    monkeypatch.setenv('RES2NET_MM_MIRROR', str(mirror))
    prepare_data(coco, tmp_path, parts=('val',))
    assert (tmp_path / 'coco/val2017/3.jpg').read_bytes() == b'three'
    assert (mirror / 'val2017.zip').exists()


def test_a_cut_off_download_is_continued(coco, server, tmp_path):
    server.behave('train2017.zip', drop_after=50_000, drops=99, ranges=False)
    fails('broke off', error=DownloadError, dataset=coco, root=tmp_path, parts=('train',))
    part = tmp_path / 'coco/.prepare/train2017.zip.part'
    have = part.stat().st_size
    assert have == 50_000
    server.behave('train2017.zip')
    asked = len(server.asked)
    prepare_data(coco, tmp_path, parts=('train',))
    assert server.ranges('train2017.zip')[asked:] == [f'bytes={have}-']
    assert (tmp_path / 'coco/train2017/1.jpg').read_bytes() == NOISE


@pytest.mark.parametrize('where', ['unpacking', 'moving'])
def test_after_an_interruption_nothing_is_downloaded_twice(
    coco, server, tmp_path, monkeypatch, where
):
    owner, name = (zipfile.ZipFile, 'extract') if where == 'unpacking' else (shutil, 'move')
    real, calls = getattr(owner, name), []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    if where == 'moving':  # file by file where the folder is there
        (tmp_path / 'coco/annotations').mkdir(parents=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        prepare_data(coco, tmp_path, parts=('annotations',))
    if where == 'unpacking':
        assert not (tmp_path / 'coco/annotations').exists()
    prepare_data(coco, tmp_path, parts=('annotations',))
    assert len(server.asked) == 1
    assert files_below(tmp_path / 'coco') == COCO_ARCHIVES['annotations_trainval2017.zip']


def test_a_part_of_which_something_is_unpacked_is_not_complete(coco, tmp_path):
    there = tmp_path / 'coco/val2017/3.jpg'
    unfinished = tmp_path / 'coco/.prepare/val2017.zip.files/val2017/3.jpg'
    for path in (there, unfinished):
        path.parent.mkdir(parents=True)
        path.write_bytes(b'half')
    assert news(prepare_data(coco, tmp_path, parts=('train',))) == [True]
    assert news(prepare_data(coco, tmp_path, parts=('val',))) == [True]
    assert there.read_bytes() == b'three'
    assert not (tmp_path / 'coco/.prepare').exists()


def test_files_of_the_user_stay(coco, tmp_path):
    folder = tmp_path / 'coco/annotations'
    folder.mkdir(parents=True)
    (folder / 'captions_val2017.json').write_bytes(b'cut o')
    (folder / 'mine.json').write_bytes(b'mine')
    prepare_data(coco, tmp_path, parts=('annotations',))
    expected = COCO_ARCHIVES['annotations_trainval2017.zip'] | {'annotations/mine.json': b'mine'}
    assert files_below(tmp_path / 'coco') == expected


def test_a_set_on_another_disk_by_a_link(coco, tmp_path):
    (tmp_path / 'large').mkdir()
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/coco').symlink_to(tmp_path / 'large')
    prepare_data(coco, tmp_path / 'data')
    assert files_below(tmp_path / 'large') == EXPECTED_COCO


def test_voc_merges_the_archives_of_a_year(voc, tmp_path):
    prepare_data(voc, tmp_path)
    kit = tmp_path / 'VOCdevkit'
    assert sorted(path.name for path in (kit / 'VOC2007/JPEGImages').iterdir()) == [
        '1.jpg',
        '2.jpg',
        '3.jpg',
    ]
    lists = {path.name: path.read_text() for path in (kit / 'VOC2007/ImageSets/Main').iterdir()}
    assert lists == {'trainval.txt': '1\n2\n', 'test.txt': '3\n'}
    assert len(list((kit / 'VOC2012/Annotations').iterdir())) == 5
    for name in ('VOC2007/ImageSets/Main/test.txt', 'VOC2012/ImageSets/Segmentation/val.txt'):
        (kit / name).unlink()  # without its lists a year is not complete
        rows = prepare_data(voc, tmp_path).rows
        assert (kit / name).is_file()
        assert {row[len(f'{kit}/') :][:7] for row, _, new in rows if new} == {name[:7]}
    assert not (kit / 'VOCaug').exists()


def test_an_archive_that_is_unpacked_is_not_fetched_for_its_sister(voc, server, tmp_path):
    server.behave('VOCtest_06-Nov-2007.tar', status=503)
    fails('503', error=DownloadError, dataset=voc, root=tmp_path, parts=('voc2007',))
    server.behave('VOCtest_06-Nov-2007.tar')
    prepare_data(voc, tmp_path, parts=('voc2007',))
    assert len(server.ranges('VOCtrainval_06-Nov-2007.tar')) == 1
    assert len(files_below(tmp_path / 'VOCdevkit/VOC2007')) == 8
    assert not (tmp_path / 'VOCdevkit/.prepare').exists()


def test_augmented_voc_has_the_benchmarks_maps_and_its_own(voc, tmp_path):
    prepare_data(voc, tmp_path, parts=('aug',))  # takes voc2012 with it
    year = tmp_path / 'VOCdevkit/VOC2012'
    expected = {'a': VALUES, 'b': VALUES + 20, 'c': VALUES + 40}  # VOC's own, not 100, 120
    expected |= {'d': VALUES + 140, 'e': VALUES + 160}
    maps = {path.stem: Image.open(path) for path in (year / 'SegmentationClassAug').iterdir()}
    assert {image.mode for image in maps.values()} == {'L'}
    assert sorted(maps) == sorted(expected)
    for name, values in expected.items():
        assert np.array_equal(np.asarray(maps[name]), values), name
    lists = year / 'ImageSets/Segmentation'
    assert (lists / 'aug.txt').read_text() == 'd\ne\n'  # neither of VOC's train nor of its val
    assert (lists / 'trainaug.txt').read_text() == 'a\nb\nd\ne\n'

    (year / 'SegmentationClassAug/d.png').unlink()  # made again from what is there
    assert news(prepare_data(voc, tmp_path, parts=('aug',)))[-3:] == [True] * 3
    assert (year / 'SegmentationClassAug/d.png').exists()


def test_ade20k(server, tmp_path):
    members = {
        f'ADEChallengeData2016/{kind}/{split}/{i}.{suffix}': b'x'
        for kind, suffix in (('images', 'jpg'), ('annotations', 'png'))
        for split, number in (('training', 3), ('validation', 2))
        for i in range(number)
    }
    members['ADEChallengeData2016/objectInfo150.txt'] = b'names'
    numbers = {
        f'ADEChallengeData2016/{kind}/{split}': number
        for kind in ('images', 'annotations')
        for split, number in (('training', 3), ('validation', 2))
    }
    small = shrunk(ADE20K, server.folder, {'ADEChallengeData2016.zip': members}, numbers, server)
    prepare_data(small, tmp_path)
    assert files_below(tmp_path / 'ade') == members


def test_cityscapes_gets_train_ids(tmp_path):
    ids = np.arange(36).reshape(6, 6)
    ids[5, 5] = 255  # as a signed byte: -1, of license plates
    splits = {'train': 2, 'val': 1, 'test': 1}
    images, labels = {'license.txt': b'terms'}, {'README': b'read'}
    for split, number in splits.items():
        for i in range(number):
            stem = f'{split}/ulm/ulm_{i}'
            images[f'leftImg8bit/{stem}_leftImg8bit.png'] = b'image'
            labels[f'gtFine/{stem}_gtFine_labelIds.png'] = png(ids)
            labels[f'gtFine/{stem}_gtFine_instanceIds.png'] = b'instances'
    source = tmp_path / 'archives'
    source.mkdir()
    archives = {'leftImg8bit_trainvaltest.zip': images, 'gtFine_trainvaltest.zip': labels}
    numbers = {
        f'{folder}/{split}': number
        for folder in ('leftImg8bit', 'gtFine')
        for split, number in splits.items()
    }
    small = shrunk(CITYSCAPES, source, archives, numbers)
    prepare_data(small, tmp_path, source=source)
    home = tmp_path / 'cityscapes'
    found = np.asarray(Image.open(home / 'gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png'))
    # cityscapesScripts, labels.py: the lines that have a trainId below 255
    by_hand = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
    by_hand |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert found.ravel().tolist() == [by_hand.get(i, 255) for i in ids.ravel().tolist()]
    assert (home / 'leftImg8bit/test/ulm/ulm_0_leftImg8bit.png').read_bytes() == b'image'
    assert not (home / 'license.txt').exists()

    for path in home.glob('gtFine/*/*/*_labelTrainIds.png'):
        path.unlink()
    shutil.rmtree(source)  # the train ids come from what is there
    assert news(prepare_data(small, tmp_path)) == [False] * 6 + [True] * 3


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
    said = ("no part of coco named 'panoptics'", 'mean panoptic?')
    fails(*said, dataset='coco', parts=['val', 'panoptics'])
    fails(f'--from {tmp_path / "none"}: it has no', dataset=coco, source=tmp_path / 'none')
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
def test_hostile_zips_do_not_leave_the_folder(coco, server, tmp_path, kind):
    hostile(kind, server.folder / 'val2017.zip')
    root = tmp_path / 'a/b'
    arguments = dict(dataset=without_checksums(coco), root=root, parts=('val',))
    arguments['source'] = server.folder
    if kind == 'up':  # its name is cut, so there is one file too many
        fails('2 files are there, but 1 are expected', **arguments)
    else:
        prepare_data(**arguments)
    written = [path for path in tmp_path.rglob('*') if server.folder not in path.parents]
    assert not any(path.is_symlink() for path in written)
    inside = root / 'coco/val2017'
    assert all(path.parent == inside for path in written if 'up' in path.name)


@pytest.mark.parametrize('kind', ['up', 'symlink', 'hard link', 'device', 'pipe'])
def test_hostile_tars_are_refused(voc, server, tmp_path, kind):
    hostile(kind, server.folder / 'VOCtrainval_06-Nov-2007.tar')
    root = tmp_path / 'a/b'
    fails(
        'is damaged, or not the published archive (',
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
        f'{tmp_path}/coco/train2017/*.jpg: 1 files are there, but 2 are expected',
        f'remove train2017.zip from {server.folder}',
        **arguments,
    )
    pack(server.folder / 'train2017.zip', COCO_ARCHIVES['train2017.zip'])
    prepare_data(**arguments)  # the whole archive is taken then

    (tmp_path / 'coco/train2017/._1.jpg').write_bytes(b'a Mac was here')
    prepare_data(**arguments)
    (tmp_path / 'coco/train2017/mine.jpg').write_bytes(b'mine')
    fails('train2017/*.jpg: 3 files are there, but 2 are expected; remove', **arguments)


def test_a_download_stays_until_its_files_are_counted(coco, server, tmp_path):
    pack(server.folder / 'train2017.zip', {'train2017/1.jpg': b'one'})
    arguments = dict(dataset=without_checksums(coco), root=tmp_path, parts=('train',))
    fails(f'remove train2017.zip from {tmp_path}/coco/.prepare', **arguments)
    (kept,) = (tmp_path / 'coco/.prepare').rglob('train2017.zip')
    fails('1 files are there', **arguments)
    assert len(server.asked) == 1
    kept.unlink()
    pack(server.folder / 'train2017.zip', COCO_ARCHIVES['train2017.zip'])
    prepare_data(**arguments)
    assert not (tmp_path / 'coco/.prepare').exists()


def test_a_disk_that_is_too_small(coco, server, tmp_path, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(0, 0, free)

    monkeypatch.setattr(shutil, 'disk_usage', disk_usage)
    sizes = [part.archives[0].size for part in coco.parts.values()][:3]
    needed = sum(sizes) + max(sizes)  # what is unpacked, and the largest download
    free = needed - 1
    message = fails('too small', str(tmp_path), dataset=coco, root=tmp_path / 'data')
    assert 'GB are needed' in message and 'GB are free' in message
    assert asked == [tmp_path] and not server.asked and not (tmp_path / 'data').exists()
    free = needed
    prepare_data(coco, tmp_path / 'data')

    free = sum(sizes) - 1  # no archive is written where they are in a folder
    fails('too small', dataset=coco, root=tmp_path / 'more', source=server.folder)
    free = sum(sizes)
    prepare_data(coco, tmp_path / 'more', source=server.folder)
    free = 0  # nothing is to be done
    prepare_data(coco, tmp_path / 'more')


def test_room_that_an_interrupted_call_took_is_not_asked_for_again(coco, server, tmp_path):
    work = tmp_path / 'coco/.prepare'
    (work / 'val2017.zip.files/val2017').mkdir(parents=True)
    (work / 'val2017.zip.files/val2017/3.jpg').write_bytes(bytes(40))
    (work / 'val2017.zip.part').write_bytes(bytes(30))
    archive = coco.parts['val'].archives[0]
    usage = namedtuple('usage', 'total used free')
    with pytest.MonkeyPatch.context() as patch:
        free = 2 * archive.size - 70
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
        fails('No space left', error=OSError, **arguments)
    prepare_data(**arguments)
    assert files_below(tmp_path / 'coco') == COCO_ARCHIVES['annotations_trainval2017.zip']


def test_places_that_are_taken(coco, server, tmp_path):
    (tmp_path / 'file').touch()
    arguments = dict(dataset=coco, parts=('val',), source=server.folder)
    fails(f'{tmp_path}/file', 'Not a directory', error=OSError, root=tmp_path / 'file', **arguments)
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/val2017').touch()
    fails('coco/val2017', 'exists', error=OSError, root=tmp_path, **arguments)


REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('dataset', DATA_SETS.values(), ids=str)
def test_the_table_holds_together(dataset):
    assert set(dataset.default) <= set(dataset.parts)
    names = [archive.name for part in dataset.parts.values() for archive in part.archives]
    assert len(names) == len(set(names))
    for part in dataset.parts.values():
        assert set(part.needs) <= set(dataset.parts)
        assert bool(part.made) == (part.finish in prepare._FINISHES)
        places = tuple(p for archive in part.archives for p in archive.moves.values())
        assert all(pattern.startswith(places) for pattern in part.counts)
        for archive in part.archives:
            assert archive.url is None or archive.url.endswith(f'/{archive.name}')
            checksum = archive.checksum or 'md5:' + 32 * 'a'
            assert re.fullmatch('md5:[0-9a-f]{32}|[0-9a-f]{64}', checksum)
            assert 1e6 < archive.size < 2e10


def test_the_tool(coco, server, tmp_path, monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / 'tools/prepare_data.py'), run_name='__main__')
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err.splitlines()

    status, out, _ = run('--help')
    assert status == 0
    assert 'python tools/prepare_data.py coco --root data' in out
    assert 'voc2007*, voc2012*, aug\n' in out

    assert run('coca', '--root', tmp_path) == (
        1,
        '',
        [
            "error: there is no data set named 'coca'; "
            'choose from coco, voc, ade20k, cityscapes; did you mean coco?'
        ],
    )
    monkeypatch.setitem(DATA_SETS, 'coco', coco)
    arguments = ('--root', tmp_path, '--from', server.folder, '--parts', 'val', 'panoptic')
    status, out, _ = run('coco', *arguments)
    assert status == 0
    assert re.fullmatch(r'\S+/coco/val2017/\*\.jpg +1  new', out.splitlines()[1])
    assert len(out.splitlines()) == 1 + 1 + 4 + 1
