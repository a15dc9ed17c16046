"""The published data sets: which archives they are, where those come from and what is in them.

Checksums are those that torchvision, TensorFlow Datasets and PyTorch-Encoding verify; where none
of them has one there is none here, and the archive's own checks are all there is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file to fetch and unpack.

    Attributes:
        name: of the file.
        url: where it is published; None where that takes an account.
        size: of the file in bytes, rounded where no table tells it exactly.
        unpacked: of what is taken out of it, in bytes, roughly.
        moves: beginnings of members' names and the folder, below the set's, that takes their
            place. Members that begin otherwise stay in the archive.
        md5: hex digits of the file, if known.
        sha256: likewise.
        nested: zip files in it are unpacked as well, where they lie.
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
    """How many files a finished part has: those of ``folder`` that match ``pattern``."""

    folder: str
    pattern: str
    number: int


@dataclass(frozen=True)
class Part:
    """What can be asked for by itself.

    Attributes:
        archives: that it is unpacked from.
        counts: what is there when they are.
        finish: what has to be made from these files: 'voc_aug' or 'train_ids'.
        made: what is there when it is.
        needs: parts that have to be there before it.
    """

    archives: tuple[Archive, ...]
    counts: tuple[Count, ...]
    finish: str | None = None
    made: tuple[Count, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        name: what users call it.
        folder: its own, below the root of all sets; paths of the parts start there.
        licence: what may be done with it, in a line.
        site: the page to read more, and to get an account where one is needed.
        parts: by name.
        default: the parts that are prepared unless others are asked for.
    """

    name: str
    folder: str
    licence: str
    site: str
    parts: dict[str, Part]
    default: tuple[str, ...]


_COCO = 'http://images.cocodataset.org'
_VOC = 'http://host.robots.ox.ac.uk/pascal/VOC'


def _coco_images(split: str, number: int, size: int, sha256: str) -> Part:
    archive = Archive(
        f'{split}2017.zip',
        f'{_COCO}/zips/{split}2017.zip',
        size=size,
        unpacked=size,
        moves=((f'{split}2017/', f'{split}2017/'),),
        sha256=sha256,
    )
    return Part((archive,), (Count(f'{split}2017', '*.jpg', number),))


_COCO_TEST = _coco_images(
    'test',
    40_670,
    6_646_970_404,
    'c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba',
)

COCO = DataSet(
    name='coco',
    folder='coco',
    licence='annotations CC BY 4.0; images by the terms of use of Flickr, each of its own licence',
    site='https://cocodataset.org/#download',
    parts={
        'train': _coco_images(
            'train',
            118_287,
            19_336_861_798,
            '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
        ),
        'val': _coco_images(
            'val',
            5_000,
            815_585_330,
            '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
        ),
        'annotations': Part(
            (
                Archive(
                    'annotations_trainval2017.zip',
                    f'{_COCO}/annotations/annotations_trainval2017.zip',
                    size=252_907_541,
                    unpacked=850_000_000,
                    moves=(('annotations/', 'annotations/'),),
                    sha256='113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
                ),
            ),
            (
                Count('annotations', 'instances_train2017.json', 1),
                Count('annotations', 'instances_val2017.json', 1),
            ),
        ),
        'panoptic': Part(
            (
                Archive(
                    'panoptic_annotations_trainval2017.zip',
                    f'{_COCO}/annotations/panoptic_annotations_trainval2017.zip',
                    size=860_725_834,
                    unpacked=1_300_000_000,
                    moves=(('annotations/', 'annotations/'),),
                    sha256='c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370',
                    nested=True,
                ),
            ),
            (
                Count('annotations', 'panoptic_train2017.json', 1),
                Count('annotations', 'panoptic_val2017.json', 1),
                Count('annotations/panoptic_train2017', '*.png', 118_287),
                Count('annotations/panoptic_val2017', '*.png', 5_000),
            ),
        ),
        'stuff': Part(
            (
                Archive(
                    'stuffthingmaps_trainval2017.zip',
                    'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
                    'stuffthingmaps_trainval2017.zip',
                    size=700_000_000,
                    unpacked=800_000_000,
                    moves=(
                        ('train2017/', 'stuffthingmaps/train2017/'),
                        ('val2017/', 'stuffthingmaps/val2017/'),
                    ),
                ),
            ),
            (
                Count('stuffthingmaps/train2017', '*.png', 118_287),
                Count('stuffthingmaps/val2017', '*.png', 5_000),
            ),
        ),
        'test': Part(
            (
                *_COCO_TEST.archives,
                Archive(
                    'image_info_test2017.zip',
                    f'{_COCO}/annotations/image_info_test2017.zip',
                    size=1_144_034,
                    unpacked=20_000_000,
                    moves=(('annotations/', 'annotations/'),),
                    sha256='e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8',
                ),
            ),
            (*_COCO_TEST.counts, Count('annotations', 'image_info_test-dev2017.json', 1)),
        ),
    },
    default=('train', 'val', 'annotations'),
)


def _voc_archive(name: str, year: int, size: int, md5: str) -> Archive:
    url = f'{_VOC}/voc{year}/{name}'
    moves = ((f'VOCdevkit/VOC{year}/', f'VOC{year}/'),)
    return Archive(name, url, size=size, unpacked=size, moves=moves, md5=md5)


