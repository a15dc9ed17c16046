"""Setting a config to a folder of annotated images: classes, files, metrics."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..checks import did_you_mean, listed
from ..data.check.agreement import class_counts
from ..data.convert.formats import convert_files, text_lines
from ..data.convert.maps import IGNORED, label_rule, place_maps
from ..data.convert.writer import Conversion
from ..data.errors import DataError
from ..data.folders import ALL, TITLES, Pair, recognise
from ..data.sets.coco import load_coco, loads_masks
from ..data.sets.nodes import type_name
from ..data.splitting import set_aside
from ..files import write_text
from .config import dataloaders, first_dataset, walk_dicts
from .errors import ToolError

_SHARE = 0.2  # of the images, set aside for validation
_TYPO = 0.85  # how similar names are that differ by a slip


class OwnData:
    """What ``--data`` names, made ready for a config; what is converted goes to the work dir.

    Args:
        cfg: The config, which is not changed.
        path: See :func:`~res2net_mm.data.folders.recognise`.
        work_dir: Gets ``data/`` with lists, json and label maps.
        form: The format, if the folder has several.
        classes: Names in the order of the labels; by default as the folder has them.
        ignored: The value in masks that is no class.
        kept: The list of images that a run which goes on has set aside for validation.

    Raises:
        DataError: The folder does not fit the config, or something has to be said by a flag.
    """

    classes: tuple[str, ...]
    splits: dict[str, dict[str, Any]]  # train, val and perhaps test -> what the data set gets
    images: dict[str, int]  # of each split
    lines: list[str]  # to tell the user

    def __init__(
        self,
        cfg: Config,
        path: str | Path,
        work_dir: str | Path,
        *,
        form: str | None = None,
        classes: Sequence[str] | None = None,
        ignored: int | None = None,
        kept: Path | None = None,
    ) -> None:
        self.task = _task(cfg)
        steps = walk_dicts([*dataloaders(cfg).values()])
        if ignored is not None and any('LoadMask' in type_name(step) for step in steps):
            raise ToolError(
                '--ignore-label: the network of this config has one channel and counts every '
                'pixel; sem_fpn_r2n14_camvid, for example, can leave some out'
            )
        self.masks = loads_masks(first_dataset(cfg, 'train').pipeline)
        self.out = Path(work_dir).resolve() / 'data'
        self.seed = (cfg.get('randomness') or {}).get('seed') or 0
        self.kept = kept
        self.folder = recognise(path, self.task, form)
        self.classes = tuple(classes or self.folder.classes)
        self.notes, self.splits, self.aside = [*self.folder.notes], {}, ''
        outer = cfg.train_dataloader.dataset
        if 'datasets' in outer or ('dataset' in outer and 'pipeline' not in outer):
            self.notes.append(f'{type_name(outer)} around the data of the config is left out')
        if self.task == 'boxes':
            self._boxes()
        elif self.task == 'maps':
            self._maps(ignored)
        else:
            self._class_folders()
        counts = ', '.join(f'{split} {count:,}' for split, count in self.images.items())
        self.lines = [
            f'data: {TITLES[self.folder.format]} in {self.folder.root}',
            f'classes ({len(self.classes)}): {listed(self.classes, 20)}',
            f'images: {counts}{self.aside}',
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
            what = f'it has images for {listed(s for s in splits if splits[s])} only'
            raise DataError(what, str(self.folder.root), 'name them in a yaml')
        if not splits.get('val'):
            pairs, kept = splits['train'], None
            how = f'{_SHARE:.0%} set aside with seed {self.seed}'
            if self.kept is not None:
                kept = [Path(line) for line in text_lines(self.kept)]
                how = 'what the run set aside at its start'
            chosen = set_aside([image for image, _ in pairs], _SHARE, self.seed, kept)
            if self.kept is not None:  # what was trained on does not measure, copy or not
                chosen -= {Path(line) for line in text_lines(self.kept.with_name('train.txt'))}
            if not chosen or len(chosen) == len(pairs):
                what = f'the run set aside none or all of its images ({self.kept})'
                raise DataError(what, str(self.folder.root), 'put it where it was, or start anew')
            splits['val'] = [pair for pair in pairs if pair[0] in chosen]
            splits['train'] = [pair for pair in pairs if pair[0] not in chosen]
            self.aside = f'; val is {how}: {self.out}/val.txt'
        ordered = {split: splits[split] for split in ('train', 'val', 'test') if splits.get(split)}
        for split, pairs in ordered.items():
            self._write(f'{split}.txt', [str(image) for image, _ in pairs])
        self.images = {split: len(pairs) for split, pairs in ordered.items()}
        return ordered

    def _write(self, name: str, lines: Sequence[str]) -> str:
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / name, ''.join(f'{line}\n' for line in lines))
        return str(self.out / name)

    def _boxes(self) -> None:
        # split -> folder of the images, json, its content; the images of each split
        if self.folder.format == 'coco':
            sources = {}
            for split, [(root, file)] in self.folder.splits.items():
                content = load_coco(str(file), split != 'test')
                sources[split] = root, file, {'annotations': [], **content}
            pairs = {split: [(_image(root, entry), file) for entry in content['images']]
                     for split, (root, file, content) in sources.items()}  # fmt: skip
        else:
            sources, pairs = {ALL: self._converted()}, self.folder.splits
        splits = self._split(pairs)
        parent = self._choose_classes(sources)
        place = {name: i for i, name in enumerate(self.classes)}
        for split, part in splits.items():
            root, file, content = sources.get(split) or sources.get('train') or sources[ALL]
            chosen = {image for image, _ in part}
            images = [entry for entry in content['images'] if _image(root, entry) in chosen]
            ids = {entry['id'] for entry in images}
            annotated = any(a.get('image_id') in ids for a in content['annotations'])
            if split == 'test' and not annotated:
                self.notes.append('test has no annotations: not used')
                del self.images[split]
                continue
            self.images[split] = len(images)  # some may be left out
            names = [c.get('name') for c in content['categories'] if str(c.get('name')) in place]
            if len(images) < len(content['images']) or names != list(self.classes):
                content = dict(content, images=images)
                content['annotations'] = [
                    a for a in content['annotations'] if a.get('image_id') in ids
                ]
                # a data set numbers its labels in the order of the categories
                categories = [dict(c, name=str(c.get('name'))) for c in content['categories']]
                content['categories'] = sorted(
                    (c for c in categories if (c.get('id'), c['name']) != parent),
                    key=lambda c: place.get(c['name'], len(place)),
                )
                file = self._write(f'{split}.json', [json.dumps(content, ensure_ascii=False)])
            self.splits[split] = dict(type='CocoDataset', data_root='', ann_file=str(file),
                                      data_prefix=dict(img=f'{root}/'))  # fmt: skip

    def _converted(self) -> tuple[Path, Path, dict]:
        """All images of another format; an image of two splits is converted once."""
        pairs = [*dict.fromkeys(p for pairs in self.folder.splits.values() for p in pairs)]
        root = Path(os.path.commonpath([image.parent for image, _ in pairs]))
        kind, names = self.folder.format, self.classes
        if kind == 'yolo':  # labels are numbers, in the order of its own names
            names = self.folder.classes or names
            if not names:
                where = str(self.folder.root)
                raise DataError('nothing names its classes', where, 'name them with --classes')
        self.out.mkdir(parents=True, exist_ok=True)
        out = self.out / 'all.json'
        report = Conversion(out, names or None, force=True)
        report.keypoints = self.folder.keypoints
        convert_files(report, kind, pairs, root)
        for name, count in report.objects.items():
            if not count and (hint := did_you_mean(name, report.others, _TYPO)):
                what = f'it has no object of class {name!r}{hint}'
                raise DataError(what, str(self.folder.root), 'correct --classes')
        self.notes += [line.strip() for line in report.left_out.lines() + report.notes.lines()]
        return root, out, load_coco(str(out))

    def _choose_classes(self, sources: dict[str, tuple[Path, Path, dict]]) -> tuple | None:
        """The categories are the classes, unless some are asked for, apart from a mere parent.

        Returns id and name of the parent, which may have the name of a class.
        """
        categories = (sources.get('train') or sources[ALL])[2]['categories']
        names = [str(category.get('name')) for category in categories]
        used = {a.get('category_id') for *_, c in sources.values() for a in c['annotations']}
        if missing := [name for name in self.classes if name not in names]:
            what = f'it has no class {missing[0]!r}{did_you_mean(missing[0], names)}'
            raise DataError(what, str(self.folder.root), 'correct --classes')
        parents = {str(category.get('supercategory')) for category in categories[1:]}
        abstract = names and parents == {names[0]} and categories[0].get('id') not in used
        if abstract and not self.classes:
            self.notes.append(f'category {names[0]!r} is the parent of the others: no class')
            names = names[1:]  # as Roboflow writes it
        self.classes = self.classes or tuple(names)
        others = {str(category.get('name')) for category in categories[1:]}
        if not abstract or not others.issuperset(self.classes):
            return None  # or it is asked for
        return categories[0].get('id'), str(categories[0].get('name'))

    def _maps(self, ignored: int | None) -> None:
        splits = self._split(self.folder.splits)
        masks = [mask for pairs in splits.values() for _, mask in pairs]
        rule, words = label_rule(masks, self.classes, ignored)
        for split, pairs in splits.items():
            dataset, names = place_maps(pairs, self.out / 'maps' / split, rule)
            file = self._write(f'{split}_names.txt', names)
            self.splits[split] = dict(dataset, type='BaseSegDataset', data_root='', ann_file=file)
        if words:
            self.notes.append(f'masks were written to {self.out / "maps"}: {words}')

    def _class_folders(self) -> None:
        root = self.folder.root
        if {*self.classes} != {*self.folder.classes}:
            what = f'its folders are {listed(self.folder.classes, 10)}'
            raise DataError(what, str(root), 'name the same with --classes, in any order')
        for split, pairs in self._split(self.folder.splits).items():
            if split != 'test' and (none := {*self.classes} - {place.name for _, place in pairs}):
                self.notes.append(f'{split} has no image of {listed(sorted(none))}')
            lines = [f'{image.relative_to(root)} {self.classes.index(place.name)}'
                     for image, place in pairs]  # fmt: skip
            file = self._write(f'{split}_labels.txt', lines)
            self.splits[split] = dict(type='CustomDataset', data_root='', ann_file=file,
                                      data_prefix=f'{root}/')  # fmt: skip

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
        kept = ('pipeline', 'test_mode', *['filter_cfg'] * (self.task == 'boxes'))
        for split, outer in dataloaders(cfg).items():
            new, old = self.splits.get(split) or self.splits['val'], first_dataset(cfg, split)
            dataset = {key: old.config[key] for key in kept if key in old.config}
            if 'dataset' in outer.dataset and 'pipeline' in outer.dataset:  # that mixes images
                outer = outer.dataset
            outer.dataset = ConfigDict(dataset, **new, metainfo=dict(classes=self.classes))
            if self.task == 'boxes' and split != 'train':
                metric = cfg.get(f'{split}_evaluator')
                if not type_name(metric).endswith('CocoMetric'):
                    metric = dict(type='CocoMetric', metric=['bbox'] + ['segm'] * self.masks)
                part = dict(ann_file=new['ann_file'], format_only=False, outfile_prefix=None)
                cfg[f'{split}_evaluator'] = ConfigDict(metric, **part)
        evaluators = [cfg.get(f'{split}_evaluator') for split in ('val', 'test')]
        if self.task == 'maps':
            for part in walk_dicts([cfg.model, *evaluators, *dataloaders(cfg).values()]):
                part.pop('reduce_zero_label', None)
                part.update(dict.fromkeys({'ignore_index', 'seg_pad_val'} & part.keys(), IGNORED))
        for metric in walk_dicts(evaluators if len(self.classes) < 6 else ()):
            if self.task == 'classes' and type_name(metric).endswith('Accuracy'):
                metric.topk = (1,)


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
    for preprocessor in (model.get('data_preprocessor'), cfg.get('data_preprocessor')):
        if 'num_classes' in (preprocessor or {}):
            preprocessor.num_classes = count
    if (model.get('roi_head') or {}).get('semantic_head'):
        model.roi_head.update(semantic_head=None, semantic_roi_extractor=None)
        for step in walk_dicts([*dataloaders(cfg).values()]):
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
