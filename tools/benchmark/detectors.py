"""Detectors on images: mmdet's way against ours, and ours with ``--fast`` (tasks of this name).

``detector`` is mmengine's test loop with the config's data loader and workers, ``test_step`` and
the evaluator's ``process``; the figures at the end and ``--fast``'s folding before are not timed.
``train_detector`` is a training step. mmdet's way is its own Res2Net, metric and transforms; if
mmcv has no operators, it trains on torchvision's kernels.

In the test loop all have the same random weights: batch norm has the statistics of the first image,
and the classifier is scaled so that ``CANDIDATES`` pairs of proposal and class pass the score
threshold on it. That leaves about as much to do after the network as a trained detector does.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn

from res2net_mm.engine.classes import prediction_meta
from res2net_mm.engine.config import load_config, our_backbones
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.evaluate import FastHook
from res2net_mm.engine.runner import build_runner, prepare_config
from res2net_mm.engine.sources import find_images
from res2net_mm.registry import SCOPE

from .contenders import KEPT, check_equal, randomise, require, torchvision_kernels, without_kept
from .measure import exactly, make_record, measure
from .networks import Step, add_shape, check_batches, group_name, parse_sizes

MMDET, OURS, FAST = 'mmdet', 'ours', 'ours fast'
LOOPS = (MMDET, MMDET + KEPT, OURS, FAST)
STEPS = (MMDET, MMDET + KEPT, f'{MMDET} channels_last', OURS)
CANDIDATES = 400
# Proposals that change places by rounding change what is sampled, and so losses and gradients
BOUND, BOUND_OF_LOSSES, BOUND_OF_GRADIENTS = 1e-3, 5e-3, 3e-2
COMPARED = 3  # images
GRADIENTS = (
    'rpn_head.rpn_conv.weight',
    'neck.fpn_convs.0.conv.weight',
    'neck.lateral_convs.1.conv.weight',
    'backbone.layer2.0.conv1.weight',
)
BOXES = 8  # in an image to train on


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of a task."""
    text = 'of a Faster or Mask R-CNN' if task == 'detector' else 'of a detector of boxes'
    parser.add_argument('--config', default='faster_rcnn_r2n50.py', help=text)
    if task == 'train_detector':
        add_shape(parser, ['480x640'], 1)
        return
    text = 'images, also in folders below it ($RES2NET_MM_DATA/coco_ccby)'
    parser.add_argument('--images', type=Path, metavar='FOLDER', help=text)
    parser.add_argument('--limit', type=int, metavar='N', help='take only the first images')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of a task; of the test loop in seconds an image."""
    return _run_steps(args) if args.task == 'train_detector' else _run_loops(args)


def _run_loops(args: argparse.Namespace) -> dict[str, Any]:
    images = _images(args.images, args.limit)
    with tempfile.TemporaryDirectory() as folder:
        given = args.config, images, Path(folder), args.device
        yardstick = build(MMDET, *given)
        apart = {name: compare(name, yardstick, build(name, *given)) for name in (OURS, FAST)}
        del yardstick
        keep = {name: name != MMDET for name in without_kept(LOOPS, args.device)}
        options = dict(settings=args, profiled=(MMDET, FAST), profiles=1, warmup=0)
        rows, profile = measure(keep, prepare_loop, *given, **options)
    for row in rows:
        row.update(
            times=[taken / len(images) for taken in row['times']],
            difference=apart.get(row['name'], 0.0),
        )
    speeds = [f'{row["name"]} {1 / statistics.median(row["times"]):.2f}' for row in rows]
    title = f'Test loop of {Path(args.config).name} over {len(images)} images, by the image'
    return make_record(args, title, rows, profile, [f'images a second: {", ".join(speeds)}'])


def _images(folder: Path | None, limit: int | None) -> list[Path]:
    if limit is not None and limit < 1:
        raise ToolError(f'--limit must be at least 1, but is {limit}')
    if folder is None:
        data = os.environ.get('RES2NET_MM_DATA')
        if not data:
            raise ToolError('--images is needed, as RES2NET_MM_DATA is not set')
        folder = Path(data, 'coco_ccby')
    return find_images(folder)[:limit]


def prepare_loop(
    name: str, config: str, images: list[Path], folder: Path, device: str
) -> Callable[[], None]:
    """One round of a contender's test loop up to the figures."""
    runner = build(name, config, images, folder, device)

    def loop() -> None:
        runner.call_hook('before_test')
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        for number, batch in enumerate(runner.test_loop.dataloader):
            runner.test_loop.run_iter(number, batch)
        for metric in runner.test_loop.evaluator.metrics:
            metric.results.clear()

    return loop


