"""Pascal VOC, YOLO label files and masks as COCO json, and the report."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from written_sets import (
    CLASSES,
    HEIGHT,
    WIDTH,
    coco_dataset,
    config,
    voc_annotations,
    voc_dataset,
    voc_object,
    voc_xml,
    write_image,
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.inspection import check_data
from res2net_mm.data.convert.formats import masks2coco, voc2coco, yolo2coco
from res2net_mm.data.convert.writer import Tally
from res2net_mm.data.errors import DataError
from res2net_mm.data.sets.images import read_header

REPO = Path(__file__).resolve().parents[2]


HARD = '<difficult>1</difficult>'


def written(file: Path) -> dict:
    return json.loads(file.read_text())


def counts(tally: Tally) -> dict[str, int]:
    return {reason: len(places) for reason, places in tally.items()}


def fails(call, *args, said: tuple[str, ...], **kwargs) -> None:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for part in said:
        assert part in message, f'{part!r} is not in: {message}'


def test_every_field_by_hand(tmp_path):
    annotations = {
        'b': voc_xml(
            voc_object('dog', (3, 4, 20, 30)),
            voc_object('cat', ('5.5', '6.25', '7.0', '9.75'), HARD),
        ),
        'a': voc_xml(),  # without an object
        'c': voc_xml(voc_object('cat', (1, 1, 60, 40), '<difficult/>'), size='<size/>'),
    }
    write_voc(tmp_path, annotations)
    report = voc2coco(tmp_path, tmp_path / 'new/out.json', 'train.txt')
    assert written(tmp_path / 'new/out.json') == {
        'info': {'description': f'voc2coco of {tmp_path}'},
        'licenses': [],
        'images': [
            {'id': i, 'file_name': f'{name}.jpg', 'width': WIDTH, 'height': HEIGHT}
            for i, name in enumerate('bac', 1)  # the list's order
        ],
        'annotations': [
            {
                'id': 1, 'image_id': 1, 'category_id': 2, 'bbox': [2, 3, 17, 26],
                'area': 442, 'iscrowd': 0,
            },
            {
                'id': 2, 'image_id': 1, 'category_id': 1, 'bbox': [4.5, 5.25, 1.5, 3.5],
                'area': 5.25, 'iscrowd': 1,
            },
            {
                'id': 3, 'image_id': 3, 'category_id': 1, 'bbox': [0, 0, 59, 39],
                'area': 2301, 'iscrowd': 0,
            },
        ],
        'categories': [
            {'id': 1, 'name': 'cat', 'supercategory': ''},
            {'id': 2, 'name': 'dog', 'supercategory': ''},
        ],
    }  # fmt: skip
    assert str(report).splitlines() == [
        f'{tmp_path}/new/out.json: 3 images (1 without objects), 3 objects (1 to ignore)',
        '  2 cat',
        '  1 dog',
        "for a config: classes=('cat', 'dog')",
    ]
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['out.json']


def instances(config: dict) -> dict[str, list[tuple]]:
    """File name -> (box, label, ignored) of every object that mmdet has."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build({**config, 'test_mode': True})
    return {
        Path(info['img_path']).name: [
            (tuple(map(float, one['bbox'])), one['bbox_label'], one['ignore_flag'])
            for one in info['instances']
        ]
        for info in (dataset.get_data_info(i) for i in range(len(dataset)))
    }


def from_both(root: Path, ann_file: Path, names: str, classes: tuple[str, ...], **voc) -> list:
    """The objects of the json and those of the xml files."""
    json_set = coco_dataset(
        root, ann_file=str(ann_file), data_prefix={'img': 'JPEGImages/'},
        metainfo={'classes': classes},
    )  # fmt: skip
    xml_set = voc_dataset(
        root, ann_file=names, type='res2net_mm.data.voc_dataset.VOCDataset',
        metainfo={'classes': classes}, **voc,
    )  # fmt: skip
    return [instances(json_set), instances(xml_set)]


def test_mmdet_has_the_same_objects_of_the_json_and_of_the_xml(tmp_path):
    rng = np.random.default_rng(0)
    annotations = {}
    for name in 'abcdef':
        objects = []
        for _ in range(6):
            x, y = rng.uniform(1, WIDTH - 3), rng.uniform(1, HEIGHT - 3)
            # some reach over the border, as careless annotators have it
            box = map(int, (x, y, x + rng.uniform(2, 40), y + rng.uniform(2, 30)))
            hard = HARD if rng.random() < 0.4 else '<difficult/>'
            objects.append(voc_object(CLASSES[rng.integers(3)], tuple(box), hard))
        annotations[name] = voc_xml(*objects)
    write_voc(tmp_path, annotations)
    voc2coco(tmp_path, tmp_path / 'out.json', 'train.txt', classes=CLASSES)
    ours, theirs = from_both(tmp_path, tmp_path / 'out.json', 'train.txt', CLASSES)
    assert ours == theirs
    flags = [flag for objects in ours.values() for *_, flag in objects]
    assert len(flags) == 36 and 5 < sum(flags) < 31


