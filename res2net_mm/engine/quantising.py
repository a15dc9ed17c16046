"""int8 files from a config: calibrated on its training images, checked on its validation set."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from torch import nn
from tqdm import tqdm

from ..data.transforms import harden_dataset
from ..deploy.int8 import STEPS, has_int8_instructions, quantize
from ..evaluation.images_run import check_finite
from ..files import writing
from .classes import SameClassesHook
from .config import first_dataset, require, test_pipeline
from .errors import ToolError
from .exported import ExportedModule, facts_of, pixels_of
from .runner import Runner, prepare_config

# by how much a figure may fall; AP and Sm are shares, the others are in percent
BOUNDS = dict(bbox_mAP=0.005, segm_mAP=0.005, mAP=0.005, Sm=0.005, mIoU=0.5, PQ=0.5, top1=0.5)


class ResizedImages(Sequence):
    """Images of a config's training or test set as its test pipeline resizes them.

    Each is (h, w, 3), uint8, RGB. They are ``count``, spread evenly over the set, or all if there
    are fewer. A DataError, if one is asked for, says that it cannot be read.
    """

    def __init__(self, cfg: Config, count: int, split: str = 'train') -> None:
        require(cfg, 'exporting', f'{split}_dataloader', 'test_dataloader')
        steps = test_pipeline(cfg)
        steps = [step for step in steps if 'Annotations' not in str(step['type'])]
        dataset = dict(first_dataset(cfg, split).config, pipeline=steps)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.dataset = DATASETS.build(harden_dataset(dataset))
        most = len(self.dataset)
        self.indices = np.linspace(0, most - 1, min(count, most)).astype(int).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return pixels_of(self.dataset[self.indices[i]]['inputs'])


def write_int8(
    cfg: Config,
    source: str | Path,
    path: str | Path,
    images: Sequence[np.ndarray],
    check: bool = False,
    say: Callable[[str], Any] = print,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes an int8 version of an ``.xml`` file that was exported with a config.

    ``check`` measures both on the validation set; ``meta`` is that of the checkpoint. If a figure
    falls by more than ``BOUNDS``, more of the model is left in float; if that does not help, a
    ToolError is raised.
    """
    before = measure(cfg, ExportedModule(source, facts_of(cfg.model)), meta) if check else {}
    with TemporaryDirectory() as folder:
        for step in range(len(STEPS)):
            partial = Path(folder, f'int8_{step}.xml')
            say(f'int8: calibrating on {len(images)} training images')
            in_float = quantize(source, partial, images, step)['int8']['float']
            say(f'in float: {", ".join(in_float)}')
            file = ExportedModule(partial, facts_of(cfg.model)) if check else None
            after = measure(cfg, file, meta) if check else {}
            if compare_figures(before, after, ('float32', 'int8'), say):
                break
        else:
            raise ToolError(f'{path} was not written: int8 loses too much, whatever is in float')
        for suffix in ('.bin', '.xml'):
            with writing(Path(path).with_suffix(suffix)) as target:
                shutil.copyfile(partial.with_suffix(suffix), target)
    if not has_int8_instructions():
        say('this processor has no VNNI instructions: int8 gains little here')


def compare_figures(
    before: Mapping[str, float],
    after: Mapping[str, float],
    names: tuple[str, str],
    say: Callable[[str], Any],
) -> bool:
    """Says figures of :func:`measure` side by side; whether none falls by more than ``BOUNDS``."""
    for name in before:
        say(f'{name}: {names[0]} {before[name]:.4f}, {names[1]} {after[name]:.4f}')
    bounds = {name: BOUNDS[name.split('/')[-1]] for name in before}
    return all(before[name] - after[name] <= bounds[name] for name in before)  # not if NaN


@torch.no_grad()
def measure(cfg: Config, model: nn.Module, meta: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures of ``BOUNDS`` of a config's model, or one in its place, on its validation set.

    ``meta`` is that of its checkpoint, which names its classes: they may be in another order.
    """
    cfg = prepare_config(cfg)
    require(cfg, 'measuring', 'val_dataloader', 'val_evaluator')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loader = Runner.build_dataloader(cfg.val_dataloader)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    run = SimpleNamespace(cfg=cfg, model=model, val_dataloader=loader)
    SameClassesHook('val').after_load_checkpoint(
        run, dict(meta=meta, state_dict=model.state_dict())
    )
    for batch in tqdm(loader, desc='measuring', unit='batch'):
        samples = model.test_step(batch)
        for sample in samples:
            check_finite(sample)
        evaluator.process(data_samples=samples, data_batch=batch)
    metrics = evaluator.evaluate(len(loader.dataset))
    found = {name: float(v) for name, v in metrics.items() if name.split('/')[-1] in BOUNDS}
    if not found:
        raise ToolError(f'val_evaluator of the config measures none of {", ".join(BOUNDS)}')
    return found
