"""Setting a config to a folder of annotated images: classes, files, metrics."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..checks import did_you_mean, listed
from ..data.check.agreement import class_counts
from ..data.convert.formats import convert_files
from ..data.convert.maps import IGNORED, label_rule, place_maps
from ..data.convert.writer import Conversion
from ..data.errors import DataError
from ..data.folders import ALL, Pair, recognise
from ..data.sets.coco import load_coco, loads_masks
from ..data.sets.nodes import find_nodes, type_name
from ..data.splitting import set_aside
from ..files import write_text
from .config import dataloaders, walk_dicts
from .errors import ToolError

_SHARE = 0.2  # of the images, set aside for validation


@dataclass
class _Split:
    dataset: dict[str, Any]  # what the config's dataset gets
    images: int
    boxes: int | None = None
    ignored: int = 0  # of the boxes: crowds, difficult objects

    def __str__(self) -> str:
        text = f'{self.images:,} images'
        if self.boxes is not None:
            text += f', {self.boxes:,} boxes'
        return text + (f' ({self.ignored:,} to ignore)' if self.ignored else '')


class OwnData:
    """What ``--data`` names, made ready for a config; what is converted goes to the work dir.

    Args:
        cfg: The config, which is not changed.
        path: See :func:`~res2net_mm.data.folders.recognise`.
        work_dir: Gets ``data/`` with lists, json and label maps.
        form: The format, if the folder has several.
        classes: Names in the order of the labels; by default as the folder has them.
        ignored: The value in masks that is no class.

    Attributes:
        classes: The names.
        splits: What each of ``train``, ``val`` and perhaps ``test`` has.
        lines: What to tell the user.

    Raises:
        DataError: The folder does not fit the config, or something has to be said by a flag.
    """

    def __init__(
        self,
        cfg: Config,
        path: str | Path,
        work_dir: str | Path,
        *,
        form: str | None = None,
        classes: Sequence[str] | None = None,
        ignored: int | None = None,
    ) -> None:
        self.task = _task(cfg)
        self.node = next(_nodes(cfg, 'train'))
        self.out = Path(work_dir).resolve() / 'data'
        self.seed = (cfg.get('randomness') or {}).get('seed') or 0
        self.folder = recognise(path, self.task, form)
        self.classes = tuple(classes or self.folder.classes)
        self.notes, self.splits, self.aside = list(self.folder.notes), {}, ''
        outer = cfg.train_dataloader.dataset
        if 'datasets' in outer or ('dataset' in outer and 'pipeline' not in outer):
            self.notes.append(f'{type_name(outer)} around the data of the config is left out')
        if self.task == 'boxes':
            evaluator = cfg.get('val_evaluator') or {}
            voc = self.node.family == 'voc' and type_name(evaluator).endswith('CocoMetric')
            self._boxes(voc, loads_masks(self.node.pipeline))
        elif self.task == 'maps':
            self._maps(ignored)
        else:
            self._class_folders()
        counts = '; '.join(f'{split} {found}' for split, found in self.splits.items())
        self.lines = [
            f'data: {self.folder.title} in {self.folder.root}',
            f'classes ({len(self.classes)}): {listed(self.classes, 20)}',
            f'images{" and boxes" * (self.task == "boxes")}: {counts}{self.aside}',
            *(f'note: {note}' for note in self.notes),
        ]

    def _split(self, splits: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
        """``train``, ``val`` and perhaps ``test``; their lists are written."""
        splits = dict(splits)
        unsplit = splits.pop(ALL, [])
        if unsplit and 'train' in splits:
            self.notes.append(f'{len(unsplit):,} images of no split are not used')
        splits.setdefault('train', unsplit)
        if not splits['train']:
            what = f'it has images for {listed(splits)} only: none to train on'
            raise DataError(what, str(self.folder.root), 'name them in a yaml')
        if not splits.get('val'):
            chosen = set_aside([image for image, _ in splits['train']], _SHARE, self.seed)
            splits['val'] = [pair for pair in splits['train'] if pair[0] in chosen]
            splits['train'] = [pair for pair in splits['train'] if pair[0] not in chosen]
            self.aside = (
                f'; val is {_SHARE:.0%} set aside with seed {self.seed}: {self.out}/val.txt'
            )
        ordered = {split: splits[split] for split in ('train', 'val', 'test') if splits.get(split)}
        for split, pairs in ordered.items():
            self._write(f'{split}.txt', ''.join(f'{image}\n' for image, _ in pairs))
        return ordered

    def _write(self, name: str, text: str) -> str:
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / name, text)
        return str(self.out / name)

    def _boxes(self, voc: bool, masks: bool) -> None:
        if self.folder.format == 'coco':
            found = self._coco()
        else:
            names = self.classes
            if self.folder.format == 'yolo':  # labels are numbers, in the order of its own names
                where, names = str(self.folder.root), self.folder.classes or names
                if not names:
                    raise DataError('nothing names its classes', where, 'name them with --classes')
                if missing := [name for name in self.classes if name not in names]:
                    what = f'it has no class {missing[0]!r}{did_you_mean(missing[0], names)}'
                    raise DataError(what, where, 'correct --classes')
            # an image of two splits is converted once
            pairs = [*dict.fromkeys(p for pairs in self.folder.splits.values() for p in pairs)]
            root = Path(os.path.commonpath([image.parent for image, _ in pairs]))
            self.out.mkdir(parents=True, exist_ok=True)
            report = Conversion(self.out / 'all.json', names or None, force=True)
            convert_files(report, self.folder.format, pairs, root)
            for tally in (report.left_out, report.notes):
                self.notes += [line.strip() for line in tally.lines()]
            splits = self._split(self.folder.splits)
            content = load_coco(str(report.file))
            if self.folder.format == 'yolo':
                content = self._ordered(content)
            else:
                self.classes = tuple(report.objects)
            found = {split: self._part(root, content, pairs, f'{split}.json')
                     for split, pairs in splits.items()}  # fmt: skip
            standard = (root / '../Annotations').is_dir() and root.name == 'JPEGImages'
            if voc and standard and self.folder.format == 'voc':
                self._keep_voc(root.parent, found)
                return
        objects = [a for *_, content in found.values() for a in content.get('annotations') or ()]
        if masks and not any(annotation.get('segmentation') for annotation in objects):
            raise DataError(
                'it has boxes without masks, which this model trains on',
                str(self.folder.root),
                'choose a config without masks, such as faster_rcnn_r2n50',
            )
        for split, (root, file, content) in found.items():
            names = {c['id'] for c in content['categories'] if c.get('name') in self.classes}
            boxes = [a for a in content['annotations'] if a.get('category_id') in names]
            self.splits[split] = _Split(
                dict(type='CocoDataset', data_root='', ann_file=str(file),
                     data_prefix=dict(img=f'{root}/')),
                len(content['images']), len(boxes), sum(bool(a.get('iscrowd')) for a in boxes),
            )  # fmt: skip

    def _coco(self) -> dict[str, tuple]:
        """Split -> folder of the images, json, its content."""
        files = {split: pairs[0] for split, pairs in self.folder.splits.items()}
        found = {split: (images, file, load_coco(str(file), split != 'test'))
                 for split, (images, file) in files.items()}  # fmt: skip
        if 'annotations' not in found.get('test', ({},))[-1] and 'test' in found:
            self.notes.append(f'{found.pop("test")[1]} has no annotations: not used')
        source = found.get('train') or found.get(ALL)
        first = source or next(iter(found.values()))
        self._choose_classes(first[2]['categories'], [c for *_, c in found.values()], first[1])
        images = {split: [(_image(root, entry), file) for entry in content['images']]
                  for split, (root, file, content) in found.items()}  # fmt: skip
        splits = self._split(images)
        used = {split: found.get(split) or source for split in splits}
        for split, (root, _, content) in used.items():
            names = (category.get('name') for category in content['categories'])
            moved = [name for name in names if name in self.classes] != list(self.classes)
            if moved or (self.aside and split != 'test'):
                content = self._ordered(content)
                used[split] = self._part(root, content, splits[split], f'{split}.json')
        return used

    def _ordered(self, content: dict) -> dict:
        """With the categories in the order of the classes: a data set numbers labels by it."""
        place = {name: i for i, name in enumerate(self.classes)}
        last = len(place)
        ordered = sorted(content['categories'], key=lambda c: place.get(c.get('name'), last))
        return dict(content, categories=ordered)

    def _choose_classes(self, categories: list, contents: list[dict], file: Path) -> None:
        """The categories that are asked for, in that order, or all but a mere parent."""
        names = [str(category.get('name')) for category in categories]
        missing = [name for name in self.classes if name not in names]
        if missing:
            what = f'it has no category {missing[0]!r}'
            raise DataError(what + did_you_mean(missing[0], names), str(file), 'correct --classes')
        used = {a.get('category_id') for c in contents for a in c.get('annotations') or ()}
        parents = {str(category.get('supercategory')) for category in categories[1:]}
        empty = bool(categories) and categories[0].get('id') not in used
        if not self.classes and len(names) > 1 and empty and parents == {names[0]}:
            self.notes.append(f'category {names[0]!r} is the parent of the others: no class')
            names = names[1:]  # as Roboflow writes it
        self.classes = self.classes or tuple(names)

    def _part(self, root: Path, content: dict, pairs: list[Pair], name: str) -> tuple:
        """The part of a COCO file with some images, written."""
        chosen = {image for image, _ in pairs}
        images = [image for image in content['images'] if _image(root, image) in chosen]
        ids = {image['id'] for image in images}
        part = dict(content, images=images)
        part['annotations'] = [a for a in content['annotations'] if a.get('image_id') in ids]
        return root, self._write(name, json.dumps(part, ensure_ascii=False)), part

    def _keep_voc(self, root: Path, found: dict[str, tuple]) -> None:
        """Lets the config's own VOC reader read the xml files."""
        for split, (_, _, content) in found.items():
            stems = [Path(image['file_name']).stem for image in content['images']]
            file = root / f'ImageSets/Main/{split}.txt'
            same = file.is_file() and file.read_text('utf-8-sig').split() == stems
            names = f'ImageSets/Main/{split}.txt'
            if not same:
                names = self._write(f'{split}_names.txt', ''.join(f'{stem}\n' for stem in stems))
            dataset = dict(type=self.node.config['type'], data_root=f'{root}/', ann_file=names,
                           data_prefix=dict(sub_data_root=''))  # fmt: skip
            crowds = sum(bool(a.get('iscrowd')) for a in content['annotations'])
            boxes = len(content['annotations'])
            self.splits[split] = _Split(dataset, len(content['images']), boxes, crowds)

    def _maps(self, ignored: int | None) -> None:
        splits = self._split(self.folder.splits)
        masks = [mask for pairs in splits.values() for _, mask in pairs]
        rule, words = label_rule(masks, self.classes, ignored)
        for split, pairs in splits.items():
            dataset, names = place_maps(pairs, self.out / 'maps' / split, rule)
            file = self._write(f'{split}_names.txt', ''.join(f'{name}\n' for name in names))
            dataset.update(type='BaseSegDataset', data_root='', ann_file=file)
            self.splits[split] = _Split(dataset, len(pairs))
        if words:
            self.notes.append(f'masks were written to {self.out / "maps"}: {words}')

    def _class_folders(self) -> None:
        root = self.folder.root
        if {*self.classes} != {*self.folder.classes}:
            what = f'its folders are {listed(self.folder.classes, 10)}'
            raise DataError(what, str(root), 'name the same with --classes, in any order')
        for split, pairs in self._split(self.folder.splits).items():
            lines = [f'{image.relative_to(root)} {self.classes.index(place.name)}\n'
                     for image, place in pairs]  # fmt: skip
            file = self._write(f'{split}_labels.txt', ''.join(lines))
            dataset = dict(type='CustomDataset', data_root='', ann_file=file,
                           data_prefix=f'{root}/')  # fmt: skip
            self.splits[split] = _Split(dataset, len(pairs))

    def apply(self, cfg: Config) -> None:
        """Puts classes, files and metrics into a config.

        Raises:
            ToolError: Its model has no number of classes, or it does not validate.
        """
        for key in ('val_dataloader', 'val_evaluator'):
            if cfg.get(key) is None:
                raise ToolError(f'--data needs a config with {key}')
        set_classes(cfg, len(self.classes))
        if 'test' not in self.splits:
            cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
            cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
        for split in dataloaders(cfg):
            found = self.splits.get(split) or self.splits['val']
            old = next(_nodes(cfg, split)).config
            kept = ['pipeline', 'test_mode'] + ['filter_cfg'] * (self.task == 'boxes')
            dataset = {key: old[key] for key in kept if key in old}
            dataset.update(found.dataset, metainfo=dict(classes=self.classes))
            outer = cfg[f'{split}_dataloader']
            if 'dataset' in outer.dataset and 'pipeline' in outer.dataset:  # that mixes images
                outer = outer.dataset
            outer.dataset = ConfigDict(dataset)
            if split != 'train':
                self._set_metric(cfg, f'{split}_evaluator', found.dataset.get('ann_file'))
        if self.task == 'maps':
            evaluators = [cfg.get(f'{split}_evaluator') for split in ('val', 'test')]
            for part in walk_dicts([cfg.model, *evaluators, *dataloaders(cfg).values()]):
                part.pop('reduce_zero_label', None)
                part.update(dict.fromkeys({'ignore_index', 'seg_pad_val'} & part.keys(), IGNORED))

    def _set_metric(self, cfg: Config, key: str, file: str) -> None:
        old = cfg.get(key) or {}
        if self.task == 'classes':
            for metric in walk_dicts(old):
                if type_name(metric).endswith('Accuracy') and len(self.classes) < 6:
                    metric.topk = (1,)
        elif self.task == 'boxes' and self.splits['val'].dataset['type'] == 'CocoDataset':
            if not type_name(old).endswith('CocoMetric'):
                masks = loads_masks(self.node.pipeline)
                old = dict(type='CocoMetric', metric=['bbox', 'segm'] if masks else 'bbox')
            new = {k: v for k, v in old.items() if k not in ('format_only', 'outfile_prefix')}
            cfg[key] = ConfigDict(new, ann_file=file)
        elif self.task == 'boxes':
            cfg[key] = ConfigDict({k: v for k, v in old.items() if k != 'ann_file'})


