"""Pictures of predictions beside the ground truth, each under a name of its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
from mmengine.config import Config
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ..data.sets.nodes import type_name
from .drawing import draw_sample, write_picture
from .errors import ToolError
from .sources import below_common
from .terminal import warn

_REPLACED = ('DetVisualizationHook', 'SegVisualizationHook', 'VisualizationHook')


class PictureHook(Hook):
    """Draws predictions beside the ground truth, and no picture replaces another one.

    OpenMMLab's hooks name a picture by the file name of its image. Here its name is the path below
    the images' common folder. If one cannot be drawn or written, a warning says so.

    Args:
        draw: Draw at all.
        interval: In validation, draw the first image of each so many batches.
        score_thr: Least score of an object to draw.
        test_out_dir: Folder for the pictures of a test; None gives them to the visualizer's
            backends, which also get those of validation.
        backend_args: mmengine's way to read the images.
    """

    priority = 'LOW'

    def __init__(
        self,
        draw: bool = False,
        interval: int = 50,
        score_thr: float = 0.3,
        test_out_dir: str | None = None,
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.draw = draw
        self.interval = interval
        self.score_thr = score_thr
        self.folder = test_out_dir and Path(test_out_dir)
        self.backend_args = dict(backend_args) if backend_args else None
        self.failures: list[str] = []
        self._names: dict[str, str] = {}
        self._count = 0

    def before_val(self, runner: Runner) -> None:
        self._names = picture_names(runner.val_dataloader.dataset) if self.draw else {}

    def before_test(self, runner: Runner) -> None:
        """Raises ToolError if a picture would replace an image."""
        self._names = picture_names(runner.test_dataloader.dataset) if self.draw else {}
        if self.folder:
            images = set(map(os.path.realpath, self._names))
            pictures = {os.path.realpath(self.folder / name) for name in self._names.values()}
            if images & pictures:
                raise ToolError(
                    f'a picture would replace the image {min(images & pictures)}: name another '
                    'folder'
                )

    def after_val_iter(
        self, runner: Runner, batch_idx: int, outputs: Sequence[Any] | None = None, **_: Any
    ) -> None:
        step = runner.iter + batch_idx
        if self.draw and outputs and step % self.interval == 0:
            self._draw('val', outputs[0], step, None)

    def after_test_iter(
        self, runner: Runner, outputs: Sequence[Any] | None = None, **_: Any
    ) -> None:
        for sample in (outputs or ()) if self.draw else ():
            self._count += 1
            self._draw('test', sample, self._count, self.folder)

    def _draw(self, split: str, sample: Any, step: int, folder: Path | None) -> None:
        name = self._names.get(sample.img_path, os.path.basename(sample.img_path))
        visualizer = Visualizer.get_current_instance()
        try:
            image = self._read(sample)
            meta = visualizer.dataset_meta or {}
            drawn = draw_sample(image, sample, meta, self.score_thr, truth=True)
            if folder is None:
                shown = f'{split}_{name.replace(os.sep, "_")}'
                visualizer.add_image(shown, drawn, step=step)
            else:
                out = folder / (name if cv2.haveImageWriter(name) else f'{name}.png')
                out.parent.mkdir(parents=True, exist_ok=True)
                write_picture(out, drawn)
        except Exception as error:  # a lost picture must not cost the figures
            self.failures.append(f'{sample.img_path}: {error}')
            if len(self.failures) == 1:
                warn(f'no picture of {self.failures[0]}; the run goes on')

    def _read(self, sample: Any) -> Any:
        """(H, W, 3), RGB, turned as the model has seen it."""
        content = get(sample.img_path, backend_args=self.backend_args)
        image = mmcv.imfrombytes(content, channel_order='rgb')
        if image.shape[:2] == tuple(sample.get('ori_shape', image.shape)[:2]):
            return image
        return mmcv.imfrombytes(content, 'color_ignore_orientation', channel_order='rgb')


def picture_names(dataset: Any) -> dict[str, str]:
    """A name for the picture of each image of a data set, by the image's path."""
    try:
        return below_common(dataset.get_data_info(i)['img_path'] for i in range(len(dataset)))
    except (AttributeError, KeyError, TypeError):  # a data set unlike mmengine's
        return {}


def use_our_pictures(cfg: Config, **changes: Any) -> bool:
    """Replaces OpenMMLab's visualization hook in a config if it draws files, and says whether.

    ``changes`` are arguments of :class:`PictureHook`; with any, it is replaced in any case.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not isinstance(hook, Mapping) or type_name(hook).rpartition('.')[2] not in _REPLACED:
        return False
    if not changes and (hook.get('show') or not hook.get('draw')):
        return False
    accepted = inspect.signature(PictureHook).parameters
    kept = {key: value for key, value in hook.items() if key in accepted}
    kind = dict(type=f'{__name__}.{PictureHook.__name__}')
    cfg.default_hooks.visualization = kept | kind | changes
    return True
