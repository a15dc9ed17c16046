"""int8 files from a config: calibrated on its training images, checked on its validation set."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from torch import nn
from tqdm import tqdm

from ..data.transforms import harden_dataset
from ..deploy.int8 import STEPS, has_int8_instructions, quantize
from ..deploy.running import ExportedModel
from ..files import writing
from .errors import ToolError
from .exported import ExportedModule, pixels_of, task_of
from .runner import Runner, prepare_config

# by how much a figure may fall; AP is a share, mIoU and PQ are in percent
BOUNDS = {'bbox_mAP': 0.005, 'segm_mAP': 0.005, 'mAP': 0.005, 'mIoU': 0.5, 'PQ': 0.5}


class TrainingImages(Sequence):
    """Training images of a config as its test pipeline resizes them: (h, w, 3), uint8, RGB.

    Args:
        cfg: The config.
        count: How many, spread evenly over the training set; all if there are fewer.
        model: The file that the images are for: they are made small enough for it.
    """

    def __init__(self, cfg: Config, count: int, model: ExportedModel) -> None:
        dataset = _innermost(cfg.train_dataloader.dataset)
        steps = _innermost(cfg.test_dataloader.dataset)['pipeline']
        dataset['pipeline'] = [step for step in steps if 'Annotations' not in str(step['type'])]
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.dataset, self.model = DATASETS.build(harden_dataset(dataset)), model
        most = len(self.dataset)
        self.indices = np.linspace(0, most - 1, min(count, most)).astype(int).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.model.fit(pixels_of(self.dataset[self.indices[i]]['inputs']))


def _innermost(dataset: dict[str, Any]) -> dict[str, Any]:
    """A copy of the data set within wrappers; of several the first."""
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return copy.deepcopy(dataset)


def write_int8(
    cfg: Config,
    source: str | Path,
    path: str | Path,
    count: int = 300,
    check: bool = False,
    say: Callable[[str], Any] = print,
) -> None:
    """Writes an int8 version of an exported file.

    Args:
        cfg: The config that it was exported with.
        source: The float32 file, ``.xml``.
        path: The file to write, ``.xml``.
        count: Training images to calibrate with.
        check: Measure both files on the validation set. If a figure falls by more than ``BOUNDS``,
            more of the model is left in float; if that does not help, nothing is written.
        say: Called with each line about what was done.

    Raises:
        ImportError: openvino or nncf is not installed.
        ToolError: Figures fall too far.
    """
    images = TrainingImages(cfg, count, ExportedModel(source))
    before = measure(cfg, ExportedModule(source, task_of(cfg.model))) if check else {}
    with TemporaryDirectory() as folder:
        partial = Path(folder, 'int8.xml')
        for step in range(len(STEPS)):
            say(f'int8: calibrating on {len(images)} training images')
            in_float = quantize(source, partial, images, step)
            say(f'in float: {", ".join(in_float)}')
            after = measure(cfg, ExportedModule(partial, task_of(cfg.model))) if check else {}
            for name in before:
                say(f'{name}: float32 {before[name]:.4f}, int8 {after[name]:.4f}')
            if all(before[name] - after[name] <= BOUNDS[_kind(name)] for name in before):
                break
        else:
            raise ToolError(f'{path} was not written: int8 loses too much, whatever is in float')
        for suffix in ('.bin', '.xml'):
            with writing(Path(path).with_suffix(suffix)) as target:
                shutil.copyfile(partial.with_suffix(suffix), target)
    if not has_int8_instructions():
        say('this processor has no VNNI instructions: int8 gains little here')


def measure(cfg: Config, model: nn.Module) -> dict[str, float]:
    """The figures of ``BOUNDS`` of a model on the validation set of a config.

    Args:
        cfg: The config.
        model: Its model in evaluation mode, or an :class:`ExportedModule` in its place.
    """
    cfg = prepare_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loader = Runner.build_dataloader(cfg.val_dataloader)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in tqdm(loader, desc='measuring', unit='batch'):
        evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
    metrics = evaluator.evaluate(len(loader.dataset))
    return {name: float(value) for name, value in metrics.items() if _kind(name) in BOUNDS}


def _kind(name: str) -> str:
    return name.rpartition('/')[2]
