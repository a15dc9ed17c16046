"""The synthetic set, read back with pycocotools, mmdet, OpenCV and ElementTree."""

from __future__ import annotations

import errno
import hashlib
import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

import res2net_mm  # noqa: F401  supplies mmcv's operators, without which mmdet does not import
from res2net_mm.data import make_shapes
from res2net_mm.data.synthetic import scenes, shapes

TOOL = Path(__file__).parents[2] / 'tools/make_shapes.py'
COUNTS = {'train': 48, 'val': 12}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """One set that no test may change."""
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', **COUNTS)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def read_json(root: Path, split: str) -> dict:
    return json.loads((root / f'annotations/instances_{split}.json').read_text())


def decode(coco: dict, ann: dict) -> np.ndarray:
    """Mask of an annotation, rasterised by pycocotools."""
    from pycocotools import mask as mask_utils

    info = next(info for info in coco['images'] if info['id'] == ann['image_id'])
    rle = ann['segmentation']
    if isinstance(rle, list):
        rle = mask_utils.merge(mask_utils.frPyObjects(rle, info['height'], info['width']))
    return mask_utils.decode(rle).astype(bool)


def test_same_arguments_give_the_same_bytes(tmp_path):
    once, again = (make_shapes(tmp_path / name, train=3, val=2) for name in ('once', 'again'))
    assert digests(again.root) == digests(once.root)
    assert again.objects == once.objects


def test_another_seed_gives_other_images(made, tmp_path):
    other = make_shapes(tmp_path / 'other', train=12, val=1, seed=1)
    mine, theirs = digests(made.root), digests(other.root)
    pictures = [name for name in theirs if name.startswith('train/')]
    assert len(pictures) == 12
    assert all(mine[name] != theirs[name] for name in pictures)


def test_more_images_leave_the_first_ones_alone(made, tmp_path):
    fewer = make_shapes(tmp_path / 'fewer', train=5, val=3)
    mine = digests(made.root)
    for name, digest in digests(fewer.root).items():
        if Path(name).suffix in ('.jpg', '.png', '.xml'):
            assert mine[name] == digest
    for split, count in (('train', 5), ('val', 3)):
        few, many = read_json(fewer.root, split), read_json(made.root, split)
        assert few['images'] == many['images'][:count]
        assert few['annotations'] == many['annotations'][: len(few['annotations'])]


def test_splits_share_nothing(made):
    pictures = [made.root / split for split in COUNTS]
    hashes = [{d for n, d in digests(folder).items()} for folder in pictures]
    assert [len(found) for found in hashes] == list(COUNTS.values())
    assert not hashes[0] & hashes[1]
    ids = [{info['id'] for info in read_json(made.root, split)['images']} for split in COUNTS]
    assert not ids[0] & ids[1]
    # Not the same scene under other pixels' noise either: boxes differ for every position.
    boxes = [
        {(tuple(a['bbox']), a['category_id']) for a in read_json(made.root, split)['annotations']}
        for split in COUNTS
    ]
    assert len(boxes[0] & boxes[1]) < 3


@pytest.mark.parametrize('split', COUNTS)
def test_ranges(made, split):
    coco = read_json(made.root, split)
    annotations = coco['annotations']
    per_image = Counter(ann['image_id'] for ann in annotations)
    assert set(per_image) == {info['id'] for info in coco['images']}
    assert all(1 <= n <= 8 for n in per_image.values())
    assert [ann['id'] for ann in annotations] == list(range(1, len(annotations) + 1))
    for ann in annotations:
        x, y, width, height = ann['bbox']
        assert 12 <= max(width, height) <= 200
        assert x >= 0 and y >= 0 and x + width <= 256 and y + height <= 256
        assert 0.5 <= ann['visibility'] <= 1
    bins = {(ann['category_id'], scenes.size_bin(ann['area'])) for ann in annotations}
    assert len(bins) == len(coco['categories']) * 3
    assert made.images[split] == COUNTS[split]
    assert sum(made.objects[split].values()) == len(annotations)