VOC = DataSet(
    name='voc',
    folder='VOCdevkit',
    licence='images by the terms of use of Flickr; SBD by those in its README',
    site='http://host.robots.ox.ac.uk/pascal/VOC/',
    parts={
        'voc2007': Part(
            (
                _voc_archive(
                    'VOCtrainval_06-Nov-2007.tar',
                    2007,
                    460_032_000,
                    'c52e279531787c972589f7e41ab4ae64',
                ),
                _voc_archive(
                    'VOCtest_06-Nov-2007.tar',
                    2007,
                    451_020_800,
                    'b6e924de25625d8de591ea690078ad9f',
                ),
            ),
            (
                Count('VOC2007/JPEGImages', '*.jpg', 9_963),
                Count('VOC2007/Annotations', '*.xml', 9_963),
                Count('VOC2007/ImageSets/Main', 'trainval.txt', 1),
                Count('VOC2007/ImageSets/Main', 'test.txt', 1),
            ),
        ),
        'voc2012': Part(
            (
                _voc_archive(
                    'VOCtrainval_11-May-2012.tar',
                    2012,
                    1_999_639_040,
                    '6cd6e144f989b92b3379bac3b3de84fd',
                ),
            ),
            (
                Count('VOC2012/JPEGImages', '*.jpg', 17_125),
                Count('VOC2012/Annotations', '*.xml', 17_125),
                Count('VOC2012/SegmentationClass', '*.png', 2_913),
                Count('VOC2012/ImageSets/Segmentation', 'train.txt', 1),
                Count('VOC2012/ImageSets/Segmentation', 'val.txt', 1),
            ),
        ),
        'aug': Part(
            (
                Archive(
                    'benchmark.tgz',
                    'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/'
                    'semantic_contours/benchmark.tgz',
                    size=1_420_000_000,
                    unpacked=200_000_000,
                    moves=(
                        ('benchmark_RELEASE/dataset/cls/', 'VOCaug/dataset/cls/'),
                        ('benchmark_RELEASE/dataset/train.txt', 'VOCaug/dataset/train.txt'),
                        ('benchmark_RELEASE/dataset/val.txt', 'VOCaug/dataset/val.txt'),
                    ),
                    md5='82b4d87ceb2ed10f6038a1cba92111cb',
                ),
            ),
            (
                Count('VOCaug/dataset/cls', '*.mat', 11_355),
                Count('VOCaug/dataset', 'train.txt', 1),
                Count('VOCaug/dataset', 'val.txt', 1),
            ),
            finish='voc_aug',
            made=(
                # 9,118 of SBD alone, 1,464 to train on and 1,449 to measure on of VOC2012
                Count('VOC2012/SegmentationClassAug', '*.png', 12_031),
                Count('VOC2012/ImageSets/Segmentation', 'aug.txt', 1),
                Count('VOC2012/ImageSets/Segmentation', 'trainaug.txt', 1),
            ),
            needs=('voc2012',),
        ),
    },
    default=('voc2007', 'voc2012'),
)

ADE20K = DataSet(
    name='ade20k',
    folder='ade',
    licence='images for non-commercial research and education; annotations BSD 3-clause',
    site='http://sceneparsing.csail.mit.edu/',
    parts={
        'challenge2016': Part(
            (
                Archive(
                    'ADEChallengeData2016.zip',
                    'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
                    size=970_000_000,
                    unpacked=1_000_000_000,
                    moves=(('ADEChallengeData2016/', 'ADEChallengeData2016/'),),
                    md5='7328b3957e407ddae1d3cbf487f149ef',
                ),
            ),
            tuple(
                Count(f'ADEChallengeData2016/{kind}/{split}', pattern, number)
                for kind, pattern in (('images', '*.jpg'), ('annotations', '*.png'))
                for split, number in (('training', 20_210), ('validation', 2_000))
            ),
        ),
    },
    default=('challenge2016',),
)


def _cityscapes_counts(folder: str, suffix: str) -> tuple[Count, ...]:
    return tuple(
        Count(f'{folder}/{split}', f'*/*_{suffix}.png', number)
        for split, number in (('train', 2_975), ('val', 500), ('test', 1_525))
    )


def _cityscapes_archive(folder: str, size: int) -> Archive:
    moves = ((f'{folder}/', f'{folder}/'),)
    return Archive(f'{folder}_trainvaltest.zip', None, size=size, unpacked=size, moves=moves)


CITYSCAPES = DataSet(
    name='cityscapes',
    folder='cityscapes',
    licence='non-commercial use, by the terms that the account is given for',
    site='https://www.cityscapes-dataset.com/downloads/',
    parts={
        'images': Part(
            (_cityscapes_archive('leftImg8bit', 11_600_000_000),),
            _cityscapes_counts('leftImg8bit', 'leftImg8bit'),
        ),
        'labels': Part(
            (_cityscapes_archive('gtFine', 255_000_000),),
            _cityscapes_counts('gtFine', 'gtFine_labelIds'),
            finish='train_ids',
            made=_cityscapes_counts('gtFine', 'gtFine_labelTrainIds'),
        ),
    },
    default=('images', 'labels'),
)

DATA_SETS = {dataset.name: dataset for dataset in (COCO, VOC, ADE20K, CITYSCAPES)}