def test_spellings_of_one_class_are_told_and_merged(tmp_path):
    names = ['raccoon', 'Raccoon', 'raccoon', 'caf\u00e9', 'cafe\u0301', 'caf\u00e9', 'cat']
    objects = (voc_object(name, (3, 4, 20, 30)) for name in names)
    write_voc(tmp_path, {'a': voc_xml(*objects)})
    out = tmp_path / 'out.json'
    report = voc2coco(tmp_path, out)
    assert len(report.objects) == 5
    ((kind, pairs),) = report.notes.items()
    assert len(pairs) == 2 and '--merge' in kind
    assert "'Raccoon' (1) and 'raccoon' (2)" in pairs
    report = voc2coco(tmp_path, out, merge=True, force=True)
    assert report.objects == {'caf\u00e9': 3, 'cat': 1, 'raccoon': 3} and not report.notes
    assert [category['name'] for category in written(out)['categories']] == list(report.objects)
    assert Counter(a['category_id'] for a in written(out)['annotations']) == {1: 3, 2: 1, 3: 3}
    # with classes given, theirs is the spelling
    report = voc2coco(tmp_path, out, classes=['Raccoon'], force=True)
    assert report.objects == {'Raccoon': 1}
    assert any("'raccoon', which is not asked for" in kind for kind in report.left_out)
    report = voc2coco(tmp_path, out, classes=['Raccoon'], merge=True, force=True)
    assert report.objects == {'Raccoon': 3}


def test_boxes_over_the_border_are_told(tmp_path):
    boxes = [(1, 1, WIDTH, HEIGHT), (0, 0, WIDTH + 1, HEIGHT + 1), (5, 5, WIDTH + 3, 20),
             (-3, 5, 20, 20), (WIDTH + 5, 5, WIDTH + 9, 9)]  # fmt: skip
    write_voc(tmp_path, {'a': voc_xml(*(voc_object('cat', box) for box in boxes))})
    report = voc2coco(tmp_path, tmp_path / 'out.json')
    assert counts(report.notes) == {'box that reaches over the border of its image': 2}
    assert counts(report.left_out) == {'box outside of its image': 1}
    kept = [annotation['bbox'] for annotation in written(tmp_path / 'out.json')['annotations']]
    assert kept[2:] == [[4, 4, WIDTH - 2, 15], [-4, 4, 23, 15]]


