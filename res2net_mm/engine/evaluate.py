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

from ..data.sets.nodes import type_name
from ..deploy import optimize_for_inference
from ..deploy.folding import DTYPES
from ..evaluation.tables import report_classes
from ..files import check_writable
from ..weights import read_source
from .classes import SameClassesHook, class_names
from .config import drop_timm_weights, require
from .errors import ToolError
from .exported import exported_model, facts_of, is_exported
from .loading import unwrapped
from .pictures import use_our_pictures
from .runner import Runner, build_runner
from .tta import use_tta

_TYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in DTYPES}


def fast_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of :func:`optimize_for_inference`; None without ``--fast``."""
    if args.fast is not None:
        return dict(dtype=_TYPES[args.fast], compile=args.compile)
    if args.compile is not None:
        raise ToolError('--compile is a part of --fast: give both')
    return None


class FastHook(Hook):
    """Replaces the model before a test by :func:`optimize_for_inference`, with these options."""

    priority = 'LOWEST'  # the checkpoint is loaded, and averaged weights are in place

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def before_test_epoch(self, runner: Runner) -> None:
        # without the wrapper, as no gradients have to be added up
        runner.model = optimize_for_inference(unwrapped(runner.model), **self.options)


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
        checkpoint: Weights of the whole model, or an exported file.
        out: File for the COCO results.
        show_dir: Folder for pictures with predictions and ground truth.
        trust: Read the checkpoint with pickle.
        fast: Arguments of :func:`optimize_for_inference`; None measures the model itself.
        tta: Merge the predictions for each image, mirrored and in three sizes.
        conf: Leave out objects with a lower score, from figures and pictures.
        report: Called in the main process with the result, before anything else can fail.

    Returns:
        The metrics by name, and the class names.
    """
    require(cfg, 'measuring', 'test_dataloader', 'test_evaluator', 'test_cfg')
    exported = is_exported(checkpoint)
    if tta and exported:
        raise ToolError(f'--tta is for checkpoints: {checkpoint} predicts an image in one way')
    hooks: list[Hook] = [] if fast is None else [FastHook(fast)]
    hooks += [use_tta(cfg)] if tta else []
    if conf is not None:
        _check_conf(cfg, conf, out)
    if exported:
        cfg.model = exported_model(cfg, checkpoint, fast)
        cfg.pop('data_preprocessor', None)  # is in the file
    else:
        read_source(checkpoint, trust=trust)  # fails early if it is no checkpoint
        drop_timm_weights(cfg)
    _write_results(cfg, out)
    if show_dir is not None:
        _draw_pictures(cfg, show_dir, conf)
    cfg.load_from, cfg.resume = None if exported else checkpoint, False
    runner = build_runner(cfg, trust)
    runner.loads_exactly = True
    if exported:
        SameClassesHook('test').after_load_checkpoint(runner, dict(meta=runner.model.meta))
    if conf is not None:
        unwrapped(runner.model).register_forward_hook(partial(_drop_unsure, conf))
    for hook in hooks:
        runner.register_hook(hook)
    metrics = runner.test()
    classes = list(class_names(runner.test_dataloader.dataset))
    if report is not None and is_main_process():
        report(metrics, classes)
    for metric in runner.test_evaluator.metrics if out is not None else ():
        if fault := getattr(metric, 'unwritten', ''):
            raise ToolError(f'--out {out} was not written completely: {fault}')
    lost = [line for hook in runner.hooks for line in getattr(hook, 'failures', ())]
    if lost:
        raise ToolError(
            f'{len(lost)} pictures of --show-dir {show_dir} were not drawn; the first is {lost[0]}'
        )
    return metrics, classes


def _write_results(cfg: Config, out: str | None) -> None:
    if 'metrics' not in cfg.test_evaluator:
        cfg.test_evaluator = report_classes(cfg.test_evaluator, out)
    elif out is not None:
        raise ToolError('--out is for one data set: set outfile_prefix of test_evaluator.metrics')
    if out is not None:
        if not any('out' in metric for metric in cfg.test_evaluator):
            raise ToolError('--out writes COCO results, but test_evaluator has no CocoMetric')
        check_writable(out, '--out')


def _draw_pictures(cfg: Config, folder: str, conf: float | None) -> None:
    check_writable(folder, '--show-dir', folder=True)
    folder = str(Path(folder).absolute())
    least = {} if conf is None else dict(score_thr=conf)
    if use_our_pictures(cfg, draw=True, test_out_dir=folder, **least):
        return
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ToolError('--show-dir needs default_hooks.visualization in the config')
    pose = type_name(hook).endswith('PoseVisualizationHook')
    names = ('enable', 'out_dir') if pose else ('draw', 'test_out_dir')
    hook.update(dict(zip(names, (True, folder), strict=True)))


def _check_conf(cfg: Config, conf: float, out: str | None) -> None:
    if not 0 <= conf <= 1:
        raise ToolError(f'--conf must be a score from 0 to 1, but is {conf}')
    task = facts_of(cfg.model)['task']
    if cfg.get('default_scope', 'mmdet') != 'mmdet' or task not in ('detection', 'instance'):
        raise ToolError(f'--conf is for detectors, and this {type_name(cfg.model)} is none')
    if out is not None:
        raise ToolError('--out needs all objects, as AP of a part is wrong: leave out --conf')


def _drop_unsure(least: float, model: Any, inputs: Any, samples: list[Any]) -> list[Any]:
    """Forward hook of a detector."""
    for sample in samples:
        found = sample.pred_instances
        sample.pred_instances = found[found.scores >= least]
    return samples
