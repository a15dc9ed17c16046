"""Measuring a checkpoint on the test split of a config."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.nn.parallel import DistributedDataParallel

from ..deploy import optimize_for_inference
from ..deploy.folding import DTYPES
from ..evaluation import collect_results, split_coco_metrics
from ..weights import read_source
from .errors import ToolError
from .runner import Runner, build_runner

FAST = {str(dtype).removeprefix('torch.'): dtype for dtype in DTYPES}  # what --fast takes


class FastHook(Hook):
    """Replaces the model by what :func:`optimize_for_inference` makes of it, before a test.

    Of all hooks it comes last: the checkpoint is loaded by then, and averaged weights are in place.

    Args:
        dtype: Of backbone and neck.
    """

    priority = 'LOWEST'

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def before_test_epoch(self, runner: Runner) -> None:
        """Raises ToolError where the weights are spread over processes."""
        model = runner.model
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                raise ToolError(
                    f'--fast needs a whole model in each process, not {type(model).__name__}'
                )
            model = model.module  # the gradients that the wrapper adds up are not needed
        runner.model = optimize_for_inference(model, self.dtype)


def run_test(
    cfg: Config,
    checkpoint: str,
    *,
    out: str | None = None,
    show_dir: str | None = None,
    trust: bool = False,
    fast: torch.dtype | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Evaluates a checkpoint.

    Args:
        cfg: A config from :func:`prepare_config`.
        checkpoint: File with the weights of the whole model.
        out: File for the COCO results; None writes none.
        show_dir: Folder for pictures with predictions and ground truth; None draws none.
        trust: Read the checkpoint with pickle.
        fast: Measure what :func:`optimize_for_inference` makes of the model, computing in this
            type; None measures the model itself.

    Returns:
        The metrics by name, and the class names.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        CheckpointError: It is damaged, or does not fit the config's model.
        ToolError: The config has no test set, or no COCO metric to write ``out`` with; or
            ``fast`` is asked of a model whose weights are spread over processes.
    """
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(key) is None:
            raise ToolError(f'the config has no {key}, which measuring needs')
    read_source(checkpoint, trust=trust)  # before any work: is it one?
    if 'metrics' not in cfg.test_evaluator:
        cfg.test_evaluator = split_coco_metrics(cfg.test_evaluator, out)
    if out is not None:
        if not any('outfile_prefix' in metric for metric in cfg.test_evaluator):
            raise ToolError('--out writes COCO results, but test_evaluator has no CocoMetric')
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    if show_dir is not None:
        hook = cfg.default_hooks.get('visualization')
        if hook is None:
            raise ToolError('--show-dir needs default_hooks.visualization in the config')
        hook.update(draw=True, test_out_dir=str(Path(show_dir).absolute()))
        if hook.type.endswith('SegVisualizationHook'):
            # mmseg's hook knows no test_out_dir: its pictures go where the visualizer's do
            hook.pop('test_out_dir')
            hook.interval = 1
            cfg.visualizer.save_dir = show_dir
    cfg.load_from, cfg.resume = checkpoint, False
    runner = build_runner(cfg, trust)
    runner.loads_exactly = True
    if fast is not None:
        runner.register_hook(FastHook(fast))
    metrics = runner.test()
    if out is not None and is_main_process():
        collect_results(out)
    classes = runner.test_dataloader.dataset.metainfo.get('classes') or ()
    return metrics, list(classes)