def figures(gt: dict, detections: list[dict], tmp_path: Path) -> list[np.ndarray]:
    """The 12 figures of both evaluators."""
    file = tmp_path / 'gt.json'
    file.write_text(json.dumps(gt))
    found = []
    for dataset, evaluator in ((COCO, COCOeval), (FasterCOCO, COCOeval_faster)):
        truth = dataset(str(file))
        evaluation = evaluator(truth, truth.loadRes(detections), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        found.append(np.array(evaluation.stats[:12]))
    return found


def test_evaluation_counts_difficult_objects_neither_as_missed_nor_as_wrong(tmp_path):
    boxes = {'a': (3, 4, 20, 30), 'b': (31, 5, 50, 25)}
    xml = voc_xml(voc_object('cat', boxes['a']), voc_object('cat', boxes['b'], HARD))
    write_voc(tmp_path, {'1': xml})
    voc2coco(tmp_path, tmp_path / 'out.json', 'train.txt')
    gt = written(tmp_path / 'out.json')
    easy, hard = (annotation['bbox'] for annotation in gt['annotations'])

    def detected(score: float, box: list) -> dict:
        return {'image_id': 1, 'category_id': 1, 'bbox': box, 'score': score}

    missed = [detected(0.5, easy)]
    also = [detected(0.9, hard), detected(0.8, hard), detected(0.5, easy)]
    wrong = [detected(0.9, [0, 0, 1, 1]), detected(0.5, easy)]
    for detections in (missed, also):
        for stats in figures(gt, detections, tmp_path):
            assert np.allclose(stats[[0, 1, 2, 8]], 1, rtol=0, atol=1e-12)  # AP, AP50, AP75, AR
    for stats in figures(gt, wrong, tmp_path):
        assert stats[0] == pytest.approx(0.5, abs=1e-12)  # a wrong one of a higher score does count

    # what does not do: both evaluators overwrite ignore by iscrowd, and mmdet drops the object
    gt['annotations'][1] |= {'iscrowd': 0, 'ignore': 1}
    for stats in figures(gt, missed, tmp_path):
        assert stats[8] == pytest.approx(0.5, abs=1e-12)


def test_the_data_check_tells_the_difficult_ones(tmp_path):
    objects = [voc_object(name, (3, 4, 20, 30)) for name in CLASSES]
    write_voc(tmp_path, {'1': voc_xml(*objects, voc_object('cat', (5, 5, 20, 20), HARD))})
    voc2coco(tmp_path, tmp_path / 'train.json', 'train.txt', classes=CLASSES)
    dataset = coco_dataset(tmp_path, data_prefix={'img': 'JPEGImages/'})
    (summary,) = check_data(config(dataset))
    assert summary.boxes == 3
    assert dict(summary.dropped) == {'crowd': 1}


def test_what_is_left_out_is_told(tmp_path):
    annotations = {
        'a': voc_xml(
            voc_object('cat', (3, 4, 20, 30)),
            voc_object('cat', (9, 9, 9, 20)),  # a column, or nothing: VOC counts pixels
            voc_object('dog', (20, 9, 10, 20)),
            voc_object('dog', (61, 9, 70, 20)),
            voc_object('cow', (3, 4, 20, 30)),
            voc_object(' ', (3, 4, 20, 30)),
            voc_object('cat', (3, 4, 'x', 30)),
        ),
        'b': voc_xml(size='<size><width>40</width><height>60</height></size>'),
        'c': voc_xml(),
        'd': voc_xml(),
        'e': voc_xml(size='<size><width>120</width><height>80</height></size>'),
    }
    names = write_voc(tmp_path, annotations)
    (tmp_path / 'JPEGImages/c.jpg').unlink()
    (tmp_path / 'JPEGImages/d.jpg').write_bytes(b'no image')
    names.write_text('\ufeffa\r\n\r\n  b \nc\nd\na\nnowhere\ne', encoding='utf-8')
    report = voc2coco(tmp_path, tmp_path / 'out.json', names, classes=('cat', 'dog', 'horse'))
    boxes = [annotation['bbox'] for annotation in written(tmp_path / 'out.json')['annotations']]
    assert boxes == [[2, 3, 17, 26]]
    assert counts(report.left_out) == {
        'box of no size': 2,
        'object without a name, or whose numbers are none': 2,
        'box outside of its image': 1,
        "object of class 'cow', which is not asked for": 1,
        'annotation file without image': 1,
        'image that cannot be read': 1,
        'image that is listed before': 1,
        'image without annotation file': 1,
        'annotation file that cannot be used': 1,
    }
    assert counts(report.notes) == {
        'width and height swapped in the annotation file': 1,
        'class without objects': 2,
    }
    assert report.objects == {'cat': 1, 'dog': 0, 'horse': 0}
    assert len(report.images) == 2 and '2 images (1 without objects)' in str(report)
    text = str(report)
    assert f'  2 x box of no size: {tmp_path}/Annotations/a.xml (9, 9, 9, 20), ' in text
    assert '  2 x class without objects: dog, horse' in text
    assert "a.xml: object 7 (cat): <bndbox/xmax> is 'x', not a number" in text
    assert 'it has 60 x 40 px, its annotations are for 120 x 80 px' in text
    names = [category['name'] for category in written(tmp_path / 'out.json')['categories']]
    assert names == ['cat', 'dog', 'horse']


def test_the_report_shows_the_first_three(tmp_path):
    bad = [voc_object('cat', (x, 4, x, 30)) for x in range(1, 6)]
    write_voc(tmp_path, {'a': voc_xml(voc_object('cat', (1, 1, 9, 9)), *bad)})
    report = voc2coco(tmp_path, tmp_path / 'out.json')
    (line,) = report.left_out.lines()
    assert line.startswith('  5 x box of no size: ')
    assert re.findall(r'\((\d), 4', line) == ['1', '2', '3'] and line.endswith(', ...')


def test_nothing_is_replaced_unless_forced(tmp_path):
    write_voc(tmp_path, voc_annotations())
    out = tmp_path / 'out.json'
    out.write_text('mine')
    fails(voc2coco, tmp_path, out, said=(f'{out} exists', '--force'))
    assert out.read_text() == 'mine'
    voc2coco(tmp_path, out, force=True)
    assert len(written(out)['images']) == 3


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    write_voc(tmp_path, voc_annotations())
    out = tmp_path / 'out/out.json'
    out.parent.mkdir()
    out.write_text('the former one')

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='No space'):
        voc2coco(tmp_path, out, force=True)
    assert [path.name for path in out.parent.iterdir()] == ['out.json']
    assert out.read_bytes() == b'the former one'


def test_mistakes(tmp_path):
    out = tmp_path / 'out.json'
    fails(voc2coco, tmp_path / 'no', out, said=(f'no folder {tmp_path}/no/JPEG', '--images'))
    write_voc(tmp_path, {'a': voc_xml(voc_object('cat', (9, 9, 9, 9)))})
    fails(voc2coco, tmp_path, out, said=('no object can be used', '1 x box of no size', 'a.xml'))
    with pytest.raises(FileNotFoundError, match='val.txt'):
        voc2coco(tmp_path, out, 'val.txt')
    (tmp_path / 'val.txt').write_text('')
    fails(voc2coco, tmp_path, out, 'val.txt', said=('no image can be used: nothing was found',))
    fails(voc2coco, tmp_path, out, classes=('b', 'a', 'b'), said=('classes name b more',))
    (tmp_path / 'Annotations/a.xml').write_text('<annotation>')
    fails(voc2coco, tmp_path, out, said=('not valid XML',))
    assert not out.exists()


