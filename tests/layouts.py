"""Tiny data sets in every layout that the configs expect, in one folder."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
from mmengine.registry import DATASETS

WIDTH, HEIGHT = 128, 96
BOXES = [(8, 10, 56, 60), (60, 20, 116, 84)]  # x1, y1, x2, y2 of the two objects in every image


def write_layouts(root: Path) -> None:
    """Writes all of them to ``root``, two images per split."""
    coco(root / 'coco', 'train2017', 'val2017', classes('mmdet.CocoDataset'))
    panoptic(root / 'coco')
    keypoints(root / 'coco')
    coco(root / 'shapes', 'train', 'val', ('disc', 'square', 'triangle', 'star'))
    coco(root / 'nuclei', 'train', 'val', ('nucleus',), images='images/')
    for year, splits in (('VOC2007', ('trainval', 'test')), ('VOC2012', ('trainval',))):
        voc(root / 'VOCdevkit' / year, splits, ('dog', 'person'))
    voc(root / 'voc', ('train', 'val'), ('dog', 'person'))
    voc(root / 'bccd', ('train', 'val'), ('RBC', 'Platelets'))
    voc_segmentation(root / 'VOCdevkit/VOC2012')
    masks(root / 'nuclei', 'images/{}', 'semseg/{}', ('train', 'val'), '.png')
    masks(root / 'DUTS', '{0}/{0}-Image', '{0}/{0}-Mask', ('DUTS-TR', 'DUTS-TE'), '.jpg')
    for split in ('train', 'val'):
        for i in (1, 2):
            image(root / f'imagenet/{split}/{i}.png', i)
            image(root / f'classes/{split}/class{i}/{i}.png', i)
            image(root / f'cells/{split}/class{i}/{i}.png', i)
        (root / f'cells/{split}/class3').mkdir()
        write(root / f'imagenet/meta/{split}.txt', '1.png 7\n2.png 999\n')
    for split, folder in (('train', 'training'), ('val', 'validation')):
        label_maps(root / 'camvid', f'img_dir/{split}/{{}}.png', f'ann_dir/{split}/{{}}.png', 11)
        label_maps(
            root / 'cityscapes',
            f'leftImg8bit/{split}/town/{{}}_leftImg8bit.png',
            f'gtFine/{split}/town/{{}}_gtFine_labelTrainIds.png',
            255,
        )
        label_maps(
            root / 'ade/ADEChallengeData2016',
            f'images/{folder}/{{}}.jpg',
            f'annotations/{folder}/{{}}.png',
            0,
        )


def classes(dataset: str) -> tuple[str, ...]:
    return DATASETS.get(dataset).METAINFO['classes']


def image(file: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(BOXES):
        pixels[y1:y2, x1:x2] += np.uint8(90 * (i + 1))
    save(file, pixels)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels)


def labels(first: int, second: int, ground: int, dtype: type = np.uint8) -> np.ndarray:
    """A label map of the two objects on a background."""
    found = np.full((HEIGHT, WIDTH), ground, dtype)
    for value, (x1, y1, x2, y2) in zip((first, second), BOXES, strict=True):
        found[y1:y2, x1:x2] = value
    return found


def coco(root: Path, train: str, val: str, names: tuple[str, ...], images: str = '') -> None:
    for i, split in enumerate((train, val)):
        content = dict(
            images=[], annotations=[], categories=[dict(id=j, name=n) for j, n in enumerate(names)]
        )
        for number in (2 * i + 1, 2 * i + 2):
            name = f'{number:012}.jpg'
            image(root / images / split / name, number)
            save(root / f'stuffthingmaps/{split}/{number:012}.png', labels(0, 16, 182))
            content['images'].append(dict(id=number, file_name=name, width=WIDTH, height=HEIGHT))
            for j, (x1, y1, x2, y2) in enumerate(BOXES):
                content['annotations'].append(
                    dict(
                        id=10 * number + j,
                        image_id=number,
                        category_id=min(j, len(names) - 1),
                        bbox=[x1, y1, x2 - x1, y2 - y1],
                        area=(x2 - x1) * (y2 - y1),
                        iscrowd=0,
                        segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
                    )
                )
        write_json(root / f'annotations/instances_{split}.json', content)


def keypoints(root: Path) -> None:
    """The two objects of every image as persons, and as what a detector found."""
    found = []
    for i, split in enumerate(('train2017', 'val2017')):
        content = dict(images=[], annotations=[], categories=[dict(id=1, name='person')])
        for number in (2 * i + 1, 2 * i + 2):
            content['images'].append(
                dict(id=number, file_name=f'{number:012}.jpg', width=WIDTH, height=HEIGHT)
            )
            for j, (x1, y1, x2, y2) in enumerate(BOXES):
                shape = dict(image_id=number, category_id=1, bbox=[x1, y1, x2 - x1, y2 - y1])
                points = np.random.default_rng(j).uniform((x1, y1), (x2, y2), (17, 2)).round(1)
                content['annotations'].append(
                    dict(
                        shape,
                        id=10 * number + j,
                        area=(x2 - x1) * (y2 - y1),
                        iscrowd=0,
                        num_keypoints=17,
                        keypoints=np.column_stack([points, np.full(17, 2)]).flatten().tolist(),
                    )
                )
                found.append(dict(shape, score=0.9))
        write_json(root / f'annotations/person_keypoints_{split}.json', content)
    name = 'COCO_val2017_detections_AP_H_56_person.json'
    write_json(root / 'person_detection_results' / name, found[4:])


def panoptic(root: Path) -> None:
    dataset = DATASETS.get('mmdet.CocoPanopticDataset').METAINFO
    categories = [
        dict(id=i + 1, name=name, isthing=int(name in dataset['thing_classes']))
        for i, name in enumerate(dataset['classes'])
    ]
    for i, split in enumerate(('train2017', 'val2017')):
        content = dict(images=[], annotations=[], categories=categories)
        for number in (2 * i + 1, 2 * i + 2):
            content['images'].append(
                dict(id=number, file_name=f'{number:012}.jpg', width=WIDTH, height=HEIGHT)
            )
            ids = labels(7, 300, 70_000, np.int64)  # two things on one stuff
            colours = np.stack([ids // 256**2, ids // 256 % 256, ids % 256], -1)  # BGR
            save(root / f'annotations/panoptic_{split}/{number:012}.png', colours.astype(np.uint8))
            areas = [int((ids == id_).sum()) for id_ in (7, 300, 70_000)]
            boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES]
            boxes.append([0, 0, WIDTH, HEIGHT])
            segments = [
                dict(id=id_, category_id=category, area=area, bbox=box, iscrowd=0)
                for id_, category, area, box in zip(
                    (7, 300, 70_000), (1, 2, 133), areas, boxes, strict=True
                )
            ]
            content['annotations'].append(
                dict(image_id=number, file_name=f'{number:012}.png', segments_info=segments)
            )
        write_json(root / f'annotations/panoptic_{split}.json', content)


def voc(root: Path, splits: tuple[str, ...], names: tuple[str, str]) -> None:
    for i, split in enumerate(splits):
        numbers = [f'{2 * i + j:06}' for j in (1, 2)]
        for number in numbers:
            image(root / f'JPEGImages/{number}.jpg', int(number))
            xml = ElementTree.Element('annotation')
            size = ElementTree.SubElement(xml, 'size')
            for side, pixels in (('width', WIDTH), ('height', HEIGHT)):
                ElementTree.SubElement(size, side).text = str(pixels)
            for name, box in zip(names, BOXES, strict=True):
                thing = ElementTree.SubElement(xml, 'object')
                ElementTree.SubElement(thing, 'name').text = name
                ElementTree.SubElement(thing, 'difficult').text = '0'
                corners = ElementTree.SubElement(thing, 'bndbox')
                for side, pixels in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True):
                    ElementTree.SubElement(corners, side).text = str(pixels + 1)
            write(root / f'Annotations/{number}.xml', ElementTree.tostring(xml, 'unicode'))
        write(root / f'ImageSets/Main/{split}.txt', ''.join(f'{n}\n' for n in numbers))


def voc_segmentation(root: Path) -> None:
    lists = {'train': (21, 22), 'aug': (23, 24), 'val': (25, 26)}
    for split, numbers in lists.items():
        folder = 'SegmentationClassAug' if split == 'aug' else 'SegmentationClass'
        for number in numbers:
            image(root / f'JPEGImages/{number:06}.jpg', number)
            save(root / f'{folder}/{number:06}.png', labels(12, 15, 0))
        write(root / f'ImageSets/Segmentation/{split}.txt', ''.join(f'{n:06}\n' for n in numbers))


def masks(root: Path, images: str, folder: str, splits: tuple[str, str], suffix: str) -> None:
    for i, split in enumerate(splits):
        for number in (2 * i + 1, 2 * i + 2):
            image(root / images.format(split) / f'{number}{suffix}', number)
            save(root / folder.format(split) / f'{number}.png', labels(255, 255, 0))


def label_maps(root: Path, image_name: str, map_name: str, ignored: int) -> None:
    for number in (1, 2):
        image(root / image_name.format(number), number)
        values = labels(3, 8, 1)
        values[:4] = ignored
        save(root / map_name.format(number), values)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def write_json(file: Path, content: dict) -> None:
    write(file, json.dumps(content))