def set_classes(cfg: Config, count: int) -> None:
    """Sets the number of classes of every head of a model.

    A Hybrid Task Cascade loses its branch for stuff, whose maps own data does not have.

    Raises:
        ToolError: No head has a number of classes.
    """
    model = cfg.model
    keys = [key for key, _ in class_counts(model, 'model')]
    if not keys:
        raise ToolError('--data: the model of the config has no num_classes to set')
    cfg.merge_from_dict(dict.fromkeys(keys, count))
    if (preprocessor := model.get('data_preprocessor')) and 'num_classes' in preprocessor:
        preprocessor.num_classes = count
    roi_head = model.get('roi_head')
    if isinstance(roi_head, dict) and roi_head.get('semantic_head'):
        roi_head.update(semantic_head=None, semantic_roi_extractor=None)
        for step in walk_dicts([loader.get('dataset') for loader in dataloaders(cfg).values()]):
            if step.get('with_seg'):
                step.with_seg = False


def _image(root: Path, entry: dict) -> Path:
    return Path(os.path.normpath(root / str(entry.get('file_name'))))


def _task(cfg: Config) -> str:
    model = cfg.get('model') or {}
    if model.get('decode_head'):
        return 'maps'
    if cfg.get('default_scope') == 'mmpretrain' or type_name(model).endswith('ImageClassifier'):
        return 'classes'
    panoptic = model.get('panoptic_fusion_head')
    panoptic = panoptic and panoptic.get('num_stuff_classes', 53)
    if panoptic or cfg.get('default_scope') == 'mmpose' or not cfg.get('train_dataloader'):
        what = 'panoptic maps' if panoptic else 'data that --data cannot set'
        raise ToolError(f'--data: this config trains on {what}; write a config that names them')
    return 'boxes'


def _nodes(cfg: Config, split: str) -> Any:
    key = f'{split}_dataloader.dataset'
    return find_nodes(cfg[f'{split}_dataloader'].dataset, key, cfg.get('default_scope'))