def test_size_is_read_of_the_header_and_as_mmcv_turns_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ('jpg', 'png', 'tif', 'webp', 'bmp'):
            file = tmp_path / f'{orientation}.{suffix}'
            Image.fromarray(pixels).save(file, exif=exif)
            height, width = mmcv.imread(file).shape[:2]
            header = read_header(file)
            assert header.loaded == (width, height), file
            obeyed = orientation in range(1, 9) and suffix in ('jpg', 'png', 'tif')
            assert header.orientation == (orientation if obeyed else 1)
    Image.fromarray(pixels).save(tmp_path / 'plain.png')
    content = (tmp_path / 'plain.png').read_bytes()
    (tmp_path / 'plain.png').write_bytes(content[:60])  # the pixels are cut off
    header = read_header(tmp_path / 'plain.png')
    assert header.loaded == (60, 40) and header.orientation == 1

    write_voc(tmp_path, {'6': voc_xml(voc_object('cat', (3, 4, 20, 30)))})
    (tmp_path / '6.jpg').replace(tmp_path / 'JPEGImages/6.jpg')
    turned = '40 x 60 px, its annotations are for 60 x 40 px; its EXIF tag turns it'
    fails(voc2coco, tmp_path, tmp_path / 'out.json', said=(turned,))
    size = '<size><width>40</width><height>60</height></size>'
    xml = voc_xml(voc_object('cat', (3, 4, 20, 30)), size=size)
    (tmp_path / 'Annotations/6.xml').write_text(xml)
    report = voc2coco(tmp_path, tmp_path / 'out.json')
    (image,) = written(tmp_path / 'out.json')['images']
    assert (image['width'], image['height']) == (40, 60)
    assert any('EXIF turns' in note for note in report.notes)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_of_the_synthetic_sets_xml_are_those_of_its_json(shapes, tmp_path, split):
    lists = f'ImageSets/Main/{split}.txt'
    classes = (shapes / 'classes.txt').read_text().split()
    voc2coco(shapes / 'voc', tmp_path / 'out.json', lists, classes=classes)
    ours, theirs = (
        written(tmp_path / 'out.json'),
        written(shapes / f'annotations/instances_{split}.json'),
    )

    def boxes(coco: dict, less: int) -> list[tuple]:
        files = {image['id']: image['file_name'] for image in coco['images']}
        names = {category['id']: category['name'] for category in coco['categories']}
        found = []
        for annotation in coco['annotations']:
            x, y, width, height = annotation['bbox']
            box = (x, y, width - less, height - less)
            found.append((files[annotation['image_id']], names[annotation['category_id']], box))
        return found

    # the xml's last pixel belongs to the box, and mmdet takes width = xmax - xmin
    assert boxes(ours, 0) == boxes(theirs, 1)
    assert [c['name'] for c in ours['categories']] == [c['name'] for c in theirs['categories']]
    json_set, xml_set = from_both(shapes / 'voc', tmp_path / 'out.json', lists, tuple(classes))
    assert json_set == xml_set


def test_every_real_box_is_accounted_for(real_data, tmp_path):
    root = real_data / 'bccd'
    zero = {'train': 'BloodImage_00343.xml', 'val': 'BloodImage_00338.xml'}
    for split, images in (('train', 205), ('val', 87)):
        names = f'ImageSets/Main/{split}.txt'
        out = tmp_path / f'{split}.json'
        classes = ('RBC', 'WBC', 'Platelets')
        report = voc2coco(root, out, names, classes=classes)
        texts = [
            (root / f'Annotations/{name}.xml').read_text()
            for name in (root / names).read_text().split()
        ]
        named = [
            sum(len(re.findall(rf'<name>\s*{name}\s*</name>', text)) for text in texts)
            for name in classes
        ]
        lost = [count - report.objects[name] for name, count in zip(classes, named, strict=True)]
        assert sorted(lost) == [0, 0, 1]
        total = sum(text.count('<object>') for text in texts)
        assert sum(report.objects.values()) + sum(counts(report.left_out).values()) == total
        assert counts(report.left_out) == {'box of no size': 1}
        assert zero[split] in report.left_out['box of no size'][0]
        assert len(report.images) == images
        json_set, xml_set = from_both(root, out, names, classes)
        usable = {  # the box of no size is in mmdet's xml set until its pipeline drops it
            file: [one for one in objects if one[0][0] < one[0][2] and one[0][1] < one[0][3]]
            for file, objects in xml_set.items()
        }
        assert json_set == usable


