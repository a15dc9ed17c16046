"""The table of published data sets: their archives, and what is in them.

The checksums are those that torchvision, TensorFlow Datasets and PyTorch-Encoding verify. An
archive without a checksum here has none there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file to fetch and unpack.

    Attributes:
        name: Name of the file.
        url: Where it is published; None if that requires an account.
        size: Size of the file in bytes, rounded where no source gives it exactly.
        unpacked: Rough size in bytes of what is taken out of it.
        moves: Pairs (beginning of members' names, what replaces it below the set's folder).
            Other members stay in the archive.
        md5: Hex digits of the file's md5, if known.
        sha256: Hex digits of the file's sha256, if known.
        nested: Whether zip files in it are unpacked as well, in the folder where they are.
    """

    name: str
    url: str | None
    size: int
    unpacked: int
    moves: tuple[tuple[str, str], ...]
    md5: str | None = None
    sha256: str | None = None
    nested: bool = False


@dataclass(frozen=True)
class Count:
    """The number of files in ``folder`` that match ``pattern`` once a part is complete."""

    folder: str
    pattern: str
    number: int = 1


@dataclass(frozen=True)
class SetPart:
    """The smallest unit that can be asked for.

    Attributes:
        archives: What it is unpacked from.
        counts: The files that the archives contain.
        finish: What has to be made from these files: 'voc_aug' or 'train_ids'.
        made: The files that are made.
        needs: Names of the parts that must be complete before it.
    """

    archives: tuple[Archive, ...]
    counts: tuple[Count, ...]
    finish: str | None = None
    made: tuple[Count, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
        name: What users call it.
        folder: Its folder below the root of all sets; the parts' paths start there.
        licence: What may be done with it, in one line.
        site: The page with more information, and with accounts if one is needed.
        parts: Name -> part.
        default: Names of the parts that are prepared unless others are asked for.
    """

    name: str
    folder: str
    licence: str
    site: str
    parts: dict[str, SetPart]
    default: tuple[str, ...]


_SHA256 = {
    'train2017.zip': '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
    'val2017.zip': '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
    'test2017.zip': 'c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba',
    'annotations_trainval2017.zip': (
        '113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268'
    ),
    'panoptic_annotations_trainval2017.zip': (
        'c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370'
    ),
    'image_info_test2017.zip': 'e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8',
}
_MD5 = {
    'VOCtrainval_06-Nov-2007.tar': 'c52e279531787c972589f7e41ab4ae64',
    'VOCtest_06-Nov-2007.tar': 'b6e924de25625d8de591ea690078ad9f',
    'VOCtrainval_11-May-2012.tar': '6cd6e144f989b92b3379bac3b3de84fd',
    'benchmark.tgz': '82b4d87ceb2ed10f6038a1cba92111cb',
    'ADEChallengeData2016.zip': '7328b3957e407ddae1d3cbf487f149ef',
}


def _archive(url: str, size: int, *moves: str, unpacked: int = 0, nested: bool = False) -> Archive:
    """An archive with its checksum; a move is ``'from -> to'``, or a folder that keeps its name."""
    name = url.rpartition('/')[2]
    pairs = tuple((move.split(' -> ')[0], move.split(' -> ')[-1]) for move in moves)
    return Archive(
        name, url, size, unpacked or size, pairs, _MD5.get(name), _SHA256.get(name), nested
    )


def _counts(numbers: dict[str, int]) -> tuple[Count, ...]:
    """Counts from paths whose last part, or all from the first ``*`` on, is a pattern."""
    parts = {path: re.fullmatch(r'([^*]*)/([^/]*\*.*|[^/]*)', path) for path in numbers}
    return tuple(Count(*match.groups(), numbers[path]) for path, match in parts.items())


_COCO = 'http://images.cocodataset.org'


def _coco_images(split: str, size: int, number: int) -> SetPart:
    archive = _archive(f'{_COCO}/zips/{split}.zip', size, f'{split}/')
    return SetPart((archive,), _counts({f'{split}/*.jpg': number}))


def _coco_json(name: str, size: int, unpacked: int, nested: bool = False) -> Archive:
    url = f'{_COCO}/annotations/{name}.zip'
    return _archive(url, size, 'annotations/', unpacked=unpacked, nested=nested)


_TEST = _coco_images('test2017', 6_646_970_404, 40_670)
_STUFF = _archive(
    'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
    'stuffthingmaps_trainval2017.zip',
    700_000_000,
    'train2017/ -> stuffthingmaps/train2017/',
    'val2017/ -> stuffthingmaps/val2017/',
    unpacked=800_000_000,
)
COCO = DataSet(
    name='coco',
    folder='coco',
    licence='annotations CC BY 4.0; images by the terms of use of Flickr, each of its own licence',
    site='https://cocodataset.org/#download',
    parts={
        'train': _coco_images('train2017', 19_336_861_798, 118_287),
        'val': _coco_images('val2017', 815_585_330, 5_000),
        'annotations': SetPart(
            (_coco_json('annotations_trainval2017', 252_907_541, 850_000_000),),
            _counts({f'annotations/instances_{split}2017.json': 1 for split in ('train', 'val')}),
        ),
        'panoptic': SetPart(
            (_coco_json('panoptic_annotations_trainval2017', 860_725_834, 1_300_000_000, True),),
            _counts(
                {
                    'annotations/panoptic_train2017.json': 1,
                    'annotations/panoptic_val2017.json': 1,
                    'annotations/panoptic_train2017/*.png': 118_287,
                    'annotations/panoptic_val2017/*.png': 5_000,
                }
            ),
        ),
        'stuff': SetPart(
            (_STUFF,),
            _counts(
                {
                    'stuffthingmaps/train2017/*.png': 118_287,
                    'stuffthingmaps/val2017/*.png': 5_000,
                }
            ),
        ),
        'test': SetPart(
            (*_TEST.archives, _coco_json('image_info_test2017', 1_144_034, 20_000_000)),
            (*_TEST.counts, Count('annotations', 'image_info_test-dev2017.json')),
        ),
    },
    default=('train', 'val', 'annotations'),
)


def _voc_archive(name: str, year: int, size: int) -> Archive:
    url = f'http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}'
    return _archive(url, size, f'VOCdevkit/VOC{year}/ -> VOC{year}/')


_SBD = _archive(
    'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/'
    'benchmark.tgz',
    1_420_000_000,
    *(
        f'benchmark_RELEASE/dataset/{name} -> VOCaug/dataset/{name}'
        for name in ('cls/', 'train.txt', 'val.txt')
    ),
    unpacked=200_000_000,
)
VOC = DataSet(
    name='voc',
    folder='VOCdevkit',
    licence='images by the terms of use of Flickr; SBD by those in its README',
    site='http://host.robots.ox.ac.uk/pascal/VOC/',
    parts={
        'voc2007': SetPart(
            (
                _voc_archive('VOCtrainval_06-Nov-2007.tar', 2007, 460_032_000),
                _voc_archive('VOCtest_06-Nov-2007.tar', 2007, 451_020_800),
            ),
            _counts(
                {
                    'VOC2007/JPEGImages/*.jpg': 9_963,
                    'VOC2007/Annotations/*.xml': 9_963,
                    'VOC2007/ImageSets/Main/trainval.txt': 1,
                    'VOC2007/ImageSets/Main/test.txt': 1,
                }
            ),
        ),
        'voc2012': SetPart(
            (_voc_archive('VOCtrainval_11-May-2012.tar', 2012, 1_999_639_040),),
            _counts(
                {
                    'VOC2012/JPEGImages/*.jpg': 17_125,
                    'VOC2012/Annotations/*.xml': 17_125,
                    'VOC2012/SegmentationClass/*.png': 2_913,
                    'VOC2012/ImageSets/Segmentation/train.txt': 1,
                    'VOC2012/ImageSets/Segmentation/val.txt': 1,
                }
            ),
        ),
        'aug': SetPart(
            (_SBD,),
            _counts(
                {
                    'VOCaug/dataset/cls/*.mat': 11_355,
                    'VOCaug/dataset/train.txt': 1,
                    'VOCaug/dataset/val.txt': 1,
                }
            ),
            finish='voc_aug',
            # 9,118 that only SBD has, and VOC2012's 1,464 for training and 1,449 for validation
            made=_counts(
                {
                    'VOC2012/SegmentationClassAug/*.png': 12_031,
                    'VOC2012/ImageSets/Segmentation/aug.txt': 1,
                    'VOC2012/ImageSets/Segmentation/trainaug.txt': 1,
                }
            ),
            needs=('voc2012',),
        ),
    },
    default=('voc2007', 'voc2012'),
)

_ADE = _archive(
    'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
    970_000_000,
    'ADEChallengeData2016/',
    unpacked=1_000_000_000,
)
ADE20K = DataSet(
    name='ade20k',
    folder='ade',
    licence='images for non-commercial research and education; annotations BSD 3-clause',
    site='http://sceneparsing.csail.mit.edu/',
    parts={
        'challenge2016': SetPart(
            (_ADE,),
            _counts(
                {
                    f'ADEChallengeData2016/{kind}/{split}/{pattern}': number
                    for kind, pattern in (('images', '*.jpg'), ('annotations', '*.png'))
                    for split, number in (('training', 20_210), ('validation', 2_000))
                }
            ),
        ),
    },
    default=('challenge2016',),
)


def _cityscapes(folder: str, size: int) -> Archive:
    moves = ((f'{folder}/', f'{folder}/'),)
    return Archive(f'{folder}_trainvaltest.zip', None, size, size, moves)


def _cityscapes_counts(folder: str, suffix: str) -> tuple[Count, ...]:
    numbers = {'train': 2_975, 'val': 500, 'test': 1_525}
    return _counts({f'{folder}/{s}/*/*_{suffix}.png': numbers[s] for s in numbers})


CITYSCAPES = DataSet(
    name='cityscapes',
    folder='cityscapes',
    licence='non-commercial use, by the terms that the account is given for',
    site='https://www.cityscapes-dataset.com/downloads/',
    parts={
        'images': SetPart(
            (_cityscapes('leftImg8bit', 11_600_000_000),),
            _cityscapes_counts('leftImg8bit', 'leftImg8bit'),
        ),
        'labels': SetPart(
            (_cityscapes('gtFine', 255_000_000),),
            _cityscapes_counts('gtFine', 'gtFine_labelIds'),
            finish='train_ids',
            made=_cityscapes_counts('gtFine', 'gtFine_labelTrainIds'),
        ),
    },
    default=('images', 'labels'),
)

DATA_SETS = {dataset.name: dataset for dataset in (COCO, VOC, ADE20K, CITYSCAPES)}
