"""Measuring a checkpoint on the test split of a config."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.nn.parallel import DistributedDataParallel

from ..data.sets.nodes import type_name
from ..deploy import optimize_for_inference
from ..deploy.folding import DTYPES
from ..evaluation import collect_results, discard_results, split_coco_metrics
from ..files import check_writable
from ..weights import read_source
from .classes import SameClassesHook, class_names
from .config import drop_timm_weights
from .errors import ToolError
from .exported import exported_model, facts_of, is_exported
from .loading import unwrapped
from .pictures import PictureHook, use_our_pictures
from .runner import Runner, build_runner
from .terminal import warn
from .tta import use_tta

_TYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in DTYPES}


def fast_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of :func:`optimize_for_inference`; None without ``--fast``.

    Raises:
        ToolError: ``--compile`` without ``--fast``.
    """
    if args.fast is None:
        if args.compile is not None:
            raise ToolError('--compile is a part of --fast: give both')
        return None
    return dict(dtype=_TYPES[args.fast], compile=args.compile)


class FastHook(Hook):
    """Replaces the model with the result of :func:`optimize_for_inference`, before a test.

    Runs after all other hooks: the checkpoint is loaded, and averaged weights are in place.

    Args:
        options: Arguments of :func:`optimize_for_inference`.
    """

    priority = 'LOWEST'

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def before_test_epoch(self, runner: Runner) -> None:
        """Raises ToolError if the weights are spread over processes."""
        model = runner.model
        if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
            raise ToolError(
                f'--fast needs a whole model in each process, not {type(model).__name__}'
            )
        # without the wrapper, as no gradients have to be added up
        runner.model = optimize_for_inference(unwrapped(model), **self.options)


def run_test(
    cfg: Config,
    checkpoint: str,
    *,
    out: str | None = None,
    show_dir: str | None = None,
    trust: bool = False,
    fast: Mapping[str, Any] | None = None,
    tta: bool = False,
    conf: float | None = None,
    report: Callable[[dict[str, float], list[str]], None] | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Evaluates a checkpoint.

    Args:
        cfg: A config from :func:`prepare_config`.
        checkpoint: File with the weights of the whole model, or an exported file.
        out: File for the COCO results; None writes none.
        show_dir: Folder for pictures with predictions and ground truth; None draws none.
        trust: Read the checkpoint with pickle.
        fast: Arguments of :func:`optimize_for_inference`; None measures the model itself.
        tta: Merge the predictions for each image, mirrored and in three sizes.
        conf: Leave out objects with a lower score, from figures and pictures.
        report: Called in the main process with the result, before anything else can fail.

    Returns:
        The metrics by name, and the class names.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        CheckpointError: It is damaged, or does not fit the config's model.
        ToolError: The config has no test set, or no COCO metric to write ``out`` with; the weights
            are spread over processes and ``fast`` is given; results or pictures were not written.
        OSError: ``out`` or ``show_dir`` cannot be written; raised before the test.
    """
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ToolError(f'the config has no {key}, which measuring needs')
    exported = is_exported(checkpoint)
    merging = None
    if conf is not None:
        _check_conf(cfg, conf)
    if tta and exported:
        raise ToolError(f'--tta is for checkpoints: {checkpoint} predicts an image in one way')
    if tta:
        merging = use_tta(cfg)
    if exported:
        cfg.model = exported_model(cfg, checkpoint, fast)
    else:
        read_source(checkpoint, trust=trust)  # fails early if it is no checkpoint
        drop_timm_weights(cfg)
    if 'metrics' not in cfg.test_evaluator:
        cfg.test_evaluator = split_coco_metrics(cfg.test_evaluator, out)
    elif out is not None:
        raise ToolError('--out is for one data set: set outfile_prefix of test_evaluator.metrics')
    if out is not None:
        if not any('outfile_prefix' in metric for metric in cfg.test_evaluator):
            raise ToolError('--out writes COCO results, but test_evaluator has no CocoMetric')
        check_writable(out, '--out')
    if show_dir is not None:
        check_writable(show_dir, '--show-dir', folder=True)
        folder = str(Path(show_dir).absolute())
        least = {} if conf is None else dict(score_thr=conf)
        if not use_our_pictures(cfg, draw=True, test_out_dir=folder, **least):
            hook = cfg.default_hooks.get('visualization')
            if hook is None:
                raise ToolError('--show-dir needs default_hooks.visualization in the config')
            pose = type_name(hook).endswith('PoseVisualizationHook')
            names = ('enable', 'out_dir') if pose else ('draw', 'test_out_dir')
            hook.update(dict(zip(names, (True, folder), strict=True)))
    cfg.load_from, cfg.resume = None if exported else checkpoint, False
    runner = build_runner(cfg, trust)
    runner.loads_exactly = True
    if exported:
        SameClassesHook('test').after_load_checkpoint(runner, dict(meta=runner.model.meta))
    if conf is not None:
        unwrapped(runner.model).register_forward_hook(partial(_drop_unsure, conf))
    if fast is not None:
        runner.register_hook(FastHook(fast))
    if merging is not None:
        runner.register_hook(merging)
    try:
        metrics = runner.test()
        classes = list(class_names(runner.test_dataloader.dataset))
        if report is not None and is_main_process():
            report(metrics, classes)
        if out is not None and is_main_process():
            masks = any(metric.get('metric') == 'segm' for metric in cfg.test_evaluator)
            if len(collect_results(out)) < 1 + masks:
                raise ToolError(f'--out {out} was not written completely: the log says why')
    finally:
        if out is not None:
            discard_results(out)
    for hook in runner.hooks:
        if isinstance(hook, PictureHook) and hook.failures:
            raise ToolError(
                f'{len(hook.failures)} pictures of --show-dir {show_dir} were not drawn; the first '
                f'is {hook.failures[0]}'
            )
    return metrics, classes


def _check_conf(cfg: Config, conf: float) -> None:
    if not 0 <= conf <= 1:
        raise ToolError(f'--conf must be a score from 0 to 1, but is {conf}')
    task = facts_of(cfg.model)['task']
    if cfg.get('default_scope', 'mmdet') != 'mmdet' or task not in ('detection', 'instance'):
        raise ToolError(f'--conf is for detectors, and this {type_name(cfg.model)} is none')
    warn(f'the figures are those of objects with a score of at least {conf}')


def _drop_unsure(least: float, model: Any, inputs: Any, samples: list[Any]) -> list[Any]:
    """Forward hook of a detector."""
    for sample in samples:
        found = sample.pred_instances
        sample.pred_instances = found[found.scores >= least]
    return samples