def test_the_tool(tmp_path, monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, 'argv', ['convert_data.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPO / 'tools/convert_data.py'), run_name='__main__')
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err.splitlines()

    status, out, _ = run('--help')
    assert status == 0 and 'python tools/convert_data.py voc2coco data/VOCdevkit' in out
    write_voc(tmp_path, voc_annotations())
    out = tmp_path / 'out.json'
    arguments = ('voc2coco', tmp_path, out, '--list', 'train.txt', '--classes', 'dog', 'cat')
    status, said, _ = run(*arguments)
    assert status == 0
    assert said.splitlines()[0] == f'{out}: 3 images (0 without objects), 6 objects (0 to ignore)'
    assert "  3 x object of class 'horse', which is not asked for: " in said
    status, said, errors = run(*arguments)
    assert (status, said, len(errors)) == (1, '', 1) and errors[0].startswith('error: ')
    assert run(*arguments, '--force')[0] == 0


def write_yolo(root: Path, labels: dict[str, str | None], classes: str = 'cat\ndog\n') -> None:
    """Images of 60 x 40 px; None: without a label file."""
    for name, text in labels.items():
        write_image(root / 'images' / f'{name}.jpg')
        file = root / 'labels' / f'{name}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            file.write_text(text)
    (root / 'classes.txt').write_text(classes)


def test_boxes_and_polygons_by_hand(tmp_path):
    write_yolo(
        tmp_path,
        {
            'b': '1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.5 0.1 0.5 0.6\n',
            'a': '',
            'sub/c.1': None,
            'd': '0 0.05 0.5 0.2 0.1',  # from -0.05: cut at the border
        },
    )
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    content = written(tmp_path / 'out.json')
    assert content['images'] == [
        {'id': i, 'file_name': name, 'width': WIDTH, 'height': HEIGHT}
        for i, name in enumerate(('a.jpg', 'b.jpg', 'd.jpg', 'sub/c.1.jpg'), 1)
    ]
    box, polygon, cut = content['annotations']
    assert (box['image_id'], box['category_id'], box['iscrowd']) == (2, 2, 0)
    assert box['bbox'] == [15, 15, 30, 10] and box['area'] == 300
    assert 'segmentation' not in box
    assert polygon['category_id'] == 1
    assert polygon['bbox'] == pytest.approx([6, 4, 24, 20])
    assert polygon['segmentation'] == [pytest.approx([6, 4, 30, 4, 30, 24])]
    assert polygon['area'] == pytest.approx(240)  # half of the box's 480
    assert cut['bbox'] == pytest.approx([0, 18, 9, 4])
    assert '4 images (2 without objects)' in str(report)
    assert report.objects == {'cat': 2, 'dog': 1}
    assert not report.left_out
    assert counts(report.notes) == {'object that reached over the border of its image': 1}


def test_what_yolo_files_have_wrong_is_told(tmp_path):
    lines = [
        '0 0.5 0.5 0.5 0.25',
        '0 0.5 0.5 0.5 0.25',
        '0 0.5 0.5 0.5',
        '0 0.5 0.5 0.5 0.25 0.9',
        '0 0.1 0.1 0.2 0.2 0.3 0.3 0.4',
        'cat 0.5 0.5 0.5 0.25',
        '2 0.5 0.5 0.5 0.25',
        '-1 0.5 0.5 0.5 0.25',
        '0.5 0.5 0.5 0.5 0.25',
        '0 nan 0.5 0.5 0.25',
        '0 0.5 0.5 0 0.25',
        '1 0.5 0.5 -0.1 0.25',
        '0 320 200 64 64',
        '0 0.1 0.1 0.2 0.2 0.3 0.3',  # a polygon without area
    ]
    write_yolo(tmp_path, {'a': '\n'.join(lines)})
    (tmp_path / 'labels/b.txt').write_text('0 0.5 0.5 0.5 0.25')
    (tmp_path / 'labels/classes.txt').write_text('cat')
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    assert len(written(tmp_path / 'out.json')['annotations']) == 1
    assert counts(report.left_out) == {
        'line that is there before': 1,
        'line that is no class with a box or polygon': 4,
        'object of class 2, of 2 from 0': 1,
        'object of class -1, of 2 from 0': 1,
        'object of class 0.5, of 2 from 0': 1,
        'box that is not finite': 1,
        'box of no size': 3,
        'object with coordinates in pixels, where YOLO has shares of the image from 0 to 1': 1,
        'label file without image': 1,
    }
    assert report.left_out['box that is not finite'] == [f'{tmp_path}/labels/a.txt line 10']


def test_images_whose_labels_cannot_be_used_are_no_background(tmp_path):
    files = dict(a='0 0.5 0.5 0.5 0.25', b='0 50 50 20 20', c='person 0.5 0.5 0.5 0.5', d='')
    write_yolo(tmp_path, files)
    yolo2coco(tmp_path, tmp_path / 'out.json')
    assert [i['file_name'][0] for i in written(tmp_path / 'out.json')['images']] == ['a', 'd']


@pytest.mark.parametrize('name', ['data.yaml', 'classes.txt'])
def test_names_in_another_encoding_are_named(tmp_path, name):
    write_yolo(tmp_path, {'a': '0 0.5 0.5 0.5 0.25'})
    (tmp_path / name).write_text('names: [cat]', encoding='utf-16')
    fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=(name, 'UTF-8'))
    (tmp_path / name).write_text('[' * 1000)
    if name == 'data.yaml':
        fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=(name, 'YAML'))


def test_yolo_boxes_written_as_corners_are_an_error(tmp_path):
    corners = ['0.1 0.2 0.3 0.4', '0.5 0.5 0.9 0.8', '0.2 0.1 0.7 0.9', '0.6 0.3 0.8 0.6',
               '0 0 0.2 0.2']  # fmt: skip
    write_yolo(tmp_path, {'a': '\n'.join(f'0 {box}' for box in corners)})
    fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=('labels', '5 boxes', 'x1 y1 x2 y2'))
    assert not (tmp_path / 'out.json').exists()
    # large objects about the middle would fit both ways
    large = [f'0 {0.4 + i / 100} 0.45 0.8 0.9' for i in range(5)]
    write_yolo(tmp_path, {'a': '\n'.join(large)})
    assert sum(yolo2coco(tmp_path, tmp_path / 'out.json').objects.values()) == 5


def test_what_is_no_file_is_left_out(tmp_path):
    write_yolo(tmp_path, {'a': '0 0.5 0.5 0.5 0.25'})
    os.mkfifo(tmp_path / 'images/pipe.jpg')
    os.symlink(tmp_path / 'images/loop.jpg', tmp_path / 'images/loop.jpg')
    (tmp_path / 'images/folder.jpg').mkdir()
    (tmp_path / 'images/._a.jpg').write_bytes(b'of macOS')
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    assert len(report.images) == 1 and counts(report.left_out) == {'image that cannot be read': 4}


