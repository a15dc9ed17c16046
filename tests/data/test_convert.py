"""Pascal VOC as COCO json, what the json is for mmdet and for the evaluation, and the report."""

from __future__ import annotations

import json
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
    write_voc,
)

import res2net_mm  # noqa: F401  mmdet needs its operators
from res2net_mm.data.check.quick import check_data
from res2net_mm.data.convert.formats import voc2coco
from res2net_mm.data.convert.writer import image_size
from res2net_mm.data.errors import DataError

REPO = Path(__file__).resolve().parents[2]
HARD = '<difficult>1</difficult>'


def written(file: Path) -> dict:
    return json.loads(file.read_text())


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
    ((kind, count),) = report.notes.counts.items()
    assert count == 2 and '--merge' in kind
    assert "'Raccoon' (1) and 'raccoon' (2)" in report.notes.examples[kind]
    report = voc2coco(tmp_path, out, merge=True, force=True)
    assert report.objects == {'caf\u00e9': 3, 'cat': 1, 'raccoon': 3} and not report.notes.counts
    assert [category['name'] for category in written(out)['categories']] == list(report.objects)
    assert Counter(a['category_id'] for a in written(out)['annotations']) == {1: 3, 2: 1, 3: 3}
    # with classes given, theirs is the spelling
    report = voc2coco(tmp_path, out, classes=['Raccoon'], force=True)
    assert report.objects == {'Raccoon': 1}
    assert any('raccoon' in kind and '--merge' in kind for kind in report.left_out.counts)
    report = voc2coco(tmp_path, out, classes=['Raccoon'], merge=True, force=True)
    assert report.objects == {'Raccoon': 3}


def test_boxes_over_the_border_are_told(tmp_path):
    boxes = [(1, 1, WIDTH, HEIGHT), (0, 0, WIDTH + 1, HEIGHT + 1), (5, 5, WIDTH + 3, 20),
             (-3, 5, 20, 20), (WIDTH + 5, 5, WIDTH + 9, 9)]  # fmt: skip
    write_voc(tmp_path, {'a': voc_xml(*(voc_object('cat', box) for box in boxes))})
    report = voc2coco(tmp_path, tmp_path / 'out.json')
    assert report.notes.counts == {'box that reaches over the border of its image': 2}
    assert report.left_out.counts == {'box outside of its image': 1}
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
    }
    names = write_voc(tmp_path, annotations)
    (tmp_path / 'JPEGImages/c.jpg').unlink()
    (tmp_path / 'JPEGImages/d.jpg').write_bytes(b'no image')
    names.write_text('\ufeffa\r\n\r\n  b \nc\nd\na\nnowhere', encoding='utf-8')
    report = voc2coco(tmp_path, tmp_path / 'out.json', names, classes=('cat', 'dog', 'horse'))
    boxes = [annotation['bbox'] for annotation in written(tmp_path / 'out.json')['annotations']]
    assert boxes == [[2, 3, 17, 26]]
    assert report.left_out.counts == {
        'box of no size': 2,
        'object without a name, or whose numbers are none': 2,
        'box outside of its image': 1,
        "object of class 'cow', which is not asked for": 1,
        'annotation file without image': 1,
        'image that cannot be read': 1,
        'image that is listed before': 1,
        'image without annotation file': 1,
    }
    assert report.notes.counts == {
        'size in the annotation file that is not of the image': 1,
        'class without objects': 2,
    }
    assert report.objects == {'cat': 1, 'dog': 0, 'horse': 0}
    assert (report.images, report.without_objects) == (2, 1)
    text = str(report)
    assert f'  2 x box of no size: {tmp_path}/Annotations/a.xml (9, 9, 9, 20), ' in text
    assert '  2 x class without objects: dog, horse' in text
    assert "a.xml: object 7 (cat): <bndbox/xmax> is 'x', not a number" in text
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
    fails(voc2coco, tmp_path, out, 'val.txt', said=('no list of images', 'val.txt'))
    (tmp_path / 'val.txt').write_text('')
    fails(voc2coco, tmp_path, out, 'val.txt', said=('no image can be used: nothing was found',))
    fails(voc2coco, tmp_path, out, classes=('b', 'a', 'b'), said=('classes name b more',))
    (tmp_path / 'Annotations/a.xml').write_text('<annotation>')
    fails(voc2coco, tmp_path, out, said=('not valid XML',))
    assert not out.exists()


def test_size_is_read_of_the_header_and_as_mmcv_turns_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ('jpg', 'png', 'tif', 'webp', 'bmp'):
            file = tmp_path / f'{orientation}.{suffix}'
            Image.fromarray(pixels).save(file, exif=exif)
            height, width = mmcv.imread(file).shape[:2]
            size, turned = image_size(file)
            assert size == (width, height), file
            assert turned == (orientation > 1 and suffix in ('jpg', 'png'))
    Image.fromarray(pixels).save(tmp_path / 'plain.png')
    content = (tmp_path / 'plain.png').read_bytes()
    (tmp_path / 'plain.png').write_bytes(content[:60])  # the pixels are cut off
    assert image_size(tmp_path / 'plain.png') == ((60, 40), False)

    write_voc(tmp_path, {'6': voc_xml(voc_object('cat', (3, 4, 20, 30)))})
    (tmp_path / '6.jpg').replace(tmp_path / 'JPEGImages/6.jpg')
    report = voc2coco(tmp_path, tmp_path / 'out.json')
    (image,) = written(tmp_path / 'out.json')['images']
    assert (image['width'], image['height']) == (40, 60)
    assert any('EXIF turns' in note for note in report.notes.counts)


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
        counts = [
            sum(len(re.findall(rf'<name>\s*{name}\s*</name>', text)) for text in texts)
            for name in classes
        ]
        lost = [count - report.objects[name] for name, count in zip(classes, counts, strict=True)]
        assert sorted(lost) == [0, 0, 1]
        total = sum(text.count('<object>') for text in texts)
        assert sum(report.objects.values()) + report.left_out.counts.total() == total
        assert report.left_out.counts == {'box of no size': 1}
        assert zero[split] in report.left_out.examples['box of no size'][0]
        assert report.images == images
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