def test_counts_of_objects_and_occlusion_vary(made):
    annotations = read_json(made.root, 'train')['annotations']
    assert set(Counter(Counter(a['image_id'] for a in annotations).values())) == set(range(1, 9))
    visibility = np.array([ann['visibility'] for ann in annotations])
    assert 0.2 < (visibility < 1).mean() < 0.6
    assert (visibility < 0.75).sum() >= 10 and visibility.min() < 0.6
    kinds = Counter(type(ann['segmentation']) for ann in annotations)
    assert kinds[dict] >= 10 and kinds[list] >= 100


@pytest.mark.parametrize('split', COUNTS)
def test_all_layouts_agree_to_the_pixel(made, split):
    coco = read_json(made.root, split)
    names = {category['id']: category['name'] for category in coco['categories']}
    classes = (made.root / 'classes.txt').read_text().split()
    assert list(names.values()) == classes and list(names) == [1, 2, 3, 4]
    for info in coco['images']:
        anns = [ann for ann in coco['annotations'] if ann['image_id'] == info['id']]
        stem = Path(info['file_name']).stem
        image = cv2.imread(str(made.root / split / info['file_name']), cv2.IMREAD_UNCHANGED)
        assert image.shape == (info['height'], info['width'], 3)
        voc_image = made.root / 'voc/JPEGImages' / info['file_name']
        assert voc_image.read_bytes() == (made.root / split / info['file_name']).read_bytes()

        labels = np.zeros(image.shape[:2], int)
        for ann in anns:
            mask = decode(coco, ann)
            assert not (labels[mask] != 0).any(), 'visible parts overlap'
            labels[mask] = ann['category_id']
            assert mask.sum() == ann['area']
            ys, xs = np.nonzero(mask)
            width, height = xs.max() - xs.min() + 1, ys.max() - ys.min() + 1
            assert ann['bbox'] == [xs.min(), ys.min(), width, height]
        label_map = made.root / f'semseg/{split}/{stem}.png'
        found = cv2.imread(str(label_map), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, labels)

        xml = ElementTree.parse(made.root / f'voc/Annotations/{stem}.xml').getroot()
        assert xml.findtext('filename') == info['file_name']
        assert [xml.findtext(f'size/{key}') for key in ('width', 'height')] == ['256', '256']
        objects = xml.findall('object')
        assert [o.findtext('name') for o in objects] == [names[a['category_id']] for a in anns]
        for node, ann in zip(objects, anns, strict=True):
            corners = [int(node.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax')]
            x, y, width, height = ann['bbox']
            assert corners == [x + 1, y + 1, x + width, y + height]
            hidden = node.findtext('truncated') == '1' or node.findtext('occluded') == '1'
            assert hidden == (ann['visibility'] < 1)
    listed = (made.root / f'voc/ImageSets/Main/{split}.txt').read_text().split()
    assert listed == [Path(info['file_name']).stem for info in coco['images']]


def test_voc_lists_and_flags(made):
    lists = made.root / 'voc/ImageSets/Main'
    parts = ''.join((lists / f'{split}.txt').read_text() for split in COUNTS)
    assert (lists / 'trainval.txt').read_text() == parts
    flags = Counter()
    for path in (made.root / 'voc/Annotations').glob('*.xml'):
        for node in ElementTree.parse(path).iter('object'):
            flags.update(child.tag for child in node if child.text == '1')
    assert flags['truncated'] >= 5 and flags['occluded'] >= 20 and flags['difficult'] == 0


def test_segmentation_of_masks_by_hand():
    """A corner, a ring, two pieces and pixels that touch at corners, against pycocotools."""
    from pycocotools import mask as mask_utils

    corner = np.zeros((6, 7), bool)
    corner[1:5, 2] = corner[4, 2:6] = True
    assert sorted(zip(*[iter(shapes._segmentation(corner)[0])] * 2, strict=True)) == [
        (2, 1),
        (2, 5),
        (3, 1),
        (3, 4),
        (6, 4),
        (6, 5),
    ]
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert isinstance(shapes._segmentation(ring), dict)
    pieces = np.zeros((300, 300), bool)
    pieces[0, 0] = pieces[200:, 250:] = True
    rng = np.random.default_rng(0)
    masks = [corner, ring, pieces, np.eye(4, dtype=bool)]
    masks += [rng.random((9, 11)) < share for share in (0.2, 0.5, 0.9, 0.97) for _ in range(20)]
    for mask in masks:
        found = shapes._segmentation(mask)
        if isinstance(found, list):
            rle = mask_utils.merge(mask_utils.frPyObjects(found, *mask.shape))
            np.testing.assert_array_equal(mask_utils.decode(rle), mask)
        else:
            assert found['counts'].encode() == mask_utils.encode(np.asfortranarray(mask))['counts']
            assert found['size'] == list(mask.shape)


def test_pycocotools_scores_the_annotations_as_perfect(made):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(str(made.root / 'annotations/instances_val.json'))
    results = [dict(ann, score=0.9) for ann in coco.anns.values()]
    for kind in ('bbox', 'segm'):
        run = COCOeval(coco, coco.loadRes([dict(result) for result in results]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
        np.testing.assert_allclose(run.stats[[0, 1, 2, 3, 4, 5]], 1)  # none is -1: no bin is empty


@pytest.mark.parametrize('split', COUNTS)
def test_mmdet_reads_the_same_boxes_from_both_layouts(made, split):
    from mmdet.datasets import CocoDataset, VOCDataset

    meta = {'classes': scenes.CLASSES}
    root = str(made.root)
    coco = CocoDataset(
        data_root=root,
        ann_file=f'annotations/instances_{split}.json',
        metainfo=meta,
        data_prefix={'img': f'{split}/'},
        filter_cfg={'filter_empty_gt': True, 'min_size': 12},
        pipeline=[],
    )
    voc = VOCDataset(
        data_root=f'{root}/voc',
        ann_file=f'ImageSets/Main/{split}.txt',
        metainfo=meta,
        data_prefix={'sub_data_root': ''},
        pipeline=[],
    )
    expected = read_json(made.root, split)
    assert len(coco) == len(voc) == COUNTS[split]
    total = 0
    for i, info in enumerate(expected['images']):
        a, b = coco.get_data_info(i), voc.get_data_info(i)
        assert Path(a['img_path']).read_bytes() == Path(b['img_path']).read_bytes()
        assert [(x['bbox_label'], x['ignore_flag']) for x in a['instances']] == [
            (x['bbox_label'], x['ignore_flag']) for x in b['instances']
        ]
        boxes = np.array([x['bbox'] for x in a['instances']])
        # mmdet's VOC boxes end at the last pixel, its COCO boxes after it.
        inclusive = np.array([x['bbox'] for x in b['instances']])
        np.testing.assert_array_equal(boxes, inclusive + [0, 0, 1, 1])
        plain = [ann['bbox'] for ann in expected['annotations'] if ann['image_id'] == info['id']]
        np.testing.assert_array_equal(boxes[:, 2:] - boxes[:, :2], np.array(plain)[:, 2:])
        total += len(boxes)
    assert total == len(expected['annotations'])


def test_mmdet_pipeline_reads_polygons_and_rle(made):
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    coco = CocoDataset(
        data_root=str(made.root),
        ann_file='annotations/instances_val.json',
        metainfo={'classes': scenes.CLASSES},
        data_prefix={'img': 'val/'},
        pipeline=[LoadImageFromFile(), LoadAnnotations(with_mask=True)],
    )
    areas = np.concatenate([item['gt_masks'].masks.sum((1, 2)) for item in coco])
    expected = [ann['area'] for ann in read_json(made.root, 'val')['annotations']]
    np.testing.assert_array_equal(areas, expected)


def test_colour_does_not_tell_the_class(made):
    """The four nearest neighbours in mean colour guess the class no better than by chance."""
    colours, labels = [], []
    coco = read_json(made.root, 'train')
    for ann in coco['annotations']:
        image = cv2.imread(str(made.root / f'train/{ann["image_id"]:06d}.jpg'))
        colours.append(image[decode(coco, ann)].mean(0))
        labels.append(ann['category_id'])
    colours, labels = np.array(colours), np.array(labels)
    distance = np.linalg.norm(colours[:, None] - colours, axis=2)
    np.fill_diagonal(distance, np.inf)
    near = labels[np.argsort(distance, 1)[:, :4]]
    assert (near == labels[:, None]).mean() < 0.33


def test_a_ready_set_is_found(made):
    before = {path: path.stat().st_mtime_ns for path in made.root.rglob('*')}
    again = make_shapes(made.root, **COUNTS)
    assert again.reused and not made.reused
    assert again.objects == made.objects
    assert {path: path.stat().st_mtime_ns for path in made.root.rglob('*')} == before


def test_an_empty_folder_and_missing_parents_are_filled(tmp_path):
    (tmp_path / 'empty').mkdir()
    assert not make_shapes(tmp_path / 'empty', train=1, val=1).reused
    assert make_shapes(tmp_path / 'a/b/c', train=1, val=1).images == {'train': 1, 'val': 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'empty']


def test_another_set_is_replaced_only_when_asked(tmp_path):
    make_shapes(tmp_path / 'set', train=2, val=1)
    before = digests(tmp_path / 'set')
    with pytest.raises(FileExistsError, match='holds .*"seed": 0}, not .*"seed": 3}.*--force'):
        make_shapes(tmp_path / 'set', train=2, val=1, seed=3)
    assert digests(tmp_path / 'set') == before
    made = make_shapes(tmp_path / 'set', train=3, val=1, seed=3, overwrite=True)
    assert made.images['train'] == 3 and len(list((made.root / 'train').iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_a_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / 'photo.jpg').write_text('mine')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='not a set of make_shapes.*another folder'):
            make_shapes(tmp_path, overwrite=overwrite)
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(FileExistsError, match='not a set of make_shapes'):
        make_shapes(tmp_path / 'file', overwrite=True)
    assert (tmp_path / 'photo.jpg').read_text() == (tmp_path / 'file').read_text() == 'mine'


def test_a_run_that_fails_leaves_nothing_and_keeps_the_old_set(tmp_path, monkeypatch):
    before = digests(make_shapes(tmp_path / 'old', train=2, val=1).root)

    def full(path, image):
        if path.suffix == '.png' and path.stem == '000002':
            raise OSError(errno.ENOSPC, 'No space left on device')
        path.write_bytes(b'')

    monkeypatch.setattr(shapes, '_write_image', full)
    for name in ('new', 'old'):
        with pytest.raises(OSError, match='No space left'):
            make_shapes(tmp_path / name, train=2, val=1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ['old']
    assert digests(tmp_path / 'old') == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'train': 0}, 'train must be from 1 to 99999, got 0'),
        ({'val': 100_000}, 'val must be from 1 to 99999, got 100000'),
        ({'size': (256, 200)}, 'height in size must be from 224 to 4096, got 200'),
        ({'size': (5000, 256)}, 'width in size must be from 224 to 4096, got 5000'),
        ({'seed': -1}, 'seed must be from 0 to .*, got -1'),
    ],
)
def test_wrong_values_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_shapes(tmp_path / 'set', **arguments)
    assert not any(tmp_path.iterdir())


def test_tool_makes_finds_and_refuses(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['make_shapes.py', str(tmp_path / 'set'), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name='__main__')
        return ended.value.code or 0, *capsys.readouterr()

    for words in ('written', 'found ready'):
        status, out, _ = run('--train', '2', '--val', '1')
        assert status == 0
        assert 'val: 1 images' in out and f'{words}: {tmp_path / "set"}' in out
    status, _, err = run('--seed', '7')
    assert status == 1 and len(err.splitlines()) == 1 and '--force' in err