@pytest.mark.parametrize(
    ('yaml', 'names'),
    [
        ('names: [cat, dog]', ['cat', 'dog']),
        ('train: images/train\nnames:\n  1: dog\n  0: cat\n', ['cat', 'dog']),
        ('names: [1, yes]', ['1', 'True']),
    ],
)
def test_class_names_of_the_yaml_come_first(tmp_path, yaml, names):
    write_yolo(tmp_path, {'a': '1 0.5 0.5 0.5 0.25'}, 'other\nnames\n')
    (tmp_path / 'data.yaml').write_text(yaml)
    yolo2coco(tmp_path, tmp_path / 'out.json')
    content = written(tmp_path / 'out.json')
    assert [category['name'] for category in content['categories']] == names
    assert content['annotations'][0]['category_id'] == 2


# each list has ten times the one before: 10**9 words, written out
LAUGHS = 'l0: &l0 x\n' + ''.join(
    f'l{i}: &l{i} [{", ".join([f"*l{i - 1}"] * 10)}]\n' for i in range(1, 10)
)


LAUGHS += 'names: [*l9]'


def test_keypoints_of_yolo_are_no_polygons(tmp_path):
    write_yolo(tmp_path, {'a': '0 0.5 0.5 0.25 0.5 0.1 0.2 2 0.3 0.4 1\n0 0.5 0.5 0.2 0.2 0.1 0.1'})
    (tmp_path / 'data.yaml').write_text('names: [person]\nkpt_shape: [2, 3]')
    report = yolo2coco(tmp_path, tmp_path / 'out.json')
    (found,) = written(tmp_path / 'out.json')['annotations']
    width, height = report.images[0]['width'], report.images[0]['height']
    assert found['bbox'] == [0.375 * width, 0.25 * height, 0.25 * width, 0.5 * height]
    assert 'segmentation' not in found
    assert counts(report.left_out) == {'line that is no class with a box and keypoints': 1}
    (tmp_path / 'data.yaml').write_text('names: [person]\nkpt_shape: 4')
    fails(yolo2coco, tmp_path, tmp_path / 'o.json', said=('kpt_shape: 4 is no list',))


def test_a_blank_line_would_shift_the_classes(tmp_path):
    write_yolo(tmp_path, {'a': '1 0.5 0.5 0.5 0.25'})
    (tmp_path / 'classes.txt').write_text('cat\n\ndog\n\n')
    fails(yolo2coco, tmp_path, tmp_path / 'out.json', said=('line 2 is blank',))


def test_mistakes_in_yolo_sets(tmp_path):
    out = tmp_path / 'out.json'
    fails(yolo2coco, tmp_path, out, said=(f'no folder {tmp_path}/labels', '--labels'))
    write_yolo(tmp_path, {'a': '1 0.5 0.5 0.5 0.25'})
    (tmp_path / 'classes.txt').unlink()
    fails(yolo2coco, tmp_path, out, said=('no data.yaml and no classes.txt', '--classes'))
    for text, said in (
        ('names: [a', 'is not valid YAML'),
        ('nc: 2', 'has no names of classes'),
        ('names: {1: a, 2: b}', 'numbered from 0'),
        ('names: 7', 'no names of classes'),
        (LAUGHS, 'no names of classes'),
        ('!!python/object/apply:os.system ["touch hacked"]', 'is not valid YAML'),
    ):
        (tmp_path / 'data.yaml').write_text(text)
        fails(yolo2coco, tmp_path, out, said=('data.yaml', said))
    (tmp_path / 'data.yaml').unlink()
    (tmp_path / 'labels/a.txt').write_text('0 320 200 64 64')  # pixels
    pixels = 'no image can be used', 'coordinates are in pixels'
    fails(yolo2coco, tmp_path, out, classes=['a'], said=pixels)
    (tmp_path / 'labels/a.txt').write_text('0 12 8 40 8 40 30 12 30')  # a polygon
    fails(yolo2coco, tmp_path, out, classes=['a'], said=pixels)
    fails(yolo2coco, tmp_path, out, images='photos', classes='a', said=('no folder', 'photos'))
    (tmp_path / 'photos').mkdir()
    fails(yolo2coco, tmp_path, out, images='photos', classes='a', said=('no image is in',))
    assert not out.exists() and not (tmp_path / 'hacked').exists()


