"""A detector's test loop on images: mmdet's way, ours, and ours with ``--fast``.

A round is the loop over all images: the config's data loader with its workers, ``test_step`` and
the evaluator's ``process``; the figures at the end and ``--fast``'s folding before are not timed.
mmdet's way is mmengine's Runner with mmdet's own Res2Net, metric and transforms, on the operators
that there are: where mmcv has none of its own, torchvision's. Each way has a process of its own, in
which ours sets what our tools set.

All have the same random weights. Batch norm has the statistics of the first image, and the
classifier is scaled so that on that image ``CANDIDATES`` pairs of proposal and class pass the score
threshold: what is done after the network is about what it is for a trained detector, where random
weights as such would leave it nothing to do.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn

from ..engine.config import load_config, our_backbones
from ..engine.errors import ToolError
from ..engine.evaluate import FastHook
from ..engine.infer import classes_of, find_images
from ..engine.runner import build_runner, prepare_config
from ..ops.memory import can_keep_memory, keep_freed_memory
from ..registry import SCOPE
from .detector_weights import first_batches, make_weights
from .measure import circumstances, exact_float32, interleave, now
from .peers import require

BOUND = 1e-3
COMPARED = 3  # images of which the outputs are compared
YARDSTICK, OURS, FAST = CONTENDERS = 'mmdet', 'ours', 'ours fast'
# part of the profile -> module within the model, method
PARTS = {
    'preprocessor': ('data_preprocessor', 'forward'),
    'backbone': ('backbone', 'forward'),
    'neck': ('neck', 'forward'),
    'rpn_head': ('rpn_head', 'predict'),
    'roi_align': ('roi_head.bbox_roi_extractor', 'forward'),
    'bbox_head': ('roi_head.bbox_head', 'forward'),
    'post-processing': ('roi_head.bbox_head', 'predict_by_feat'),
    'mask_head': ('roi_head', 'predict_mask'),
}
LOADING, EVALUATOR, REST = 'data loading', 'evaluator', 'the rest'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument(
        '--config', default='faster_rcnn_r2n50.py', help='of a Faster or Mask R-CNN'
    )
    parser.add_argument(
        '--images',
        type=Path,
        metavar='FOLDER',
        help='images, also in folders below it ($RES2NET_MM_DATA/coco_ccby)',
    )
    parser.add_argument('--limit', type=int, metavar='N', help='take the first images alone')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times the three on a folder of images, after a comparison of their outputs.

    Times are seconds an image.

    Returns:
        The record, with the seconds an image that each part of the model takes as ``profile``.

    Raises:
        ToolError: An argument or the config does not fit, mmdet is missing, or outputs differ.
        FileNotFoundError: There is no such folder.
    """
    images = _images(args.images, args.limit)
    cfg = load_config(args.config)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        with redirect_stdout(io.StringIO()):  # pycocotools tells of its index
            runners = build(cfg, images, folder, args.device)
        apart = {YARDSTICK: 0.0}
        apart |= {name: compare(runners[YARDSTICK], runners[name]) for name in (OURS, FAST)}
        torch.save(runners[YARDSTICK].model.state_dict(), folder / 'weights.pth')
        del runners
        calls = {}
        for name in CONTENDERS:
            pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
            calls[name] = partial(_ask, stack.enter_context(pool))
            calls[name](
                _start, name, args.config, images, folder, args.device, torch.get_num_threads()
            )
        rounds = interleave(
            {name: partial(call, _round) for name, call in calls.items()},
            args.rounds,
            args.device,
            warmup=1,
        )
        profiles = {name: calls[name](_profile, args.device) for name in (YARDSTICK, FAST)}
    times = {name: [taken / len(images) for taken in of] for name, of in rounds.items()}
    speeds = [f'{name} {1 / statistics.median(of):.2f}' for name, of in times.items()]
    return dict(
        task='detector',
        title=f'Test loop of {Path(args.config).name} over {len(images)} images, by the image',
        yardstick=YARDSTICK,
        rows=[
            dict(
                name=name,
                times=times[name],
                memory_mib=None,
                gmacs=None,
                difference=apart[name],
                note='keeps freed memory' if name != YARDSTICK and can_keep_memory() else '',
            )
            for name in CONTENDERS
        ],
        profile=profiles,
        notes=[f'images a second: {", ".join(speeds)}'],
        **circumstances(args),
    )


def _ask(pool: ProcessPoolExecutor, function: Callable[..., Any], *args: Any) -> Any:
    return pool.submit(function, *args).result()