def build(name: str, config: str, images: list[Path], folder: Path, device: str) -> Runner:
    """A contender's Runner on images, with the weights in ``folder``; the first one makes them."""
    cfg = _load(config)
    _use_images(cfg, images, folder)
    cfg.log_level = 'ERROR'
    cfg.experiment_name = f'{folder.name}_{name}'
    cfg.visualizer.name = cfg.experiment_name  # one of an earlier run would write into its folder
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        if name in (MMDET, MMDET + KEPT):
            cfg.work_dir = str(folder)
            runner = _mmdets(cfg.model, lambda: Runner.from_cfg(cfg))
        else:
            runner = build_runner(prepare_config(cfg, work_dir=str(folder)))
        runner.test_loop  # noqa: B018  (is built on first access)
    runner.call_hook('before_run')
    weights = folder / 'weights.pth'
    if not weights.exists():
        torch.save(make_weights(runner, device), weights)
    runner.model.load_state_dict(torch.load(weights, weights_only=True))
    runner.model.to(device).eval()
    if name == FAST:
        FastHook({}).before_test_epoch(runner)
    return runner


def _load(config: str) -> Config:
    """A config of a detector on our Res2Net with mmdet's first block and no pretrained weights."""
    require('mmdet')
    cfg = load_config(config)
    backbone = cfg.model.get('backbone')
    if our_backbones(cfg) != [backbone] or backbone.type != f'{SCOPE}.Res2Net':
        raise ToolError('the config must have a Res2Net of this package as its only backbone')
    backbone.update(init_cfg=None, first_block='mmdet')
    return cfg


def _mmdets(model: dict[str, Any], build: Callable[[], Any]) -> Any:
    """What ``build`` makes with mmdet's own Res2Net in the config of the model."""
    model['backbone'].update(type='mmdet.Res2Net')
    model['backbone'].pop('first_block')
    try:
        return build()
    except TypeError as error:
        raise ToolError(f"mmdet's Res2Net cannot be built from the config: {error}") from error


def _use_images(cfg: Config, images: list[Path], folder: Path) -> None:
    """Makes the test set of a config one of images without objects."""
    dataset = cfg.test_dataloader.dataset
    if not dataset.type.endswith('CocoDataset'):
        raise ToolError(f'test_dataloader.dataset must be a CocoDataset, but is a {dataset.type}')
    records = []
    for number, path in enumerate(images, 1):
        with Image.open(path) as image:
            width, height = image.size
        records.append(dict(id=number, file_name=str(path.resolve()), width=width, height=height))
    names = prediction_meta(cfg, None)['classes']
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    file = folder / 'images.json'
    file.write_text(json.dumps(dict(images=records, annotations=[], categories=categories)))
    dataset.update(data_root='', ann_file=str(file), data_prefix=dict(img=''))
    cfg.test_evaluator = dict(
        type='mmdet.CocoMetric', ann_file=str(file), metric='bbox', backend_args=None
    )


def first_batches(runner: Runner) -> Iterator[dict[str, Any]]:
    """The batches of a test set, from this process."""
    loader = runner.test_dataloader
    for indices in loader.batch_sampler:
        yield loader.collate_fn([loader.dataset[i] for i in indices])


@torch.no_grad()
def make_weights(runner: Runner, device: str = 'cpu') -> dict[str, Tensor]:
    """Random weights for a detector, which is as sure as a trained one on its first image."""
    init_default_scope('mmdet')
    model = copy.deepcopy(runner.model).to(device).eval()
    head = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    layer = getattr(head, 'fc_cls', None)
    if not isinstance(layer, nn.Linear):
        raise ToolError('the model must be a Faster or Mask R-CNN: its roi_head.bbox_head.fc_cls')
    randomise(model)
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            gain = (0.2 if name.endswith('fc_reg') else 2) / module.in_features**0.5
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * gain)
        elif name.endswith('rpn_reg'):
            module.weight.mul_(0.2)
        elif isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    objectness: list[Tensor] = []
    proposing = model.rpn_head.rpn_cls
    hook = proposing.register_forward_hook(lambda module, x, output: objectness.append(output))
    found: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: found.append(output))
    batch = next(first_batches(runner))
    model.backbone(model.data_preprocessor(copy.deepcopy(batch))['inputs'])
    model.eval()
    model.rpn_head(model.extract_feat(model.data_preprocessor(copy.deepcopy(batch))['inputs']))
    hook.remove()
    # logits of deviation 2: larger ones would be scores of exactly 1, which have no order
    scale = 2 / torch.cat([level.flatten() for level in objectness]).std().clamp(min=1e-6)
    proposing.weight.mul_(scale)
    proposing.bias.mul_(scale)
    model.test_step(copy.deepcopy(batch))
    # logits of mean 0 and deviation 2
    scale = 2 / found[0].std(0).clamp(min=1e-6)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_((layer.bias - found[0].mean(0)) * scale)
    logits = ((found[0] - found[0].mean(0)) * scale).double()
    # A pair passes the score threshold while the background's logit is raised by less than `most`
    powers = logits[:, :-1].exp()
    limits = powers / model.test_cfg.rcnn.score_thr - powers.sum(1, keepdim=True)
    most = (limits.clamp(min=1e-30).log() - logits[:, -1:]).flatten().sort(descending=True).values
    layer.bias[-1] += most[CANDIDATES - 1 : CANDIDATES + 1].mean().clamp(-20, 20)
    return {name: value.cpu() for name, value in model.state_dict().items()}