def test_the_synthetic_set_there_and_back(shapes, tmp_path):
    """Boxes, and the polygons of those that are in one piece."""
    coco = written(shapes / 'annotations/instances_val.json')
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'images').symlink_to(shapes / 'val')
    boxes, areas = [], []
    for image in coco['images']:
        lines = []
        for annotation in coco['annotations']:
            if annotation['image_id'] != image['id']:
                continue
            x, y, width, height = annotation['bbox']
            values, area = [x + width / 2, y + height / 2, width, height], width * height
            if isinstance(annotation['segmentation'], list):
                values, area = annotation['segmentation'][0], annotation['area']
            shares = (value / image[('width', 'height')[i % 2]] for i, value in enumerate(values))
            lines.append(f'{annotation["category_id"] - 1} {" ".join(map(repr, shares))}\n')
            boxes.append(annotation['bbox'])
            areas.append(area)
        (tmp_path / f'labels/{Path(image["file_name"]).stem}.txt').write_text(''.join(lines))
    classes = (shapes / 'classes.txt').read_text().split()
    yolo2coco(tmp_path, tmp_path / 'out.json', classes=classes)
    found = written(tmp_path / 'out.json')['annotations']
    assert np.allclose([one['bbox'] for one in found], boxes, rtol=0, atol=1e-9)
    assert np.allclose([one['area'] for one in found], areas, rtol=0, atol=1e-6)
    kinds = ['segmentation' in one for one in found]
    assert any(kinds)
    assert [one['category_id'] for one in found] == [
        one['category_id'] for one in coco['annotations']
    ]


def save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def test_instance_masks_by_hand(tmp_path):
    """Numbers with gaps and beyond 8 bits, an object in two pieces, an image without objects."""
    values = np.zeros((3, 4), np.uint16)
    values[:, 1] = 300
    values[0, 0] = values[2, 3] = 7
    for name in ('a', 'b', 'without'):
        write_image(tmp_path / f'images/{name}.png', (4, 3))
    save(tmp_path / 'masks/a.png', values)
    save(tmp_path / 'masks/b.png', np.zeros((3, 4), np.uint8))
    report = masks2coco(
        tmp_path / 'images', tmp_path / 'masks', tmp_path / 'out.json', 'instances',
        classes=['cell'],
    )  # fmt: skip
    content = written(tmp_path / 'out.json')
    assert [image['file_name'] for image in content['images']] == ['a.png', 'b.png']
    two, column = content['annotations']
    # down the columns: 3 without, 3 with, 6 without; each digit is its character
    assert column['segmentation'] == {'size': [3, 4], 'counts': '336'}
    assert (column['bbox'], column['area']) == ([1, 0, 1, 3], 3)
    # 0 without, 1 with, 10 without, 1 with as itself less the run before the last: 0
    assert two['segmentation'] == {'size': [3, 4], 'counts': '01:0'}
    assert (two['bbox'], two['area']) == ([0, 0, 4, 3], 2)
    assert [one['category_id'] for one in content['annotations']] == [1, 1]
    assert counts(report.left_out) == {'image without mask': 1}
    assert '2 images (1 without objects)' in str(report)


def test_label_maps_by_hand(tmp_path):
    values = np.array(
        [
            [1, 1, 0, 2, 9],
            [0, 0, 1, 0, 255],
            [2, 0, 0, 0, 1],
        ],
        np.uint8,
    )
    write_image(tmp_path / 'images/a.jpg', (5, 3))
    save(tmp_path / 'masks/a.png', values)
    arguments = (tmp_path / 'images', tmp_path / 'masks', tmp_path / 'out.json', 'labels')
    report = masks2coco(*arguments, classes=['cat', 'dog'])
    content = written(tmp_path / 'out.json')
    found = [(one['category_id'], one['bbox'], one['area']) for one in content['annotations']]
    # pieces hang together by corners as well; 0 is background, 255 is to be ignored
    assert found == [
        (1, [0, 0, 3, 2], 3),
        (1, [4, 2, 1, 1], 1),
        (2, [3, 0, 1, 1], 1),
        (2, [0, 2, 1, 1], 1),
    ]
    assert counts(report.left_out) == {'class of value 9, of 1 to 2': 1}

    masks2coco(*arguments, classes=['dog'], first=2, force=True)
    content = written(tmp_path / 'out.json')
    assert [one['bbox'] for one in content['annotations']] == [[3, 0, 1, 1], [0, 2, 1, 1]]


def test_binary_masks_are_no_instances(tmp_path):
    """255 is ignored in label maps, and one number of an object among instances."""
    values = np.zeros((6, 9), np.uint8)
    values[1:3, 1:3] = values[4:, 6:] = 255
    write_image(tmp_path / 'images/a.jpg', (9, 6))
    save(tmp_path / 'masks/a.png', values)
    arguments = (tmp_path / 'images', tmp_path / 'masks', tmp_path / 'out.json')
    fails(masks2coco, *arguments, 'labels', classes=['cell'], said=('no object', '--first'))
    report = masks2coco(*arguments, 'instances', classes=['cell'], force=True)
    assert report.objects == {'cell': 1}
    (note,) = report.notes
    assert 'one object (each piece: --kind labels --first 255)' in note
    report = masks2coco(*arguments, 'labels', classes=['cell'], first=255, force=True)
    assert report.objects == {'cell': 2} and not report.notes and not report.left_out


def decoded(coco: dict) -> dict[str, list[np.ndarray]]:
    """The masks of every image, of json files in either form."""
    index = COCO()
    index.dataset = coco
    index.createIndex()
    return {
        image['file_name']: [index.annToMask(one) for one in index.imgToAnns[image['id']]]
        for image in coco['images']
    }