_RUNNERS: list[Runner] = []  # the contender of this process


def _start(
    name: str, config: str, images: list[Path], folder: Path, device: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    if name != YARDSTICK:
        keep_freed_memory()  # as our tools do
    state = torch.load(folder / 'weights.pth', weights_only=True)
    own = folder / f'of {name}'
    own.mkdir()
    with redirect_stdout(io.StringIO()):
        _RUNNERS.extend(build(load_config(config), images, own, device, [name], state).values())


def _round() -> None:
    loop_over(_RUNNERS[0])


def _profile(device: str) -> dict[str, float]:
    return profile(_RUNNERS[0], device)


def _images(folder: Path | None, limit: int | None) -> list[Path]:
    if limit is not None and limit < 1:
        raise ToolError(f'--limit must be at least 1, but is {limit}')
    if folder is None:
        data = os.environ.get('RES2NET_MM_DATA')
        if not data:
            raise ToolError('--images is needed where RES2NET_MM_DATA is not set')
        folder = Path(data, 'coco_ccby')
    return find_images(folder)[:limit]


def build(
    cfg: Config,
    images: list[Path],
    folder: Path,
    device: str,
    names: Sequence[str] = CONTENDERS,
    state: Mapping[str, Tensor] | None = None,
) -> dict[str, Runner]:
    """The Runner of each contender, all with the same weights.

    Args:
        cfg: Config of a two-stage detector on our Res2Net.
        images: What its test set is made of.
        folder: For the annotation file and logs.
        device: That the models go to.
        names: Of the contenders.
        state: The weights; None makes them, by the yardstick.

    Raises:
        ToolError: mmdet is missing, or has no such network.
    """
    require('mmdet')
    cfg = copy.deepcopy(cfg)
    parts = our_backbones(cfg)
    own = [part for part in parts if part.type == f'{SCOPE}.Res2Net']
    if len(parts) != 1 or own != [cfg.model.get('backbone')]:
        raise ToolError('the config must have a Res2Net of this package as its only backbone')
    _use_images(cfg, images, folder)
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.first_block = 'mmdet'
    cfg.log_level = 'ERROR'
    runners = {name: _make_runner(name, cfg, folder) for name in names}
    state = make_weights(runners[YARDSTICK], device) if state is None else state
    for name, runner in runners.items():
        runner.test_loop  # noqa: B018  (is built on first access)
        runner.call_hook('before_run')
        runner.model.load_state_dict(state)
        runner.model.to(device).eval()
        if name == FAST:
            FastHook({}).before_test_epoch(runner)
    return runners


def _make_runner(name: str, cfg: Config, folder: Path) -> Runner:
    cfg = copy.deepcopy(cfg)
    if name == YARDSTICK:
        cfg.model.backbone.type = 'mmdet.Res2Net'
        cfg.model.backbone.pop('first_block')
        cfg.work_dir = str(folder / name)
    else:
        cfg = prepare_config(cfg, work_dir=str(folder / name))
    cfg.experiment_name = f'{folder.name}_{name}'
    if name != YARDSTICK:
        return build_runner(cfg)
    try:
        return Runner.from_cfg(cfg)
    except TypeError as error:
        raise ToolError(f"mmdet's Res2Net cannot be built from the config: {error}") from error


def _use_images(cfg: Config, images: list[Path], folder: Path) -> None:
    """Makes the test set of a config one of images without objects."""
    records = []
    for number, path in enumerate(images, 1):
        with Image.open(path) as image:
            width, height = image.size
        records.append(dict(id=number, file_name=str(path.resolve()), width=width, height=height))
    names = classes_of(cfg, {})
    content = dict(
        images=records,
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )
    path = folder / 'images.json'
    path.write_text(json.dumps(content))
    dataset = cfg.test_dataloader.dataset
    if not dataset.type.endswith('CocoDataset'):
        raise ToolError(f'test_dataloader.dataset must be a CocoDataset, but is a {dataset.type}')
    dataset.update(data_root='', ann_file=str(path), data_prefix=dict(img=''))
    cfg.test_evaluator = dict(
        type='mmdet.CocoMetric', ann_file=str(path), metric='bbox', backend_args=None
    )


def loop_over(runner: Runner) -> None:
    """One round: mmengine's test loop up to the figures."""
    loop = runner.test_loop
    runner.call_hook('before_test')
    runner.call_hook('before_test_epoch')
    runner.model.eval()
    for number, batch in enumerate(loop.dataloader):
        loop.run_iter(number, batch)
    for metric in loop.evaluator.metrics:
        metric.results.clear()


@torch.no_grad()
def compare(yardstick: Runner, other: Runner) -> float:
    """The largest difference in what two detectors give for the first images.

    Features and maps of the RPN are compared with its largest value; then, from the yardstick's
    proposals in both, scores, and boxes in shares of the longer side of the image. Which proposals
    there are is not compared: thousands are equally good but for rounding.

    Raises:
        ToolError: It is above 1e-3, or there are other detections.
    """
    worst = 0.0
    with exact_float32():
        for number, batch in enumerate(first_batches(yardstick)):
            if number == COMPARED:
                break
            reference, proposals = _outputs(yardstick.model, batch)
            found, _ = _outputs(other.model, batch, proposals)
            for a, b in zip(reference[0], found[0], strict=True):
                apart = (a - b).abs().max() / a.abs().max().clamp(min=1e-12)
                worst = max(worst, apart.item())
            for a, b in zip(reference[1], found[1], strict=True):
                worst = max(worst, _apart(a, b))
    if not worst <= BOUND:
        raise ToolError(f'outputs of the detectors differ by {worst:.1e}, more than {BOUND:.0e}')
    return worst


def _outputs(
    model: nn.Module, batch: Mapping[str, Any], proposals: list | None = None
) -> tuple[tuple[list[Tensor], list[Tensor]], list]:
    """Maps and detections of a batch, (number, 6) an image; and the proposals that they are of."""
    data = model.data_preprocessor(copy.deepcopy(dict(batch)))
    samples = data['data_samples']
    levels = model.extract_feat(data['inputs'])
    scores, deltas = model.rpn_head(levels)
    if proposals is None:
        proposals = model.rpn_head.predict(levels, samples, rescale=False)
    found = model.roi_head.predict(levels, copy.deepcopy(proposals), samples, rescale=True)
    detections = []
    for instances, sample in zip(found, samples, strict=True):
        columns = instances.bboxes / max(sample.ori_shape), instances.scores, instances.labels
        detections.append(torch.column_stack(columns))
    return ([*levels, *scores, *deltas], detections), proposals


def _apart(a: Tensor, b: Tensor) -> float:
    """How far the detections of one are from the nearest of the other, whatever their order."""
    if len(a) == 0 or len(b) == 0:
        return 0.0 if len(a) == len(b) else float('inf')
    distances = (a[:, None] - b).abs().amax(-1)  # other labels: 1 or more
    return max(distances.amin(dim).max().item() for dim in (0, 1))


def profile(runner: Runner, device: str = 'cpu') -> dict[str, float]:
    """Seconds an image that each part takes, in one round of its own.

    ``rpn_head`` is with proposals and their NMS; data loading is the time waited for the workers.
    """
    loop = runner.test_loop
    taken: dict[str, float] = {LOADING: 0.0}
    with _timed(runner, taken, device):
        start = now(device)
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        batches = iter(loop.dataloader)
        for number in range(len(loop.dataloader)):
            before = now(device)
            batch = next(batches)
            taken[LOADING] += now(device) - before
            loop.run_iter(number, batch)
        whole = now(device) - start
    for metric in loop.evaluator.metrics:
        metric.results.clear()
    taken[REST] = whole - sum(taken.values())
    return {name: seconds / len(loop.dataloader.dataset) for name, seconds in taken.items()}


@contextmanager
def _timed(runner: Runner, taken: dict[str, float], device: str) -> Iterator[None]:
    """Within it, the parts add the seconds of their calls to ``taken``."""
    places: list[tuple[str, Any, str]] = []
    for name, (path, method) in PARTS.items():
        owner = runner.model
        for part in path.split('.'):
            owner = getattr(owner, part, None)
        if name != 'mask_head' or getattr(owner, 'with_mask', False):
            places.append((name, owner, method))
    places.append((EVALUATOR, runner.test_loop.evaluator, 'process'))
    for name, owner, method in places:
        taken[name] = 0.0
        setattr(owner, method, _timing(name, getattr(owner, method), taken, device))
    try:
        yield
    finally:
        for _, owner, method in places:
            delattr(owner, method)  # the class's shows again


def _timing(
    name: str, function: Callable[..., Any], taken: dict[str, float], device: str
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = now(device)
        try:
            return function(*args, **kwargs)
        finally:
            taken[name] += now(device) - start

    return call
