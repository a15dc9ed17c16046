"""Tiny archives of the published sets' layouts, and the sets described with them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from weights.file_server import FileServer

from res2net_mm.data.errors import DataError
from res2net_mm.data.prepare.archives import DataSet
from res2net_mm.data.prepare.sets import prepare_data
from res2net_mm.weights import download

NOISE = np.random.default_rng(0).bytes(200_000)


def png(values: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image.putpalette([(37 * i + c) % 256 for i in range(256) for c in range(3)])
    stream = io.BytesIO()
    image.save(stream, 'png')
    return stream.getvalue()


def mat(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    savemat(stream, {'GTcls': {'Segmentation': values.astype(np.uint8), 'Boundaries': 0}})
    return stream.getvalue()


def pack(file: Path, members: dict[str, bytes]) -> None:
    """An archive of the kind that the name says."""
    if file.suffix == '.zip':
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as out:
            for name, content in members.items():
                out.writestr(name, content)
        return
    with tarfile.open(file, 'w:gz' if file.suffix == '.tgz' else 'w') as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


def inner_zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return stream.getvalue()


COCO_ARCHIVES = {
    'train2017.zip': {'train2017/': b'', 'train2017/1.jpg': NOISE, 'train2017/2.jpg': b'two'},
    'val2017.zip': {'val2017/3.jpg': b'three'},
    'annotations_trainval2017.zip': {
        f'annotations/{kind}_{split}2017.json': kind.encode()
        for kind in ('instances', 'captions', 'person_keypoints')
        for split in ('train', 'val')
    },
    'panoptic_annotations_trainval2017.zip': {
        'annotations/panoptic_train2017.json': b'{}',
        '__MACOSX/annotations/._panoptic_train2017.json': b'mac',
        'annotations/panoptic_val2017.json': b'{}',
        'annotations/panoptic_train2017.zip': inner_zip(
            {
                'panoptic_train2017/1.png': b'p1',
                'panoptic_train2017/2.png': b'p2',
                '__MACOSX/panoptic_train2017/._1.png': b'mac',
            }
        ),
        'annotations/panoptic_val2017.zip': inner_zip({'panoptic_val2017/3.png': b'p3'}),
    },
    'stuffthingmaps_trainval2017.zip': {
        'train2017/1.png': b's1',
        'train2017/2.png': b's2',
        'val2017/3.png': b's3',
    },
}


COCO_NUMBERS = {
    'train2017': 2,
    'val2017': 1,
    'annotations/panoptic_train2017': 2,
    'annotations/panoptic_val2017': 1,
    'stuffthingmaps/train2017': 2,
    'stuffthingmaps/val2017': 1,
}


EXPECTED_COCO = {
    name: content
    for archive in ('train2017.zip', 'val2017.zip', 'annotations_trainval2017.zip')
    for name, content in COCO_ARCHIVES[archive].items()
    if content
}


VALUES = np.arange(12).reshape(3, 4)


def voc_archives() -> dict[str, dict[str, bytes]]:
    """VOC2007 of 2 + 1 images; VOC2012 of a, b (train), c (val), d, e; SBD of b, c (val), d, e."""
    year = 'VOCdevkit/VOC2007'
    trainval = {f'{year}/ImageSets/Main/trainval.txt': b'1\n2\n'}
    for name in '12':
        trainval |= {f'{year}/JPEGImages/{name}.jpg': b'j', f'{year}/Annotations/{name}.xml': b'x'}
    test = {
        f'{year}/ImageSets/Main/test.txt': b'3\n',
        f'{year}/JPEGImages/3.jpg': b'j',
        f'{year}/Annotations/3.xml': b'x',
    }
    year = 'VOCdevkit/VOC2012'
    voc = {
        f'{year}/ImageSets/Segmentation/train.txt': b'a\nb\n',
        f'{year}/ImageSets/Segmentation/val.txt': b'c\n',
    }
    for name in 'abcde':
        voc |= {f'{year}/JPEGImages/{name}.jpg': b'j', f'{year}/Annotations/{name}.xml': b'x'}
    for i, name in enumerate('abc'):
        voc[f'{year}/SegmentationClass/{name}.png'] = png(VALUES + 20 * i, palette=True)
    sbd = {
        'benchmark_RELEASE/README': b'read',
        'benchmark_RELEASE/dataset/train.txt': b'b\nc\nd\n',
        'benchmark_RELEASE/dataset/val.txt': b'e\n',
        'benchmark_RELEASE/dataset/img/d.jpg': b'large',
    }
    for i, name in enumerate('bcde'):
        sbd[f'benchmark_RELEASE/dataset/cls/{name}.mat'] = mat(VALUES + 100 + 20 * i)
    return {
        'VOCtrainval_06-Nov-2007.tar': trainval,
        'VOCtest_06-Nov-2007.tar': test,
        'VOCtrainval_11-May-2012.tar': voc,
        'benchmark.tgz': sbd,
    }


VOC_NUMBERS = {
    'VOC2007/JPEGImages': 3,
    'VOC2007/Annotations': 3,
    'VOC2012/JPEGImages': 5,
    'VOC2012/Annotations': 5,
    'VOC2012/SegmentationClass': 3,
    'VOC2012/SegmentationClassAug': 5,
    'VOCaug/dataset/cls': 4,
}


def shrunk(
    dataset: DataSet,
    folder: Path,
    archives: dict[str, dict[str, bytes]],
    numbers: dict[str, int],
    server: FileServer | None = None,
) -> DataSet:
    """The set with these archives, written to ``folder``; ``numbers`` are of the folders."""

    def counts(real: dict[str, int]) -> dict[str, int]:
        return {
            pattern: numbers[pattern.partition('/*')[0]] if '*' in pattern else number
            for pattern, number in real.items()
        }

    for name, members in archives.items():
        pack(folder / name, members)
    parts = {}
    for key, part in dataset.parts.items():
        if not {archive.name for archive in part.archives} <= set(archives):
            continue
        packed = tuple(
            dataclasses.replace(
                archive,
                url=server.address(archive.name) if server and archive.url else archive.url,
                size=(folder / archive.name).stat().st_size,
                checksum=f'md5:{hashlib.md5((folder / archive.name).read_bytes()).hexdigest()}',
            )
            for archive in part.archives
        )
        parts[key] = dataclasses.replace(
            part, archives=packed, counts=counts(part.counts), made=counts(part.made)
        )
    return dataclasses.replace(dataset, parts=parts)


def without_checksums(dataset: DataSet) -> DataSet:
    parts = {
        name: dataclasses.replace(
            part,
            archives=tuple(dataclasses.replace(a, checksum=None) for a in part.archives),
        )
        for name, part in dataset.parts.items()
    }
    return dataclasses.replace(dataset, parts=parts)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def fails(*said: str, error=DataError, **kwargs) -> str:
    with pytest.raises(error) as caught:
        prepare_data(**kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for part in said:
        assert part in message, f'{part!r} is not in: {message}'
    return message


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies and no mirrors, and no waiting before another attempt."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv('RES2NET_MM_MIRROR', raising=False)
    monkeypatch.setattr(download, 'RETRY_WAIT', 0.001)