@pytest.mark.parametrize('kind', ['instances', 'binary'])
def test_masks_of_the_synthetic_set_there_and_back(shapes, tmp_path, kind):
    coco = written(shapes / 'annotations/instances_val.json')
    masks = decoded(coco)
    for file, objects in masks.items():
        stem = tmp_path / 'masks' / Path(file).stem
        numbers = np.zeros(objects[0].shape, np.uint8)
        for i, mask in enumerate(objects, 1):
            numbers[mask > 0] = i
            if kind == 'binary':
                save(stem / f'{i:03}.png', 255 * mask)
        if kind == 'instances':
            save(stem.with_name(f'{stem.name}.png'), numbers)
    out = tmp_path / 'out.json'
    masks2coco(shapes / 'val', tmp_path / 'masks', out, kind, classes=['thing'])
    ours = written(out)
    for key in ('bbox', 'area'):
        assert [one[key] for one in ours['annotations']] == [
            one[key] for one in coco['annotations']
        ]
    for file, objects in decoded(ours).items():
        assert len(objects) == len(masks[file])
        assert all(np.array_equal(*pair) for pair in zip(objects, masks[file], strict=True))


def test_label_maps_of_the_synthetic_set_come_back_whole_and_load(shapes, tmp_path):
    out = tmp_path / 'out.json'
    classes = (shapes / 'classes.txt').read_text().split()
    masks2coco(shapes / 'val', shapes / 'semseg/val', out, 'labels', classes=classes)
    ours = written(out)
    for image in ours['images']:
        stem = Path(image['file_name']).stem
        values = np.array(Image.open(shapes / f'semseg/val/{stem}.png'))
        again = np.zeros_like(values)
        for one in ours['annotations']:
            if one['image_id'] == image['id']:
                again += one['category_id'] * rle.decode(one['segmentation'])
        assert np.array_equal(again, values)

    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoDataset', ann_file=str(out), data_prefix={'img': f'{shapes}/val/'},
                metainfo={'classes': classes}, pipeline=pipeline, test_mode=True,
            )
        )  # fmt: skip
    masks = dataset[0]['gt_masks']
    areas = [one['area'] for one in ours['annotations'] if one['image_id'] == 1]
    assert masks.areas.tolist() == areas


def test_what_masks_have_wrong_is_told(tmp_path):
    folders = (tmp_path / 'images', tmp_path / 'masks')
    for name in ('a', 'b', 'c'):
        write_image(folders[0] / f'{name}.jpg', (4, 3))
    save(folders[1] / 'c/1.png', np.full((3, 4), 255, np.uint8))
    save(folders[1] / 'a/1.png', np.full((3, 4), 255, np.uint8))
    save(folders[1] / 'a/2.png', np.zeros((3, 4), np.uint8))
    save(folders[1] / 'c/2.png', np.full((4, 3), 255, np.uint8))
    save(folders[1] / 'a/4.png', np.full((3, 4, 4), 255, np.uint8))  # grey in four channels
    (folders[1] / 'b').mkdir()
    out = tmp_path / 'out.json'
    report = masks2coco(*folders, out, 'binary', classes=['cell'])
    assert counts(report.left_out) == {
        'box of no size': 1,
        'image with a mask of another size': 1,
    }
    assert '2 images (1 without objects)' in str(report) and report.objects == {'cell': 2}

    arguments = dict(classes=['cell'], force=True)
    inverted = Image.fromarray(np.ones((3, 4), np.uint8))
    inverted.putpalette([255] * 3 + [0] * 3)
    inverted.save(folders[1] / 'a/5.png')
    fails(masks2coco, *folders, out, 'binary', **arguments, said=('5.png: its palette shows 0',))
    save(folders[1] / 'a/5.png', np.arange(36, dtype=np.uint8).reshape(3, 4, 3))
    fails(masks2coco, *folders, out, 'binary', **arguments, said=('5.png: it is a colour image',))
    (folders[1] / 'a/5.png').write_bytes(b'no png')
    fails(masks2coco, *folders, out, 'binary', **arguments, said=('5.png: it cannot be read',))
    with pytest.raises(ValueError, match="kind must be .* but got 'panoptic'"):
        masks2coco(*folders, out, 'panoptic', **arguments)
    for kind, classes in (('instances', ['a', 'b']), ('binary', []), ('labels', [])):
        with pytest.raises(ValueError, match='classes must be'):
            masks2coco(*folders, out, kind, classes=classes, force=True)
    fails(masks2coco, folders[0], tmp_path / 'no', out, 'labels', **arguments, said=('no folder',))
    fails(masks2coco, *folders, out, 'labels', **arguments, said=('no image can be used', '3 x'))


def test_real_label_maps(real_data, tmp_path):
    folder = real_data / 'nuclei'
    images = folder / 'images/val' if (folder / 'images/val').is_dir() else folder / 'images'
    out = tmp_path / 'out.json'
    report = masks2coco(images, folder / 'semseg/val', out, 'labels', classes=['nucleus'])
    content = written(out)
    for image in content['images'][:5]:
        file = folder / 'semseg/val' / Path(image['file_name']).with_suffix('.png').name
        pixels = int((np.array(Image.open(file)) == 1).sum())
        assert pixels == sum(
            one['area'] for one in content['annotations'] if one['image_id'] == image['id']
        )
    assert len(report.images) == 60
    assert all(math.prod(one['bbox'][2:]) >= one['area'] for one in content['annotations'])