@torch.no_grad()
def compare(name: str, yardstick: Runner, other: Runner) -> float:
    """The largest difference in what two detectors compute for the first images.

    Features, maps of the RPN and, from the yardstick's proposals, outputs of the heads are compared
    with their largest values. Which proposals there are is not compared: thousands are equally good
    but for rounding.
    """
    worst = 0.0
    with exactly():
        for batch in islice(first_batches(yardstick), COMPARED):
            expected, proposals = _outputs(yardstick.model, batch)
            found, _ = _outputs(other.model, batch, proposals)
            worst = max(worst, check_equal(name, found, MMDET, expected, BOUND))
    return worst


def _outputs(
    model: nn.Module, batch: Mapping[str, Any], proposals: list | None = None
) -> tuple[list[Tensor], list]:
    """Tensors for a batch, and the proposals that they are for."""
    data = model.data_preprocessor(copy.deepcopy(dict(batch)))
    samples = data['data_samples']
    levels = model.extract_feat(data['inputs'])
    scores, deltas = model.rpn_head(levels)
    if proposals is None:
        proposals = model.rpn_head.predict(levels, samples, rescale=False)
    heads = model.roi_head.forward(levels, copy.deepcopy(proposals), samples)
    return [*levels, *scores, *deltas, *heads], proposals


class DetectorStep(Step):
    """Losses, backward pass and a step of SGD; ``image`` is a batch as a data loader gives it."""

    rate = 1e-5
    operators: Callable[[], Any] = nullcontext  # a context for all that is computed

    def losses(self) -> dict[str, Tensor]:
        """Losses by name; ``loss`` is their sum."""
        torch.manual_seed(0)  # which proposals are sampled
        data = dict(self.image, data_samples=copy.deepcopy(self.image['data_samples']))
        found = self.net(**self.net.data_preprocessor(data, True), mode='loss')
        total, named = self.net.parse_losses(found)
        return {**named, 'loss': total}

    def forward(self) -> Tensor:
        """The sum of the losses."""
        return self.losses()['loss']

    def __call__(self) -> None:
        with self.operators():
            super().__call__()

    def results(self) -> tuple[list[Tensor], list[Tensor]]:
        """Losses, and gradients of some convolutions, without a step."""
        self.sgd.zero_grad()
        with self.operators():
            losses = self.losses()
            losses['loss'].backward()
        trained = {name: p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        gradients = [trained[name].clone() for name in GRADIENTS if name in trained]
        found = [loss.detach() for name, loss in losses.items() if name.startswith('loss')]
        return found, gradients  # without the accuracy, in which rounding makes steps


def prepare_step(
    name: str, config: str, size: tuple[int, int], batch: int, device: str
) -> DetectorStep:
    """A contender's training step, with the same weights and data at every call."""
    model = _load(config).model
    if 'mask_head' in (model.get('roi_head') or {}):
        raise ToolError('the config must be of a detector of boxes, without masks')
    init_default_scope('mmdet')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MODELS.build(model)
        logging.disable(logging.WARNING)  # a line for each weight
        net.init_weights()
        logging.disable(logging.NOTSET)
    randomise(net.backbone)
    if name != OURS:
        state = net.state_dict()
        net = _mmdets(model, lambda: MODELS.build(model))
        net.load_state_dict(state)
    channels_last = name.endswith('channels_last') or (name == OURS and device == 'cpu')
    demo = require('mmdet.testing').demo_mm_inputs
    data = demo(batch, (3, *size), num_items=[BOXES] * batch, num_classes=80)
    step = DetectorStep(net.to(device), data, channels_last)
    if name != OURS:
        step.operators = torchvision_kernels
    return step


def _run_steps(args: argparse.Namespace) -> dict[str, Any]:
    size = parse_sizes(args.size, several=False)[0]
    check_batches(args.batch)
    given = args.config, size, args.batch, args.device
    names = without_kept(STEPS, args.device)
    apart = {}
    with exactly():
        reference = prepare_step(OURS, *given).results()
        for name in names:
            losses, gradients = prepare_step(name, *given).results()
            apart[name] = check_equal(name, losses, OURS, reference[0], BOUND_OF_LOSSES)
            check_equal(name, gradients, OURS, reference[1], BOUND_OF_GRADIENTS)
    keep = {name: name == OURS or name.endswith(KEPT) for name in names}
    rows, profile = measure(keep, prepare_step, *given, settings=args, profiled=names)
    for row in rows:
        row['difference'] = apart[row['name']]
    title = f'Training step of {Path(args.config).name}, {group_name(size, args.batch)}'
    return make_record(args, title, rows, profile)
