"""The table of published data sets: their archives, and what is in them.

The checksums are those that torchvision, TensorFlow Datasets and PyTorch-Encoding verify. An
archive without a checksum here has none there.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Archive:
    """One file to fetch and unpack."""

    name: str  # of the file
    url: str | None  # None if it is published for accounts only
    size: int  # of the file in bytes, rounded where no source gives it exactly
    # folder (with its slash) or file in the archive -> its place below the set's folder; other
    # members stay in the archive
    moves: dict[str, str]
    checksum: str | None = None  # sha256, or 'md5:' and md5, if a source gives it


@dataclass(frozen=True)
class SetPart:
    """The smallest unit that can be asked for."""

    archives: tuple[Archive, ...]
    # pattern of paths below the set's folder -> number of files that match it once it is unpacked
    counts: dict[str, int]
    finish: str | None = None  # what is made from these files: 'voc_aug' or 'train_ids'
    made: dict[str, int] = field(default_factory=dict)  # the files that are made, as in counts
    needs: tuple[str, ...] = ()  # names of the parts that must be complete before it


@dataclass(frozen=True)
class DataSet:
    """A published data set."""

    name: str  # what users call it
    folder: str  # below the root of all sets; the parts' paths start there
    licence: str  # what may be done with it, in one line
    site: str  # the page with more information, and with accounts if one is needed
    parts: dict[str, SetPart]
    default: tuple[str, ...]  # names of the parts that are prepared unless others are asked for


_CHECKSUMS = {
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
    'VOCtrainval_06-Nov-2007.tar': 'md5:c52e279531787c972589f7e41ab4ae64',
    'VOCtest_06-Nov-2007.tar': 'md5:b6e924de25625d8de591ea690078ad9f',
    'VOCtrainval_11-May-2012.tar': 'md5:6cd6e144f989b92b3379bac3b3de84fd',
    'benchmark.tgz': 'md5:82b4d87ceb2ed10f6038a1cba92111cb',
    'ADEChallengeData2016.zip': 'md5:7328b3957e407ddae1d3cbf487f149ef',
}


def _archive(url: str, size: int, *moves: str) -> tuple[Archive]:
    """One archive; a move is ``'from -> to'``, or a folder that keeps its name."""
    name = url.rpartition('/')[2]
    pairs = {move.split(' -> ')[0]: move.split(' -> ')[-1] for move in moves}
    return (Archive(name, url, size, pairs, _CHECKSUMS.get(name)),)


def _coco(path: str, size: int) -> tuple[Archive]:
    kind, name = path.split('/')
    folder = f'{name}/' if kind == 'zips' else 'annotations/'
    return _archive(f'http://images.cocodataset.org/{path}.zip', size, folder)


COCO = DataSet(
    name='coco',
    folder='coco',
    licence='annotations CC BY 4.0; images by the terms of use of Flickr, each of its own licence',
    site='https://cocodataset.org/#download',
    parts={
        'train': SetPart(_coco('zips/train2017', 19_336_861_798), {'train2017/*.jpg': 118_287}),
        'val': SetPart(_coco('zips/val2017', 815_585_330), {'val2017/*.jpg': 5_000}),
        'annotations': SetPart(
            _coco('annotations/annotations_trainval2017', 252_907_541),
            {f'annotations/instances_{split}2017.json': 1 for split in ('train', 'val')},
        ),
        'panoptic': SetPart(
            _coco('annotations/panoptic_annotations_trainval2017', 860_725_834),
            {
                'annotations/panoptic_train2017.json': 1,
                'annotations/panoptic_val2017.json': 1,
                'annotations/panoptic_train2017/*.png': 118_287,
                'annotations/panoptic_val2017/*.png': 5_000,
            },
        ),
        'stuff': SetPart(
            _archive(
                'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/'
                'stuffthingmaps_trainval2017.zip',
                700_000_000,
                'train2017/ -> stuffthingmaps/train2017/',
                'val2017/ -> stuffthingmaps/val2017/',
            ),
            {'stuffthingmaps/train2017/*.png': 118_287, 'stuffthingmaps/val2017/*.png': 5_000},
        ),
        'test': SetPart(
            _coco('zips/test2017', 6_646_970_404)
            + _coco('annotations/image_info_test2017', 1_144_034),
            {'test2017/*.jpg': 40_670, 'annotations/image_info_test-dev2017.json': 1},
        ),
    },
    default=('train', 'val', 'annotations'),
)


def _voc(name: str, size: int) -> tuple[Archive]:
    year = name[-8:-4]
    url = f'http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}'
    return _archive(url, size, f'VOCdevkit/VOC{year}/ -> VOC{year}/')


VOC = DataSet(
    name='voc',
    folder='VOCdevkit',
    licence='images by the terms of use of Flickr; SBD by those in its README',
    site='http://host.robots.ox.ac.uk/pascal/VOC/',
    parts={
        'voc2007': SetPart(
            _voc('VOCtrainval_06-Nov-2007.tar', 460_032_000)
            + _voc('VOCtest_06-Nov-2007.tar', 451_020_800),
            {
                'VOC2007/JPEGImages/*.jpg': 9_963,
                'VOC2007/Annotations/*.xml': 9_963,
                'VOC2007/ImageSets/Main/trainval.txt': 1,
                'VOC2007/ImageSets/Main/test.txt': 1,
            },
        ),
        'voc2012': SetPart(
            _voc('VOCtrainval_11-May-2012.tar', 1_999_639_040),
            {
                'VOC2012/JPEGImages/*.jpg': 17_125,
                'VOC2012/Annotations/*.xml': 17_125,
                'VOC2012/SegmentationClass/*.png': 2_913,
                'VOC2012/ImageSets/Segmentation/train.txt': 1,
                'VOC2012/ImageSets/Segmentation/val.txt': 1,
            },
        ),
        'aug': SetPart(
            _archive(
                'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/'
                'semantic_contours/benchmark.tgz',
                1_420_000_000,
                'benchmark_RELEASE/dataset/cls/ -> VOCaug/dataset/cls/',
                'benchmark_RELEASE/dataset/train.txt -> VOCaug/dataset/train.txt',
                'benchmark_RELEASE/dataset/val.txt -> VOCaug/dataset/val.txt',
            ),
            {
                'VOCaug/dataset/cls/*.mat': 11_355,
                'VOCaug/dataset/train.txt': 1,
                'VOCaug/dataset/val.txt': 1,
            },
            finish='voc_aug',
            # 9,118 that only SBD has, and VOC2012's 1,464 for training and 1,449 for validation
            made={
                'VOC2012/SegmentationClassAug/*.png': 12_031,
                'VOC2012/ImageSets/Segmentation/aug.txt': 1,
                'VOC2012/ImageSets/Segmentation/trainaug.txt': 1,
            },
            needs=('voc2012',),
        ),
    },
    default=('voc2007', 'voc2012'),
)

_ADE = 'ADEChallengeData2016'
ADE20K = DataSet(
    name='ade20k',
    folder='ade',
    licence='images for non-commercial research and education; annotations BSD 3-clause',
    site='http://sceneparsing.csail.mit.edu/',
    parts={
        'challenge2016': SetPart(
            _archive(
                f'http://data.csail.mit.edu/places/ADEchallenge/{_ADE}.zip', 970_000_000, f'{_ADE}/'
            ),
            {
                f'{_ADE}/images/training/*.jpg': 20_210,
                f'{_ADE}/images/validation/*.jpg': 2_000,
                f'{_ADE}/annotations/training/*.png': 20_210,
                f'{_ADE}/annotations/validation/*.png': 2_000,
            },
        ),
    },
    default=('challenge2016',),
)


def _cityscapes(folder: str, size: int) -> tuple[Archive]:
    return (Archive(f'{folder}_trainvaltest.zip', None, size, {f'{folder}/': f'{folder}/'}),)


def _cityscapes_counts(folder: str, suffix: str) -> dict[str, int]:
    numbers = {'train': 2_975, 'val': 500, 'test': 1_525}
    return {f'{folder}/{split}/*/*_{suffix}.png': numbers[split] for split in numbers}


CITYSCAPES = DataSet(
    name='cityscapes',
    folder='cityscapes',
    licence='non-commercial use, by the terms that the account is given for',
    site='https://www.cityscapes-dataset.com/downloads/',
    parts={
        'images': SetPart(
            _cityscapes('leftImg8bit', 11_600_000_000),
            _cityscapes_counts('leftImg8bit', 'leftImg8bit'),
        ),
        'labels': SetPart(
            _cityscapes('gtFine', 255_000_000),
            _cityscapes_counts('gtFine', 'gtFine_labelIds'),
            finish='train_ids',
            made=_cityscapes_counts('gtFine', 'gtFine_labelTrainIds'),
        ),
    },
    default=('images', 'labels'),
)

DATA_SETS = {dataset.name: dataset for dataset in (COCO, VOC, ADE20K, CITYSCAPES)}
