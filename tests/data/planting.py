"""Sets without a fault for the full check of data, and ways to plant one in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmengine import Config
from PIL import Image
from written_sets import (
    HEIGHT,
    WIDTH,
    coco_content,
    coco_dataset,
    config,
    semantic_dataset,
    voc_annotations,
    voc_dataset,
    write_coco,
    write_label_maps,
    write_voc,
)

from res2net_mm.data.check.inspection import Inspection
from res2net_mm.data.findings import Findings

PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
    {'type': 'Resize', 'scale': (2 * WIDTH, 2 * HEIGHT), 'keep_ratio': True},
]
DETECTOR = {
    'rpn_head': {
        'anchor_generator': {
            'type': 'AnchorGenerator', 'scales': [5], 'ratios': [1.0], 'strides': [4, 8],
        },
    },
    'roi_head': {'bbox_head': {'num_classes': 3}},
    'train_cfg': {'rpn': {'assigner': {'type': 'MaxIoUAssigner'}}},
    'test_cfg': {'rcnn': {'max_per_img': 3}},
}  # fmt: skip
SEGMENTOR = {'decode_head': {'num_classes': 3, 'ignore_index': 255}}
Expected = set[tuple[str, str, str, str]]


def noise(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **more: object) -> None:
    """An image that no other name gives."""
    rng = np.random.default_rng([*str(file).encode()])
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(file, **more)


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def make_coco(root: Path) -> Config:
    for split, images in (('train', 4), ('val', 3)):
        content = coco_content(images)
        for item in content['annotations']:
            item['segmentation'] = polygon(*item['bbox'])
        write_coco(root, content, split)
        for i in range(images):
            noise(root / split / f'{i}.jpg')
    train, val = (coco_dataset(root, split, pipeline=PIPELINE) for split in ('train', 'val'))
    return config(train, val, model=DETECTOR)


def make_voc(root: Path) -> Config:
    every = voc_annotations(7)
    for split, names in (('train', list(every)[:4]), ('val', list(every)[4:])):
        write_voc(root, {name: every[name] for name in names}, split)
        for name in names:
            noise(root / 'JPEGImages' / f'{name}.jpg')
    return config(voc_dataset(root), voc_dataset(root, 'val'))


def make_maps(root: Path) -> Config:
    values = np.resize(np.array([0, 1, 2, 255], np.uint8), (HEIGHT, WIDTH))
    for split, images in (('train', 4), ('val', 3)):
        write_label_maps(root, {str(i): values for i in range(images)}, split)
        for i in range(images):
            noise(root / 'photos' / split / f'{i}.jpg')
    train, val = (semantic_dataset(root, split) for split in ('train', 'val'))
    return config(train, val, scope='mmseg', model=SEGMENTOR)


SHAPES = ('disc', 'square', 'triangle', 'star')  # the classes of the synthetic set
MAKERS = {'coco': make_coco, 'voc': make_voc, 'maps': make_maps}


def found(findings: Findings) -> Expected:
    return {(f.severity, f.kind, f.split, Path(f.file).name) for f in findings}


def told(inspection: Inspection) -> list[tuple[str, str, str, str]]:
    return [(f.severity, f.split, f.kind, Path(f.file).name) for f in inspection.findings]


WITH_MASKS = PIPELINE[:2]


def coco_config(root: Path, images: str, classes: tuple[str, ...] | None, **more: object) -> Config:
    train, val = (
        coco_dataset(
            root,
            split,
            ann_file=f'annotations/instances_{split}.json',
            data_prefix={'img': images.format(split)},
            metainfo={'classes': classes} if classes else {},
            pipeline=WITH_MASKS,
        )
        for split in ('train', 'val')
    )
    return config(train, val, **more)


def voc_config(root: Path, classes: tuple[str, ...], **more: object) -> Config:
    train, val = (
        voc_dataset(root, s, ann_file=f'ImageSets/Main/{s}.txt', metainfo={'classes': classes})
        for s in ('train', 'val')
    )
    return config(train, val, **more)


def maps_config(
    root: Path, images: str, maps: str, classes: tuple[str, ...], ignored: int, suffix: str
) -> Config:
    train, val = (
        semantic_dataset(
            root,
            data_prefix={'img_path': images.format(split), 'seg_map_path': maps.format(split)},
            metainfo={'classes': classes},
            img_suffix=suffix,
        )
        for split in ('train', 'val')
    )
    head = {'num_classes': len(classes), 'ignore_index': ignored}
    return config(train, val, scope='mmseg', model={'decode_head': head})


# ---- planting: each gets the folder and the config of a clean set


def edit(root: Path, change: Callable[[dict], object], split: str = 'train') -> None:
    file = root / f'{split}.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first(**parts: object) -> Callable[[Path, Config], None]:
    """Changes the first annotation, whose box is [2, 3, 10, 12] on 0.jpg."""
    return lambda root, cfg: edit(root, lambda c: c['annotations'][0].update(parts))


def boxed(bbox: list[float]) -> Callable[[Path, Config], None]:
    return first(bbox=bbox, segmentation=polygon(2, 3, 10, 12))


def content(change: Callable[[dict], object], split: str = 'train') -> Callable:
    return lambda root, cfg: edit(root, change, split)


def file(name: str, change: Callable[[Path], object]) -> Callable[[Path, Config], None]:
    return lambda root, cfg: change(root / name)


def options(**parts: object) -> Callable[[Path, Config], None]:
    return lambda root, cfg: cfg.merge_from_dict(
        {k.replace('__', '.'): v for k, v in parts.items()}
    )


def all_classes(names: tuple[str, ...]) -> Callable[[Path, Config], None]:
    metainfo = {
        f'{s}_dataloader__dataset__metainfo__classes': names for s in ('train', 'val', 'test')
    }
    return options(**metainfo)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def copied(path: Path, target: str) -> None:
    (path.parent / target).write_bytes(path.read_bytes())


def turned(orientation: int, size: tuple[int, int]) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: noise(path, size, exif=exif)


def error(kind: str, name: str, split: str = 'train') -> Expected:
    return {('error', kind, split, name)}


def warning(kind: str, name: str, split: str = 'train') -> Expected:
    return {('warning', kind, split, name)}


TRAIN = 'train_dataloader.dataset'
CLASSES_KEY = f'{TRAIN}.metainfo.classes'
